"""Committed objects as samples: regions, what is held out, and what is refused. No torch."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.errors import DataError, LabelsError
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.objects import ObjectRow
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.label_regions import (
    LEARN,
    cover,
    read_labels_at,
    read_regions,
    write_regions,
)


def rows(*boxes: tuple[int, int, int, int]) -> list[ObjectRow]:
    return [ObjectRow(label=n, box=Box(*box)) for n, box in enumerate(boxes, 1)]


def grid(num: int, *, step: int = 400) -> NDArray[np.int64]:
    """``num`` x ``num`` squares of 30 pixels, one every ``step`` pixels."""
    array = np.zeros((num * step, num * step), np.int64)
    for n in range(num * num):
        y, x = n // num * step + 10, n % num * step + 20
        array[y : y + 30, x : x + 30] = n + 1
    return array


def test_an_object_is_shown_where_it_takes_a_good_share_of_its_region() -> None:
    shape = (40_000, 40_000)
    for side in (10, 50, 150, 341, 342, 700, 3_000, 9_000):
        (region,) = cover(rows((20_000, 18_000, 20_000 + side, 18_000 + side // 2)), shape)
        shown, width = side / 2**region.level, max(region.box.shape_yx)
        assert 256 <= width <= 1024
        assert region.level >= 0, "nothing is enlarged"
        assert shown / width <= 1 / 3 + 0.01
        if side >= 60:
            assert shown / width > 1 / 6 - 0.01
        inside = Box(
            region.box.y0 * 2**region.level,
            region.box.x0 * 2**region.level,
            region.box.y1 * 2**region.level,
            region.box.x1 * 2**region.level,
        )
        assert inside.contains((20_000, 18_000))
        assert inside.contains((20_000 + side - 1, 18_000 + side // 2 - 1))


def test_objects_that_lie_together_share_a_region_and_regions_stay_in_the_image() -> None:
    near = rows((10, 10, 60, 60), (80, 80, 120, 120), (20, 100, 50, 130))
    (region,) = cover(near, (200, 300))
    assert sorted(region.objects) == [1, 2, 3]
    assert region.box == Box(0, 0, 200, 256)
    far = cover([*near, ObjectRow(label=9, box=Box(900, 900, 930, 930))], (1000, 1000))
    assert [sorted(one.objects) for one in far] == [[1, 2, 3], [9]]
    # A speck is not shown beside a giant, nor on another plane.
    apart = [*rows((0, 0, 300, 300), (310, 310, 320, 320))]
    assert len(cover(apart, (2000, 2000))) == 2
    planes = [ObjectRow(label=1, box=Box(0, 0, 50, 50), plane=(z,)) for z in range(3)]
    assert len(cover(planes, (200, 200))) == 3


def test_one_region_in_four_is_held_out_and_never_told_to_the_training(tmp_path: Path) -> None:
    array = grid(4)
    image = np.where(array > 0, 200, 50).astype(np.uint8)
    told: list[tuple[int, int]] = []
    done = write_regions(
        ArrayLabels(array), image, tmp_path / "a", progress=lambda *both: told.append(both)
    )
    assert (done.num_regions, done.num_objects, done.num_held_out) == (12, 12, 4)
    assert told == [(n, 16) for n in range(16)]
    assert read_regions(tmp_path / "a") == done
    held_out = done.held_out()
    assert [len(sample.objects) for sample in held_out] == [1] * 4
    for sample in held_out:
        assert np.count_nonzero(sample.labels() == sample.objects[0]) == 30 * 30
    learned = open_samples([done.learn])
    assert all(np.count_nonzero(one.labels()) == 900 for one in learned)
    # The same seed holds out the same.
    again = write_regions(ArrayLabels(array), image, tmp_path / "b")
    keys = [sample.labels().tobytes() for sample in again.held_out()]
    assert keys == [sample.labels().tobytes() for sample in held_out]
    other = write_regions(ArrayLabels(array), image, tmp_path / "c", seed=3)
    assert {p.name for p in (other.learn / "images").iterdir()}


def test_where_all_lies_in_one_region_objects_are_held_out(tmp_path: Path) -> None:
    array = grid(4, step=60)
    image = np.where(array > 0, 200, 50).astype(np.uint8)
    done = write_regions(ArrayLabels(array), image, tmp_path)
    assert (done.num_objects, done.num_held_out) == (12, 4)
    (learned,), (held_out,) = open_samples([done.learn]), done.held_out()
    assert np.count_nonzero(learned.labels()) == 12 * 900, "the others are in no mask"
    scored = np.isin(held_out.labels(), held_out.objects)
    assert np.count_nonzero(scored) == 4 * 900
    assert not (scored & (learned.labels() > 0)).any()


def test_pixels_are_those_that_the_model_sees_at_the_level(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 4000, (1500, 2000)).astype(np.uint16)
    with create_labels(tmp_path / "a.zarr", "cells", image.shape) as labels:
        for n, y in enumerate((0, 350, 700, 1050), 1):
            labels.write((y, 300, y + 350, 900), np.ones((350, 600), bool), n)
    opened = open_image(image, contrast_limits=(100, 3000))
    stored = open_labels(tmp_path / "a.zarr", "cells", mode="r")
    done = write_regions(stored, opened, tmp_path / "out")
    (region,) = cover(stored.objects()[:1], image.shape)
    assert region.level == 1
    seen = opened.read(Tile(1, region.box.y0, region.box.x0, 1024))
    pictures = [one.image() for one in (*open_samples([done.learn]), *done.held_out())]
    assert any(
        (picture == seen[: picture.shape[0], : picture.shape[1]]).all() for picture in pictures
    )


def test_labels_are_read_at_levels_that_are_not_stored(tmp_path: Path) -> None:
    array = np.zeros((300, 420), np.uint32)
    array[64:128, 96:320] = 7
    with create_labels(tmp_path / "a.zarr", "cells", array.shape) as labels:
        labels.write((64, 96, 128, 320), np.ones((64, 224), bool), 7)
    stored = open_labels(tmp_path / "a.zarr", "cells", mode="r")
    for one in (stored, ArrayLabels(array)):
        for level in (0, 1, 3, 5):
            box = Box(0, 0, -(-300 // 2**level), -(-420 // 2**level))
            found = read_labels_at(one, level, box)
            scale = 2**level
            wanted = np.zeros(box.shape_yx, int)
            wanted[64 // scale : 128 // scale, 96 // scale : 320 // scale] = 7
            np.testing.assert_array_equal(found, wanted)


def test_several_images_are_learned_from_together(tmp_path: Path) -> None:
    first, second = grid(2), grid(3)
    images = [np.where(one > 0, 200, 50).astype(np.uint8) for one in (first, second)]
    labels = [ArrayLabels(first), ArrayLabels(second)]
    done = write_regions(labels, images, tmp_path)
    assert done.num_objects + done.num_held_out == 13
    with pytest.raises(LabelsError, match="one image for each label image, got 2 .* and 1"):
        write_regions(labels, images[:1], tmp_path / "b")


def test_what_cannot_be_learned_from_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, image = grid(2), np.zeros((800, 800), np.uint8)
    few = np.where(array > 3, 0, array)
    few[:3, :3] = 9
    with pytest.raises(LabelsError, match="at least 4 objects of 16 pixels or more .* got 3"):
        write_regions(ArrayLabels(few), image, tmp_path / "a")
    with pytest.raises(LabelsError, match=r"labels of the image's shape .*\(700, 800\)"):
        write_regions(ArrayLabels(array), image[:700], tmp_path / "a")
    with pytest.raises(DataError, match="samples of `napari-hrsam fine-tune --out`"):
        read_regions(tmp_path)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
        with pytest.raises(DataError, match="of room for the samples in .*, got 0 MB"):
            write_regions(ArrayLabels(array), image, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    write_regions(ArrayLabels(array), image, tmp_path / "a")
    with pytest.raises(DataError, match="holds samples already"):
        write_regions(ArrayLabels(array), image, tmp_path / "a")
    assert (tmp_path / "a" / LEARN).is_dir()
