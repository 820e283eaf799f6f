"""Objects larger than a tile: found far away, outlined tile by tile near by."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.engine.multiscale_mask import MultiscaleMask
from napari_hrsam.engine.outline import outline_distance, refine_outline
from napari_hrsam.engine.session import Session
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.tile_source import ArrayImage

RED, GREEN = (230, 10, 10), (0, 120, 0)


def star(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    """A star with five rounded arms: no straight edge, thin nowhere."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    angle = np.arctan2(y - centre[0], x - centre[1])
    inside: NDArray[np.bool_] = np.hypot(y - centre[0], x - centre[1]) < radius * (
        1 + 0.25 * np.sin(5 * angle)
    )
    return inside


def painted(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(mask[..., None], np.uint8(RED), np.uint8(GREEN))


def by_colour(pixels: NDArray[np.uint8], prior: NDArray[np.float32]) -> NDArray[np.float32]:
    """An outline refiner that knows: red is object."""
    assert prior.shape == pixels.shape[:2]
    return np.where(pixels[..., 0] > 128, np.float32(4), np.float32(-4))


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


SHAPE = (900, 1000)
STAR = star(SHAPE, (433.0, 511.0), 250.0)
WHOLE = Box.of_shape(SHAPE)


@pytest.fixture
def session(model: Any) -> Session:
    return Session(model, painted(STAR), outliner=by_colour)


def test_an_object_larger_than_a_tile_is_found_at_the_level_that_holds_it(session: Session) -> None:
    for point in ((433, 511), (400, 500)):
        prediction = session.click(point)
        assert prediction.level == 4
        assert not prediction.is_cut
        assert session.needs_refining
        assert iou(prediction.region.read(WHOLE), STAR) > 0.8


def test_its_outline_is_exact_where_the_network_is(session: Session) -> None:
    session.click((433, 511))
    session.click((400, 500))
    refined = session.refine_outline()
    assert refined is session.prediction
    assert not session.needs_refining
    np.testing.assert_array_equal(refined.mask, STAR[refined.box.slices])
    assert session.refine_outline() is refined, "there is nothing left to do"


def test_a_commit_refines_and_writes_one_object_of_the_full_outline(session: Session) -> None:
    session.click((433, 511))
    session.click((400, 500))
    edit = session.commit()
    np.testing.assert_array_equal(session.labels.array == edit.label, STAR)


def test_an_object_is_refined_no_further_than_where_it_was_looked_at(session: Session) -> None:
    session.click((433, 511), level=4)
    assert not session.needs_refining
    session.outline_level = 1
    assert session.needs_refining, "the choice counts for the current object too"
    assert session.refine_outline().multiscale.level == 1
    assert iou(session.refine_outline().mask, STAR[session.refine_outline().box.slices]) > 0.99


def test_only_tiles_that_the_outline_crosses_are_read(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.click((433, 511), level=4)
    session.outline_level = 0
    session.click((420, 511))
    asked: list[Tile] = []
    read = ArrayImage.read
    monkeypatch.setattr(
        ArrayImage, "read", lambda self, tile, *args: asked.append(tile) or read(self, tile, *args)
    )
    session.refine_outline()
    distance = outline_distance(STAR)
    finest = [tile for tile in asked if tile.level == 0]
    assert len(set(asked)) == len(asked)
    for tile in finest:
        # The prior's outline is within a few coarse pixels of the true one.
        assert distance[tile.box0.clip(SHAPE).slices].min() < 16
    assert len(finest) < (900 // 32) * (1000 // 32) / 4


def test_no_seam_shows_where_tiles_meet_even_if_they_disagree() -> None:
    calls = itertools.count()

    def doubtful(_: NDArray[np.uint8], prior: NDArray[np.float32]) -> NDArray[np.float32]:
        # Every tile sees the object two pixels larger or smaller than the next one.
        shift = 2 if next(calls) % 2 else -2
        distance = np.where(prior > 0, 1, -1) * outline_distance(prior > 0)
        return (distance + shift).astype(np.float32)

    y, x = np.mgrid[:256, :256]
    logits = (56 - np.hypot(y - 128, x - 128)).astype(np.float32)
    field = MultiscaleMask(Tile(2, 0, 0, 256), logits, (1024, 1024))
    image = ArrayImage(np.zeros((1024, 1024), np.uint8))
    refined = refine_outline(image, doubtful, field, Prompts(), 0)
    values = refined.sample(0, Box(0, 0, 1024, 1024))
    # Within a few pixels of the outline the logits are distances, which change by 1 per pixel, and
    # by 2 where they change sign.
    steps = np.abs(np.diff(values, axis=1))[(np.abs(values) < 6)[:, 1:]]
    assert steps.max() < 2.5
    widths = refined.read(Box(0, 0, 1024, 1024)).sum(1)
    assert np.ptp(widths[450:574] - 2 * np.sqrt(224.0**2 - np.arange(-62, 62) ** 2)) > 1, (
        "the tiles do disagree"
    )


def test_the_outline_is_the_same_wherever_the_tiles_lie(model: Any) -> None:
    masks = []
    for dy, dx in itertools.product(range(0, 32, 8), repeat=2):
        truth = star((600, 620), (301.0 + dy, 290.0 + dx), 120.0)
        session = Session(model, painted(truth), outliner=by_colour)
        session.click((301 + dy, 290 + dx))
        session.click((290 + dy, 290 + dx))
        session.commit()
        masks.append((session.labels.array > 0)[100 + dy : 500 + dy, 90 + dx : 490 + dx])
    assert all((mask == masks[0]).all() for mask in masks)
    assert masks[0].any()


def test_progress_counts_tiles_and_what_it_raises_leaves_the_object_as_it_was(
    session: Session,
) -> None:
    session.click((433, 511))
    before = session.click((400, 500))
    seen: list[tuple[int, int]] = []

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        session.commit(progress=stop)
    assert session.prediction is before
    assert not session.labels.array.any()
    seen.clear()
    session.commit(progress=lambda done, total: seen.append((done, total)))
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert seen[-1][0] == seen[-1][1] == len(seen) - 1
    assert all(done < total for done, total in seen[:-1])


def test_clicks_are_obeyed_in_the_refined_outline(model: Any) -> None:
    session = Session(model, painted(STAR), outliner=by_colour)
    session.click((433, 511), level=4)
    session.outline_level = 0
    edge = (433, 511 + int(np.argmin(STAR[433, 511:])) + 4)
    session.click(edge, positive=True)
    mask = session.refine_outline().region
    assert mask.read(Box(edge[0] - 1, edge[1] - 1, edge[0] + 2, edge[1] + 2)).sum() >= 5
    assert not STAR[edge]


def test_an_object_at_the_images_border_is_refined_up_to_it(model: Any) -> None:
    truth = star(SHAPE, (880.0, 30.0), 260.0)
    session = Session(model, painted(truth), outliner=by_colour)
    session.click((860, 30), level=4)
    session.outline_level = 0
    session.click((850, 40))
    session.commit()
    np.testing.assert_array_equal(session.labels.array > 0, truth)


def test_a_coarse_mask_edited_by_hand_is_committed_with_the_edits(session: Session) -> None:
    prediction = session.click((433, 511), level=4)
    session.outline_level = 0
    prediction = session.click((433, 500), level=4)
    edited = prediction.level_mask.copy()
    assert edited.shape == (57, 63)
    edited[0:2, 0:3] = True
    edited[27, 31] = False
    session.commit(edited)
    expected = STAR.copy()
    expected[0:32, 0:48] = True
    expected[27 * 16 : 28 * 16, 31 * 16 : 32 * 16] = False
    np.testing.assert_array_equal(session.labels.array > 0, expected)


def test_a_small_object_near_a_tile_border_moves_to_a_tile_that_holds_it(model: Any) -> None:
    truth = np.zeros((400, 400), bool)
    truth[186:214, 156:184] = True
    for dy, dx in itertools.product(range(0, 32, 4), repeat=2):
        moved = np.roll(truth, (dy, dx), (0, 1))
        session = Session(model, painted(moved))
        prediction = session.click((195 + dy, 165 + dx))
        assert not prediction.is_cut
        assert iou(prediction.region.read(Box(0, 0, 400, 400)), moved) > 0.8
