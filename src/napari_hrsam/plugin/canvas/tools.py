"""Mouse and keys of a running session: taken while it can use them, given back otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from napari_hrsam.plugin.canvas.keys import Action, KeyBindings
from napari_hrsam.plugin.canvas.mouse import ClickTool

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Layer


class CanvasTools:
    """Switch the click tool and the keys on and off together.

    They are on while a session is started, the tools are not paused (the panel is visible) and the
    view is 2-D.

    Parameters
    ----------
    viewer
        The viewer whose mouse and keys are used.
    tool
        Listens to the mouse.
    actions
        Key to action.
    changed
        Called when the view turned 2-D or 3-D.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        tool: ClickTool,
        actions: Mapping[str, Action],
        changed: Callable[[], None],
    ) -> None:
        self._viewer = viewer
        self._tool = tool
        self._keys = KeyBindings(actions)
        self._changed = changed
        self._layers: list[Layer] = []
        self._is_paused = False
        self._is_on = False
        viewer.dims.events.ndisplay.connect(self._on_ndisplay)

    @property
    def is_paused(self) -> bool:
        """Whether mouse and keys were given back for a while."""
        return self._is_paused

    @property
    def is_on(self) -> bool:
        """Whether mouse and keys are ours now."""
        return self._is_on

    @property
    def is_3d(self) -> bool:
        """Whether the view is 3-D, where a click has no unique place."""
        return bool(self._viewer.dims.ndisplay == 3)

    def start(self, layers: Sequence[Layer]) -> None:
        """Begin; keys work whichever of these layers is active."""
        self.stop()
        self._layers = list(layers)
        self._update()

    def listen(self) -> None:
        """Take clicks already, to say that nothing is ready yet."""
        if not self._is_paused and not self.is_3d:
            self._tool.start()

    def stop(self) -> None:
        """End, and give mouse and keys back."""
        self._layers = []
        self._update()

    def set_paused(self, is_paused: bool) -> None:
        """Give mouse and keys back for a while, or take them again."""
        self._is_paused = is_paused
        self._update()

    def close(self) -> None:
        """Stop, and let go of the viewer."""
        self.stop()
        self._viewer.dims.events.ndisplay.disconnect(self._on_ndisplay)

    def _on_ndisplay(self) -> None:
        self._update()
        self._changed()

    def _update(self) -> None:
        is_on = bool(self._layers) and not self._is_paused and not self.is_3d
        if not is_on:
            self._tool.stop()
        if is_on == self._is_on:
            return
        self._is_on = is_on
        if is_on:
            self._tool.start()
            for owner in (self._viewer, *self._layers):
                self._keys.bind(owner)
        else:
            self._keys.unbind()
