"""What the controller and its parts share: canvas, worker, state, overlay and what ties them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from napari_hrsam.errors import HRSAMError, PromptError, SessionError
from napari_hrsam.plugin.canvas.display_watch import DisplayWatch
from napari_hrsam.plugin.session import commands, messages
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.plugin.session.state import Phase

if TYPE_CHECKING:
    import napari.components

    from napari_hrsam.plugin.canvas.canvas import Canvas
    from napari_hrsam.plugin.overlay.overlay import Overlay
    from napari_hrsam.plugin.session.setup import Setup
    from napari_hrsam.plugin.session.state import ControllerState
    from napari_hrsam.plugin.session.worker import Worker


class SessionContext:
    """What the controller and its parts work on, and what they all do with it.

    Parameters
    ----------
    viewer, state, worker, canvas
        As in `SegmentController`.

    Attributes
    ----------
    viewer, state, worker, canvas
        As given.
    overlay
        The layers of the running session, or None.
    setup
        What the session begins or began with, or None while there is none.
    display_watch
        Notices when the image is shown otherwise.
    described_label
        The committed object that the last click of the mouse named instead of drawing; else 0.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        state: ControllerState,
        worker: Worker,
        canvas: Canvas,
    ) -> None:
        self.viewer, self.state, self.worker, self.canvas = viewer, state, worker, canvas
        self.overlay: Overlay | None = None
        self.setup: Setup | None = None
        self.display_watch = DisplayWatch(viewer, self._on_display, self._on_display_quiet)
        self.described_label = 0
        canvas.changed.connect(self._on_canvas)

    def ready(self) -> Overlay:
        """Return the layers of the running session.

        Raises
        ------
        SessionError
            If there is none that is ready.
        """
        if self.overlay is None:
            raise SessionError(
                f"expected a started session, but it is {self.state.phase}; press Start and wait "
                "for the model"
            )
        return self.overlay

    def require_no_proposals(self) -> None:
        """Check that no objects are being looked for, and no proposals are reviewed.

        Raises
        ------
        SessionError
            If they are.
        """
        keys = self.state.keys
        if self.state.is_proposing:
            raise SessionError(f"objects are being looked for: wait, or {keys.text('cancel')}")
        if self.state.is_reviewing:
            raise SessionError(
                keys.spell(
                    "proposals are being reviewed: {commit} finishes that, {cancel} leaves it"
                )
            )

    def ready_for_prompt(self) -> tuple[Overlay, tuple[int, ...]]:
        """Return what a prompt is shown on, and its plane: the image as it is on screen now."""
        overlay = self.ready()
        self.require_no_proposals()
        if self.display_watch.is_pending:
            self.follow_display()
        return overlay, overlay.plane_for_prompt(self.state.keys)

    def begin_anew(self) -> None:
        """Go back to clicks that add."""
        self.canvas.take_mouse()
        self.described_label = 0
        self.update(is_subtracting=False, covered_by="")

    def update(self, **changes: Any) -> None:
        """Change the state, and what follows from the layers and the worker."""
        overlay = self.overlay
        elsewhere = "" if overlay is None else overlay.elsewhere
        self.state.update(
            num_prompts=0 if overlay is None else len(overlay.prompts),
            has_object=overlay is not None and overlay.has_object,
            is_editing=overlay is not None and overlay.label > 0,
            is_busy=self.worker.is_busy,
            elsewhere=elsewhere and messages.describe_elsewhere(elsewhere, self.state.keys),
            **changes,
        )

    def show_message(self, message: str, *, is_error: bool = False, **changes: Any) -> None:
        """Show what to do next, what was done or what went wrong; otherwise as `update`."""
        self.update(message=message, is_error=is_error, **changes)

    @property
    def hint(self) -> str:
        """What to do next."""
        if self.overlay is None:
            return messages.HINT_START
        return messages.HINT_3D if self.canvas.is_3d else messages.HINT_CLICK

    def is_loading(self) -> bool:
        """Whether a model is being loaded; then the panel says that the mouse does nothing yet."""
        is_loading = self.state.phase is Phase.LOADING
        if is_loading:
            self.show_message(messages.STILL_LOADING)
        return is_loading

    def show_level(self) -> None:
        """Show the level of the current object, else that of the next, and look ahead there."""
        if self.overlay is not None:
            self.update(level=self.overlay.level(self.state.pinned_level))
            self.look_ahead()

    def look_ahead(self) -> None:
        """Have the tiles of the view encoded in spare time."""
        overlay, level = self.overlay, self.state.level
        if overlay is None or level is None or not self.state.reads_ahead or self.canvas.is_3d:
            return
        # While proposals are reviewed, nobody clicks, and the order is to be renewed at once.
        if self.display_watch.is_pending or self.state.is_proposing or self.state.is_reviewing:
            return
        try:
            plane = overlay.view.plane()
        except PromptError:
            self.worker.read_ahead(None)
            return
        self.worker.read_ahead(commands.ReadAhead(overlay.view.box0(), level, plane))

    def show_tool(self) -> None:
        """Show which of napari's tools has the mouse, if one has."""
        if self.overlay is not None:
            self.overlay.watch_brush()
        tool = self.canvas.tool
        keys = self.state.keys
        back = f"{tool}; {keys.text('cancel')} or {keys.text('commit')} goes back to clicking."
        self.update(tool=back if tool and self.overlay is not None else "")

    def _on_canvas(self, what: str) -> None:
        overlay = self.overlay
        match what:
            case "zoom" if overlay is not None:
                overlay.rescale()
                self.show_level()
            case "center":
                self.look_ahead()
            case "point":
                self.show_tool()
                self.look_ahead()
            case "ndisplay" if overlay is not None:
                self.show_message(self.hint)
            case "tool":
                self.show_tool()

    def _on_display(self) -> None:
        """Encode nothing ahead that is shown otherwise now."""
        self.worker.read_ahead(None)

    def _on_display_quiet(self) -> None:
        # It comes on a thread of its own.
        self.worker.call(self._settle_display)

    def _settle_display(self) -> None:
        if self.display_watch.is_quiet:
            self.follow_display()

    def follow_display(self) -> None:
        """Let the model see the image as it is shown now, if that has changed."""
        self.display_watch.settle()
        overlay, setup = self.overlay, self.setup
        if overlay is None or setup is None:
            return
        image = setup.image
        try:
            now = read_image_layers(image.layer, image.channels, self.viewer.layers)
        except HRSAMError as error:
            self.show_message(f"The model sees the image as before: {error}.", is_error=True)
            return
        self.setup = replace(setup, image=now)
        overlay.show_image(now)
        if now.image.is_same_picture(image.image):
            self.look_ahead()
            return
        if overlay.has_object:
            self.show_message(messages.LOOKING_AGAIN)
        self.worker.send(commands.Show(now.image))
