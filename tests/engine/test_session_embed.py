"""Embeddings made ahead of time are found by clicks, whoever made them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_hrsam.engine.embed import box_on, is_blank, tiles_around, tiles_for
from napari_hrsam.engine.segment import segment
from napari_hrsam.engine.session import Session
from napari_hrsam.errors import EmbeddingsError, PromptError, SessionError
from napari_hrsam.geometry import Box, TileGrid
from napari_hrsam.storage.embedding_store import EmbeddingStore

Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]
ON, OFF = (50.0, 60.0), (90.0, 20.0)


@pytest.fixture(autouse=True)
def _one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests count what one look does."""
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 1)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "kept")


def patches(height: int, width: int) -> NDArray[np.uint8]:
    """Draw squares of many colours, none of which reaches far from where it is clicked on."""
    colours = np.random.default_rng(0).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3))
    image = colours.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return image[:height, :width]


class StopError(Exception):
    """What a progress callback raises to stop the work."""


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.integers(-2, 4),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.data(),
)
def test_a_click_in_the_box_looks_at_one_of_its_tiles(
    shape: tuple[int, int], level: int, shares: tuple[float, ...], data: st.DataObject
) -> None:
    grid = TileGrid(shape, 64, level)
    (y0, y1), (x0, x1) = (
        sorted((int(a * (n - 1)), int(b * (n - 1))))
        for a, b, n in zip(shares[:2], shares[2:], shape, strict=True)
    )
    box = Box(y0, x0, y1 + 1, x1 + 1)
    tiles = tiles_for(grid, box)
    assert len(set(tiles)) == len(tiles) <= len(grid)
    point = data.draw(st.integers(y0, y1)), data.draw(st.integers(x0, x1))
    assert grid.smallest_holding([point]) in tiles
    centre = box.y0 + box.y1, box.x0 + box.x1
    away = [
        max(abs(t.box0.y0 + t.box0.y1 - centre[0]), abs(t.box0.x0 + t.box0.x1 - centre[1]))
        for t in tiles
    ]
    assert away == sorted(away)


def test_the_whole_image_gives_every_tile_of_a_level() -> None:
    for level in (-1, 0, 2):
        grid = TileGrid((500, 300), 64, level)
        assert set(tiles_for(grid, Box(0, 0, 500, 300))) == set(grid)


def test_around_a_view_come_its_tiles_then_coarser_then_a_few_finer_ones() -> None:
    grid = TileGrid((2000, 2000), 64, 1)
    tiles = tiles_around(grid, Box(500, 500, 900, 900), coarsest=3)
    levels = [tile.level for tile in tiles]
    assert levels == sorted(levels, key=[1, 2, 0].index)
    assert levels.count(0) == 4
    assert {t.level for t in tiles_around(grid, Box(500, 500, 900, 900), coarsest=1)} == {1, 0}
    finest = TileGrid((2000, 2000), 64, -2)
    assert {t.level for t in tiles_around(finest, Box(0, 0, 50, 50), coarsest=5)} == {-2, -1}


def test_of_a_huge_view_the_middle_is_read_ahead() -> None:
    grid = TileGrid((10**6, 10**6), 64, 0)
    tiles = tiles_around(grid, Box(0, 0, 10**6, 10**6), coarsest=0)
    assert 200 < len(tiles) < 400
    assert all(abs(tile.box0.y0 - 500_000) < 400 for tile in tiles)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 10), "expected a box .y0, x0, y1, x1. in level-0 pixels, got"),
        ((0, 0, 10, float("nan")), "expected a box .y0, x0, y1, x1."),
        ((0, 0, 10, float("inf")), "expected a box .y0, x0, y1, x1."),
        ((10, 0, 5, 10), "expected a box .y0, x0, y1, x1."),
        (3, "expected a box .y0, x0, y1, x1."),
        ((200, 0, 300, 10), "expected a box inside the image of shape .200, 160., got"),
        ((5, 5, 5, 5), "expected a box inside the image"),
    ],
)
def test_a_box_that_holds_nothing_is_refused(
    model: Any, scene: Scene, box: Any, message: str
) -> None:
    with Session(model, scene[0]) as session:
        with pytest.raises(PromptError, match=message):
            session.embed(0, box)
        with pytest.raises(PromptError, match=message):
            session.read_ahead(box, 0)
    assert model.num_encoded == 0


