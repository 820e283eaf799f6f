"""An engine port whose model can be changed while it works."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from napari_hrsam.errors import SessionError
from napari_hrsam.plugin.session.engine_port import EnginePort
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, ModelRequest, model_label
from napari_hrsam.plugin.session.state import STILL_LOADING, Phase, describe_progress

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.inference import Opened
    from napari_hrsam.plugin.session.worker import SessionLink


class ModelPort(EnginePort):
    """Loads models, with or without a session; the one before is used until the next is there.

    Parameters
    ----------
    link
        The viewer's end of the session.
    """

    def __init__(self, link: SessionLink) -> None:
        super().__init__(link.engine)
        self._link = link

    def use_model(self, model: str, *, device: str = AUTO_DEVICE, download: bool = False) -> None:
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
        if self.state.phase is Phase.LOADING:
            raise SessionError("a model is being loaded already; wait for it, or cancel it")
        self._hold()
        request = ModelRequest(model=model, device=device, download=download)
        self.update(phase=Phase.LOADING, message=f"Loading {request.label} ...", is_error=False)
        self._link.use_model(request)

    def model_ready(self, opened: Opened) -> None:
        """Go on with another model."""
        self.update(
            model=opened.model,
            device=opened.device,
            can_undo=opened.can_undo,
            can_redo=opened.can_redo,
            encode_ms=None,
            decode_ms=None,
        )
        self._go_on(f"{model_label(opened.model)} is loaded.", opened.tile_px)

    def model_failed(self, error: BaseException) -> None:
        """Go on with the model before, and show why."""
        self._go_on("")
        self.report(error)

    def progressed(self, done_bytes: int, total_bytes: int) -> None:
        """Show how far a download is."""
        is_done = done_bytes >= total_bytes
        self.update(progress=None if is_done else (done_bytes, total_bytes))
        # Whoever clicked meanwhile has to read that it did not count.
        if self.state.message != STILL_LOADING:
            self.update(message=describe_progress(done_bytes, total_bytes))

    def _cancel_loading(self) -> None:
        # False: it is done already, and its answer comes at once.
        if self._link.cancel_loading():
            is_partial = self.state.progress is not None
            kept = " What has come is kept for next time." if is_partial else ""
            self._go_on(f"Loading was cancelled.{kept}")

    @abstractmethod
    def _hold(self) -> None:
        """Take no prompts for a while; `SessionError` if it cannot be now."""

    @abstractmethod
    def _go_on(self, message: str, tile_px: int | None = None) -> None:
        """Leave the loading, with the session there is and perhaps a model with other tiles."""
