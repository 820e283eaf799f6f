"""Has napari's compiled functions ready before the window needs them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from napari.layers import Labels, Shapes

from napari_hrsam.plugin.overlay.objects import class_colors


def compile_layers() -> Iterator[None]:
    """Make layers like those of a session, on any thread, and forget them, step by step.

    Where numba has no cache yet, napari compiles for seconds what it needs for the first Shapes
    layer, its first rectangle and the first Labels: on the window's own thread it would freeze.
    """
    for ndim in (2, 3):
        shapes = Shapes(ndim=ndim)
        yield
        corners = np.zeros((4, ndim))
        corners[1:3, -1] = corners[2:, -2] = 1.0
        shapes.add_rectangles(corners, edge_width=1.0, face_color="transparent")
        yield
        shapes.get_value((0.5,) * ndim)
        yield
    labels = Labels(np.eye(8, dtype=np.uint32))
    labels.data[0, 0] = 2
    labels.refresh()


def compile_class_colors(dtype: np.dtype[np.generic]) -> None:
    """Have ready what shows labels of a type in given colours: compiled in each process."""
    Labels(np.eye(8, dtype=dtype), colormap=class_colors({1: (255, 255, 255)})).refresh()
