"""What a click would give, shown under the mouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from napari_hrsam.errors import PromptError
from napari_hrsam.plugin.session import commands

if TYPE_CHECKING:
    from napari_hrsam.engine.prediction import Prediction
    from napari_hrsam.plugin.session.context import SessionContext


class Peeks:
    """Asks what a click under the mouse would give, and shows it.

    Parameters
    ----------
    context
        What the controller works on.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._is_asking = False
        self._next_place: tuple[float, ...] | None = None
        context.canvas.hovered.connect(self._on_hover)

    def clear(self) -> None:
        """Show nothing of the kind any more."""
        self._show(None)

    def failed(self) -> None:
        """Take note that what was asked has no answer."""
        self._is_asking = False

    def end(self) -> None:
        """Ask nothing more: the session ended."""
        self._is_asking, self._next_place = False, None

    def _on_hover(self, world: Sequence[float]) -> None:
        """Ask what a click under the mouse would give; one question at a time, the newest next."""
        context, overlay = self._context, self._context.overlay
        state = context.state
        if overlay is None or overlay.has_object or not state.peeks or context.canvas.tool:
            return
        if state.is_proposing or state.is_reviewing:
            return
        self._next_place = tuple(world)
        if self._is_asking or context.display_watch.is_pending:
            return
        world, self._next_place = self._next_place, None
        try:
            position = overlay.view.position(world)
        except PromptError:
            return
        if not overlay.view.holds(position.point_yx):
            self._show(None)
            return
        self._is_asking = True
        level = overlay.next_level(context.state.pinned_level)
        context.worker.send(commands.Peek(position.point_yx, level, position.plane), self._on_peek)

    def _on_peek(self, prediction: Prediction | None) -> None:
        self._is_asking = False
        if self._context.state.peeks:
            self._show(prediction)
        if self._next_place is not None:
            self._on_hover(self._next_place)

    def _show(self, prediction: Prediction | None) -> None:
        overlay = self._context.overlay
        if overlay is not None and not overlay.has_object:
            overlay.show_peek(prediction)
