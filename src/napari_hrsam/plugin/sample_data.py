"""Sample images for File > Open Sample: real ones that lie inside scikit-image's wheel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from skimage import data

LayerData = tuple[np.ndarray, dict[str, Any], str]

PHOTOGRAPH_NAME = "coins (photograph)"
MICROGRAPH_NAME = "immunohistochemistry (micrograph)"


def photograph() -> list[LayerData]:
    """Load Greek coins from Pompeii: (303, 384) uint8, Brooklyn Museum."""
    return _layer(data.coins, PHOTOGRAPH_NAME, rgb=False)


def micrograph() -> list[LayerData]:
    """Load colon tissue with stained nuclei: (512, 512, 3) uint8, acquired at the CMMI."""
    return _layer(data.immunohistochemistry, MICROGRAPH_NAME, rgb=True)


def _layer(load: Callable[[], np.ndarray], name: str, *, rgb: bool) -> list[LayerData]:
    return [(load(), {"name": name, "rgb": rgb}, "image")]
