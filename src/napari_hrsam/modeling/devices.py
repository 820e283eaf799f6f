"""What "auto" means for device and precision on this machine."""

from __future__ import annotations

from typing import Literal

import torch

from napari_hrsam.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16"]


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
