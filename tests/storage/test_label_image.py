"""A label image as people use it."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import napari_hrsam as hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.labels.edits import DrawnAs

BOX = (10, 20, 40, 60)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with labels "cells", in which one object of 30 x 40 pixels lies."""
    with hrsam.create_labels(tmp_path / "a.zarr", "cells", like=(300, 200)) as labels:
        labels.write(
            BOX, np.ones((30, 40), bool), labels.next_label(), drawn=DrawnAs(model="by-hand")
        )
    return tmp_path / "a.zarr"


def files_of(place: Path) -> dict[str, tuple[int, int]]:
    return {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in place.rglob("*")
        if file.is_file()
    }


def test_labels_opened_for_reading_lock_and_change_nothing(place: Path) -> None:
    with hrsam.open_labels(place, "cells") as writer:
        before = files_of(place)
        labels = hrsam.open_labels(place, "cells", mode="r")
        assert (labels.read(BOX) == 1).all()
        assert labels.read().sum() == 30 * 40
        assert not hasattr(labels, "write")
        assert files_of(place) == before
        writer.write((100, 100, 110, 110), np.ones((10, 10), bool), 2)
        assert set(np.unique(labels.read())) == {0, 1, 2}
    assert isinstance(writer, hrsam.LabelImage)
    assert repr(labels) == f"LabelImage({str(labels.folder)!r}, 300 x 200 px)"


def test_another_mode_is_refused(place: Path) -> None:
    with pytest.raises(LabelsError, match=r"'r' \(reading\) or 'r\+' \(drawing\), got 'w'"):
        hrsam.open_labels(place, "cells", mode="w")  # type: ignore[call-overload]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_export_takes_the_format_from_the_suffix(place: Path, tmp_path: Path, mode: str) -> None:
    labels = hrsam.open_labels(place, "cells", mode=mode)  # type: ignore[call-overload]
    with labels if mode == "r+" else nullcontext():
        export_all(labels, tmp_path)


def export_all(labels: hrsam.LabelImage, tmp_path: Path) -> None:
    labels.export(tmp_path / "a.geojson", simplify_px=0.5)
    (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert feature["properties"]["model"] == "by-hand"
    labels.export(tmp_path / "a.CSV", box=(0, 0, 100, 40))
    with (tmp_path / "a.CSV").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["area_px"] == str(30 * 20)
    labels.export(tmp_path / "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text())["annotations"]) == 1
    labels.export(tmp_path / "a.tiff", file_format="csv")
    assert (tmp_path / "a.tiff").read_text().startswith("label,")


def test_a_format_that_nobody_knows_is_refused(place: Path, tmp_path: Path) -> None:
    labels = hrsam.open_labels(place, "cells", mode="r")
    with pytest.raises(LabelsError, match=r"got .*a\.svg'; change its name"):
        labels.export(tmp_path / "a.svg")
    with pytest.raises(
        LabelsError, match="expected simplify_px for geojson or gpkg alone, got it for csv"
    ):
        labels.export(tmp_path / "a.csv", simplify_px=1.0)
    assert not list(tmp_path.glob("a.[cs]*"))


def test_labels_are_verified_and_copied(place: Path, tmp_path: Path) -> None:
    labels = hrsam.open_labels(place, "cells", mode="r")
    assert labels.verify().num_objects == 1
    copy = labels.compact(tmp_path / "copy.zarr")
    assert (hrsam.open_labels(copy.path, "cells", mode="r").read(BOX) == 1).all()


def test_what_is_open_for_drawing_is_not_repaired(place: Path) -> None:
    with hrsam.open_labels(place, "cells") as labels:
        assert labels.verify().is_sound
        with pytest.raises(LabelsError, match="expected closed labels to repair"):
            labels.verify(repair=True)
