"""Another model for the running session, or for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_hrsam.errors import SessionError
from napari_hrsam.plugin.session import commands
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, ModelRequest, model_label
from napari_hrsam.plugin.session.state import Phase

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.context import SessionContext


class ModelActions:
    """Loads another model, and lets the running session go on with it.

    Parameters
    ----------
    context
        What the controller works on.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context

    def use(self, model: str, *, device: str = AUTO_DEVICE, download: bool = False) -> None:
        """Load a model in the background; a running session goes on with it.

        Committed objects stay and can still be undone. Until the model is loaded no prompts are
        taken; if it fails or is cancelled, the model before it is used on.

        Parameters
        ----------
        model
            A name of `napari_hrsam.list_models`, or a checkpoint's path.
        device
            "auto", "cpu" or "cuda".
        download
            Whether missing weights may be fetched from the internet.

        Raises
        ------
        SessionError
            If an object is being drawn, or a model is being loaded already.
        """
        if self._context.state.phase is Phase.LOADING:
            raise SessionError("a model is being loaded already; wait for it, or cancel it")
        if self._context.overlay is not None and self._context.overlay.has_object:
            raise SessionError(
                "expected no object being drawn; commit or cancel it before you change the model"
            )
        self._context.canvas.stop()
        if self._context.overlay is not None:
            self._context.canvas.listen()
        request = ModelRequest(model=model, device=device, download=download)
        self._context.show_message(f"Loading {request.label} ...", phase=Phase.LOADING)
        self._context.worker.send(commands.UseModel(request), self._on_model)

    def cancel(self) -> None:
        """Give up the loading of a model; the session goes on with the one it has."""
        # False: it is done already, and its answer comes at once.
        if self._context.worker.cancel_loading():
            is_partial = self._context.state.progress is not None
            kept = " What has come is kept for next time." if is_partial else ""
            self.go_on(f"Loading was cancelled.{kept}")

    def go_on(self, message: str, tile_px: int | None = None) -> None:
        """Leave the loading, with the session there is and perhaps a model with other tiles."""
        overlay, phase = self._context.overlay, Phase.STOPPED
        if overlay is not None:
            overlay.tile_px = overlay.tile_px if tile_px is None else tile_px
            self._context.canvas.start(overlay.all)
            phase = Phase.READY
            self._context.update(levels=overlay.levels)
        message = f"{message} {self._context.hint}".strip()
        self._context.show_message(message, progress=None, phase=phase)
        self._context.show_level()

    def _on_model(self, opened: commands.Opened) -> None:
        self._context.state.update(
            model=opened.model,
            device=opened.device,
            can_undo=opened.can_undo,
            can_redo=opened.can_redo,
            encode_ms=None,
            decode_ms=None,
        )
        self.go_on(f"{model_label(opened.model)} is loaded.", opened.tile_px)
