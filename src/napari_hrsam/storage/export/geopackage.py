"""The objects of a label image as a GeoPackage: a layer of polygons in the map's own system."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import closing
from datetime import UTC, datetime
from os import PathLike
from typing import Any

import shapely

from napari_hrsam.errors import ImageError, LabelsError
from napari_hrsam.geometry import BoxLike
from napari_hrsam.storage.export.outlines import Polygon
from napari_hrsam.storage.export.simplify import simplified
from napari_hrsam.storage.export.source import Exported, Part, new_file, part_of, written
from napari_hrsam.storage.export.table import JOURNAL_COLUMNS, journal_cells, measurements
from napari_hrsam.storage.images.georeference import Georeference
from napari_hrsam.storage.labels.regions import Progress

OWN_SRS = 100_000
"""Number of a reference system that EPSG does not know."""

_APPLICATION, _VERSION = 0x47504B47, 10300
_LITTLE_ENDIAN_WITH_BOX = 0b0000_0011

# Tables of OGC 12-128r18 that a layer of features needs.
_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY,
  organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL,
  definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL,
  identifier TEXT UNIQUE, description TEXT DEFAULT '', last_change DATETIME NOT NULL
  DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')), min_x DOUBLE, min_y DOUBLE, max_x DOUBLE,
  max_y DOUBLE, srs_id INTEGER REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL,
  geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL,
  m TINYINT NOT NULL, PRIMARY KEY (table_name, column_name), UNIQUE (table_name),
  FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
  FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
"""


