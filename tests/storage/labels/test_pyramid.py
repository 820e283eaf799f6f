from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from label_checks import require_consistent_levels

import napari_hrsam as hrsam
from napari_hrsam.errors import LabelsError, ShapeError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import ArrayMask, BlockMask
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.label_image import (
    LabelWriter,
    create_labels,
    open_labels,
)
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.labels.edits import DrawnAs, History
from napari_hrsam.storage.labels.stored import StoredLabels

SHAPE = (1500, 1301)
PLACE = Box(500, 490, 540, 550)
WHOLE = Box.of_shape(SHAPE)


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[LabelWriter]:
    with create_labels(tmp_path / "alone.zarr", "cells", SHAPE) as made:
        yield made


def ones(box: Box) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.ones(box.shape_yx, bool)


def disc(side: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    distance = np.arange(side) - (side - 1) / 2
    return np.hypot(distance[:, np.newaxis], distance) < side / 2


def make_image(path: Path, version: str, shapes: list[tuple[int, ...]]) -> None:
    """An OME-Zarr image (c, y, x) or (t, c, z, y, x) of the given level shapes."""
    fmt = 2 if version == "0.4" else 3
    group = zarr.open_group(path, mode="w-", zarr_format=fmt)  # type: ignore[arg-type]
    types = {"t": "time", "c": "channel"}
    names = "tczyx"[-len(shapes[0]) :] if len(shapes[0]) == 5 else "cyx"
    datasets = []
    for level, shape in enumerate(shapes):
        group.create_array(
            f"s{level}", shape=shape, chunks=(1,) * (len(shape) - 2) + (64, 64), dtype="u1"
        )
        scale = [9.0] * (len(shape) - 2) + [0.5 * 2**level] * 2
        datasets.append(
            {"path": f"s{level}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    axes = [{"name": name, "type": types.get(name, "space")} for name in names]
    ome = {"multiscales": [{"axes": axes, "datasets": datasets, "version": version}]}
    group.attrs.update(ome if fmt == 2 else {"ome": {"version": version, **ome}})


def test_a_commit_is_there_at_every_level_and_after_opening_again(tmp_path: Path) -> None:
    prompts = Prompts().with_click((515, 520), True)
    with hrsam.create_labels(tmp_path / "a.zarr", name="cells", like=SHAPE) as labels:
        assert [array.shape for array in labels.levels] == [(1500, 1301), (750, 651), (375, 326)]
        label = labels.next_label()
        edit = labels.write(
            PLACE, disc(60)[10:50], label, drawn=DrawnAs(prompts=prompts, model="tiny")
        )
        assert (edit.label, edit.prompts, edit.model) == (1, prompts, "tiny")
        assert edit.box == PLACE
        assert labels.next_label() == 2
    with hrsam.open_labels(tmp_path / "a.zarr", "cells") as labels:
        np.testing.assert_array_equal(labels.read(PLACE) == 1, disc(60)[10:50])
        assert (labels.read(WHOLE) != 0).sum() == disc(60)[10:50].sum()
        require_consistent_levels(labels)
        assert labels.next_label() == 2
        (found,) = labels.history().done
        assert (found.prompts, found.box, found.time) == (prompts, PLACE, edit.time)


def any_mask(rng: np.random.Generator, box: Box) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Single pixels, nearly all, all, or large squares that fill chunks of 64 px."""
    if rng.integers(3) == 0:
        coarse = rng.random((box.height // 96 + 1, box.width // 96 + 1)) < 0.6
        mask = np.kron(coarse, np.ones((96, 96), bool))[: box.height, : box.width].astype(bool)
    else:
        mask = rng.random(box.shape_yx) < rng.choice([0.01, 0.9, 1.0])
    mask[0, 0] = True
    return mask


def in_blocks(mask: np.ndarray[Any, np.dtype[np.bool_]], box: Box) -> BlockMask:
    """The same mask, sparse."""
    return BlockMask(box, ArrayMask(box, mask).read)


@settings(deadline=None, max_examples=16)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0, 100_000, 2**26]),
    st.sampled_from([64, 512]),
    st.sampled_from([None, 2, 3, 1.7]),
)
def test_any_series_of_commits_undos_and_redos_equals_an_array(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    cell_bytes: int,
    chunk_px: int,
    factor: float | None,
) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("series") / "a.zarr"
    shape = (int(rng.integers(520, 700)), int(rng.integers(1, 900)))
    truth = hrsam.ArrayLabels(shape)
    done: list[Any] = []
    undone: list[Any] = []
    if factor:
        sizes = [tuple(max(1, int(n / factor**k)) for n in shape) for k in range(4)]
        make_image(folder, "0.5", [(1, *size) for size in sizes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_hrsam.storage.labels.writer.MAX_KEPT_BYTES", cell_bytes)
        patch.setattr("napari_hrsam.storage.labels.making.CHUNK_PX", chunk_px)
        labels = create_labels(folder, "cells", shape)
        for _ in range(14):
            step = rng.integers(5)
            if step == 0 and done:
                pair = done.pop()
                truth.revert(pair[0])
                labels.revert(pair[1])
                undone.append(pair)
            elif step == 1 and undone:
                pair = undone.pop()
                truth.apply(pair[0])
                labels.apply(pair[1])
                done.append(pair)
            elif step == 2:
                labels.close()
                labels = open_labels(folder, "cells")
                history = labels.history()
                assert [e.label for e in history.done] == [pair[0].label for pair in done]
                assert [e.label for e in history.undone] == [pair[0].label for pair in undone]
            else:
                y0, x0 = (int(rng.integers(size)) for size in shape)
                size = rng.integers(1, 400, 2)
                box = Box(y0, x0, y0 + int(size[0]), x0 + int(size[1])).clip(shape)
                mask = any_mask(rng, box)
                given = in_blocks(mask, box) if rng.integers(2) else mask
                label, overwrite = labels.next_label(), bool(rng.integers(2))
                try:
                    first = truth.write(box, mask, label, overwrite=overwrite)
                except LabelsError:
                    with pytest.raises(LabelsError, match="expected at least one free pixel"):
                        labels.write(box, given, label, overwrite=overwrite)
                    continue
                done.append((first, labels.write(box, given, label, overwrite=overwrite)))
                assert done[-1][0].box == done[-1][1].box
                undone.clear()
        np.testing.assert_array_equal(labels.read(Box.of_shape(shape)), truth.array)
        require_consistent_levels(labels)
        labels.close()


def test_only_chunks_that_hold_labels_are_stored(labels: LabelWriter) -> None:
    def chunks() -> list[str]:
        return [str(p) for p in (labels.folder / "0" / "c").rglob("*") if p.is_file()]

    edit = labels.write(Box(0, 0, 5, 5), np.ones((5, 5), bool), 1)
    assert len(chunks()) == 1
    labels.revert(edit)
    assert chunks() == []


@pytest.mark.parametrize("other", [slice(5, 30), slice(3, 20)])
def test_rectangles_in_two_chunks_stay_two(labels: LabelWriter, other: slice) -> None:
    mask = np.zeros((40, 700), bool)
    mask[5:20, 400:512] = mask[other, 512:600] = True
    edit = labels.write(Box(0, 0, 40, 700), mask, 1)
    np.testing.assert_array_equal(labels.read(Box(0, 0, 40, 700)) == 1, mask)
    labels.revert(edit)
    assert not labels.read(WHOLE).any()


def test_a_full_chunk_after_one_that_the_end_cuts_is_full(tmp_path: Path) -> None:
    mask = np.zeros((2100, 1301), bool)
    mask[:1024, 1024:] = mask[1024:1536] = True
    with create_labels(tmp_path / "tall", "cells", mask.shape) as labels:
        labels.write(Box.of_shape(mask.shape), mask, 1)
        np.testing.assert_array_equal(labels.read(Box.of_shape(mask.shape)) == 1, mask)
        require_consistent_levels(labels)


def test_commits_are_undone_newest_first_and_redone_in_order(labels: LabelWriter) -> None:
    first = labels.write(PLACE, ones(PLACE), 1)
    second = labels.write(PLACE, ones(PLACE), 2, overwrite=True)
    with pytest.raises(LabelsError, match=r"the newest commit to take back, got an older one \(ob"):
        labels.revert(first)
    with pytest.raises(LabelsError, match="expected the commit that was taken back last"):
        labels.apply(first)
    labels.revert(second)
    labels.revert(first)
    with pytest.raises(LabelsError, match="make those before it again first"):
        labels.apply(second)
    labels.apply(first)
    assert (labels.read(PLACE) == 1).all()
    third = labels.write(PLACE.shifted(100, 0), ones(PLACE), 3)
    with pytest.raises(LabelsError, match="A new commit ends the chance to"):
        labels.apply(second)
    labels.revert(third)


def test_undo_leaves_what_another_program_drew_beside_the_object(labels: LabelWriter) -> None:
    mask = ones(PLACE)
    mask[0, 0] = False
    edit = labels.write(PLACE, mask, 1)
    labels.levels[0][PLACE.y0, PLACE.x0] = 77
    labels.revert(edit)
    assert labels.read(PLACE)[0, 0] == 77
    assert (labels.read(WHOLE) != 0).sum() == 1


def test_edits_of_other_labels_are_refused(labels: LabelWriter, tmp_path: Path) -> None:
    with create_labels(tmp_path / "other.zarr", "cells", SHAPE) as other:
        edit = other.write(PLACE, ones(PLACE), 1)
        labels.write(PLACE, ones(PLACE), 1)
        with pytest.raises(LabelsError, match="an edit of the labels at .*got one of other labels"):
            labels.revert(edit)
    with pytest.raises(LabelsError, match="got one of other labels"):
        labels.apply(hrsam.Edit(label=1, box=PLACE))


def test_what_cannot_be_written_is_refused(labels: LabelWriter) -> None:
    with pytest.raises(ShapeError, match="a mask of the shape of its box"):
        labels.write(PLACE, ones(PLACE).T, 1)
    with pytest.raises(LabelsError, match="a box inside the labels"):
        labels.write(PLACE.shifted(0, 1000), ones(PLACE), 1)
    with pytest.raises(LabelsError, match=r"between 1 and 4294967295.*got 4294967296"):
        labels.write(PLACE, ones(PLACE), 2**32)
    with pytest.raises(LabelsError, match=r"expected a plane inside labels.*\(\), got \(0,\)"):
        labels.write(PLACE, ones(PLACE), 1, plane=(0,))
    with pytest.raises(LabelsError, match="at least one free pixel for object 1, got a mask of 0"):
        labels.write(PLACE, ~ones(PLACE), 1)
    assert labels.history() == History()


def test_ids_up_to_the_last_of_uint32_are_kept_and_then_refused(labels: LabelWriter) -> None:
    labels.write(PLACE, ones(PLACE), 2**32 - 1)
    assert (labels.levels[2][125:135, 125:135] == 2**32 - 1).all()
    with pytest.raises(LabelsError, match="got 4294967296"):
        labels.next_label()


def test_closed_labels_refuse_and_close_twice(labels: LabelWriter) -> None:
    labels.close()
    labels.close()
    for call in (labels.next_label, labels.history, lambda: labels.write(PLACE, ones(PLACE), 1)):
        with pytest.raises(LabelsError, match="expected open labels, got closed ones"):
            call()


# --------------------------------------------------------------------------------- OME-Zarr


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_beside_an_image_take_its_levels_and_are_listed(
    tmp_path: Path, version: str
) -> None:
    path = tmp_path / "slide.ome.zarr"
    make_image(path, version, [(3, 900, 701), (3, 300, 233), (3, 100, 77)])
    for name in ("cells", "nuclei 2"):
        with create_labels(path, name, like=(900, 701)) as labels:
            assert [array.shape for array in labels.levels] == [(900, 701), (300, 233), (100, 77)]
            labels.write(Box(10, 10, 890, 699), np.ones((880, 689), bool), labels.next_label())
            require_consistent_levels(labels)
    group = zarr.open_group(path / "labels", mode="r")
    assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
    attributes: Any = dict(group.attrs)
    listed = attributes if version == "0.4" else attributes["ome"]
    assert listed["labels"] == ["cells", "nuclei 2"]
    found: Any = dict(group["cells"].attrs)
    found = found if version == "0.4" else found["ome"]
    assert found["image-label"]["source"] == {"image": "../../"}
    (multiscale,) = found["multiscales"]
    assert multiscale["axes"] == [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scales = [d["coordinateTransformations"][0]["scale"] for d in multiscale["datasets"]]
    assert scales == [[0.5, 0.5], [1.0, 1.0], [2.0, 2.0]]
    assert (multiscale if version == "0.4" else found)["version"] == version
    assert group["cells/0"].dtype == np.uint32
    chunk = path / "labels" / "cells" / "0" / ("1/1" if version == "0.4" else "c/1/1")
    assert chunk.is_file()


def test_planes_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "stack.ome.zarr"
    make_image(path, "0.5", [(2, 2, 3, 80, 70), (2, 2, 2, 40, 35)])
    with create_labels(path, "cells") as labels:
        assert labels.plane_shape == (2, 3)
        assert [array.shape for array in labels.levels] == [(2, 3, 80, 70), (2, 3, 40, 35)]
        edit = labels.write(Box(5, 5, 15, 15), np.ones((10, 10), bool), 1, plane=(1, 2))
        labels.write(Box(5, 5, 15, 15), np.ones((10, 10), bool), 2, plane=(0, 2))
        assert edit.plane == (1, 2)
        require_consistent_levels(labels, (1, 2))
        assert (np.asarray(labels.levels[0][1]) != 0).sum() == 100
        with pytest.raises(LabelsError, match=r"planes of shape \(2, 3\), got \(1, 3\)"):
            labels.write(Box(5, 5, 15, 15), np.ones((10, 10), bool), 1, plane=(1, 3))
    with open_labels(path, "cells") as labels:
        assert [edit.plane for edit in labels.history().done] == [(1, 2), (0, 2)]
        labels.revert(labels.history().done[1])
        assert not labels.read(Box(0, 0, 80, 70), plane=(0, 2)).any()
        assert labels.read(Box(0, 0, 80, 70), plane=(1, 2)).any()


@pytest.mark.parametrize("dtype", ["u1", "i4", ">u2"])
def test_labels_of_another_program_are_continued(tmp_path: Path, dtype: str) -> None:
    group = zarr.open_group(tmp_path / "labels" / "old", mode="w", zarr_format=2)
    image = np.zeros((300, 200), dtype)
    image[40:42, 50:52] = 77
    image[100:180, 20:140] = 5
    for level in range(2):
        array = group.create_array(
            f"s{level}", shape=(300 >> level, 200 >> level), chunks=(64, 64), dtype=dtype
        )
        array[:] = image[:: 1 << level, :: 1 << level]
    group.attrs["multiscales"] = [{"version": "0.4", "datasets": [{"path": "s0"}, {"path": "s1"}]}]
    with open_labels(tmp_path, "old") as labels:
        assert labels.next_label() == 78
        edit = labels.write(Box(90, 10, 190, 150), np.ones((100, 140), bool), 78)
        require_consistent_levels(labels)
        labels.revert(edit)
        np.testing.assert_array_equal(labels.read(Box(0, 0, 300, 200)), image)
    group["s0"][0, 0] = 100  # type: ignore[index]
    group["s1"][0, 0] = 100  # type: ignore[index]
    with open_labels(tmp_path, "old") as labels:
        assert labels.next_label() == 101


def test_many_label_images_share_a_folder_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        create_labels(tmp_path / "new" / "folder", name, (2, 3, 40, 30)).close()
    group = zarr.open_group(tmp_path / "new" / "folder" / "labels", mode="r")
    assert group.attrs["ome"] == {"version": "0.5", "labels": ["a", "b"]}
    multiscale: Any = group["a"].attrs["ome"]["multiscales"][0]  # type: ignore[index, call-overload]
    assert [axis["name"] for axis in multiscale["axes"]] == ["t", "z", "y", "x"]


def test_an_image_says_the_shape(tmp_path: Path) -> None:
    image = hrsam.open_image(np.zeros((30, 40, 3), np.uint8))
    with create_labels(tmp_path / "a", "cells", like=image) as labels:
        assert labels.shape_yx == (30, 40)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("t",), [("t", "time")]),
        (("Time",), [("Time", "time")]),
        (("channel",), [("channel", "channel")]),
        (("z",), [("z", "space")]),
        (("position",), [("position", "")]),
        (("axis -3",), [("z", "space")]),
        (("-3",), [("z", "space")]),
        (("",), [("z", "space")]),
        (("y",), [("z", "space")]),
        ((), [("z", "space")]),
        (("axis -4", "t"), [("z", ""), ("t", "")]),
        (("z", "c"), [("z", ""), ("c", "")]),
        (("t", "time"), [("t", ""), ("time", "")]),
        (("c", "axis -3"), [("c", "channel"), ("z", "space")]),
        (("axis -4", "axis -3"), [("t", "time"), ("z", "space")]),
        (("t", "t"), [("t", "time"), ("z", "space")]),
    ],
)
def test_axes_are_called_as_the_viewer_calls_them(
    names: tuple[str, ...], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    planes = (2, 3)[: max(1, len(names))]
    image = SimpleNamespace(shape_yx=(30, 40), plane_shape=planes, plane_names=names)
    with create_labels(tmp_path / "a", "cells", like=image) as labels:
        plane = tuple(n - 1 for n in planes)
        labels.write(Box(0, 0, 5, 5), np.ones((5, 5), bool), 7, plane=plane)
    stored = StoredLabels(tmp_path / "a", "cells")
    found = list(zip(stored.ome.axes, stored.ome.types, strict=True))
    assert found == [*expected, ("y", "space"), ("x", "space")]
    assert verify_labels(tmp_path / "a", "cells").is_sound
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.read(Box(0, 0, 1, 1), plane=plane).item() == 7


def test_a_creation_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    create_labels(tmp_path / "a", "cells", (40, 30)).close()
    folder = tmp_path / "a" / "labels"
    (folder / "cells").rename(folder / ".more.partial")
    with create_labels(tmp_path / "a", "more", (50, 30)) as labels:
        assert labels.shape_yx == (50, 30)
    assert not (folder / ".more.partial").exists()


@pytest.mark.parametrize(
    ("name", "like", "message"),
    [
        ("../out", (4, 4), "expected a name of letters"),
        (".journal", (4, 4), "expected a name of letters"),
        ("", (4, 4), "expected a name of letters"),
        ("cells", None, r"like=image or like=\(height, width\) for labels alone"),
        ("cells", (4,), r"a shape \(height, width\), got tuple"),
        ("cells", (0, 4), r"a shape \(height, width\), got tuple"),
        ("cells", np.zeros((4, 4)), r"got ndarray; give image.shape\[:2\]"),
        ("cells", (2, 2, 2, 2, 4, 4), "at most three axes before y and x"),
    ],
)
def test_what_cannot_be_created_is_refused(
    tmp_path: Path, name: str, like: object, message: str
) -> None:
    with pytest.raises(LabelsError, match=message):
        create_labels(tmp_path / "new", name, like)
    assert not (tmp_path / "new").exists()


def test_other_contents_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LabelsError, match="got a folder of something else"):
        create_labels(tmp_path, "cells", (4, 4))
    with pytest.raises(LabelsError, match="expected a folder, got the file"):
        create_labels(tmp_path / "notes.txt", "cells", (4, 4))
    zarr.open_group(tmp_path / "group", mode="w", zarr_format=3)
    with pytest.raises(LabelsError, match="got a zarr group of something else"):
        create_labels(tmp_path / "group", "cells", (4, 4))
    create_labels(tmp_path / "ours", "cells", (4, 4)).close()
    with pytest.raises(LabelsError, match="there is a label image 'cells' at .* open_labels"):
        create_labels(tmp_path / "ours", "cells", (4, 4))
    with pytest.raises(LabelsError, match="a folder on this computer for labels"):
        create_labels("https://example.org/slide.zarr", "cells", (4, 4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["group", "notes.txt", "ours"]


def test_labels_of_another_shape_than_the_image_are_not_made(tmp_path: Path) -> None:
    make_image(tmp_path / "a", "0.5", [(1, 80, 70)])
    with pytest.raises(LabelsError, match=r"of the shape \(80, 70\) of the image .*got \(70, 80\)"):
        create_labels(tmp_path / "a", "cells", (70, 80))


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="a label image 'cells' at .*, got none; make it with"):
        open_labels(tmp_path / "a", "cells")
    create_labels(tmp_path / "a", "nuclei", (4, 4)).close()
    with pytest.raises(LabelsError, match="got only nuclei"):
        open_labels(tmp_path / "a", "cells")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multiscales": []}, "metadata that cannot be used"),
        (
            {"multiscales": [{"datasets": [{"path": "../../x"}]}]},
            "expected the path of an array",
        ),
        ({"multiscales": [{"datasets": [{"path": "9"}]}]}, "KeyError"),
        ({"multiscales": [{"datasets": [{"path": "1"}, {"path": "0"}]}]}, "levels that shrink"),
    ],
)
def test_unusable_metadata_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    create_labels(tmp_path, "cells", (900, 900)).close()
    zarr.open_group(tmp_path / "labels" / "cells").attrs["ome"] = change
    with pytest.raises(LabelsError, match=message):
        open_labels(tmp_path, "cells")
    (tmp_path / "labels" / "cells" / "zarr.json").write_text('{"cut')
    with pytest.raises(LabelsError, match="metadata that cannot be used"):
        open_labels(tmp_path, "cells")


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"dtype": "f4"}, "expected labels of integers"),
        ({"dtype": "u4", "fill_value": 3}, "fill value 0"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path: Path, settings_: Any, message: str) -> None:
    create_labels(tmp_path, "cells", (90, 90)).close()
    shutil.rmtree(tmp_path / "labels" / "cells" / "0")
    zarr.create_array(tmp_path / "labels" / "cells" / "0", shape=(90, 90), **settings_)
    with pytest.raises(LabelsError, match=message):
        open_labels(tmp_path, "cells")


def test_the_folder_is_valid_ome_zarr_json(labels: LabelWriter) -> None:
    found = json.loads((labels.folder / "zarr.json").read_text())["attributes"]["ome"]
    transforms = [d["coordinateTransformations"] for d in found["multiscales"][0]["datasets"]]
    assert transforms[0] == [{"type": "scale", "scale": [1.0, 1.0]}]
    assert transforms[2] == [
        {"type": "scale", "scale": [4.0, 4.0]},
        {"type": "translation", "translation": [1.5, 1.5]},
    ]


def test_labels_load_no_torch() -> None:
    code = "import sys, napari_hrsam as h; h.create_labels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("planes", [(1, 1, 1), (2, 1, 3)])
def test_labels_have_up_to_five_axes(tmp_path: Path, planes: tuple[int, ...]) -> None:
    with create_labels(tmp_path, "cells", (*planes, 40, 50)) as labels:
        last = tuple(size - 1 for size in planes)
        labels.write((1, 2, 5, 9), np.ones((4, 7), bool), 1, plane=last)
        assert labels.read(plane=last).sum() == 28
    assert verify_labels(tmp_path, "cells").is_sound
    assert StoredLabels(tmp_path, "cells").ome.axes == ("t", "c", "z", "y", "x")


def test_boxes_are_four_numbers_as_well(labels: LabelWriter) -> None:
    labels.write((10, 20, 40, 50), np.ones((30, 30), bool), 1)
    np.testing.assert_array_equal(labels.read((10, 20, 40, 50)), np.ones((30, 30)))
    assert (labels.read() == 1).sum() == 900
    assert labels.read(level=1).shape == (750, 651)
    with pytest.raises(LabelsError, match=r"expected a box inside level 1 of shape \(750, 651\)"):
        labels.read((0, 0, 10, 700), level=1)
    with pytest.raises(LabelsError, match="expected a level from 0"):
        labels.read((0, 0, 10, 10), level=20)
    with pytest.raises(ShapeError, match="four whole numbers"):
        labels.read((0, 0, 10))
    assert repr(labels) == f"LabelWriter({str(labels.folder)!r}, 1500 x 1301 px)"
