"""Weight files on disk: open them safely, check them, write them atomically.

Reading is safetensors, or ``torch.load(weights_only=True)``; a pickle that asks for more than
tensors is refused and never run.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import safe_globals

from napari_hrsam.atomic_path import atomic_path
from napari_hrsam.errors import CheckpointError, WeightsNotFoundError

_ZIP_START = b"PK\x03\x04"
_PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))

_WRAPPERS = ("state_dict", "model")
"""Entries under which training code puts the tensors."""

_BOOKKEEPING = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
)
"""What training code keeps beside the tensors (its log). These names are read as `_Inert`."""

# Damaged files fail in many ways inside torch's unpickler.
_UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


class _Inert:
    """Stands for an object of a training log: made of anything, holds nothing, does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Forget the state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """An open weight file.

    Attributes
    ----------
    path : Path
    kind : {"safetensors", "torch"}
    metadata : mapping of str to str
        Of a safetensors file; empty for torch's.
    tensors : mapping of str to Tensor
        By the names in the file, without wrapper and ``module.`` prefix; mapped from the file
        where the format allows it.
    """

    path: Path
    kind: Literal["safetensors", "torch"]
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes."""
        return {key: tuple(value.shape) for key, value in self.tensors.items()}


def open_weight_file(path: Path) -> WeightFile:
    """Open a .safetensors, .pt or .pth file; the content decides, not the ending.

    Raises
    ------
    WeightsNotFoundError
        If the file is not there.
    CheckpointError
        If it is unreadable, a pickle of more than tensors, or holds no tensors.
    """
    if not path.is_file():
        raise WeightsNotFoundError(f"weight file {path} does not exist; check the path")
    kind = _kind_of(path)
    if kind != "safetensors":
        loaded = _load_tensors_only(path, is_zip=kind == "zip")
        tensors = _unwrap(loaded, path)
        return WeightFile(path=path, kind="torch", metadata={}, tensors=tensors)
    with _open_safetensors(path) as stored:
        metadata = dict(stored.metadata() or {})
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    return WeightFile(path=path, kind="safetensors", metadata=metadata, tensors=tensors)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; empty for torch's formats, which have none.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    if _kind_of(path) != "safetensors":
        return {}
    with _open_safetensors(path) as stored:
        return dict(stored.metadata() or {})


def _kind_of(path: Path) -> Literal["safetensors", "zip", "pickle"]:
    with path.open("rb") as stream:
        start = stream.read(9)
    # A safetensors file starts with the length of its JSON header, whose lowest byte may be that
    # of a pickle: the header is looked for first.
    length = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and length <= path.stat().st_size - 8:
        return "safetensors"
    if start.startswith(_ZIP_START):
        return "zip"
    return "pickle" if start.startswith(_PICKLE_STARTS) else "safetensors"


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated or "
            "corrupt, fetch it again"
        ) from error


def _load_tensors_only(path: Path, *, is_zip: bool) -> object:
    """Load tensors, numbers and text; training logs beside them become `_Inert`."""
    try:
        return _torch_load(path, is_zip=is_zip)
    except pickle.UnpicklingError:
        pass  # perhaps only the log of mmengine: tried again below, as strictly
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    try:
        with safe_globals([(_Inert, name) for name in _BOOKKEEPING]):
            return _torch_load(path, is_zip=is_zip)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "its content is not plain tensors"
        raise CheckpointError(
            f"{path} is a pickled checkpoint of more than tensors ({what}); expected tensors, "
            "numbers and text. Opening it could run foreign code, so it is not opened. Ask its "
            "author for safetensors, or, where you trust it, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _torch_load(path: Path, *, is_zip: bool) -> object:
    with warnings.catch_warnings():
        # What torch thinks of other pickle protocols than its own; it refuses or it does not.
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        if is_zip and path.suffix.lower() != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        # From a stream: by its ending alone torch would take the file for safetensors.
        with path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(
        f"{path} is not a readable torch checkpoint ({reason}); it may be truncated or corrupt, "
        "fetch it again"
    )


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """Find the tensors in what was saved, and strip the prefix of parallel training."""
    found = loaded
    for wrapper in _WRAPPERS:
        inner = loaded.get(wrapper) if isinstance(loaded, Mapping) else None
        if isinstance(inner, Mapping) and any(isinstance(x, Tensor) for x in inner.values()):
            found = inner
            break
    if not isinstance(found, Mapping) or not any(isinstance(x, Tensor) for x in found.values()):
        raise CheckpointError(
            f"{path} holds no tensors by name; expected a state dict, plain or under one of "
            f"{', '.join(_WRAPPERS)}, got a {type(loaded).__name__}"
        )
    for key, value in found.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(
                f"{path}: entry {key!r} is no plain tensor; expected a state dict of tensors only"
            )
    prefix = "module." if all(str(key).startswith("module.") for key in found) else ""
    return {str(key).removeprefix(prefix): value.detach() for key, value in found.items()}


def check_state(
    loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, name: str
) -> None:
    """Compare keys, shapes, kinds of numbers and finiteness before anything is changed.

    Parameters
    ----------
    loaded, expected : mapping of str to Tensor
        ``expected`` may lie on the meta device.
    source, name : str
        File and model, for the message.

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
        if value.is_floating_point() != expected[key].is_floating_point():
            raise CheckpointError(
                f"{source}: tensor {key} holds {value.dtype}, {name!r} expects "
                f"{expected[key].dtype}"
            )
    check_finite(loaded, source)


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse NaN and infinity.

    Raises
    ------
    CheckpointError
        Naming the first tensor that holds one.
    """
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{source}: tensor {key} holds NaN or infinite values; fetch the file again"
            )


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Any device and dtype; written contiguously.
    path : Path
        Replaced if it exists.
    metadata : mapping of str to str
    """
    with atomic_path(path) as partial:
        save_file({k: _alone(v) for k, v in tensors.items()}, partial, metadata=dict(metadata))


def _alone(value: Tensor) -> Tensor:
    """Give a tensor storage of its own; safetensors refuses shared storage."""
    value = value.detach().cpu().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def save_training_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a training checkpoint, atomically."""
    with atomic_path(path) as partial:
        torch.save(dict(state), partial)


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
    except _UNREADABLE as error:
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
