"""Loading a model: what is asked for, and what does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

DEFAULT_MODEL = "hrsam-tiny"
MAX_LABEL = 32
AUTO_DEVICE = "auto"


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
