"""What must hold of a label image at any time."""

from __future__ import annotations

import numpy as np

from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import LabelWriter
from napari_hrsam.storage.labels.downsampling import AxisRatio, majority


def require_consistent_levels(labels: LabelWriter, plane: tuple[int, ...] = ()) -> None:
    """Every level is the majority of the level before it, everywhere."""
    fine = labels.read(Box.of_shape(labels.shape_yx), 0, plane)
    for level in range(1, len(labels.levels)):
        shape = labels.levels[level].shape[-2:]
        rows, columns = (AxisRatio(*sizes) for sizes in zip(fine.shape, shape, strict=True))
        expected = majority(fine, rows.edges(0, shape[0]), columns.edges(0, shape[1]))
        fine = labels.read(Box.of_shape(shape), level, plane)
        np.testing.assert_array_equal(fine, expected, err_msg=f"level {level}")
