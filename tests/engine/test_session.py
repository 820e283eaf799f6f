from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from napari_hrsam.engine.session import Edit, Prediction, Session
from napari_hrsam.errors import ImageError, LabelsError, PromptError, SessionError, ShapeError
from napari_hrsam.geometry import Box, Tile, best_level, downsample
from napari_hrsam.storage.images.tile_source import ArrayImage
from napari_hrsam.storage.labels.array_labels import ArrayLabels

Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]
ON, OFF = (50.0, 60.0), (90.0, 20.0)


def whole_mask(session: Session) -> NDArray[np.bool_]:
    assert session.prediction is not None
    mask = np.zeros(session.image.shape_yx, bool)
    mask[session.prediction.box.slices] = session.prediction.mask
    return mask


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("level", [-2, -1, 0, 1])
def test_a_click_finds_the_object_at_every_level(model: Any, scene: Scene, level: int) -> None:
    image, truth = scene
    if level < 0:  # small enough to lie inside a tile
        image, truth = image.copy(), np.zeros_like(truth)
        image[..., 0] = 0
        half = 3 * 2 ** (level + 2)
        truth[50 - half : 50 + half, 60 - half : 60 + half] = True
        image[truth, 0] = 230
    session = Session(model, image)
    prediction = session.click(ON, level=level)
    assert prediction is session.prediction
    assert prediction.level == prediction.tile.level == level
    assert prediction.box == prediction.tile.box0.clip((200, 160))
    assert prediction.mask.shape == prediction.box.shape_yx
    assert prediction.mask.dtype == np.bool_
    assert prediction.logits.shape == (16, 16)
    assert prediction.iou == pytest.approx(0.9)
    inside = np.zeros_like(truth)
    inside[prediction.box.slices] = truth[prediction.box.slices]
    assert iou(whole_mask(session), inside) > 0.8


@pytest.mark.parametrize(
    ("side", "level"),
    # The model of these tests sees nothing smaller than two of its blocks.
    [(s, n) for s in (12, 48, 192, 768) for n in (-2, 0, 2, 4) if s / downsample(n) >= 8],
)
def test_an_object_is_found_whatever_level_is_named(
    sized_model: Any, side: int, level: int
) -> None:
    image, truth = np.zeros((2400, 2000, 3), np.uint8), np.zeros((2400, 2000), bool)
    corner = 1024 - side // 2 // 64 * 64
    truth[corner : corner + side, corner : corner + side] = True
    image[truth] = 200
    session = Session(sized_model, image)
    point = corner + side / 2, corner + side / 2
    prediction = session.click(point, level=level)
    best = best_level(side, (2400, 2000), 256)
    assert prediction.level == (best if best <= max(level, 0) else best - 1)
    assert iou(whole_mask(session), truth) > 0.65


