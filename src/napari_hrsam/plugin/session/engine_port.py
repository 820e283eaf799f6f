"""A state board with an inference thread behind it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar

from psygnal import Signal

from napari_hrsam.errors import HRSAMError, SessionError
from napari_hrsam.plugin.session.inference import find_devices
from napari_hrsam.plugin.session.state import StateBoard
from napari_hrsam.plugin.session.thread import EngineThread


class EnginePort(StateBoard):
    """What panels and scripts need of the inference thread.

    Parameters
    ----------
    engine
        The thread.

    Attributes
    ----------
    devices_found
        Emitted with a tuple of device names after `find_devices`.
    """

    devices_found: ClassVar[Signal] = Signal(tuple)

    def __init__(self, engine: EngineThread) -> None:
        super().__init__()
        self._engine = engine

    def find_devices(self) -> None:
        """Look in the background for devices; `devices_found` tells them."""

        def receive(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                self.devices_found.emit(future.result())
            else:
                self.report(error)

        # Whoever closes the window meanwhile does not wait for torch.
        engine = self._engine
        engine.submit(lambda: () if engine.is_closed else find_devices(), receive)
        self.update(is_busy=True)

    def set_notify(self, notify: Callable[[], None] | None) -> None:
        """Set what is called, on the inference thread, when `deliver` has something to do."""
        self._engine.set_notify(notify)

    def deliver(self) -> None:
        """Show finished work; called on the viewer's thread."""
        self._engine.deliver()
        self._delivered()
        self.update(is_busy=self._engine.num_pending > 0)

    def wait(self, timeout_s: float = 60.0) -> None:
        """Have all requests answered; for scripts and tests.

        Raises
        ------
        SessionError
            If it takes longer than `timeout_s` seconds.
        HRSAMError or any other error
            The first one reported since the last call.
        """
        is_answered = self._engine.wait(timeout_s)
        self._delivered()
        self.update(is_busy=self._engine.num_pending > 0)
        if not is_answered:
            raise SessionError(
                f"expected all requests answered within {timeout_s:g} s, but the inference thread "
                "is still busy; wait longer, or cancel"
            )
        self.raise_reported()

    def _delivered(self) -> None:
        """Do once what several answers together ask for."""

    def guard(self, action: Callable[..., None], *arguments: Any) -> None:
        """Run an action of the user; an expected error is reported instead of raised."""
        try:
            action(*arguments)
        except HRSAMError as error:
            self.report(error)
