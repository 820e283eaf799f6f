"""Where the pixels of a map lie on the Earth: its coordinate reference system and affine."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam._optional import require
from napari_hrsam.errors import ImageError

GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""Pixel scale, tie points, matrix, and the keys of the reference system, as GeoTIFF has them."""

GEOREFERENCE = "napari_hrsam_georeference"
"""Key of `Georeference.as_json` among the attributes of a label image."""

_LONLAT = "EPSG:4326"


@dataclass(frozen=True, slots=True)
class Georeference:
    """Where the pixels of an image lie.

    Attributes
    ----------
    crs_wkt : str
        The coordinate reference system, as WKT.
    affine : (a, b, c, d, e, f)
        x = a column + b row + c, y = d column + e row + f; column and row count from the outer
        corner of the first pixel, whose centre is at 0.5, 0.5. x is east or longitude.
    """

    crs_wkt: str
    affine: tuple[float, float, float, float, float, float]

    @staticmethod
    def definition_of(epsg: int) -> str:
        """Return the WKT of a reference system of EPSG."""
        found: str = require("rasterio.crs", extra="geo").CRS.from_epsg(epsg).to_wkt()
        return found

    @classmethod
    def from_json(cls, told: object) -> Georeference | None:
        """Read what `as_json` gave; None if it is something else."""
        if not isinstance(told, Mapping):
            return None
        wkt, numbers = told.get("crs_wkt"), told.get("affine")
        if not isinstance(wkt, str) or not isinstance(numbers, list) or len(numbers) != 6:
            return None
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            return None
        a, b, c, d, e, f = map(float, numbers)
        return cls(wkt, (a, b, c, d, e, f))

    def as_json(self) -> dict[str, Any]:
        """Tell it in values of JSON."""
        return {"crs_wkt": self.crs_wkt, "affine": list(self.affine)}

    @property
    def _crs(self) -> Any:
        crs = require("rasterio.crs", extra="geo")
        try:
            return crs.CRS.from_wkt(self.crs_wkt)
        except require("rasterio.errors", extra="geo").CRSError as error:
            raise ImageError(
                f"expected a coordinate reference system that PROJ knows, got "
                f"{self.crs_wkt[:80]!r} ({error}); set that of the map anew, e.g. with gdal_edit"
            ) from error

    @property
    def epsg(self) -> int | None:
        """Number of the reference system at EPSG, None if it has none."""
        found: int | None = self._crs.to_epsg()
        return found

    @property
    def metres_per_unit(self) -> float | None:
        """Metres per unit of x and y; None where these are degrees."""
        crs = self._crs
        return float(crs.linear_units_factor[1]) if crs.is_projected else None

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Height and width of a pixel in units of the reference system."""
        a, b, _, d, e, _ = self.affine
        return math.hypot(b, e), math.hypot(a, d)

    @property
    def pixel_size_m(self) -> tuple[float, float] | None:
        """Height and width of a pixel in metres of the map; None where its unit is degrees."""
        metres = self.metres_per_unit
        height, width = self.pixel_size
        return None if metres is None else (height * metres, width * metres)

    def places(self, corners_yx: NDArray[Any]) -> NDArray[np.float64]:
        """Turn (N, 2) rows and columns, 0 at the outer corner, into (N, 2) x and y."""
        a, b, c, d, e, f = self.affine
        y, x = np.asarray(corners_yx, np.float64).T
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    def lonlat(self, corners_yx: NDArray[Any]) -> NDArray[np.float64]:
        """Turn (N, 2) rows and columns into (N, 2) longitudes and latitudes of WGS 84, degrees.

        Raises
        ------
        ImageError
            If a place has none, as beyond the edge of the reference system.
        """
        warp = require("rasterio.warp", extra="geo")
        xs, ys = self.places(corners_yx).T
        found = np.stack(warp.transform(self._crs, _LONLAT, xs.tolist(), ys.tolist()), axis=1)
        placed: NDArray[np.float64] = np.asarray(found[:, :2], np.float64)
        if not np.isfinite(placed).all():
            raise ImageError(
                "expected objects that have a longitude and latitude, but some lie outside of what "
                "the map's reference system covers; check the map, or export in its own system"
            )
        return placed

    def moved(self, row: float, column: float, factor_yx: tuple[float, float]) -> Georeference:
        """Return that of a part that begins at a level-0 row and column, of larger pixels."""
        a, b, c, d, e, f = self.affine
        down, across = factor_yx
        return Georeference(
            self.crs_wkt,
            (
                a * across,
                b * down,
                a * column + b * row + c,
                d * across,
                e * down,
                d * column + e * row + f,
            ),
        )

    def tiff_tags(self) -> list[tuple[int, int, int, Any, bool]]:
        """Return the tags of a GeoTIFF, as tifffile takes them."""
        rasterio = require("rasterio", extra="geo")
        memory = require("rasterio.io", extra="geo").MemoryFile
        # Written by GDAL into a file of one pixel, so that others read the same.
        with memory() as file:
            with file.open(
                driver="GTiff",
                width=1,
                height=1,
                count=1,
                dtype="uint8",
                crs=self._crs,
                transform=rasterio.Affine(*self.affine),
            ):
                pass
            written = io.BytesIO(file.read())
        # Takes a while to import, and the panel knows of maps without it.
        import tifffile

        with tifffile.TiffFile(written) as pages:
            found = [pages.pages.first.tags.get(code) for code in GEO_TAGS]
        return [(tag.code, int(tag.dtype), int(tag.count), tag.value, True) for tag in found if tag]


def read_georeference(path: str | PathLike[str]) -> Georeference | None:
    """Read where the pixels of a GeoTIFF lie; None if it does not say.

    Parameters
    ----------
    path : path

    Raises
    ------
    MissingExtraError
        If the extra ``geo`` is not installed.
    ImageError
        If it cannot be read, or is placed by ground control points.
    """
    with _opened(path) as source:
        crs, affine, points = source.crs, source.transform, len(source.gcps[0])
    if points and affine.is_identity:
        raise ImageError(
            f"expected a map that is placed by an affine, got {points} ground control points in "
            f"{path}; warp it first, e.g. gdalwarp in.tif out.tif, and open that"
        )
    if crs is None or affine.is_identity:
        return None
    if affine.is_degenerate:
        raise ImageError(f"expected pixels of some size, got the affine {affine[:6]} in {path}")
    return Georeference(crs.to_wkt(), affine[:6])


def map_shape(path: str | PathLike[str]) -> tuple[int, int]:
    """Return height and width of a GeoTIFF; raises as `read_georeference`."""
    with _opened(path) as source:
        return int(source.height), int(source.width)


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Any]:
    rasterio = require("rasterio", extra="geo")
    errors = require("rasterio.errors", extra="geo")
    with warnings.catch_warnings():
        # Told by None.
        warnings.simplefilter("ignore", errors.NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as source:
                yield source
        except errors.RasterioError as error:
            raise ImageError(
                f"expected a GeoTIFF, but {path} cannot be read ({error}); it may be damaged or of "
                "another format"
            ) from error
