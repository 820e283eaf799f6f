"""A region of a label image as a tiled TIFF, written tile by tile."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from os import PathLike
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

import napari_hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, BoxLike
from napari_hrsam.storage.export.source import Exported, Part, new_file, part_of, written
from napari_hrsam.storage.images.georeference import Georeference
from napari_hrsam.storage.labels.objects import UNIT_SYMBOLS
from napari_hrsam.storage.labels.regions import Progress, RegionGrid, region_grid
from napari_hrsam.storage.labels.stored import StoredLabels

TILE_PX = 512
"""Side of a tile."""

_UNITS_PER_CM = {"micrometer": 1e4, "nanometer": 1e7, "millimeter": 10.0, "centimeter": 1.0}


def export_tiff(
    path: str | PathLike[str],
    name: str,
    out: str | PathLike[str],
    *,
    level: int = 0,
    georeference: str | PathLike[str] | None = None,
    box: BoxLike | None = None,
    labels: Collection[int] | None = None,
    plane: tuple[int, ...] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a region of one level as a tiled, compressed OME-TIFF (BigTIFF where it is large).

    Parameters
    ----------
    path, name, out, plane, overwrite, progress
        As in `export_csv`.
    level : int
        Level to write: 0 is full size.
    georeference : path, optional
        The GeoTIFF that the labels were drawn on, so that the file is a GeoTIFF too, in the same
        coordinate reference system; by default as the labels tell themselves.
    box : (y0, x0, y1, x1) or Box, optional
        Only what lies in it, in level-0 pixels; at a coarser level it grows to whole pixels.
    labels : collection of int, optional
        Only these objects; the rest becomes background.

    Returns
    -------
    Exported
        ``num_objects`` is the number of different labels in the file.

    Raises
    ------
    LabelsError
        As in `export_csv`; if there is no such level, a label does not fit the 32 bits of an
        OME-TIFF, or the map is none of the labels.
    MissingExtraError
        If the labels are those of a map, and the extra ``geo`` is not installed.
    """
    part = part_of(path, name, box=box, plane=plane)
    source = _Tiles(part, level, labels)
    dtype = source.dtype()
    tags = []
    if georeference is not None or part.labels.georeference is not None:
        tags = _moved(part.georeference(georeference), part, source, level).tiff_tags()
    with new_file(out, overwrite=overwrite) as partial:
        tifffile.imwrite(
            partial,
            source.encoded(dtype, progress),
            shape=source.box.shape_yx,
            dtype=dtype,
            tile=(TILE_PX, TILE_PX),
            compression="zlib",
            photometric="minisblack",
            ome=True,
            bigtiff=source.box.area * dtype.itemsize > 2**31,
            software=f"napari-hrsam {napari_hrsam.__version__}",
            extratags=tags,
            **_place(part.labels, level),
        )
    return written(out, len(source.seen))


class _Tiles:
    """The tiles of a region, and the labels seen in them."""

    def __init__(self, part: Part, level: int, only: Collection[int] | None) -> None:
        stored = part.labels
        if not 0 <= level < len(stored.levels):
            raise LabelsError(
                f"expected a level from 0 to {len(stored.levels) - 1}, got {level}; 0 is full size"
            )
        self._part, self._level = part, level
        self._only = None if only is None else np.array(sorted(only))
        self.box = _at_level(part.box, stored, level)
        self.seen: set[int] = set()

    def dtype(self) -> np.dtype[Any]:
        """Choose the dtype of the file: that of the labels, or 32 bits that hold them."""
        stored = self._part.labels.dtype
        if stored.itemsize < 8:
            return stored.newbyteorder("=")
        grid = self._grid()
        for box in grid.boxes():
            values = self._read(box)
            low, high = int(values.min(initial=0)), int(values.max(initial=0))
            if low < 0 or high > np.iinfo(np.uint32).max:
                raise LabelsError(
                    f"expected labels from 0 to {np.iinfo(np.uint32).max} for a TIFF, got "
                    f"{low if low < 0 else high} in {box}; export GeoJSON or COCO, or number the "
                    "objects anew"
                )
        return np.dtype(np.uint32)

    def encoded(self, dtype: np.dtype[Any], progress: Progress | None) -> Iterator[bytes]:
        """Compress tile after tile, row by row; missing chunks are not read."""
        grid, box = self._grid(), self.box
        background = zlib.compress(np.zeros((TILE_PX, TILE_PX), dtype).tobytes())
        rows, columns = range(box.y0, box.y1, TILE_PX), range(box.x0, box.x1, TILE_PX)
        total, done = len(rows) * len(columns), 0
        for y0 in rows:
            for x0 in columns:
                tile = Box(y0, x0, y0 + TILE_PX, x0 + TILE_PX).intersection(box)
                packed = background
                if not grid.filled.isdisjoint(grid.places(tile)):
                    packed = zlib.compress(self._padded(self._read(tile), dtype).tobytes())
                done += 1
                # Before the tile is handed over: nobody asks for more after the last one.
                if progress is not None:
                    progress(done, total)
                yield packed

    def _grid(self) -> RegionGrid:
        return region_grid(self._part.labels, self._level, self._part.plane, self.box)

    def _read(self, box: Box) -> NDArray[Any]:
        values = self._part.labels.read(box, self._level, self._part.plane)
        if self._only is not None:
            values = np.where(np.isin(values, self._only), values, 0)
        return values

    def _padded(self, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        self.seen.update(np.unique(values[values != 0]).tolist())
        tile = np.zeros((TILE_PX, TILE_PX), dtype)
        tile[: values.shape[0], : values.shape[1]] = values
        return tile


def _at_level(box: Box, labels: StoredLabels, level: int) -> Box:
    """Return the pixels of a level that a level-0 box touches."""
    (height0, width0), (height, width) = labels.shape_yx, labels.level_shape(level)
    return Box(
        min(box.y0 * height // height0, height - 1),
        min(box.x0 * width // width0, width - 1),
        -(-box.y1 * height // height0),
        -(-box.x1 * width // width0),
    )


def _moved(whole: Georeference, part: Part, source: _Tiles, level: int) -> Georeference:
    """Return where the file's own pixels lie."""
    (height0, width0), (height, width) = part.labels.shape_yx, part.labels.level_shape(level)
    # Coarse pixels are blocks of whole ones; at the end they may be cut.
    down, across = float(round(height0 / height)), float(round(width0 / width))
    return whole.moved(source.box.y0 * down, source.box.x0 * across, (down, across))


def _place(labels: StoredLabels, level: int) -> dict[str, Any]:
    """Return the size of a pixel, as tifffile's arguments."""
    height, width = labels.ome.scales[level][-2:]
    metadata: dict[str, Any] = {"axes": "YX", "Name": labels.name}
    options: dict[str, Any] = {"metadata": metadata}
    if labels.unit:
        symbol = UNIT_SYMBOLS.get(labels.unit)
        if symbol:
            metadata.update(PhysicalSizeY=height, PhysicalSizeX=width)
            metadata.update(PhysicalSizeYUnit=symbol, PhysicalSizeXUnit=symbol)
        per_cm = _UNITS_PER_CM.get(labels.unit)
        if per_cm:
            options["resolution"] = per_cm / width, per_cm / height
            options["resolutionunit"] = "CENTIMETER"
    return options
