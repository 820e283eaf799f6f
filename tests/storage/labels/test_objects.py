"""The list of objects: from the journal without a pixel, and from pixels where it must be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.masks import ArrayMask
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.edits import DrawnAs
from napari_hrsam.storage.labels.kept import KeptLabels
from napari_hrsam.storage.labels.objects import ObjectList, ObjectRow, measure_array
from napari_hrsam.storage.labels.stored import StoredLabels

SHAPE = (600, 700)
PROMPTS = Prompts().with_click((5, 5), True).with_click((6, 6), False)


def disc(radius: int) -> NDArray[np.bool_]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return y * y + x * x <= radius * radius


def put(labels: Any, label: int, y: int, x: int, radius: int, **more: Any) -> Any:
    side = 2 * radius + 1
    return labels.write(Box(y, x, y + side, x + side), disc(radius), label, **more)


def by_pixels(values: NDArray[Any]) -> dict[int, tuple[int, Box]]:
    return {
        int(label): (int((values == label).sum()), Box.around(values == label))
        for label in np.unique(values)
        if label
    }


def told(rows: list[ObjectRow]) -> dict[int, int | None]:
    return {row.label: row.area_px for row in rows}


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("a pixel was read")


@pytest.mark.parametrize("kind", ["disk", "memory", "both"])
def test_areas_follow_commits_undo_and_redo(tmp_path: Path, kind: str) -> None:
    with create_labels(tmp_path / "a", "cells", SHAPE) as stored:
        array = np.zeros(SHAPE, np.uint32)
        labels: Any = {
            "disk": stored,
            "memory": ArrayLabels(array),
            "both": KeptLabels(array, stored, takes_up=True),
        }[kind]

        def require() -> None:
            values = labels.read(Box.of_shape(SHAPE))
            expected = {label: area for label, (area, _) in by_pixels(values).items()}
            assert told(shown.rows()) == expected
            assert told(labels.object_list().rows()) == expected
            for row in shown.rows():
                assert row.box.union(Box.around(values == row.label)) == row.box

        edits = [
            put(labels, 1, 10, 10, 40, drawn=DrawnAs(prompts=PROMPTS, model="tiny")),
            put(labels, 2, 60, 60, 30),
            put(labels, 3, 50, 20, 20, overwrite=True),
            labels.replace(1, labels.find(1), ArrayMask(Box(0, 0, 31, 31), disc(15))),
            put(labels, 4, 0, 0, 40, overwrite=True),
            labels.replace(2, labels.find(2), None),
        ]
        shown = labels.object_list()
        require()
        assert shown.row(((), 2)) is None
        for edit in reversed(edits):
            labels.revert(edit)
            newest = labels.newest_of(edit.label)
            shown.edited(edit, is_undone=True, newest=newest)
            require()
        for edit in edits:
            labels.apply(edit)
            shown.edited(edit, is_undone=False)
            require()


def test_rows_tell_what_the_journal_knows_without_reading_a_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_labels(tmp_path / "a", "cells", SHAPE) as labels:
        drawn = DrawnAs(prompts=PROMPTS, model="tiny", object_class="nucleus", level=2, score=0.875)
        edit = put(labels, 7, 100, 200, 25, drawn=drawn)
        monkeypatch.setattr(StoredLabels, "read", _refuse)
        (row,) = labels.objects()
    assert row == ObjectRow(
        label=7,
        box=Box(100, 200, 151, 251),
        area_px=int(disc(25).sum()),
        area=float(disc(25).sum()),
        object_class="nucleus",
        color=row.color,
        model="tiny",
        time=edit.time,
        num_prompts=2,
        level=2,
        score=0.875,
    )
    assert open_labels(tmp_path / "a", "cells", mode="r").objects() == [row]


def test_undoing_a_change_brings_back_what_was_told_before(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a", "cells", SHAPE) as labels:
        put(labels, 1, 10, 10, 20, drawn=DrawnAs(model="first", prompts=PROMPTS, score=0.5))
        edit = labels.replace(
            1, labels.find(1), ArrayMask(Box(0, 0, 31, 31), disc(15)), drawn=DrawnAs(model="b")
        )
        assert edit is not None
        shown = labels.object_list()
        labels.revert(edit)
        assert shown.edited(edit, is_undone=True, newest=labels.newest_of(1)) == {((), 1)}
        (row,) = shown.rows()
        assert (row.model, row.num_prompts, row.score) == ("first", 2, 0.5)


def test_areas_are_told_in_the_unit_of_the_image(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a", "cells", SHAPE) as labels:
        put(labels, 1, 0, 0, 10)
        file = labels.folder / "zarr.json"
    text = file.read_text().replace('"type": "space"', '"type": "space", "unit": "micrometer"')
    text = text.replace("1.0,\n", "0.5,\n", 1).replace("1.0\n", "0.25\n", 1)
    file.write_text(text)
    (row,) = open_labels(tmp_path / "a", "cells", mode="r").objects()
    assert row.unit == "micrometer"
    assert row.area == pytest.approx(disc(10).sum() * 0.125)


def test_labels_of_another_program_are_measured_in_one_pass(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 50, (30, 35)).astype(np.uint32).repeat(20, 0).repeat(20, 1)
    create_labels(tmp_path / "a", "cells", SHAPE).close()
    zarr.open_array(tmp_path / "a/labels/cells/0", mode="r+")[...] = values
    seen: list[tuple[int, int]] = []
    with open_labels(tmp_path / "a", "cells") as labels:
        assert labels.object_list().needs_measuring
        rows = labels.objects(progress=lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 0
        assert {row.label: (row.area_px, row.box) for row in rows} == by_pixels(values)
        assert {row.num_prompts for row in rows} == {None}
        # What we draw is told by the journal, all the rest still by pixels.
        labels.replace(7, labels.find(7), None)
        values[values == 7] = 0
        assert told(labels.objects()) == {n: area for n, (area, _) in by_pixels(values).items()}


def test_a_cancelled_measurement_ends_at_once(tmp_path: Path) -> None:
    create_labels(tmp_path / "a", "cells", SHAPE).close()
    zarr.open_array(tmp_path / "a/labels/cells/0", mode="r+")[...] = 1

    def give_up(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_labels(tmp_path / "a", "cells", mode="r").objects(measure=True, progress=give_up)


def test_what_is_committed_while_pixels_are_read_stays_as_it_was_committed() -> None:
    labels = ArrayLabels(np.zeros(SHAPE, np.uint32))
    put(labels, 1, 0, 0, 20)
    put(labels, 2, 100, 0, 20)
    shown = ObjectList(has_others=True)
    shown.begin_measuring()
    found = measure_array(labels.array)
    shown.edited(labels.replace(1, labels.find(1), None), is_undone=False)
    shown.edited(put(labels, 3, 200, 0, 20), is_undone=False)
    shown.measured((), found)
    assert told(shown.rows()) == {2: disc(20).sum(), 3: disc(20).sum()}
    assert not shown.needs_measuring


def test_planes_are_told_apart(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a", "cells", (3, *SHAPE)) as labels:
        put(labels, 1, 0, 0, 10, plane=(0,))
        put(labels, 1, 0, 0, 20, plane=(2,))
        labels.set_class(1, "nucleus")
        rows = labels.objects()
        assert [(row.plane, row.label, row.area_px) for row in rows] == [
            ((0,), 1, disc(10).sum()),
            ((2,), 1, disc(20).sum()),
        ]
        assert labels.objects((2,)) == labels.objects((2,), measure=True) == rows[1:]
        assert {row.object_class for row in rows} == {"nucleus"}


def test_a_journal_of_an_older_version_opens_and_its_objects_are_measured(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a", "cells", SHAPE) as labels:
        put(labels, 1, 0, 0, 10, drawn=DrawnAs(prompts=PROMPTS, model="tiny"))
    with closing(sqlite3.connect(labels.folder / ".journal" / "journal.sqlite")) as database:
        database.execute("UPDATE edits SET prompts = json_remove(prompts, '$.areas')")
        database.execute("DELETE FROM facts WHERE name = 'has_others'")
        database.commit()
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.object_list().needs_measuring
        (row,) = again.objects()
        assert (row.area_px, row.model, row.num_prompts) == (disc(10).sum(), "tiny", 2)
        again.revert(again.history().done[-1])
        assert again.objects() == []


def test_objects_are_measured_in_arrays_of_any_dtype() -> None:
    rng = np.random.default_rng(1)
    for dtype in (np.uint8, np.int32, np.uint64):
        values = rng.integers(0, 9, (2100, 37)).astype(dtype)
        assert measure_array(values) == by_pixels(values)
    assert measure_array(np.zeros((5, 5), np.uint8)) == {}