def export_geopackage(
    path: str | PathLike[str],
    name: str,
    out: str | PathLike[str],
    *,
    georeference: str | PathLike[str] | None = None,
    simplify_px: float = 0.0,
    box: BoxLike | None = None,
    labels: Collection[int] | None = None,
    plane: tuple[int, ...] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a GeoPackage with one layer, and one multipolygon per object, as QGIS reads it.

    Coordinates are those of the coordinate reference system of the map. The columns are those of
    `export_csv`, and ``color`` (``#rrggbb``) where the object or its class has one.

    Parameters
    ----------
    path, name, out, box, labels, plane, overwrite, progress
        As in `export_csv`.
    georeference : path, optional
        The GeoTIFF that the labels were drawn on; by default as they tell themselves.
    simplify_px : float
        As in `export_geojson`.

    Returns
    -------
    Exported

    Raises
    ------
    LabelsError
        As in `export_geojson`; if nothing says where the labels lie.
    MissingExtraError
        If the extra ``geo`` is not installed.
    """
    if not 0 <= simplify_px < float("inf"):
        raise LabelsError(
            f"expected simplify_px of 0 or more pixels, got {simplify_px}; 0 gives exact outlines"
        )
    part = part_of(path, name, box=box, labels=labels, plane=plane)
    where = part.georeference(georeference)
    try:
        srs = _srs(where)
    except ImageError as error:
        raise LabelsError(str(error)) from error
    with new_file(out, overwrite=overwrite) as partial:
        table = part.measured(progress)
        measured = measurements(table, part)
        columns = ["label", "class", "color", *measured, "parts", "holes", *JOURNAL_COLUMNS]
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(partial)) as file, file:
            file.execute(f"PRAGMA application_id = {_APPLICATION}")
            file.execute(f"PRAGMA user_version = {_VERSION}")
            file.executescript(_TABLES)
            layer = _quoted(part.labels.name)
            kinds = ", ".join(f"{_quoted(column)} {_kind(column)}" for column in columns)
            file.execute(
                f"CREATE TABLE {layer} (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "
                f"geom MULTIPOLYGON, {kinds})"
            )
            bounds = _Bounds()
            rows = _rows(part, where, table, measured, srs[1], bounds, simplify_px, progress)
            places = ", ".join("?" * (1 + len(columns)))
            names = ", ".join(map(_quoted, columns))
            # Names are quoted, values are given apart.
            file.executemany(
                f"INSERT INTO {layer} (geom, {names}) VALUES ({places})",  # noqa: S608
                rows,
            )
            _describe(file, part.labels.name, srs, bounds)
    return written(out, len(table))


class _Bounds:
    """What all geometries lie in."""

    def __init__(self) -> None:
        self.box: tuple[float, float, float, float] | None = None

    def add(self, box: tuple[float, float, float, float]) -> None:
        low = box if self.box is None else self.box
        self.box = (
            min(low[0], box[0]),
            min(low[1], box[1]),
            max(low[2], box[2]),
            max(low[3], box[3]),
        )


def _srs(where: Georeference) -> tuple[str, int, str, int, str, str]:
    """Describe a reference system as a row of GeoPackage."""
    epsg = where.epsg
    owner, number = ("NONE", OWN_SRS) if epsg is None else ("EPSG", epsg)
    return (f"{owner}:{number}", number, owner, number, where.crs_wkt, "")


def _rows(
    part: Part,
    where: Georeference,
    table: Any,
    measured: dict[str, list[float]],
    srs_id: int,
    bounds: _Bounds,
    simplify_px: float,
    progress: Progress | None,
) -> Iterator[list[Any]]:
    commits = part.commits()
    for index, outline in part.outlines(table, progress):
        polygons = outline.polygons
        if simplify_px:
            polygons = simplified(polygons, simplify_px)
        geometry = _geometry(polygons, where)
        bounds.add(geometry.bounds)
        color = part.properties.color_of(outline.label)
        yield [
            _blob(geometry, srs_id),
            outline.label,
            part.properties.of(outline.label).object_class or None,
            None if color is None else "#{:02x}{:02x}{:02x}".format(*color),
            *(values[index] for values in measured.values()),
            len(outline.polygons),
            outline.num_holes,
            *(cell or None for cell in journal_cells(commits.get(outline.label))),
        ]


def _geometry(polygons: tuple[Polygon, ...], where: Georeference) -> shapely.MultiPolygon:
    placed = [[where.places(ring) for ring in polygon] for polygon in polygons]
    found = shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in placed])
    oriented: shapely.MultiPolygon = shapely.orient_polygons(found)
    return oriented


def _blob(geometry: shapely.MultiPolygon, srs_id: int) -> bytes:
    """Return a geometry as GeoPackage stores it: a header with its box, then WKB."""
    x0, y0, x1, y1 = geometry.bounds
    head = struct.pack("<2sBBi4d", b"GP", 0, _LITTLE_ENDIAN_WITH_BOX, srs_id, x0, x1, y0, y1)
    body: bytes = shapely.to_wkb(geometry, byte_order=1)
    return head + body


def _describe(
    file: sqlite3.Connection, name: str, srs: tuple[str, int, str, int, str, str], bounds: _Bounds
) -> None:
    """Fill the tables that say what the file holds."""
    wgs84 = Georeference.definition_of(4326)
    known = [
        ("Undefined Cartesian", -1, "NONE", -1, "undefined", ""),
        ("Undefined geographic", 0, "NONE", 0, "undefined", ""),
        ("WGS 84", 4326, "EPSG", 4326, wgs84, "longitude, latitude"),
    ]
    rows = known if srs[1] in {row[1] for row in known} else [*known, srs]
    file.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", rows)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    file.execute(
        "INSERT INTO gpkg_contents VALUES (?, 'features', ?, '', ?, ?, ?, ?, ?, ?)",
        (name, name, now, *(bounds.box or (None,) * 4), srs[1]),
    )
    file.execute(
        "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'MULTIPOLYGON', ?, 0, 0)",
        (name, srs[1]),
    )


def _kind(column: str) -> str:
    if column in {"class", "color", *JOURNAL_COLUMNS} - {"prompts"}:
        return "TEXT"
    return "INTEGER" if column in {"label", "area_px", "parts", "holes", "prompts"} else "REAL"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
