"""Classes and colours in the metadata: what others wrote stays, a kill leaves old or new."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import (
    LabelWriter,
    compact_labels,
    create_labels,
    open_labels,
    verify_labels,
)
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.edits import DrawnAs
from napari_hrsam.storage.labels.kept import KeptLabels
from napari_hrsam.storage.labels.properties import (
    ObjectClass,
    Properties,
    PropertiesChange,
    properties_in,
    put_properties,
)

SHAPE = (300, 400)
SQUARE = np.ones((10, 10), bool)


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[LabelWriter]:
    with create_labels(tmp_path / "a", "cells", SHAPE) as made:
        draw(made, 3)
        yield made


def draw(labels: Any, num: int, object_class: str | None = None) -> None:
    for label in range(1, num + 1):
        box = Box(20 * label, 20, 20 * label + 10, 30)
        labels.write(box, SQUARE, label, drawn=DrawnAs(object_class=object_class))


def metadata(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "zarr.json").read_text())["attributes"]
    return found


def classes_of(labels: Any) -> list[str]:
    return [labels.properties_of(label).object_class for label in (1, 2, 3)]


def test_classes_lie_in_the_ome_metadata_and_are_there_after_opening_again(
    labels: LabelWriter, tmp_path: Path
) -> None:
    labels.add_class("nucleus", (10, 20, 30), key=4)
    labels.set_class([1, 3], "nucleus")
    labels.set_color(2, (1, 2, 3))
    told = metadata(labels.folder)
    assert told["ome"]["image-label"] == {
        "properties": [
            {"label-value": 1, "class": "nucleus"},
            {"label-value": 3, "class": "nucleus"},
        ],
        "colors": [{"label-value": 2, "rgba": [1, 2, 3, 255]}],
    }
    labels.close()
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.classes == (ObjectClass(name="nucleus", color=(10, 20, 30), key=4),)
        assert classes_of(again) == ["nucleus", "", "nucleus"]
        assert again.properties.color_of(1) == (10, 20, 30)
        assert again.properties.color_of(2) == (1, 2, 3)
    assert verify_labels(tmp_path / "a", "cells").is_sound
    assert open_labels(tmp_path / "a", "cells", mode="r").classes[0].name == "nucleus"


def test_a_class_that_is_new_is_added_with_a_colour_and_a_digit(labels: LabelWriter) -> None:
    labels.set_class(1, "nucleus")
    labels.set_class(2, "debris")
    first, second = labels.classes
    assert (first.key, second.key) == (1, 2)
    assert first.color != second.color
    assert labels.set_class(2, "debris") is None, "nothing to change is no step"


@pytest.mark.parametrize("on_disk", [True, False])
def test_every_change_of_classes_is_one_step_that_is_undone_and_made_again(
    labels: LabelWriter, on_disk: bool
) -> None:
    chosen: Any = labels
    if not on_disk:
        chosen = ArrayLabels(np.zeros(SHAPE, np.uint32))
        draw(chosen, 3)
    steps: list[Callable[[], Any]] = [
        lambda: chosen.add_class("nucleus"),
        lambda: chosen.set_class([1, 2], "nucleus"),
        lambda: chosen.set_class([2, 3], "debris"),
        lambda: chosen.change_class("nucleus", new_name="core", color=(1, 1, 1), key=7),
        lambda: chosen.set_color([1, 3], (9, 9, 9)),
        lambda: chosen.remove_class("debris"),
    ]
    seen = [chosen.properties]
    edits = []
    for step in steps:
        edits.append(step())
        seen.append(chosen.properties)
    assert [one.name for one in chosen.classes] == ["core"]
    assert classes_of(chosen) == ["core", "", ""]
    for edit, before in zip(reversed(edits), reversed(seen[:-1]), strict=True):
        newest = chosen.newest_done()
        assert newest is not None
        assert newest.change == edit.change
        chosen.revert(newest)
        assert chosen.properties == before
    for after in seen[1:]:
        undone = chosen.next_undone()
        assert undone is not None
        chosen.apply(undone)
        assert chosen.properties == after
    assert chosen.newest_of(1).kind == "draw", "prompts are those of the last change of pixels"


def test_an_object_is_drawn_with_its_class_in_one_step(labels: LabelWriter) -> None:
    edit = labels.write(Box(0, 0, 10, 10), SQUARE, 9, drawn=DrawnAs(object_class="nucleus"))
    assert labels.properties_of(9).object_class == "nucleus"
    labels.revert(edit)
    assert labels.properties == Properties()
    assert not labels.read(Box(0, 0, 10, 10)).any()
    labels.apply(edit)
    assert labels.properties_of(9).object_class == "nucleus"


def test_an_id_that_is_used_once_more_in_memory_does_not_inherit_a_class() -> None:
    labels = ArrayLabels(np.zeros(SHAPE, np.uint32))
    draw(labels, 1, "nucleus")
    labels.replace(1, labels.find(1), None)
    assert labels.next_label() == 1
    draw(labels, 1, "")
    assert labels.properties_of(1).object_class == ""


def test_what_other_programs_wrote_is_kept(labels: LabelWriter, tmp_path: Path) -> None:
    file = labels.folder / "zarr.json"
    node = json.loads(file.read_text())
    theirs = {
        "properties": [
            {"label-value": 1, "area (pixels)": 100},
            {"label-value": 2, "class": "foo", "score": 0.5},
            {"label-value": 77},
        ],
        "colors": [{"label-value": 1, "rgba": [1, 2, 3, 4], "mine": True}],
        "unknown": [1],
    }
    node["attributes"]["ome"]["image-label"] = theirs
    node["attributes"]["other"] = {"a": 1}
    labels.close()
    file.write_text(json.dumps(node))
    with open_labels(tmp_path / "a", "cells") as again:
        assert classes_of(again) == ["", "foo", ""]
        assert [(one.name, one.key) for one in again.classes] == [("foo", 0)]
        again.set_class([1, 2], "bar")
        again.set_color(1, None)
        again.set_class(2, "")
        told = metadata(again.folder)
    assert told["other"] == {"a": 1}
    label = told["ome"]["image-label"]
    assert label["unknown"] == [1]
    assert label["properties"] == [
        {"label-value": 1, "area (pixels)": 100, "class": "bar"},
        {"label-value": 2, "score": 0.5},
        {"label-value": 77},
    ]
    assert label["colors"] == [{"label-value": 1, "mine": True}]


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"ome": 3},
        {"ome": {"image-label": []}},
        {"image-label": {"properties": {"a": 1}, "colors": [3, {"label-value": "x"}]}},
        {"image-label": {"properties": [{"label-value": 1, "class": 5}]}},
        {"image-label": {"colors": [{"label-value": 1, "rgba": [1, 2, 3, 4, 5]}]}},
        {"napari-hrsam": {"classes": [{"name": "a"}, 3, {"name": "", "color": [1, 2, 3]}]}},
        {"napari-hrsam": 5},
    ],
)
def test_metadata_of_another_form_tell_nothing_and_can_be_added_to(told: dict[str, Any]) -> None:
    assert properties_in(told) == Properties()
    wanted = Properties().after(Properties().setting_class([1], "a"))
    put_properties(told, wanted, [1])
    assert properties_in(told) == wanted


def test_a_copy_in_shards_keeps_classes_and_colours(labels: LabelWriter, tmp_path: Path) -> None:
    labels.set_class([1, 2], "nucleus")
    labels.set_color(3, (1, 2, 3))
    labels.close()
    compact_labels(tmp_path / "a", "cells", tmp_path / "b")
    copy = open_labels(tmp_path / "b", "cells", mode="r")
    assert copy.properties == labels.properties
    assert [row.object_class for row in copy.objects()] == ["nucleus", "nucleus", ""]


def test_labels_in_memory_have_their_classes_in_the_copy_on_disk(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint32)
    with create_labels(tmp_path / "a", "cells", SHAPE) as copy:
        kept = KeptLabels(array, copy, takes_up=False)
        draw(kept, 2, "nucleus")
        edit = kept.set_class(2, "debris")
        assert edit is not None
        kept.revert(edit)
        assert copy.properties == kept.properties
        kept.apply(edit)
    with open_labels(tmp_path / "a", "cells") as copy:
        again = KeptLabels(np.zeros(SHAPE, np.uint32), copy, takes_up=True)
        assert classes_of(again) == ["nucleus", "debris", ""]


# Killed when the journal holds the change, before or after the metadata take their place.
KILLED = """
import os, sys
from napari_hrsam.storage.files import safe_files
from napari_hrsam.storage.label_image import open_labels
from napari_hrsam.storage.labels import pyramid
labels = open_labels(sys.argv[1], "cells")
def kill(*_, **__):
    os.kill(os.getpid(), 9)
