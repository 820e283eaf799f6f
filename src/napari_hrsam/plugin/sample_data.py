"""Sample images for File > Open Sample: real ones that lie inside scikit-image's wheel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from skimage import data

LayerData = tuple[np.ndarray, dict[str, Any], str]

PHOTOGRAPH_NAME = "coffee (photograph)"
MICROGRAPH_NAME = "immunohistochemistry (micrograph)"


def photograph() -> list[LayerData]:
    """Load a cup of coffee: (400, 600, 3) uint8, by Rachel Michetti, CC0."""
    return _rgb_layer(data.coffee, PHOTOGRAPH_NAME)


def micrograph() -> list[LayerData]:
    """Load colon tissue with stained nuclei: (512, 512, 3) uint8, acquired at the CMMI."""
    return _rgb_layer(data.immunohistochemistry, MICROGRAPH_NAME)


def _rgb_layer(load: Callable[[], np.ndarray], name: str) -> list[LayerData]:
    return [(load(), {"name": name, "rgb": True}, "image")]
