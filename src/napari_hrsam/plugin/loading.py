"""Loading a model: what is asked for, how it goes, and how it is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

TELL_EVERY_S = 0.1
MAX_LABEL = 32
AUTO_DEVICE = "auto"


class LoadingCancelled(Exception):  # noqa: N818 -- it is no error: the user asked for it
    """Ends a download that was given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRequest:
    """A model to load.

    Attributes
    ----------
    model
        A name of `napari_hrsam.list_models`, or a checkpoint's path.
    device
        "auto", "cpu" or "cuda".
    download
        Whether missing weights may be fetched from the internet.
    """

    model: str
    device: str = AUTO_DEVICE
    download: bool = False

    @property
    def label(self) -> str:
        """What to call the model in a message."""
        return model_label(self.model)

    @property
    def key(self) -> tuple[str, str, float]:
        """The same for two requests that give the same model; a file counts with its time."""
        path = Path(self.model)
        return self.model, self.device, path.stat().st_mtime if path.is_file() else 0.0


class ModelLoader(Protocol):
    """Makes a model; runs on the inference thread."""

    def __call__(
        self, name: str, device: str, /, *, download: bool, progress: Callable[[int, int], None]
    ) -> Any:
        """Load by name or path; `progress` gets the bytes fetched and the bytes in all."""


class Loading:
    """One loading under way; it is its own progress function.

    Parameters
    ----------
    tell
        Called on the inference thread with the bytes fetched and the bytes in all, a few times a
        second.
    """

    def __init__(self, tell: Callable[[int, int], None] | None = None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._is_finished = False
        self._told_at = -TELL_EVERY_S

    @property
    def is_cancelled(self) -> bool:
        """Whether it was given up."""
        return self._is_cancelled

    def cancel(self) -> bool:
        """Give up; a download ends with its next block. False if the model is there already."""
        with self._lock:
            self._is_cancelled = not self._is_finished
            return self._is_cancelled

    def finish(self) -> bool:
        """Take the model into use; False if it was given up, and it is not to be used."""
        with self._lock:
            self._is_finished = not self._is_cancelled
            return self._is_finished

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Pass progress on.

        Raises
        ------
        LoadingCancelled
            If the loading was given up.
        """
        if self.is_cancelled:
            raise LoadingCancelled
        now = time.monotonic()
        is_due = now - self._told_at >= TELL_EVERY_S or done_bytes >= total_bytes
        if self._tell is not None and is_due:
            self._told_at = now
            self._tell(done_bytes, total_bytes)


def model_label(model: str) -> str:
    """Return what to call a model: its name, or its file's name, long ones cut in the middle."""
    label = Path(model).name
    half = MAX_LABEL // 2
    return label if len(label) <= MAX_LABEL else f"{label[:half]}...{label[-half:]}"


def load_named_model(
    name: str, device: str, /, *, download: bool, progress: Callable[[int, int], None]
) -> Any:
    """Load a model of `napari_hrsam.list_models`, or a checkpoint; imports torch."""
    from napari_hrsam.modeling.checkpoints import load_model

    return load_model(name, device=device, download=download, progress=progress)