if sys.argv[2] == "before":
    safe_files._rename = kill
else:
    pyramid.Journal.mark_applied = kill
labels.set_class([1, 2, 3], "new")
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_in_a_change_of_classes_leaves_the_old_ones(
    labels: LabelWriter, tmp_path: Path, when: str
) -> None:
    labels.set_class([1], "old")
    before, told = labels.properties, metadata(labels.folder)
    labels.close()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (metadata(labels.folder) == told) == (when == "before")
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.properties == before
        assert metadata(again.folder) == told
        assert [edit.kind for edit in again.history().done][-1] == "properties"
    assert not list(labels.folder.rglob("*.before.partial"))


def test_on_a_full_disk_classes_stay_as_they_are(
    labels: LabelWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels.set_class([1], "old")
    before = labels.properties
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("os.fsync", full)
        with pytest.raises(LabelsError, match="space on the disk"):
            labels.set_class([2], "new")
    assert labels.properties == before
    assert properties_in(metadata(labels.folder)) == before
    labels.set_class([2], "new")
    assert classes_of(labels) == ["old", "new", ""]


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_an_index_of_the_groups_above_tells_the_classes_too(
    labels: LabelWriter, tmp_path: Path
) -> None:
    import zarr

    labels.close()
    zarr.consolidate_metadata(tmp_path / "a")
    with open_labels(tmp_path / "a", "cells") as again:
        again.set_class(1, "nucleus")
    group = zarr.open_consolidated(tmp_path / "a")["labels/cells"]
    assert group.attrs["napari-hrsam"]["classes"][0]["name"] == "nucleus"  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda labels: labels.add_class(" "), "a name of 1 to 200"),
        (lambda labels: labels.add_class("a" * 201), "a name of 1 to 200"),
        (lambda labels: labels.add_class("old"), "already"),
        (lambda labels: labels.add_class("a", (1, 2, 256)), "0 to 255"),
        (lambda labels: labels.add_class("a", key=10), "a digit from 1 to 9"),
        (lambda labels: labels.change_class("none"), "a class of the label image"),
        (lambda labels: labels.change_class("old", new_name="other"), "already"),
        (lambda labels: labels.remove_class("none"), "a class of the label image"),
        (lambda labels: labels.set_class(0, "old"), "ids of objects"),
        (lambda labels: labels.set_color(1, (1, 2)), "red, green and blue"),
    ],
)
def test_a_bad_class_costs_a_message_and_changes_nothing(
    labels: LabelWriter, change: Callable[[Any], Any], match: str
) -> None:
    labels.set_class(1, "old")
    labels.add_class("other")
    before = labels.properties
    with pytest.raises(LabelsError, match=match):
        change(labels)
    assert labels.properties == before


def test_a_digit_belongs_to_one_class(labels: LabelWriter) -> None:
    labels.add_class("a")
    labels.add_class("b", key=1)
    assert [(one.name, one.key) for one in labels.classes] == [("a", 0), ("b", 1)]


def test_a_change_comes_back_from_what_is_kept_of_it() -> None:
    first = Properties().after(Properties().setting_class([1, 5], "a"))
    change = first.changing_class("a", new_name="b")
    assert PropertiesChange.of(json.loads(json.dumps(change.told()))) == change
    for told in (3, {"classes": [1]}, {"objects": [[{}, {}, [0]]]}, {"objects": [[{"class": 3}]]}):
        with pytest.raises(ValueError, match="no change of classes"):
            PropertiesChange.of(told)