def test_a_box_is_cut_to_whole_pixels_of_the_image() -> None:
    assert box_on((100, 80), (-3, 0.5, 10.2, 500)) == Box(0, 0, 11, 80)
    assert box_on((100, 80), None) == Box(0, 0, 100, 80)


def test_a_level_is_encoded_once_and_clicks_find_it(model: Any, store: EmbeddingStore) -> None:
    image = patches(200, 160)
    told: list[tuple[int, int]] = []
    with Session(model, image, embeddings=store) as session:
        num = len(TileGrid((200, 160), 64))
        report = session.embed(0, progress=lambda done, total: told.append((done, total)))
        assert (report.num_tiles, report.num_encoded, report.num_at_hand) == (num, num, 0)
        assert (report.level, report.num_blank, model.num_encoded) == (0, 0, num)
        assert report.mpx_per_s == pytest.approx(num * 64**2 / 1e6 / report.seconds)
        assert told == [(done, num) for done in range(num + 1)]
        again = session.embed(0)
        assert (again.num_encoded, again.num_at_hand, model.num_encoded) == (0, num, num)
    with Session(model, image, embeddings=EmbeddingStore(store.folder)) as other:
        for y in range(0, 200, 9):
            for x in range(0, 160, 9):
                assert other.click((y, x), level=0).seconds["encode_s"] == 0
                other.cancel()
    assert model.num_encoded == num


def test_a_box_is_encoded_and_no_more(model: Any, store: EmbeddingStore) -> None:
    image = patches(200, 160)
    with Session(model, image, embeddings=store) as session:
        report = session.embed(0, (40, 40, 70, 70))
        assert model.num_encoded == report.num_tiles == 4
        session.click(ON, level=0)
        assert model.num_encoded == 4
        session.cancel()
        session.click((190, 150), level=0)
        assert model.num_encoded == 5


