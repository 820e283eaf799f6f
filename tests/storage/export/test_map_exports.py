"""Objects drawn on a map land in the right place on the Earth, in every format."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from label_files import write_labels
from map_files import NORTH_UP, ROTATED, SHAPE_YX, UTM, write_map, xy
from numpy.typing import NDArray

from napari_hrsam.cli.main import main
from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.export.geopackage import OWN_SRS
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import LabelImage, create_labels, open_labels

RING = np.ones((30, 40), bool)
RING[10:20, 10:30] = False
BOX = (100, 200, 140, 260)


@pytest.fixture(params=[NORTH_UP, ROTATED], ids=["north up", "rotated"])
def affine(request: pytest.FixtureRequest) -> tuple[float, ...]:
    found: tuple[float, ...] = request.param
    return found


@pytest.fixture
def labels(tmp_path: Path, affine: tuple[float, ...]) -> LabelImage:
    """A box, label 1, and a ring, label 2, drawn on a map."""
    image = open_image(write_map(tmp_path / "map.tif", affine=affine))
    return drawn(tmp_path, image)


def drawn(folder: Path, image: object) -> LabelImage:
    with create_labels(folder / "a.zarr", "cells", like=image) as made:
        made.write(BOX, np.ones((40, 60), bool), 1)
        made.write((10, 20, 40, 60), RING, 2)
    return open_labels(folder / "a.zarr", "cells", mode="r")


def corners_px(polygon: shapely.Polygon, affine: tuple[float, ...]) -> NDArray[Any]:
    """Rows and columns of an outline in the map's system."""
    a, b, c, d, e, f = affine
    xy_ = shapely.get_coordinates(polygon)[:, :2] - (c, f)
    return np.linalg.solve(np.array([[a, b], [d, e]]), xy_.T).T[:, ::-1]


def features(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["features"]
    return found


def test_labels_of_a_map_know_its_pixel_size(labels: LabelImage) -> None:
    assert labels.unit == "meter"
    assert labels.scale_yx == (pytest.approx(0.5), pytest.approx(0.5))
    areas = {row.label: row.area for row in labels.objects()}
    assert areas == {1: pytest.approx(40 * 60 / 4), 2: pytest.approx(1000 / 4)}


def test_lonlat_lands_within_a_thousandth_of_a_pixel(
    labels: LabelImage, tmp_path: Path, affine: tuple[float, ...]
) -> None:
    labels.export(tmp_path / "a.geojson", units="lonlat")
    to_map = pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True)
    outline, ring = (
        shapely.geometry.shape(one["geometry"]) for one in features(tmp_path / "a.geojson")
    )
    for polygon in (outline, ring):
        # RFC 7946: exteriors counterclockwise, holes clockwise.
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)
    assert len(ring.interiors) == 1
    on_map = shapely.transform(outline, to_map.transform, interleaved=False)
    found = corners_px(on_map, affine)
    assert found.min(0) == pytest.approx(BOX[:2], abs=0.001)
    assert found.max(0) == pytest.approx(BOX[2:], abs=0.001)
    assert on_map.area == pytest.approx(600, abs=0.01)


def test_geopackage_is_in_the_system_of_the_map(
    labels: LabelImage, tmp_path: Path, affine: tuple[float, ...]
) -> None:
    labels.export(tmp_path / "a.gpkg")
    with sqlite3.connect(tmp_path / "a.gpkg") as file:
        assert file.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = file.execute(
            'SELECT label, geom, area, holes FROM "cells" ORDER BY label'
        ).fetchall()
        [contents] = file.execute(
            "SELECT table_name, data_type, srs_id, min_x, min_y, max_x, max_y FROM gpkg_contents"
        ).fetchall()
        [wkt] = file.execute(
            "SELECT definition FROM gpkg_spatial_ref_sys WHERE srs_id = 32633"
        ).fetchone()
    file.close()
    assert pyproj.CRS.from_wkt(wkt) == pyproj.CRS.from_user_input(UTM)
    geometries = [shapely.from_wkb(blob[40:]) for _, blob, _, _ in rows]
    assert [(label, area, holes) for label, _, area, holes in rows] == [
        (1, pytest.approx(600), 0),
        (2, pytest.approx(250), 1),
    ]
    for (_, blob, _, _), geometry in zip(rows, geometries, strict=True):
        header = np.frombuffer(blob[8:40], "<f8")
        assert (blob[:2], blob[2:4], int.from_bytes(blob[4:8], "little")) == (b"GP", b"\0\3", 32633)
        assert tuple(header[[0, 2, 1, 3]]) == geometry.bounds
        assert geometry.is_valid
    found = corners_px(geometries[0], affine)
    assert (*found.min(0), *found.max(0)) == pytest.approx(BOX, abs=1e-6)
    assert contents[:3] == ("cells", "features", 32633)
    assert contents[3:] == pytest.approx(
        shapely.MultiPolygon([p for g in geometries for p in g.geoms]).bounds
    )


