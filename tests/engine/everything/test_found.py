"""Objects block by block: the same whatever the blocks."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from drawn_field import DrawnPredictor, touching_discs
from numpy.typing import NDArray

from napari_hrsam.engine.everything.field import Field
from napari_hrsam.engine.everything.found import Found, find_objects, joined, load_found
from napari_hrsam.engine.everything.growing import Rules
from napari_hrsam.errors import DataError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.storage.images.tile_source import ArrayImage

CELLS = 280, 300
RULES = Rules(largest=40)
WHOLE = Box.of_shape(CELLS)


@cache
def truth() -> NDArray[np.int32]:
    return touching_discs(CELLS)


@cache
def image() -> NDArray[np.uint8]:
    colours = np.random.default_rng(3).integers(0, 256, (int(truth().max()) + 1, 3), np.uint8)
    return colours[truth()].repeat(2, 0).repeat(2, 1)


@cache
def predictor() -> DrawnPredictor:
    return DrawnPredictor(truth())


def field() -> Field:
    return Field(ArrayImage(image()), predictor(), 0)  # type: ignore[arg-type]


def in_blocks(side: int, halo: int, order: int = 0) -> Found:
    blocks = list(Grid((side, side)).parts(WHOLE))
    blocks = [blocks[i] for i in np.random.default_rng(order).permutation(len(blocks))]
    # Two fields: what one has read before changes nothing.
    two = field(), field()
    return joined(
        [find_objects(two[i % 2], core, RULES, halo=halo) for i, core in enumerate(blocks)]
    )


def require_equal(one: Found, other: Found) -> None:
    for item in fields(Found):
        assert getattr(one, item.name).tobytes() == getattr(other, item.name).tobytes(), item.name


@cache
def whole() -> Found:
    return find_objects(field(), WHOLE, RULES)


@pytest.mark.parametrize(("side", "halo"), [(192, 64), (192, 96), (256, 64), (256, 96), (83, 64)])
def test_blocks_and_halos_of_any_size_in_any_order_give_the_same_objects(
    side: int, halo: int
) -> None:
    require_equal(in_blocks(side, halo, order=side + halo), whole())


def test_the_halo_that_the_rules_ask_for_is_enough_for_objects_of_all_sizes_allowed() -> None:
    assert RULES.halo <= 64
    for rules in (replace(RULES, largest=17), replace(RULES, largest=33, sigma=2.0)):
        one = find_objects(field(), WHOLE, rules)
        parts = [find_objects(field(), core, rules) for core in Grid((97, 89)).parts(WHOLE)]
        require_equal(joined(parts), one)
        assert (len(one.too_large) > 0) == (rules.largest == 17)


def test_objects_on_borders_are_found_as_well_as_others() -> None:
    found = in_blocks(96, 64)
    painted = found.paint(WHOLE, np.arange(1, len(found) + 1))
    on_border = np.zeros(CELLS, bool)
    on_border[95::96], on_border[96::96] = True, True
    on_border[:, 95::96], on_border[:, 96::96] = True, True
    hits = {True: [], False: []}  # type: ignore[var-annotated]
    for number in range(1, int(truth().max()) + 1):
        true = truth() == number
        if true.sum() < RULES.smallest:
            continue
        label = np.bincount(painted[true]).argmax()
        mask = painted == label
        iou = (mask & true).sum() / (mask | true).sum() if label else 0
        hits[bool((true & on_border).any())].append(iou > 0.5)
    assert len(hits[True]) > 40
    assert np.mean(hits[True]) >= 0.995 * np.mean(hits[False])
    assert np.mean(hits[False]) > 0.97


def test_what_is_told_of_an_object_is_so() -> None:
    found = whole()
    painted = found.paint(WHOLE, np.arange(1, len(found) + 1))
    pixels = image()[::2, ::2].astype(float)
    assert (np.diff(found.first[:, 0]) >= 0).all()
    for index in (0, 7, len(found) - 1):
        mask = painted == index + 1
        box = Box(*found.boxes[index].tolist())
        assert Box.around(mask) == box
        assert mask.sum() == found.areas[index]
        assert mask[tuple(found.first[index])]
        assert np.allclose(found.mean_rgb[index], pixels[mask].mean(axis=0), atol=0.01)
        assert np.allclose(found.std_rgb[index], pixels[mask].std(axis=0), atol=0.05)
        assert 0.7 < found.solidity[index] <= 1
        assert 0.5 < found.scores[index] <= 1
        # The stand-in's embedding is the mean colour of squares of 16 px.
        assert np.abs(found.features[index, :3].astype(float) - found.mean_rgb[index]).max() < 128


def test_features_are_means_over_the_cells_under_the_object() -> None:
    found, part = whole(), field().read(WHOLE)
    large = part.features.repeat(8, 0).repeat(8, 1)[: CELLS[0], : CELLS[1]].astype(float)
    painted = found.paint(WHOLE, np.arange(1, len(found) + 1))
    for index in (3, 50):
        expected = large[painted == index + 1].mean(axis=0)
        assert np.allclose(found.features[index].astype(float), expected, rtol=2e-3)


def test_a_part_is_painted_as_in_the_whole() -> None:
    numbers = np.arange(1, len(whole()) + 1)
    box = Box(30, 41, 171, 200)
    assert np.array_equal(whole().paint(box, numbers), whole().paint(WHOLE, numbers)[box.slices])


def test_some_objects_are_taken_in_the_order_asked_for() -> None:
    some = whole().take(np.array([9, 2]))
    painted = whole().paint(WHOLE, np.arange(1, len(whole()) + 1))
    two = some.paint(WHOLE, np.array([1, 2]))
    assert np.array_equal(two == 1, painted == 10)
    assert np.array_equal(two == 2, painted == 3)
    assert some.areas.tolist() == whole().areas[[9, 2]].tolist()


def test_a_file_holds_all_and_says_of_which_run_it_is(tmp_path: Path) -> None:
    whole().save(tmp_path / "a", "run-1")
    require_equal(load_found(tmp_path / "a", "run-1"), whole())
    in_blocks(150, 64).save(tmp_path / "b", "run-1")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(DataError, match="expected objects of the run run-2 .*got those of run-1"):
        load_found(tmp_path / "a", "run-2")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:900])
    with pytest.raises(DataError, match="expected the objects of a block"):
        load_found(tmp_path / "a", "run-1")


def test_an_empty_field_and_an_object_that_fills_everything() -> None:
    nothing = np.zeros((64, 64), np.int32)
    for labels, num_large in ((nothing, 0), (nothing + 1, 1)):
        drawn = DrawnPredictor(labels, noise=0.0)
        blank = Field(ArrayImage(np.zeros((128, 128, 3), np.uint8)), drawn, 0)  # type: ignore[arg-type]
        found = find_objects(blank, Box(0, 0, 64, 64), replace(RULES, largest=32))
        assert len(found) == 0
        assert len(found.too_large) == num_large
        assert not found.paint(Box(0, 0, 64, 64), np.zeros(0, int)).any()
        assert len(joined([found, found])) == 0
