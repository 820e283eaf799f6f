"""Sample images for File > Open Sample: real ones from scikit-image's wheel, and a huge one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from skimage import data

from napari_hrsam.cache import cache_folder
from napari_hrsam.errors import ImageError
from napari_hrsam.sample import Sample, make_sample, open_sample
from napari_hrsam.sample.scene.recipe import VERSION
from napari_hrsam.sample.slide import PIXEL_UM

LayerData = tuple[Any, dict[str, Any], str]

PHOTOGRAPH_NAME = "coins (photograph)"
MICROGRAPH_NAME = "immunohistochemistry (micrograph)"
SLIDE_NAME = "slide (generated)"
SLIDE_PX = 100_000


def photograph() -> list[LayerData]:
    """Load Greek coins from Pompeii: (303, 384) uint8, Brooklyn Museum."""
    return _layer(data.coins, PHOTOGRAPH_NAME, rgb=False)


def micrograph() -> list[LayerData]:
    """Load colon tissue with stained nuclei: (512, 512, 3) uint8, acquired at the CMMI."""
    return _layer(data.immunohistochemistry, MICROGRAPH_NAME, rgb=True)


def slide() -> list[LayerData]:
    """Open a generated slide of 100,000 x 100,000 pixels; the first time it is made.

    It lies in the user's cache and takes a few megabytes: pixels are painted when they are drawn.
    """
    return [generated_layer(_cached_slide(), SLIDE_NAME)]


def generated_layer(sample: Sample, name: str) -> LayerData:
    """Describe a generated image as a layer whose pixels are painted when they are drawn."""
    options = {
        "name": name,
        "rgb": True,
        "multiscale": True,
        "scale": (PIXEL_UM, PIXEL_UM),
        "units": ("micrometer", "micrometer"),
        "metadata": {"path": str(sample.path)},
    }
    return list(sample.levels), options, "image"


def _cached_slide() -> Sample:
    path = cache_folder() / "samples" / f"slide-{SLIDE_PX}-v{VERSION}.ome.zarr"
    if not path.exists():
        try:
            return make_sample(path, SLIDE_PX)
        except ImageError:
            # Another program may have made it meanwhile.
            if not path.exists():
                raise
    return open_sample(path)


def _layer(load: Callable[[], np.ndarray], name: str, *, rgb: bool) -> list[LayerData]:
    return [(load(), {"name": name, "rgb": rgb}, "image")]
