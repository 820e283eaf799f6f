"""Find, verify, load and save weights.

Loading is safe: safetensors, or ``torch.load(weights_only=True)``; a pickle that asks for more
than tensors is refused and never run.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from napari_hrsam.errors import CheckpointError, ConfigError, WeightsNotFoundError
from napari_hrsam.modeling.attention import ATTENTION_BACKENDS, AttentionBackend
from napari_hrsam.modeling.configs import MODELS, ModelConfig
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.selective_scan import SCAN_BACKENDS, ScanBackend

WEIGHTS_VARIABLE = "NAPARI_HRSAM_WEIGHTS"
"""Environment variable with a folder that is searched before the shipped weights."""

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What is known about a named model.

    Attributes
    ----------
    name, description : str
    num_parameters : int
    licence : str
        SPDX identifier of the weights.
    weights : str
        Path of the weights found, empty if there are none on this machine.
    trained_on : str
        From the weight file; empty if there is none.
    """

    name: str
    description: str
    num_parameters: int
    licence: str
    weights: str
    trained_on: str


def list_models() -> list[ModelInfo]:
    """List the models by name, with size, licence, and where their weights are."""
    infos = []
    for config in MODELS.values():
        path = find_weights(config)
        with torch.device("meta"):
            num = sum(p.numel() for p in Segmenter(config).parameters())
        infos.append(
            ModelInfo(
                name=config.name,
                description=config.description,
                num_parameters=num,
                licence=config.licence,
                weights=str(path) if path else "",
                trained_on=_metadata(path).get("trained_on", "") if path else "",
            )
        )
    return infos


def load_model(
    model: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    attention: AttentionBackend = "auto",
    scan: ScanBackend = "auto",
) -> Segmenter:
    """Load a model for use.

    Parameters
    ----------
    model : str or Path
        Name from `list_models`, or a weight file of this project (.safetensors).
    device : str
        "auto" (CUDA, then Apple's MPS, then CPU) or a torch device.
    precision : {"auto", "float32", "bfloat16"}
        Arithmetic of the encoder. "auto" is bfloat16 on CUDA where it is native, else float32.
    attention : {"auto", "xformers", "sdpa", "reference"}
    scan : {"auto", "mamba", "torch", "numba", "reference"}

    Returns
    -------
    Segmenter
        In eval mode, without gradients.

    Raises
    ------
    WeightsNotFoundError
        If there is no such file, or no weights for this name on this machine.
    CheckpointError
        If the file is truncated, corrupt, unsafe or of another model.
    ConfigError
        If an option is unknown or the device is not there.
    """
    if attention not in ATTENTION_BACKENDS:
        raise ConfigError(
            f"attention must be one of {', '.join(ATTENTION_BACKENDS)}, got {attention!r}"
        )
    if scan not in SCAN_BACKENDS:
        raise ConfigError(f"scan must be one of {', '.join(SCAN_BACKENDS)}, got {scan!r}")
    config, path = _resolve(model)
    chosen = choose_device(device)
    segmenter = Segmenter(config)
    load_weights(segmenter, path)
    segmenter.image_encoder.attention_backend = attention
    segmenter.image_encoder.scan_backend = scan
    segmenter.precision = choose_precision(precision, chosen)
    return segmenter.to(chosen).eval().requires_grad_(False)


def choose_device(device: str) -> torch.device:
    """Turn "auto" or a torch device name into a device that is there.

    Raises
    ------
    ConfigError
        If the name is unknown or the device is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"device must be 'auto', 'cpu', 'cuda' or 'mps', got {device!r}"
        ) from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(chosen.type, False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ConfigError(f"device {device!r} is not available here; available: {there}")
    return chosen


def choose_precision(precision: Precision, device: torch.device) -> str:
    """Turn "auto" into "float32" or "bfloat16" for a device.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if precision == "auto":
        is_native = device.type == "cuda" and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        return "bfloat16" if is_native else "float32"
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
    return precision


def find_weights(config: ModelConfig) -> Path | None:
    """Find the weights of a named model: environment variable, then the shipped folder.

    Returns
    -------
    Path or None
    """
    if not config.weights:
        return None
    for folder in _weight_folders():
        path = folder / config.weights
        if path.is_file():
            return path
    return None


def _weight_folders() -> list[Path]:
    folders = []
    if os.environ.get(WEIGHTS_VARIABLE):
        folders.append(Path(os.environ[WEIGHTS_VARIABLE]))
    package = Path(str(importlib.resources.files("napari_hrsam")))
    # In a wheel the weights lie inside the package, in a checkout beside src/.
    return [*folders, package / "weights", package.parent.parent / "weights"]


