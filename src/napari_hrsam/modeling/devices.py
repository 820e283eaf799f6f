"""What "auto" means for device and precision on this machine."""

from __future__ import annotations

import torch

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.configs import Precision


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


def choose_precision(precision: Precision, device: torch.device, *, on_cpu: bool = False) -> str:
    """Turn "auto" into "float32" or "bfloat16" for a device.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
    device : torch.device
    on_cpu : bool
        Whether "auto" may be bfloat16 on a CPU that computes in it natively: for models that were
        trained in it.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if precision == "auto":
        if device.type == "cuda":
            is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            is_native = device.type == "cpu" and on_cpu and cpu_has_bfloat16()
        return "bfloat16" if is_native else "float32"
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
    return precision


def cpu_has_bfloat16() -> bool:
    """Tell whether the processor computes in bfloat16 itself (AVX512-BF16, AMX).

    Where it does not, torch emulates it, slower than float32. False where torch cannot tell.
    """
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, bool)() for question in questions)