def test_work_that_was_stopped_goes_on_where_it_was(
    model: Any, scene: Scene, store: EmbeddingStore
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 5:
            raise StopError

    with Session(model, scene[0], embeddings=store) as session, pytest.raises(StopError):
        session.embed(0, progress=stop)
    assert model.num_encoded == 5
    with Session(model, scene[0], embeddings=store) as session:
        report = session.embed(0)
    assert (report.num_at_hand, report.num_encoded) == (5, report.num_tiles - 5)
    assert model.num_encoded == report.num_tiles


def test_tiles_at_hand_count_as_used_just_now(
    model: Any, scene: Scene, store: EmbeddingStore
) -> None:
    with Session(model, scene[0], embeddings=store) as session:
        session.embed(1)
        chunks = list(store.folder.rglob("c.*"))
        for chunk in chunks:
            os.utime(chunk, (1, 1))
        session.embed(1)
    assert all(chunk.stat().st_mtime > 1e9 for chunk in chunks)


def test_a_tile_in_memory_is_put_on_disk_without_the_model(
    model: Any, scene: Scene, store: EmbeddingStore
) -> None:
    with Session(model, scene[0], embeddings=store) as session:
        session.read_ahead((0, 0, 200, 160), 2)
        session.close()
    with Session(model, scene[0], embeddings=store) as session:
        assert session.embed(2).num_at_hand == model.num_encoded == 1
        session.click(ON, level=2)
        num = model.num_encoded
        shutil.rmtree(store.folder)
        session.embed(2)
        assert model.num_encoded == num
        assert len(list(store.folder.rglob("c.*"))) == 1


def test_masks_from_the_disk_are_the_same_to_the_bit(
    model: Any, scene: Scene, store: EmbeddingStore
) -> None:
    def drawn(session: Session) -> list[Any]:
        steps = [
            session.click(ON),
            session.click(OFF, positive=False),
            session.box((30, 40, 80, 90)),
        ]
        return [(p.mask.copy(), p.logits.copy(), p.iou, p.box) for p in steps]

    with Session(model, scene[0]) as session:
        expected = drawn(session)
    with Session(model, scene[0], embeddings=store) as session:
        for level in (0, 1):
            session.embed(level)
    num = model.num_encoded
    with Session(model, scene[0], embeddings=store) as session:
        found = drawn(session)
    assert model.num_encoded == num
    for (mask, logits, iou, box), (mask2, logits2, iou2, box2) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(mask, mask2)
        np.testing.assert_array_equal(logits, logits2)
        assert (iou, box) == (iou2, box2)


def test_tiles_clicked_on_are_kept_for_the_next_session(
    model: Any, scene: Scene, store: EmbeddingStore
) -> None:
    for _ in range(2):
        with Session(model, scene[0], embeddings=store) as session:
            session.click(ON)
    assert model.num_encoded == 1
    with Session(model, scene[0], embeddings=store) as session:
        session.with_model(model).click(ON)
    assert model.num_encoded == 1


def test_a_call_takes_embeddings_too(model: Any, scene: Scene, store: EmbeddingStore) -> None:
    first = segment(scene[0], [ON], model=model, embeddings=store)
    second = segment(scene[0], [ON], model=model, embeddings=store)
    np.testing.assert_array_equal(first, second)
    assert model.num_encoded == 1


def test_without_a_store_tiles_are_encoded_into_memory(model: Any, scene: Scene) -> None:
    with Session(model, scene[0]) as session:
        report = session.embed(0)
        assert session.embed(0).num_at_hand == report.num_tiles == model.num_encoded
        session.click(ON, level=0)
        assert model.num_encoded == report.num_tiles


def test_tiles_that_would_push_each_other_out_are_refused(
    model: Any, scene: Scene, tmp_path: Path
) -> None:
    message = r"room for 24 tiles \(0\.0 GB\), got room for 3; give the session a store on disk"
    with Session(model, scene[0], max_embeddings=3) as session:
        with pytest.raises(SessionError, match=message):
            session.embed(0)
        assert model.num_encoded == 1
        assert session.embed(0, (40, 0, 60, 40)).num_tiles <= 3
    small = EmbeddingStore(tmp_path / "small", max_bytes=10_000)
    message = r"got room for 6; allow the store more \(max_bytes=39168, --max-gb 0.1\), or choose"
    with (
        Session(model, scene[0], embeddings=small) as session,
        pytest.raises(SessionError, match=message),
    ):
        session.embed(0)


def test_a_plane_is_encoded_by_itself(model: Any, store: EmbeddingStore) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (2, 3, 100, 100), dtype=np.uint8)
    from napari_hrsam.storage.opening import open_image

    with Session(model, open_image(stack, rgb=False), embeddings=store) as session:
        report = session.embed(0, plane=(1, 2))
        assert session.embed(0, plane=(1, 2)).num_at_hand == report.num_tiles
        assert session.embed(0, plane=(1, 1)).num_at_hand == 0
        with pytest.raises(PromptError, match="one index per axis of lengths"):
            session.embed(0)
        with pytest.raises(PromptError, match="one index per axis of lengths"):
            session.read_ahead((0, 0, 100, 100), 0)


def test_levels_the_image_does_not_have_are_refused(model: Any, scene: Scene) -> None:
    with Session(model, scene[0]) as session:
        for level in (-3, 3):
            with pytest.raises(SessionError, match=f"a level from -2 to 2, got {level}"):
                session.embed(level)


