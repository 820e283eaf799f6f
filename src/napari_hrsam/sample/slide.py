"""A generated image on disk, and what is true of it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError
from napari_hrsam.geometry import Box
from napari_hrsam.sample.generated import read_recipe
from napari_hrsam.sample.scene.recipe import Recipe
from napari_hrsam.sample.scene.scene import Scene, SceneObject
from napari_hrsam.storage.ome_zarr import array_in, open_node
from napari_hrsam.storage.opening import open_image
from napari_hrsam.storage.tile_source import PyramidImage

PIXEL_UM = 0.25
"""Side of a level-0 pixel in micrometres."""


class Sample:
    """A generated image on disk, with objects of known masks; from `make_sample`, `open_sample`.

    Parameters
    ----------
    path : Path
        Its OME-Zarr group.

    Attributes
    ----------
    path : Path
    recipe : Recipe
        Size, seed and look.

    Raises
    ------
    ImageError
        If there is no generated image, or it is of another version.
    """

    def __init__(self, path: Path) -> None:
        recipe = read_recipe(path)
        if recipe is None:
            raise ImageError(
                f"expected a generated image, got none at {path}; make one with "
                "`napari-hrsam sample` or make_sample"
            )
        self.path = path
        self.recipe: Recipe = recipe

    @cached_property
    def scene(self) -> Scene:
        """What is drawn."""
        return Scene(self.recipe)

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """Every object, with label, kind, centre, diameter and box, in the order of the labels."""
        return self.scene.objects

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every level."""
        return self.recipe.level_shapes

    @cached_property
    def image(self) -> PyramidImage:
        """The image, as `open_image` gives it."""
        return open_image(self.path)

    @cached_property
    def levels(self) -> tuple[ColoursLast, ...]:
        """The levels as napari draws an RGB image: (H, W, 3) uint8 each, read when sliced."""
        group = open_node(str(self.path))
        assert isinstance(group, zarr.Group)
        names = map(str, range(len(self.level_shapes)))
        return tuple(ColoursLast(array_in(group, name, str(self.path))) for name in names)

    def mask(self, label: int, box: Box | None = None, level: int = 0) -> NDArray[np.bool_]:
        """Tell which pixels of a box belong to an object: those whose centre lies inside.

        Exact, from the object's outline and not from pixels.

        Parameters
        ----------
        label : int
            From `objects`.
        box : Box, optional
            In pixels of the level; may reach beyond the image. By default the object's box, at
            that level.
        level : int
            0 or more.

        Returns
        -------
        (box.height, box.width) bool

        Raises
        ------
        ImageError
            If there is no such object.
        """
        if box is None:
            box = _at_level(self.scene.object(label).box, level)
        return self.scene.mask(label, box, level)

    def labels(self, box: Box, level: int = 0) -> NDArray[np.uint32]:
        """Tell the label of every pixel of a box, 0 for background; see `mask`."""
        return self.scene.labels(box, level)


class ColoursLast:
    """A (3, H, W) array as (H, W, 3), read when it is sliced.

    Parameters
    ----------
    array : zarr.Array
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self.shape = (*array.shape[1:], array.shape[0])
        self.chunks = (*array.chunks[1:], array.chunks[0])
        self.dtype = array.dtype
        self.ndim = 3
        self.size = int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part: whole numbers and slices along y, x and colour."""
        given: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
        if Ellipsis in given:
            place = given.index(Ellipsis)
            missing = (slice(None),) * (4 - len(given))
            given = (*given[:place], *missing, *given[place + 1 :])
        y, x, colour = given + (slice(None),) * (3 - len(given))
        pixels = np.asarray(self._array[colour, y, x])
        # With all three kept, colours go to the end; a colour that was picked is gone already.
        return np.moveaxis(pixels, 0, -1) if isinstance(colour, slice) else pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read the whole level."""
        return np.array(self[:], dtype=dtype, copy=copy)


def _at_level(box: Box, level: int) -> Box:
    step = 2**level
    return Box(box.y0 // step, box.x0 // step, -(-box.y1 // step), -(-box.x1 // step))
