"""Maps: where their pixels lie, their bands, and pixels without data."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import tifffile
from map_files import NORTH_UP, ROTATED, SHAPE_YX, UTM, write_map, xy

from napari_hrsam.errors import ImageError, MissingExtraError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.images.georeference import Georeference, map_shape, read_georeference
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.images.tile_source import PyramidImage

CORNERS = np.array([[0, 0], [0, 601], [301, 0], [123.5, 77.25]])
NEW_YORK_FEET, DEGREES = "EPSG:2263", "EPSG:4326"
SINUSOIDAL = "+proj=sinu +lon_0=0 +R=6371007.181 +units=m +no_defs"


def placed(image: PyramidImage) -> Georeference:
    assert image.georeference is not None
    return image.georeference


def size(image: PyramidImage) -> list[tuple[float, str]]:
    assert image.ome is not None
    # Colours come before or behind rows and columns, as the library that wrote the file likes.
    places = [image.ome.axes.index(axis) for axis in "yx"]
    return [(image.ome.scales[0][place], image.ome.units[place]) for place in places]


@pytest.mark.parametrize("affine", [NORTH_UP, ROTATED])
@pytest.mark.parametrize("options", [{}, {"driver": "COG"}])
def test_a_map_tells_where_its_pixels_lie(
    tmp_path: Path, affine: tuple[float, ...], options: dict[str, Any]
) -> None:
    image = open_image(write_map(tmp_path / "a.tif", affine=affine, **options))
    found = placed(image)
    assert (found.epsg, found.metres_per_unit) == (32633, 1)
    assert found.affine == pytest.approx(affine)
    expected = [xy(affine, *corner) for corner in CORNERS]
    np.testing.assert_allclose(found.places(CORNERS), expected, atol=1e-6)
    assert size(image) == [(pytest.approx(0.5), "meter")] * 2
    assert map_shape(tmp_path / "a.tif") == image.shape_yx == SHAPE_YX


@pytest.mark.parametrize("affine", [NORTH_UP, ROTATED])
def test_longitude_and_latitude_are_those_of_proj(
    tmp_path: Path, affine: tuple[float, ...]
) -> None:
    found = placed(open_image(write_map(tmp_path / "a.tif", affine=affine)))
    lonlat = found.lonlat(CORNERS)
    back = pyproj.Transformer.from_crs(DEGREES, UTM, always_xy=True).transform(*lonlat.T)
    # A thousandth of a pixel.
    np.testing.assert_allclose(np.stack(back, 1), found.places(CORNERS), atol=0.0005)


def test_pixels_may_be_told_by_their_centres(tmp_path: Path) -> None:
    """RasterPixelIsPoint: the tie point is the centre of the first pixel."""
    import rasterio

    with rasterio.Env(GTIFF_POINT_GEO_IGNORE=False):
        path = write_map(tmp_path / "a.tif")
        with rasterio.open(path, "r+") as file:
            file.update_tags(AREA_OR_POINT="Point")
    with tifffile.TiffFile(path) as file:
        assert file.geotiff_metadata is not None
        assert int(file.geotiff_metadata["GTRasterTypeGeoKey"]) == 2
        assert file.geotiff_metadata["ModelTiepoint"][3:5] == [500_000.25, 5_399_999.75]
    assert placed(open_image(path)).affine == NORTH_UP


def test_feet_become_metres_and_degrees_stay_without_a_unit_of_length(tmp_path: Path) -> None:
    feet = open_image(write_map(tmp_path / "feet.tif", crs=NEW_YORK_FEET))
    assert size(feet) == [(pytest.approx(0.5 * 1200 / 3937), "meter")] * 2
    affine = (0.001, 0, 15, 0, -0.002, 48)
    degrees = open_image(write_map(tmp_path / "degrees.tif", crs=DEGREES, affine=affine))
    assert placed(degrees).metres_per_unit is None
    assert size(degrees) == [(0.002, ""), (0.001, "")]
    np.testing.assert_allclose(placed(degrees).lonlat(CORNERS), placed(degrees).places(CORNERS))


def test_systems_without_a_number_are_known_too(tmp_path: Path) -> None:
    found = placed(open_image(write_map(tmp_path / "a.tif", crs=SINUSOIDAL)))
    assert found.epsg is None
    back = pyproj.Transformer.from_crs(DEGREES, SINUSOIDAL, always_xy=True)
    lonlat = found.lonlat(CORNERS)
    np.testing.assert_allclose(
        np.stack(back.transform(*lonlat.T), 1), found.places(CORNERS), atol=0.01
    )


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_ground_control_points_are_refused_and_the_pixels_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rasterio.control import GroundControlPoint

    points = [
        GroundControlPoint(r, c, 15 + c / 1e4, 48 - r / 1e4)
        for r, c in ((0, 0), (0, 600), (300, 0), (300, 600))
    ]
    path = tmp_path / "a.tif"
    import rasterio

    with rasterio.open(
        path, "w", driver="GTiff", width=601, height=301, count=1, dtype="uint8"
    ) as file:
        file.write(np.full((1, *SHAPE_YX), 7, np.uint8))
        file.gcps = points, rasterio.CRS.from_epsg(4326)
    with pytest.raises(ImageError, match="got 4 ground control points .* gdalwarp"):
        read_georeference(path)
    with caplog.at_level(logging.WARNING):
        image = open_image(path, contrast_limits=(0, 255))
    assert "it is opened without its place on the map" in caplog.text
    assert image.georeference is None
    assert image.read(Tile(0, 0, 0, 64))[0, 0, 0] == 7


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_other_images_have_no_place(tmp_path: Path) -> None:
    write_map(tmp_path / "a.tif", crs=None, affine=(1, 0, 0, 0, 1, 0))
    assert open_image(tmp_path / "a.tif").georeference is None
    assert read_georeference(tmp_path / "a.tif") is None
    (tmp_path / "b.tif").write_bytes(b"II*\0damaged")
    with pytest.raises(ImageError, match="cannot be read"):
        read_georeference(tmp_path / "b.tif")


def test_without_the_extra_pixels_are_opened_and_the_place_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_map(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    image = open_image(tmp_path / "a.tif")
    assert image.georeference is None
    assert size(image) == [(0.5, "")] * 2
    with pytest.raises(MissingExtraError, match=r'pip install "napari-hrsam\[geo\]"'):
        read_georeference(tmp_path / "a.tif")


def test_many_bands_are_mapped_to_colours(tmp_path: Path) -> None:
    bands = np.random.default_rng(1).integers(0, 4000, (5, *SHAPE_YX), np.uint16)
    path = write_map(tmp_path / "a.tif", bands)
    with pytest.raises(ImageError, match="mapping of the 5 channels"):
        open_image(path)
    image = open_image(path, channels=[3, 2, 1], contrast_limits=(0, 4000))
    expected = np.rint(bands[[3, 2, 1], :256, :256].transpose(1, 2, 0) / 4000 * 255)
    np.testing.assert_allclose(image.read(Tile(0, 0, 0, 256)), expected, atol=1)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint16", 65535), ("int16", -9999), ("float32", -9999), ("float32", np.nan)],
)
def test_what_the_map_declares_missing_is_missing(
    tmp_path: Path, dtype: str, nodata: float
) -> None:
    heights = np.linspace(0, 1000, 301 * 601).reshape(1, *SHAPE_YX).astype(dtype)
    heights[:, 40:80, 90:200] = nodata
    image = open_image(write_map(tmp_path / "a.tif", heights, nodata=nodata))
    present = image.read_present(Tile(0, 0, 0, 1024))[1]
    assert present is not None
    expected = np.ones(SHAPE_YX, bool)
    expected[40:80, 90:200] = False
    np.testing.assert_array_equal(present[:301, :601], expected)
    assert image.contrast_limits[0][0] >= 0


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        {"crs_wkt": 3},
        {"crs_wkt": "", "affine": [1] * 5},
        {"crs_wkt": "", "affine": [1, 0, "x", 0, 1, 0]},
        {"crs_wkt": "", "affine": [1, 0, float("nan"), 0, 1, 0]},
    ],
)
def test_what_others_wrote_in_its_place_is_nothing(told: object) -> None:
    assert Georeference.from_json(told) is None


def test_it_comes_back_from_json() -> None:
    one = Georeference("LOCAL", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert Georeference.from_json(one.as_json()) == one
    with pytest.raises(ImageError, match="that PROJ knows, got 'LOCAL'"):
        _ = one.epsg