def thing_in_a_ground(side: int, ground: int = 4000) -> Scene:
    """Build a square of one brightness in the middle of a much larger one of another."""
    image, truth = np.zeros((4096, 4096, 3), np.uint8), np.zeros((4096, 4096), bool)
    image[2048 - ground // 2 :, 2048 - ground // 2 :][:ground, :ground] = 90
    corner = 2048 - side // 2
    truth[corner : corner + side, corner : corner + side] = True
    image[truth] = 200
    return image, truth


@pytest.mark.parametrize("away", [20, 400, 1000])
def test_a_click_in_the_body_of_the_mask_finds_the_small_thing_that_was_meant(
    sized_model: Any, away: int
) -> None:
    image, truth = thing_in_a_ground(16)
    session = Session(sized_model, image)
    session.click((2048, 2048), level=4)
    assert whole_mask(session).sum() > 100 * truth.sum()
    session.click((2048, 2048 - away), positive=False)
    assert iou(whole_mask(session), truth) > 0.65
    # It goes on from there: the click far away asks for no tile that shows both.
    assert session.prediction is not None
    tile = session.prediction.tile
    assert session.click((2048, 2048 + 7)).tile == tile
    assert sized_model.nums_points[-1] == 2 + tile.box0.contains((2048, 2048 - away))
    assert iou(whole_mask(session), truth) > 0.65
    session.candidates()
    session.undo()
    session.undo()
    assert whole_mask(session).sum() > 100 * truth.sum()


def test_a_click_near_the_outline_of_a_large_object_looks_at_no_other_tile(
    sized_model: Any,
) -> None:
    image, _ = thing_in_a_ground(16)
    session = Session(sized_model, image)
    tile = session.click((2048, 2048), level=4).tile
    assert tile.level > 0
    num_encoded = sized_model.num_encoded
    session.click((2048, 300), positive=False)
    assert sized_model.num_encoded == num_encoded


def test_what_holds_the_negative_click_is_not_the_thing_that_was_meant(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = thing_in_a_ground(0, 900)
    decode = model.decode

    def sure_of_one_click(*given: Any, **more: Any) -> Any:
        logits, _ = decode(*given, **more)
        return logits, torch.tensor([[0.9 if model.nums_points[-1] == 1 else 0.6]])

    monkeypatch.setattr(model, "decode", sure_of_one_click)
    session = Session(model, image)
    session.click((2048, 2048), level=4)
    # What the first click alone finds at level 0 is the ground again.
    assert session.click((2048, 1898), positive=False).iou == pytest.approx(0.6)


def test_a_model_that_is_not_sure_is_asked_again_further_away(model: Any, scene: Scene) -> None:
    nums = []
    for model.predicted_iou in (0.9, 0.3):
        model.num_encoded = 0
        Session(model, scene[0]).click(ON, level=0)
        nums.append(model.num_encoded)
    assert nums[1] > nums[0]


def deep_image(model: Any, monkeypatch: pytest.MonkeyPatch, *, is_sure_at_first: bool) -> Any:
    """Make nine levels; the model finds more than a spot, and is sure, in the coarsest only.

    The brightness of a level tells the model which one it sees.
    """
    decode = model.decode

    def whole_or_spot(features: Any, **given: Any) -> Any:
        logits, iou = decode(features, **given)
        found, size = torch.full_like(logits, -3.0), logits.shape[-1]
        if float(features.stride4.max()) * 255 > 79:
            found[..., size // 4 : -size // 4, size // 4 : -size // 4] = 3.0
            return found, torch.full_like(iou, 0.9)
        y, x = (int(place) // 4 for place in given["point_coords_xy"][0, -1].flip(0))
        found[..., max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = 3.0
        is_sure = is_sure_at_first and model.nums_points[-1] == 1
        return found, torch.full_like(iou, 0.9 if is_sure else 0.3)

    monkeypatch.setattr(model, "decode", whole_or_spot)
    side = 64 * 2**8
    return [np.broadcast_to(np.uint8(10 * k), (side >> k, side >> k, 3)) for k in range(9)]


@pytest.mark.parametrize("level", [-2, 0, 2, 4, 8])
def test_what_only_the_coarsest_level_shows_is_found_whatever_level_is_named(
    model: Any, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    image = deep_image(model, monkeypatch, is_sure_at_first=False)
    assert Session(model, image, labels=None).click((8000, 8000), level=level).level == 8


def test_clicks_far_apart_on_what_no_tile_of_theirs_shows_are_asked_further_away(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = deep_image(model, monkeypatch, is_sure_at_first=True)
    session = Session(model, image, labels=None)
    assert session.click((8000, 8000), level=0).level < 2
    assert session.click((7000, 8000)).level == 8


def test_a_box_is_looked_at_where_it_has_the_best_size(model: Any, scene: Scene) -> None:
    image, truth = scene
    session = Session(model, image)
    for level in (-2, 2):
        # A look at level 1, and with its mask as prior one at level 0, unless 2 was asked for.
        assert session.box((40, 48, 72, 80), level=level).level == max(0, min(level, 1))
        assert iou(whole_mask(session), truth) > 0.9
        session.cancel()


def test_one_tile_is_encoded_once_and_timed(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    first = session.click(ON, level=1)
    num_encoded = model.num_encoded
    second = session.click((52, 62))
    assert model.num_encoded == num_encoded
    assert first.seconds["encode_s"] > 0
    assert second.seconds["encode_s"] == 0
    for prediction in (first, second):
        assert prediction.seconds["decode_s"] > 0
        assert prediction.seconds["total_s"] >= prediction.seconds["decode_s"]


def test_only_the_tile_around_the_click_is_read_and_filled_with_the_models_colour(
    model: Any, monkeypatch: Any
) -> None:
    asked: list[tuple[Tile, tuple[int, int, int]]] = []
    read = ArrayImage.read
    monkeypatch.setattr(
        ArrayImage,
        "read",
        lambda self, tile, fill: asked.append((tile, fill)) or read(self, tile, fill),
    )
    image = np.zeros((3000, 2000), np.uint8)
    image[1490:1510, 990:1010] = 200
    Session(model, image, labels=None).click((1500, 1000))
    assert asked == [(Tile(0, 1472, 960, 64), (10, 20, 30))]


def test_later_prompts_keep_the_tile_or_move_to_the_smallest_that_holds_all(
    model: Any, scene: Scene
) -> None:
    session = Session(model, scene[0])
    tile = session.click(ON).tile
    assert session.click((tile.y0 + 63, tile.x0), positive=False, level=1).tile == tile
    assert session.click((tile.y0 - 1, tile.x0 + 10), positive=False).level == 1
    assert session.click((199, 159), positive=False).level == 2
    assert session.click(ON).level == 2
    assert len(session.prompts.points_yx) == 5


def test_the_prior_logits_stay_in_their_tile_and_object(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0], enforce_clicks=False)
    session.view_level = 1
    first = session.click(ON)
    second = session.click((52, 61))
    session.click((199, 159), positive=False)
    session.cancel()
    session.click((52, 61))
    assert [prior is None for prior in model.priors] == [True, False, True, True]
    np.testing.assert_array_equal(model.priors[1][0, 0].numpy(), first.logits)
    assert second.logits == pytest.approx(first.logits * 1.01)


def test_an_image_smaller_than_a_tile_is_enlarged_to_fill_it(model: Any) -> None:
    for side, level in [(10, -2), (16, -2), (17, -1), (32, -1), (33, 0), (64, 0), (300, 0)]:
        assert Session(model, np.eye(side)).click((3, 3)).level == level


def test_the_view_level_is_used_and_the_nearest_existing_level_taken(
    model: Any, scene: Scene
) -> None:
    session = Session(model, scene[0])
    assert session.levels == range(-2, 3)
    session.view_level = 1
    assert session.click(ON).level == 1
    session.cancel()
    assert session.click(ON, level=9).level == 2
    session.cancel()
    assert session.click(ON, level=-9).level == 0, "the square does not fit in a finer tile"


def test_a_box_bounds_the_object_and_goes_with_clicks(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    session.box((36, 44, 76, 64))
    session.click(ON)
    mask = whole_mask(session)
    assert mask[44:68, 52:60].all()
    assert not mask[:, 70:].any()
    assert session.prompts.box == (36, 44, 76, 64)
    assert len(session.prompts) == 2


def test_a_box_larger_than_a_tile_goes_to_a_coarser_level(model: Any, scene: Scene) -> None:
    prediction = Session(model, scene[0]).box((0, 0, 150, 64))
    assert prediction.level == 2
    assert prediction.box == Box(0, 0, 200, 160)


def test_clicks_are_obeyed_down_to_the_level0_pixel(model: Any, scene: Scene) -> None:
    for enforce_clicks in (True, False):
        session = Session(model, scene[0], enforce_clicks=enforce_clicks)
        # Negative on the object and positive on the ground, in the object's own colours.
        session.click(ON, level=1)
        session.click((51, 60), positive=False)
        session.click((51, 62))
        session.click(OFF, positive=False)
        session.click((OFF[0], OFF[1] + 1))
        mask = whole_mask(session)
        answers = [mask[50, 60], mask[51, 60], mask[51, 62], mask[90, 20], mask[90, 21]]
        assert (answers == [True, False, True, False, True]) == enforce_clicks


def test_a_correction_is_fed_back_to_the_model(model: Any, scene: Scene) -> None:
    answers = []
    for enforce_clicks in (True, False):
        session = Session(model, scene[0], enforce_clicks=enforce_clicks)
        session.click(ON)
        # The model now takes the whole object away, the first click included.
        answers.append(session.click((50, 68), positive=False).logits)
    with_correction, without = answers
    change = with_correction - without
    assert change[4, 7] > 1
    assert np.count_nonzero(change) < 0.2 * change.size
    session = Session(model, scene[0])
    corrected = [session.click(ON), session.click((50, 68), positive=False)][1]
    session.click((57, 72))
    np.testing.assert_array_equal(model.priors[-1][0, 0].numpy(), corrected.logits)


def test_the_newest_of_two_contradicting_clicks_wins(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    session.click(ON, level=1)
    assert not session.click(ON, positive=False).mask.any()
    session.click((ON[0] + 0.3, ON[1]))
    assert whole_mask(session)[50, 60]
    assert len(session.prompts.points_yx) == 3
    assert model.nums_points[-2:] == [1, 2]


def test_undo_and_redo_of_prompts_give_the_same_predictions(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    assert not session.can_undo
    made = [session.click(ON), session.click((52, 75)), session.box((36, 44, 76, 64))]
    num_encoded = model.num_encoded
    assert session.undo() is made[1]
    assert session.prompts.box is None
    assert session.undo() is made[0]
    assert session.undo() is None
    assert session.prediction is None
    assert len(session.prompts) == 0
    assert not session.can_undo
    assert [session.redo(), session.redo(), session.redo()] == made
    assert not session.can_redo
    assert model.num_encoded == num_encoded


def test_undo_of_commits_restores_the_labels_exactly(model: Any, scene: Scene) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (200, 160)).astype(np.uint32) * 70_000
    session = Session(model, scene[0], labels)
    states, edits = [labels.copy()], []
    for point in (ON, OFF):
        session.click(point)
        edits.append(session.commit())
        states.append(labels.copy())
        assert session.prediction is None
    assert [edit.label for edit in edits] == [70_001, 70_002]
    for edit, state in zip(reversed(edits), reversed(states[:-1]), strict=True):
        assert session.undo() is edit
        np.testing.assert_array_equal(labels, state)
    assert session.undo() is None
    for edit, state in zip(edits, states[1:], strict=True):
        assert session.redo() is edit
        np.testing.assert_array_equal(labels, state)
    assert session.redo() is None


def test_undo_takes_prompts_back_before_commits_and_redo_returns_all(
    model: Any, scene: Scene
) -> None:
    session = Session(model, scene[0])
    session.click(ON)
    edit = session.commit()
    prediction = session.click(OFF)
    assert session.undo() is None
    assert session.undo() is edit
    assert not session.labels.array.any()
    assert session.redo() is edit
    assert session.redo() is prediction
    assert session.prediction is prediction


def test_another_model_keeps_commits_with_their_undo_and_drops_the_object(
    model: Any, scene: Scene
) -> None:
    first = Session(model, scene[0], enforce_clicks=False, max_embeddings=3)
    first.view_level = 1
    for place in (ON, OFF):
        first.click(place)
        first.commit()
    first.undo()
    first.click(ON)
    first.cancel()
    labels = first.labels.array.copy()
    first.click(ON)
    second = first.with_model(model)
    with pytest.raises(SessionError, match="closed"):
        first.click(ON)
    assert second.labels is first.labels
    assert second.prediction is None
    assert (second.view_level, second._objects.enforce_clicks, second._tiles.max_tiles) == (
        1,
        False,
        3,
    )
    assert np.array_equal(second.labels.array, labels)
    assert isinstance(second.undo(), Edit)
    assert not second.labels.array.any()
    assert isinstance(second.redo(), Edit)
    assert np.array_equal(second.labels.array, labels)


def test_commits_that_were_undone_can_be_redone_with_another_model(
    model: Any, scene: Scene
) -> None:
    first = Session(model, scene[0])
    first.click(ON)
    edit = first.commit()
    first.undo()
    assert first.with_model(model).redo() is edit


def test_a_new_prompt_or_commit_ends_redo(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    session.click(ON)
    session.click(OFF)
    session.undo()
    assert session.can_redo
    session.click((51, 61))
    assert not session.can_redo
    session.undo()
    session.commit()
    assert not session.can_redo


def test_cancel_drops_the_object_and_redo_brings_it_back(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    session.cancel()
    assert not session.can_redo
    session.click(ON)
    prediction = session.click((52, 62))
    session.cancel()
    assert session.prediction is None
    assert not session.can_undo
    assert session.redo() is prediction
    assert len(session.prompts) == 2


def test_commit_writes_the_mask_with_prompts_model_and_time(model: Any, scene: Scene) -> None:
    image, truth = scene
    session = Session(model, image)
    session.click(ON)
    prompts, mask = session.prompts, whole_mask(session)
    edit = session.commit()
    assert isinstance(edit, Edit)
    assert (edit.label, edit.prompts, edit.model) == (1, prompts, "colour")
    np.testing.assert_array_equal(session.labels.array == 1, mask)
    assert iou(session.labels.array == 1, truth) > 0.8
    assert session.labels.array.dtype == np.uint32


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
def test_commit_takes_a_preview_edited_by_hand(model: Any, scene: Scene, dtype: Any) -> None:
    session = Session(model, scene[0])
    prediction = session.click(ON)
    edited = np.zeros(prediction.mask.shape, dtype)
    edited[3:6, 4:8] = 1 if dtype is bool else 7
    edit = session.commit(edited)
    assert edit.box == Box(3, 4, 6, 8).shifted(prediction.box.y0, prediction.box.x0)
    assert (session.labels.array == 1).sum() == 12


def test_commit_overwrites_other_objects_only_when_told(model: Any, scene: Scene) -> None:
    labels = np.full((200, 160), 3, np.uint16)
    session = Session(model, scene[0], ArrayLabels(labels))
    session.click(ON)
    with pytest.raises(LabelsError, match="overwrite=True"):
        session.commit()
    assert session.prediction is not None
    assert session.commit(overwrite=True).label == 4
    assert (labels == 4).any()


def test_commit_without_an_object_says_what_to_do(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    with pytest.raises(SessionError, match="an object to commit, got none; click on one first"):
        session.commit()
    session.click(ON, positive=False)
    with pytest.raises(SessionError, match="got an empty mask; add a positive click"):
        session.commit()
    assert session.prediction is not None


def test_commit_refuses_a_mask_of_another_shape_or_kind(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    prediction = session.click(ON)
    with pytest.raises(ShapeError, match=r"of shape \(64, 64\), or .*got \(5, 5\)"):
        session.commit(np.ones((5, 5), bool))
    with pytest.raises(ShapeError, match="got float64; threshold it first"):
        session.commit(np.ones((64, 64)))
    assert session.prediction is prediction


def test_a_label_image_that_is_full_keeps_the_object(model: Any, scene: Scene) -> None:
    labels = np.zeros((200, 160), np.uint8)
    labels[0, 0] = 255
    session = Session(model, scene[0], labels)
    prediction = session.click(ON)
    with pytest.raises(LabelsError, match="between 1 and 255"):
        session.commit()
    assert session.prediction is prediction
    assert (labels != 0).sum() == 1


def test_predictions_cannot_be_changed_by_accident(model: Any, scene: Scene) -> None:
    prediction = Session(model, scene[0]).click(ON)
    with pytest.raises(ValueError, match="read-only"):
        prediction.mask[:] = False


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((200, 5), r"shape \(y, x\) = \(200, 160\), got \(y, x\) = \(200, 5\)"),
        ((5, -1), "coordinates are level-0 pixels"),
        ((np.nan, 5), "finite coordinates, got"),
        ((5,), "as 2 numbers"),
    ],
)
def test_a_wrong_click_leaves_the_object_as_it_was(
    model: Any, scene: Scene, point: Any, message: str
) -> None:
    session = Session(model, scene[0])
    prediction = session.click(ON)
    with pytest.raises(PromptError, match=message):
        session.click(point)
    assert session.prediction is prediction
    assert len(session.prompts) == 1


def test_a_wrong_box_leaves_the_object_as_it_was(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    prediction = session.click(ON)
    for box in [(5, 5, 5, 9), (9, 5, 5, 9), (300, 0, 310, 9)]:
        with pytest.raises(PromptError, match="expected a box"):
            session.box(box)
    assert session.prediction is prediction


def test_planes_of_a_2d_image_are_refused(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    with pytest.raises(PromptError, match=r"expected plane=\(\) for a 2-D image"):
        session.click(ON, plane=(1,))
    session.click(ON)
    with pytest.raises(PromptError, match="commit or cancel the object before"):
        session.click(ON, plane=(1,))


def test_a_model_that_computes_nan_leaves_the_session_usable(
    model: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(model, scene[0])
    prediction = session.click(ON)
    with monkeypatch.context() as broken:
        broken.setattr(
            model,
            "decode",
            lambda *_, **__: (torch.full((1, 1, 16, 16), torch.nan), torch.ones(1, 1)),
        )
        with pytest.raises(SessionError, match=r"in the mask that colour.*precision=\"float32\""):
            session.click(OFF)
    assert session.prediction is prediction
    assert isinstance(session.click(OFF, positive=False), Prediction)


def test_embeddings_in_memory_are_limited_and_the_oldest_goes(model: Any) -> None:
    image = np.zeros((400, 400), np.uint8)
    for place in (10, 200, 350):
        corner = place // 4 * 4
        image[corner : corner + 12, corner : corner + 12] = 200
    session = Session(model, image, max_embeddings=2)
    for point in [(10, 10), (200, 200), (10, 10), (350, 350), (10, 10), (200, 200)]:
        session.click(point)
        session.cancel()
    assert model.num_encoded == 4
    with pytest.raises(SessionError, match="max_embeddings of 1 or more, got 0"):
        Session(model, np.eye(9), max_embeddings=0)


def test_memory_for_undo_is_limited(
    model: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(model, scene[0])
    for box in ((0, 0, 20, 30), (100, 90, 120, 110), (180, 130, 200, 150)):
        session.box(box)
        edit = session.commit()
        monkeypatch.setattr(
            "napari_hrsam.storage.labels.array_labels.MAX_UNDO_BYTES", edit.num_bytes
        )
    assert session.undo() is edit
    assert isinstance(session.undo(), Edit)
    assert session.undo() is None


def test_labels_must_have_the_shape_of_the_image(model: Any, scene: Scene) -> None:
    with pytest.raises(LabelsError, match=r"image's shape \(200, 160\), got \(160, 200\)"):
        Session(model, scene[0], np.zeros((160, 200), np.uint32))


def test_a_bad_image_is_refused_before_anything_runs(model: Any) -> None:
    with pytest.raises(ImageError, match="got dtype complex128"):
        Session(model, np.zeros((5, 5), complex))


def test_a_closed_session_takes_no_prompts_and_keeps_the_labels(model: Any, scene: Scene) -> None:
    with Session(model, scene[0]) as session:
        session.click(ON)
        session.commit()
        session.click(OFF)
    assert session.labels.array.any()
    assert session.prediction is None
    with pytest.raises(SessionError, match="got a closed one; make a new Session"):
        session.click(ON)


def test_the_image_is_never_changed(model: Any, scene: Scene) -> None:
    image = scene[0]
    before = image.copy()
    image.flags.writeable = False
    session = Session(model, image)
    for level in session.levels:
        session.click(ON, level=level)
        session.commit(overwrite=True)
    np.testing.assert_array_equal(image, before)


def test_the_same_prompts_give_the_same_mask_in_any_order_of_work(model: Any, scene: Scene) -> None:
    session, other = Session(model, scene[0]), Session(model, scene[0])
    session.click(OFF)
    session.commit()
    session.click(ON)
    other.click(ON)
    np.testing.assert_array_equal(whole_mask(session), whole_mask(other))


def test_a_candidate_can_be_taken_for_the_object_and_taken_back(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    first = session.click(ON, level=0)
    likeliest, other, _ = session.candidates()
    assert session.prediction is first
    np.testing.assert_array_equal(likeliest.mask, first.mask)
    assert other.mask.sum() > first.mask.sum()
    assert session.choose(other) is other is session.prediction
    assert len(session.prompts) == 1
    assert session.undo() is first
    assert session.redo() is other
    edit = session.commit()
    assert edit.box.area > first.extent.area


def test_a_candidate_of_another_place_is_refused(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    with pytest.raises(SessionError, match="got none; click on one first"):
        session.candidates()
    session.click(ON, level=0)
    candidate = session.candidates()[0]
    session.cancel()
    session.click(OFF, level=0)
    with pytest.raises(SessionError, match="expected one of the candidates"):
        session.choose(candidate)


def test_sessions_and_predictions_are_told_in_one_line(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    session.click(ON, level=0)
    assert repr(session) == "Session(colour on ArrayImage(200 x 160 px), 1 prompts)"
    assert "level 0, predicted IoU 0.90" in repr(session.prediction)
    session.close()
    assert repr(session).endswith("closed)")
    assert repr(ArrayLabels((5, 6))) == "ArrayLabels(5 x 6 px, uint32)"