def _resolve(model: str | Path) -> tuple[ModelConfig, Path]:
    if isinstance(model, str) and model in MODELS:
        config = MODELS[model]
        found = find_weights(config)
        if found is None:
            raise WeightsNotFoundError(
                f"there are no weights for {model!r} on this machine; give load_model the path "
                f"of a weight file, or put {config.weights or 'one'} into the folder named by "
                f"{WEIGHTS_VARIABLE}"
            )
        return config, found
    path = Path(model)
    if not path.is_file():
        raise WeightsNotFoundError(
            f"{str(model)!r} is neither a model name ({', '.join(MODELS)}) nor a weight file"
        )
    name = _metadata(path).get("model", "")
    if name not in MODELS:
        raise CheckpointError(
            f"{path} does not say which of {', '.join(MODELS)} it belongs to (found {name!r}); "
            "expected a .safetensors file written by napari-hrsam"
        )
    return MODELS[name], path


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        with path.open("rb") as stream:
            start = stream.read(4)
        if start[:1] == b"\x80" or start == b"PK\x03\x04":  # pickle, or torch's zip of pickles
            raise CheckpointError(
                f"{path} is a pickled checkpoint, not a safetensors file; pickles are not opened"
            ) from error
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated or "
            "corrupt, fetch it again"
        ) from error


def _metadata(path: Path) -> dict[str, str]:
    with _open(path) as tensors:
        return dict(tensors.metadata() or {})


def load_weights(model: Segmenter, path: Path) -> None:
    """Load a weight file of this project into a model, strictly.

    Parameters
    ----------
    model : Segmenter
        Changed only if every tensor fits.
    path : Path
        .safetensors file; fp16 values are converted.

    Raises
    ------
    WeightsNotFoundError
        If the file is not there.
    CheckpointError
        If it is unreadable, or keys or shapes differ, or values are not finite.
    """
    if not path.is_file():
        raise WeightsNotFoundError(f"weight file {path} does not exist; check the path")
    with _open(path) as tensors:
        loaded: dict[str, Tensor] = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    check_state(loaded, model.state_dict(), str(path), model.config.name)
    model.load_state_dict({key: value.float() for key, value in loaded.items()})


def check_state(
    loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, name: str
) -> None:
    """Compare keys, shapes and finiteness before anything is changed.

    Raises
    ------
    CheckpointError
        Naming the first tensors that do not fit.
    """
    missing, extra = (
        sorted(expected.keys() - loaded.keys()),
        sorted(loaded.keys() - expected.keys()),
    )
    if missing or extra:
        raise CheckpointError(
            f"{source} is not a checkpoint of {name!r}: {len(missing)} tensors are missing "
            f"{missing[:3]} and {len(extra)} are unknown {extra[:3]}; choose its own model"
        )
    for key, value in loaded.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{source}: tensor {key} has shape {tuple(value.shape)}, {name!r} expects "
                f"{tuple(expected[key].shape)}"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{source}: tensor {key} holds NaN or infinite values; fetch the file again"
            )


def save_weights(
    model: Segmenter, path: Path, *, trained_on: str = "", dtype: torch.dtype = torch.float16
) -> None:
    """Write a model's weights as safetensors, atomically.

    Parameters
    ----------
    model : Segmenter
    path : Path
    trained_on : str
        One line for `list_models`.
    dtype : torch.dtype
        Of the stored values; buffers of the position codes stay float32.
    """
    tensors = {
        key: value.detach().cpu().contiguous().to(torch.float32 if _is_code(key) else dtype)
        for key, value in model.state_dict().items()
    }
    metadata = {"format": "pt", "model": model.config.name, "trained_on": trained_on}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)


def _is_code(key: str) -> bool:
    """Position codes lose whole pixels in half precision."""
    return key.endswith(("gaussian_matrix", "rope.freqs"))


def save_training_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a training checkpoint, atomically."""
    partial = path.with_name(path.name + ".partial")
    torch.save(dict(state), partial)
    partial.replace(path)


def load_training_state(path: Path) -> dict[str, Any]:
    """Read a training checkpoint (tensors, numbers and text only).

    Raises
    ------
    CheckpointError
        If it is missing, unreadable, or holds anything but tensors, numbers and text.
    """
    if not path.is_file():
        raise CheckpointError(f"there is nothing to resume: {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable training checkpoint ({error}); start the run again"
        ) from error
    expected = {"config", "model", "averaged", "optimizer", "counts"}
    if not isinstance(state, dict) or set(state) != expected:
        raise CheckpointError(
            f"{path} is not a training checkpoint of this project; expected the entries "
            f"{', '.join(sorted(expected))}"
        )
    json.loads(state["config"])
    return dict(state)
