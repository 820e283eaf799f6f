"""Committed objects as napari draws them: lazy levels over stored arrays, true after every edit.

napari keeps what it once read of a dask array and of the coarsest level for ever, and of a stack
it takes the tile of every plane before it takes the plane. So the levels given to it are views
that read nothing until they are turned into an array, and the coarsest level of a flat label image
is one live array.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.overlay.block_cache import BlockCache

if TYPE_CHECKING:
    import zarr

MAX_COARSEST_PX = 8192
"""Longest side of a coarsest level that napari can be given: it holds it whole."""

Window = tuple[slice | int, ...]


class LevelView:
    """One level, or a part of it, that is read when it is turned into an array.

    It has what napari asks of an array: shape, dtype, ndim, size, chunks and indexing, which
    gives another view.

    Parameters
    ----------
    cache : BlockCache
        What reads.
    level : int
    window : tuple of slice or int, optional
        The part, one entry per axis of the level, slices of step 1; by default all of it.
    """

    def __init__(self, cache: BlockCache, level: int, window: Window | None = None) -> None:
        self._cache = cache
        self._level = level
        if window is None:
            window = tuple(slice(0, length) for length in cache.shape(level))
        self._window = window
        self.dtype = cache.dtype(level)
        self.shape = tuple(part.stop - part.start for part in window if isinstance(part, slice))
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        steps = (1,) * (len(window) - 2) + cache.side_yx(level)
        self.chunks = tuple(
            step for step, part in zip(steps, window, strict=True) if isinstance(part, slice)
        )

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Any:
        """Return a view of a part; an array for what is more than whole numbers and steps of 1."""
        parts = index if isinstance(index, tuple) else (index,)
        narrowed = self._narrowed(parts)
        if narrowed is None:
            return np.asarray(self)[index]
        view = LevelView(self._cache, self._level, narrowed)
        return view if view.shape else np.asarray(view)[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read the part."""
        ranges = [
            part if isinstance(part, slice) else slice(part, part + 1) for part in self._window
        ]
        rows, columns = ranges[-2:]
        box = Box(rows.start, columns.start, rows.stop, columns.stop)
        planes = [range(part.start, part.stop) for part in ranges[:-2]]
        pixels = np.empty((*(len(axis) for axis in planes), *box.shape_yx), self.dtype)
        for place in itertools.product(*(range(len(axis)) for axis in planes)):
            plane = tuple(axis[i] for axis, i in zip(planes, place, strict=True))
            pixels[place] = self._cache.read(self._level, plane, box)
        kept = tuple(slice(None) if isinstance(part, slice) else 0 for part in self._window)
        # Of a single pixel NumPy makes a number.
        return np.asarray(pixels[kept], dtype)

    def _narrowed(self, parts: tuple[Any, ...]) -> Window | None:
        """Return the window of a part; None if it is not one of slices of step 1 and indices."""
        if len(parts) > self.ndim or not all(
            isinstance(part, int | np.integer | slice) for part in parts
        ):
            return None
        rest = iter((*parts, *(slice(None),) * (self.ndim - len(parts))))
        window: list[slice | int] = []
        for own in self._window:
            if not isinstance(own, slice):
                window.append(own)
                continue
            part, length = next(rest), own.stop - own.start
            if isinstance(part, slice):
                start, stop, step = part.indices(length)
                if step != 1:
                    return None
                window.append(slice(own.start + start, own.start + max(start, stop)))
            else:
                if not -length <= part < length:
                    raise IndexError(f"expected an index within {length}, got {part}")
                window.append(own.start + int(part) % length)
        return tuple(window)


class LabelView:
    """All levels of a stored label image for a Labels layer, and what an edit changes of them.

    It reads the coarsest level when it is made, and what an edit changed of it: on the thread that
    edits, so that the viewer's need not wait for the disk.

    Parameters
    ----------
    arrays : sequence of zarr arrays
        The levels, finest first, which are only read.
    on_damage : callable, optional
        Called once, on the thread that reads, when a chunk cannot be read; its pixels are shown
        as background. See `tell_damage`.
    num_plane_axes : int, optional
        Axes before y and x to show, if those of the arrays are of length 1 and more than that.

    Raises
    ------
    LabelsError
        If the coarsest level is too large to be shown.
    """

    def __init__(
        self,
        arrays: Sequence[zarr.Array[Any]],
        on_damage: Callable[[LabelsError], None] | None = None,
        num_plane_axes: int | None = None,
    ) -> None:
        self._shapes = [(array.shape[-2], array.shape[-1]) for array in arrays]
        if max(self._shapes[-1]) > MAX_COARSEST_PX:
            raise LabelsError(
                f"expected label levels down to {MAX_COARSEST_PX} pixels or less, got "
                f"{self._shapes[-1]} as the coarsest; keep the objects in a folder of their own, "
                "which gets all levels"
            )
        self._cache = BlockCache(arrays, on_damage)
        num_axes = arrays[0].ndim - 2
        num_left_out = num_axes - (num_axes if num_plane_axes is None else num_plane_axes)
        whole = [LevelView(self._cache, level) for level in range(len(arrays))]
        self.levels: list[Any] = [view[(0,) * num_left_out] for view in whole]
        self._live: NDArray[Any] | None = None
        if num_left_out == num_axes:
            # A live array, as napari reads the coarsest level of a flat image only once.
            self._live = self.levels[-1] = np.asarray(self.levels[-1])

    def tell_damage(self, on_damage: Callable[[LabelsError], None]) -> None:
        """Have the first damaged chunk told; one that was met before is told at once."""
        self._cache.tell_damage(on_damage)

    @property
    def is_empty(self) -> bool:
        """Whether there is no object; a stack counts as not empty, as it would have to be read."""
        return self._live is not None and not self._live.any()

    def edited(self, box0: Box, plane: tuple[int, ...] = ()) -> None:
        """Have an edited part read again, at every level.

        Parameters
        ----------
        box0 : Box
            What was changed, in level-0 pixels.
        plane : tuple of int
            Where, one index per axis before y and x.
        """
        for level in range(len(self._shapes)):
            box = self._box_at(level, box0)
            self._cache.forget(level, plane, box)
            if self._live is not None and level == len(self._shapes) - 1:
                self._live[box.slices] = self._cache.read(level, plane, box)

    def _box_at(self, level: int, box0: Box) -> Box:
        height, width = (
            length0 / length
            for length0, length in zip(self._shapes[0], self._shapes[level], strict=True)
        )
        # A pixel more on each side: sizes of coarse levels were rounded.
        return (
            Box(
                math.floor(box0.y0 / height),
                math.floor(box0.x0 / width),
                math.ceil(box0.y1 / height),
                math.ceil(box0.x1 / width),
            )
            .expand(1)
            .clip(self._shapes[level])
        )
