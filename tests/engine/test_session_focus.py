"""Sessions with a focus refiner: once per object and tile, at the second prompt."""

from __future__ import annotations

import gc
import time
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_segmenter import CONFIG

from napari_hrsam.engine.predictor import Embedding, Predictor
from napari_hrsam.engine.session import Session
from napari_hrsam.errors import SessionError
from napari_hrsam.modeling.configs import FocusConfig
from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter

Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]
ON, NEXT, OFF = (50.0, 60.0), (52.0, 75.0), (45.0, 52.0)


@pytest.fixture(autouse=True)
def _one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests count what one look does."""
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 1)


def added(model: Any, tile: int = 0) -> list[float]:
    """What the refiner had added to the embedding of each prediction: 0 is the original."""
    original = model.originals[tile]
    return [round(float((f.embedding - original).mean()), 2) for f, _ in model.decoded]


@pytest.fixture(autouse=True)
def _originals(focused_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    focused_model.originals = []
    encode = focused_model.encode

    def kept(image: torch.Tensor) -> ImageFeatures:
        features = encode(image)
        focused_model.originals.append(features.embedding.clone())
        return features

    monkeypatch.setattr(focused_model, "encode", kept)


def test_an_object_is_refined_once_at_its_second_prompt(focused_model: Any, scene: Scene) -> None:
    session = Session(focused_model, scene[0])
    session.click(ON)
    assert focused_model.refined == []
    session.click(NEXT)
    session.click(OFF, positive=False)
    session.box((36, 44, 76, 84))
    assert len(focused_model.refined) == 1
    assert added(focused_model) == [0, 1, 1, 1]


def test_the_refinement_sees_the_original_both_clicks_and_the_first_logits(
    focused_model: Any, scene: Scene
) -> None:
    session = Session(focused_model, scene[0], enforce_clicks=False)
    first = session.click(ON)
    session.click(NEXT, positive=False)
    ((features, given),) = focused_model.refined
    torch.testing.assert_close(features.embedding, focused_model.originals[0], rtol=0, atol=1e-3)
    assert given["point_labels"].tolist() == [[1, 0]]
    np.testing.assert_array_equal(given["mask_logits"][0, 0].numpy(), first.logits)
    # The refined embedding is decoded with the same prompts and the same mask prompt.
    _, decoded = focused_model.decoded[-1]
    for name, value in given.items():
        other = decoded[name]
        assert value is other is None or torch.equal(value, other)


def test_a_box_and_a_click_are_two_prompts_a_corrected_box_is_one(
    focused_model: Any, scene: Scene
) -> None:
    session = Session(focused_model, scene[0])
    session.box((36, 44, 76, 84))
    session.box((38, 46, 74, 82))
    assert focused_model.refined == []
    session.click(ON)
    *before, last = added(focused_model)
    assert last == pytest.approx(max(before) + 1)
    assert max(before) < 0.2, "priors alone"


@pytest.mark.parametrize("end", ["commit", "cancel"])
def test_a_new_object_starts_from_the_original(focused_model: Any, scene: Scene, end: str) -> None:
    session = Session(focused_model, scene[0])
    session.click(ON)
    session.click(NEXT)
    getattr(session, end)()
    session.click(ON)
    session.click(OFF)
    assert added(focused_model) == [0, 1, 0, 2]
    assert focused_model.num_encoded == 1


def test_undo_goes_back_to_the_original_and_redo_runs_nothing(
    focused_model: Any, scene: Scene
) -> None:
    session = Session(focused_model, scene[0])
    made = [session.click(ON), session.click(NEXT), session.click(OFF)]
    runs = len(focused_model.refined), len(focused_model.decoded)
    assert session.undo() is made[1]
    assert session.undo() is made[0]
    assert [session.redo(), session.redo()] == made[1:]
    assert (len(focused_model.refined), len(focused_model.decoded)) == runs
    # After redo and undo of later prompts the refinement is still the first one.
    session.undo()
    session.click(OFF, positive=False)
    assert added(focused_model)[-1] == 1
    # Before the second prompt again: another second prompt refines the original anew.
    session.undo()
    session.undo()
    session.click(OFF)
    session.click(NEXT)
    assert added(focused_model)[-2:] == [2, 2]


def test_another_tile_starts_from_its_own_embedding_and_is_refined_at_once(
    focused_model: Any, scene: Scene
) -> None:
    session = Session(focused_model, scene[0])
    tile = session.click(ON).tile
    moved = session.click((199, 159), positive=False)
    assert moved.tile != tile
    assert focused_model.num_encoded == 2
    ((features, given),) = focused_model.refined
    torch.testing.assert_close(features.embedding, focused_model.originals[1], rtol=0, atol=1e-3)
    assert given["mask_logits"] is None
    assert added(focused_model, tile=1) == [pytest.approx(added(focused_model, tile=1)[0]), 1]
    session.click(NEXT)
    assert len(focused_model.refined) == 1
    # Two undos lead back to the first tile, whose second prompt refines there.
    session.undo()
    session.undo()
    session.click(NEXT)
    assert added(focused_model)[-1] == 2


def test_a_refined_object_that_moves_is_refined_again(focused_model: Any, scene: Scene) -> None:
    session = Session(focused_model, scene[0])
    session.click(ON)
    session.click(NEXT)
    session.click((199, 159), positive=False)
    assert len(focused_model.refined) == 2
    assert added(focused_model, tile=1)[-1] == 2
    session.undo()
    session.click(OFF)
    assert added(focused_model)[-1] == 1
    assert len(focused_model.refined) == 2


def test_the_refinement_is_timed_as_part_of_decoding(
    focused_model: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    refine = focused_model.refine

    def slow(features: ImageFeatures, **given: Any) -> ImageFeatures:
        time.sleep(0.2)
        return refine(features, **given)

    monkeypatch.setattr(focused_model, "refine", slow)
    session = Session(focused_model, scene[0])
    first, second, third = session.click(ON), session.click(NEXT), session.click(OFF)
    assert first.seconds["refine_s"] == third.seconds["refine_s"] == 0
    assert 0.2 <= second.seconds["refine_s"] < second.seconds["decode_s"]
    assert second.seconds["decode_s"] < second.seconds["total_s"]


def test_a_refinement_that_fails_leaves_the_object_as_it_was(
    focused_model: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(focused_model, scene[0])
    first = session.click(ON)
    nan = lambda features, **_: replace(features, embedding=features.embedding * torch.nan)  # noqa: E731
    with monkeypatch.context() as broken:
        broken.setattr(focused_model, "refine", nan)
        with pytest.raises(SessionError, match="in the refined embedding that colour"):
            session.click(NEXT)
    assert session.prediction is first
    assert len(session.prompts) == 1
    session.click(NEXT)
    assert added(focused_model)[-1] == 1


def test_a_decoding_that_fails_after_the_refinement_forgets_it(
    focused_model: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(focused_model, scene[0])
    first = session.click(ON)
    with monkeypatch.context() as broken:
        failed = torch.full((1, 1, 16, 16), torch.nan), torch.ones(1, 1)
        broken.setattr(focused_model, "decode", lambda *_, **__: failed)
        with pytest.raises(SessionError, match="in the mask that colour"):
            session.click(NEXT)
    assert session.prediction is first
    session.click(OFF)
    assert added(focused_model)[-1] == 2


def test_refined_embeddings_go_with_their_object(
    focused_model: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    refine = Predictor.refine_embedding

    def watched(self: Predictor, *given: Any) -> Embedding:
        refined = refine(self, *given)
        alive.append(weakref.ref(refined.arrays["embedding"]))
        return refined

    monkeypatch.setattr(Predictor, "refine_embedding", watched)
    session = Session(focused_model, scene[0])
    for point in (ON, NEXT, OFF):
        session.click(point)
    assert [ref() is not None for ref in alive] == [True]
    session.commit()
    focused_model.decoded.clear()
    gc.collect()
    assert [ref() for ref in alive] == [None]


def test_models_without_refiner_take_no_time_for_it(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    assert {session.click(p).seconds["refine_s"] for p in (ON, NEXT, OFF)} == {0.0}


def small_model() -> Segmenter:
    torch.manual_seed(0)
    config = replace(
        CONFIG,
        focus=FocusConfig(embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, window_size=2),
    )
    return Segmenter(config)


def test_a_real_model_gives_what_decode_refine_decode_gives(scene: Scene) -> None:
    model = small_model()
    session = Session(model, scene[0][:64, :64], enforce_clicks=False)
    points = [(30.0, 40.0), (20.0, 50.0), (45.0, 5.0)]
    answers = [session.click(point).logits for point in points]
    with torch.inference_mode():
        image = torch.from_numpy(scene[0][:64, :64]).permute(2, 0, 1)[None].float()
        features = model.encode(image).to(device="cpu", dtype=torch.float16)
        features = features.to(device="cpu", dtype=torch.float32)
        prior = None
        for i, answer in enumerate(answers):
            given = {
                "point_coords_xy": torch.tensor([[(x, y) for y, x in points[: i + 1]]]),
                "point_labels": torch.ones(1, i + 1, dtype=torch.int64),
                "mask_logits": prior,
            }
            if i == 1:
                features = model.refine(features, **given)
            prior, _ = model.decode(features, **given)
            np.testing.assert_allclose(prior[0, 0].numpy(), answer, rtol=0, atol=2e-2)


def test_other_embeddings_in_memory_stay_bit_identical(scene: Scene) -> None:
    session = Session(small_model(), scene[0])
    for point in ((150, 130), (30, 40)):
        session.click(point)
        session.cancel()
    held = session._tiles._seen
    kept = [{n: a.copy() for n, a in seen.embedding.arrays.items()} for seen in held.values()]
    for point in ((30, 40), (40, 50), (20, 44)):
        session.click(point)
    assert session.prediction is not None
    assert len(held) == len(kept) == 2
    for seen, arrays in zip(held.values(), kept, strict=True):
        for name, array in arrays.items():
            np.testing.assert_array_equal(seen.embedding.arrays[name], array)