def test_a_closed_session_neither_embeds_nor_reads_ahead(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    session.close()
    with pytest.raises(SessionError, match="expected an open session"):
        session.embed(0)
    with pytest.raises(SessionError, match="expected an open session"):
        session.read_ahead((0, 0, 10, 10), 0)


def test_embedding_onto_a_full_disk_stops_with_the_reason(
    model: Any, scene: Scene, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bool:
        raise EmbeddingsError("expected to write embeddings, got: No space left on device")

    monkeypatch.setattr(store, "write", full)
    with (
        Session(model, scene[0], embeddings=store) as session,
        pytest.raises(EmbeddingsError, match="No space left"),
    ):
        session.embed(0)
    assert model.num_encoded == 1


def test_blank_tiles_may_be_left_out_and_are_encoded_when_clicked_on(
    model: Any, store: EmbeddingStore
) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(200, 4, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    image[100:110, 100:110] = 90
    with Session(model, image, embeddings=store) as session:
        report = session.embed(0, skip_blank=True)
        assert 0 < report.num_encoded < report.num_tiles
        assert report.num_blank == report.num_tiles - report.num_encoded
        assert session.click((105, 105), level=0).seconds["encode_s"] == 0
        session.cancel()
        assert session.click((240, 240), level=0).seconds["encode_s"] > 0
        session.cancel()
        session.close()
    with Session(model, image, embeddings=store) as session:
        assert session.embed(0).num_encoded == report.num_blank - 1


@pytest.mark.parametrize(("height", "blank"), [(0, True), (8, True), (9, False), (200, False)])
def test_a_square_above_the_noise_is_content(height: int, blank: bool) -> None:
    pixels = np.full((64, 64, 3), 20, np.uint8)
    pixels[8:16, 8:16, 1] += height
    assert is_blank(pixels) is blank


def test_a_strip_too_narrow_to_tell_is_content() -> None:
    assert not is_blank(np.zeros((7, 64, 3), np.uint8))
    assert not is_blank(np.zeros((64, 7, 3), np.uint8))


@pytest.mark.parametrize("level", [-1, 0, 1])
def test_what_lies_outside_the_image_is_no_content(model: Any, level: int) -> None:
    with Session(model, np.full((211, 177), 9, np.uint8)) as session:
        report = session.embed(level, (100, 100, 211, 177), skip_blank=True)
        assert report.num_blank == report.num_tiles > 0


def test_reading_ahead_serves_the_view_one_tile_at_a_time(
    model: Any, store: EmbeddingStore
) -> None:
    image = patches(600, 600)
    view = (200, 200, 330, 330)
    with Session(model, image, embeddings=store) as session:
        num = 0
        while session.read_ahead(view, 0):
            num += 1
            assert model.num_encoded == num
        assert 20 < num <= 64
        for y in range(200, 330, 20):
            for x in range(200, 330, 20):
                session.click((y, x), level=0)
                session.cancel()
        assert model.num_encoded == num
        for level in (0, 1):
            for tile in tiles_for(TileGrid((600, 600), 64, level), Box(*view)):
                assert session._tiles.is_at_hand(tile)
        assert session._tiles.is_at_hand(TileGrid((600, 600), 64, -1).nearest((265, 265)))


def test_reading_ahead_starts_in_the_middle_of_the_view(model: Any) -> None:
    image = patches(600, 600)
    with Session(model, image) as session:
        assert session.read_ahead((100, 100, 500, 500), 0)
        session.click((300, 300), level=0)
        assert model.num_encoded == 1


def test_reading_ahead_keeps_the_tile_of_the_current_object(model: Any, scene: Scene) -> None:
    with Session(model, scene[0], max_embeddings=3) as session:
        session.click(ON, level=0)
        while session.read_ahead((120, 80, 200, 160), 0):
            pass
        num = model.num_encoded
        session.click((60, 70), positive=False)
        assert model.num_encoded == num


def test_a_level_beyond_those_of_the_image_is_read_ahead_at_the_nearest(
    model: Any, scene: Scene
) -> None:
    with Session(model, scene[0]) as session:
        assert session.read_ahead((0, 0, 200, 160), 9)
        session.click(ON, level=2)
        assert model.num_encoded == 1