@pytest.mark.parametrize(
    ("box", "level"), [(None, 0), ((96, 192, 296, 392), 0), (None, 1), ((96, 192, 296, 392), 1)]
)
def test_a_label_tiff_lies_on_the_map(
    labels: LabelImage,
    tmp_path: Path,
    affine: tuple[float, ...],
    box: tuple[int, ...] | None,
    level: int,
) -> None:
    labels.export(tmp_path / "out.tif", box=box, level=level)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs == rasterio.CRS.from_string(UTM)
        rows, columns = np.nonzero(file.read(1) == 1)
        to_map = file.transform[:6]
    corners = [
        xy(to_map, rows.min(), columns.min()),
        xy(to_map, rows.max() + 1, columns.max() + 1),
    ]
    expected = [xy(affine, *BOX[:2]), xy(affine, *BOX[2:])]
    np.testing.assert_allclose(corners, expected, atol=1e-6)


def test_a_map_may_be_named_for_labels_that_know_none(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    labels = drawn(tmp_path, SHAPE_YX)
    for out in ("a.gpkg", "a.tif", "a.geojson"):
        options = {"units": "lonlat"} if out.endswith("json") else {}
        if out != "a.tif":
            with pytest.raises(
                LabelsError, match="nothing says where 'cells' lies; name the GeoTIFF"
            ):
                labels.export(tmp_path / out, **options)
        labels.export(tmp_path / out, georeference=tmp_path / "map.tif", **options)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.transform[:6] == NORTH_UP


def test_the_wrong_map_is_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif", np.zeros((1, 20, 30), np.uint8))
    labels = drawn(tmp_path, SHAPE_YX)
    with pytest.raises(LabelsError, match=r"of shape \(301, 601\), got one of \(20, 30\)"):
        labels.export(tmp_path / "a.gpkg", georeference=tmp_path / "map.tif")
    with pytest.raises(LabelsError, match="cannot be read"):
        labels.export(tmp_path / "a.gpkg", georeference=tmp_path / "none.tif")
    with pytest.raises(LabelsError, match="expected units='lonlat' for the georeference"):
        labels.export(tmp_path / "a.geojson", georeference=tmp_path / "map.tif")
    assert not (tmp_path / "a.gpkg").exists()


def test_names_and_systems_of_any_kind_are_written(tmp_path: Path) -> None:
    sinusoidal = "+proj=sinu +lon_0=0 +R=6371007.181 +units=m +no_defs"
    write_map(tmp_path / "map.tif", np.zeros((1, 60, 80), np.uint8), crs=sinusoidal)
    wanted = np.zeros((60, 80), np.uint8)
    wanted[3:7, 5:9] = 200
    write_labels(tmp_path / "a.zarr", wanted, name='my "cells"; DROP')
    labels = open_labels(tmp_path / "a.zarr", 'my "cells"; DROP', mode="r")
    labels.export(tmp_path / "a.gpkg", georeference=tmp_path / "map.tif")
    with sqlite3.connect(tmp_path / "a.gpkg") as file:
        assert file.execute('SELECT label FROM "my ""cells""; DROP"').fetchall() == [(200,)]
        assert file.execute("SELECT srs_id FROM gpkg_geometry_columns").fetchall() == [(OWN_SRS,)]
    file.close()


def test_the_command_line_knows_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_map(tmp_path / "map.tif")
    drawn(tmp_path, SHAPE_YX)
    export = [
        "labels",
        "export",
        str(tmp_path / "a.zarr"),
        "cells",
        "--georeference",
        str(tmp_path / "map.tif"),
    ]
    assert main([*export, "--out", str(tmp_path / "a.gpkg")]) == 0
    assert main([*export, "--out", str(tmp_path / "a.geojson"), "--units", "lonlat"]) == 0
    assert len(features(tmp_path / "a.geojson")) == 2
    with pytest.raises(SystemExit):
        main([*export, "--out", str(tmp_path / "a.csv")])
    assert "--georeference is for geojson or gpkg or tiff, not for csv" in capsys.readouterr().err


def test_lonlat_is_not_taken_for_pixels_when_it_is_imported(tmp_path: Path) -> None:
    image = open_image(write_map(tmp_path / "map.tif"))
    drawn(tmp_path, image).export(tmp_path / "a.geojson", units="lonlat")
    with (
        create_labels(tmp_path / "b.zarr", "cells", like=image) as labels,
        pytest.raises(LabelsError, match="got longitude and latitude"),
    ):
        labels.import_objects(tmp_path / "a.geojson")
