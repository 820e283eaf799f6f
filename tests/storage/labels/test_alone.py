"""Labels in a folder of their own lie where their image lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_files import write_ome

import napari_hrsam as hrsam
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.labels.stored import StoredLabels


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_scale_translation_and_units_of_the_image_are_taken_over(
    tmp_path: Path, version: str
) -> None:
    pixels = np.zeros((2, 3, 700, 1100), np.uint8)
    group = write_ome(
        tmp_path / "image.zarr", [pixels], "tcyx", version=version, scales=[[5, 1, 0.5, 0.25]]
    )
    attributes: Any = group.attrs["ome"] if version == "0.5" else group.attrs
    ome = dict(attributes)
    (entry,) = ome["multiscales"][0]["datasets"]
    entry["coordinateTransformations"].append({"type": "translation", "translation": [7, 0, 3, 4]})
    group.attrs.update({"ome": ome} if version == "0.5" else ome)
    image = hrsam.open_image(str(tmp_path / "image.zarr"), channels=[0])
    hrsam.create_labels(tmp_path / "own", "cells", like=image).close()
    stored = StoredLabels(tmp_path / "own", "cells")
    assert stored.plane_shape == (2,)
    assert (stored.ome.axes, stored.ome.types) == (("t", "y", "x"), ("time", "space", "space"))
    assert stored.ome.units == ("", "micrometer", "micrometer")
    assert stored.ome.scales == ((5, 0.5, 0.25), (5, 1, 0.5), (5, 2, 1))
    # A coarse pixel's centre is that of the pixels under it.
    assert stored.ome.translations == ((7, 3, 4), (7, 3.25, 4.125), (7, 3.75, 4.375))
    assert verify_labels(tmp_path / "own", "cells").problems == ()


def test_other_images_give_pixels_of_size_1(tmp_path: Path) -> None:
    image = hrsam.open_image(np.zeros((30, 40), np.uint8))
    hrsam.create_labels(tmp_path / "own", "cells", like=image).close()
    stored = StoredLabels(tmp_path / "own", "cells")
    assert (stored.scale_yx, stored.translation_yx, stored.unit) == ((1, 1), (0, 0), "")
    group = zarr.open_group(tmp_path / "own/labels/cells", mode="r")
    (dataset,) = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert len(dataset["coordinateTransformations"]) == 1
