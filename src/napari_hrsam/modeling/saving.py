"""Write the weights of a model, whole or its focus refiner alone, as safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.layouts import part_of
from napari_hrsam.modeling.models import ModelConfig
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.weight_files import save_tensors


def save_weights(
    model: Segmenter,
    path: Path,
    *,
    trained_on: str = "",
    dtype: torch.dtype = torch.float16,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a model's weights as safetensors, atomically.

    Parameters
    ----------
    model : Segmenter
    path : Path
    trained_on : str
        One line for `list_models`.
    dtype : torch.dtype
        Of the stored values; position codes and BatchNorm statistics stay as they are.
    about : mapping of str to str, optional
        More metadata.
    """
    save_tensors(
        stored_state(model.state_dict(), dtype),
        path,
        {**config_metadata(model.config), "trained_on": trained_on, **(about or {})},
    )


def save_refiner(
    model: Segmenter, path: Path, *, trained_on: str = "", dtype: torch.dtype = torch.float16
) -> None:
    """Write the focus refiner of a model alone, with the fingerprint of what it was trained on.

    Parameters
    ----------
    model : Segmenter
        With a refiner; the rest must be as it was in training.
    path, trained_on, dtype
        As in `save_weights`.

    Raises
    ------
    ConfigError
        If the model has no refiner.
    """
    if model.focus_refiner is None:
        raise ConfigError(f"{model.name!r} has no focus refiner to save; use a +focus model")
    about = {"part": "focus_refiner", "base": base_fingerprint(model), "trained_on": trained_on}
    state = part_of(model.state_dict(), ["focus_refiner"])
    save_tensors(stored_state(state, dtype), path, {**config_metadata(model.config), **about})


def base_fingerprint(model: Segmenter) -> str:
    """SHA-256 (16 hex digits) of all weights but the refiner's, which sees what these make."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith("focus_refiner."):
            digest.update(name.encode())
            # Adding zero makes -0 to +0, as an averaged model of the same values has it.
            digest.update((value.detach().float() + 0.0).cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def stored_state(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert values to the dtype of a file, but for what does not bear it."""
    return {
        key: value.detach().cpu() if _is_exact(key, value) else value.detach().cpu().to(dtype)
        for key, value in state.items()
    }


def config_metadata(config: ModelConfig) -> dict[str, str]:
    """Say what `load_model` needs to rebuild the configuration from a safetensors file."""
    return {
        "format": "pt",
        "model": config.name,
        "channel_order": config.channel_order,
        "tile_px": str(config.tile_px),
    }


def _is_exact(key: str, value: Tensor) -> bool:
    """Position codes lose whole pixels in half precision, and statistics their range."""
    return not value.is_floating_point() or key.endswith(
        ("gaussian_matrix", "rope.freqs", "running_mean", "running_var")
    )
