from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.errors import SessionError, ShapeError
from napari_hrsam.geometry import Tile
from napari_hrsam.prompts import Prompts

TILE = Tile(1, 32, 64, 64)
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
CLICK = Prompts().with_click((2 * (32 + 10) + 0.5, 2 * (64 + 20) + 0.5), True)


def test_an_embedding_is_float16_numpy_with_its_provenance(model: Any) -> None:
    embedding = Predictor(model).encode(PIXELS, TILE)
    assert {name: array.dtype for name, array in embedding.arrays.items()} == {
        "embedding": np.float16,
        "stride4": np.float16,
    }
    assert embedding.arrays["stride4"].shape == (1, 3, 16, 16)
    assert (embedding.fingerprint, embedding.tile) == ("colour-1", TILE)
    assert embedding.encode_s > 0


def test_prompts_reach_the_model_as_xy_pixels_of_the_tile(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    decode = model.decode

    def spy(features: Any, **prompts: Any) -> Any:
        given.update(prompts)
        return decode(features, **prompts)

    monkeypatch.setattr(model, "decode", spy)
    predictor = Predictor(model)
    prior = np.ones((16, 16), np.float32)
    box = 2.0 * (32 + 4), 2.0 * (64 + 8), 2.0 * (32 + 12), 2.0 * (64 + 24)
    answer = predictor.decode(predictor.encode(PIXELS, TILE), CLICK.with_box(box), prior)
    assert given["point_coords_xy"].tolist() == [[[20.0, 10.0]]]
    assert given["point_labels"].tolist() == [[1]]
    assert given["boxes_xyxy"].tolist() == [[7.5, 3.5, 23.5, 11.5]]
    assert given["mask_logits"].shape == (1, 1, 16, 16)
    assert answer.logits.shape == (64, 64)
    assert answer.low_res_logits.shape == (16, 16)
    assert answer.logits.dtype == answer.low_res_logits.dtype == np.float32
    assert answer.iou == pytest.approx(0.9)
    assert answer.decode_s > 0


def test_the_model_is_put_into_evaluation_mode(model: Any) -> None:
    Predictor(model.train())
    assert not model.training


def test_the_fill_colour_is_rgb_whatever_the_model_takes(model: Any) -> None:
    assert Predictor(model).fill == (10, 20, 30)
    model.config = type(model.config)(channel_order="bgr")
    assert Predictor(model).fill == (30, 20, 10)


@pytest.mark.parametrize("pixels", [PIXELS[..., 0], PIXELS.astype(float), PIXELS[..., :2]])
def test_other_pixels_are_refused(model: Any, pixels: Any) -> None:
    with pytest.raises(ShapeError, match=r"pixels as \(h, w, 3\) uint8, got"):
        Predictor(model).encode(pixels, TILE)


def test_an_embedding_that_is_not_finite_names_the_model_and_a_way_out(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = model.encode
    # 1e6 is beyond float16.
    monkeypatch.setattr(model, "encode", lambda image: encode(image * 1e6))
    with pytest.raises(SessionError, match=r"in the embedding that colour.*precision=\"float32\""):
        Predictor(model).encode(PIXELS, TILE)


class Accelerator:
    """Gives the model another device until it is moved, and no memory there."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch, *, helps: bool) -> None:
        self.name = "cuda:0"
        self.moves: list[str] = []
        for method in ("encode", "decode", "refine"):
            if not hasattr(model, method):
                continue
            monkeypatch.setattr(model, method, self.full(getattr(model, method), helps=helps))
        monkeypatch.setattr(model, "to", self.move)
        monkeypatch.setattr(
            type(model), "device", property(lambda _: torch.device(self.name)), raising=True
        )
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)

    def full(self, work: Any, *, helps: bool) -> Any:
        def worked(*given: Any, **named: Any) -> Any:
            if self.name != "cpu" or not helps:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return work(*given, **named)

        return worked

    def move(self, device: str) -> None:
        self.moves.append(device)
        self.name = device


def test_out_of_memory_on_the_accelerator_falls_back_to_the_cpu_and_says_so(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Predictor(model).encode(PIXELS, TILE)
    device = Accelerator(model, monkeypatch, helps=True)
    with caplog.at_level(logging.WARNING):
        embedding = Predictor(model).encode(PIXELS, TILE)
    assert device.moves == ["cpu"]
    quarters, moved = caplog.messages
    assert quarters.startswith("out of memory on cuda:0: colour encodes this 64 px tile in four")
    assert moved.startswith("out of memory on cuda:0: colour runs on the CPU from now")
    assert embedding.arrays["stride4"] == pytest.approx(expected.arrays["stride4"], abs=1e-3)


def test_a_tile_that_is_too_large_for_the_accelerator_is_encoded_in_quarters(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Predictor(model).encode(PIXELS, TILE)
    device = Accelerator(model, monkeypatch, helps=True)
    whole, encode = PIXELS.shape[0], type(model).encode
    seen: list[tuple[int, ...]] = []

    def small_only(image: torch.Tensor) -> Any:
        seen.append(tuple(image.shape[2:]))
        if image.shape[2] == whole:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(model, image)

    monkeypatch.setattr(model, "encode", small_only)
    with caplog.at_level(logging.WARNING):
        embedding = Predictor(model).encode(PIXELS, TILE)
    assert seen == [(whole, whole), *[(whole // 2, whole // 2)] * 4]
    assert device.moves == []
    assert "four quarters" in caplog.messages[0]
    # The double looks at every block for itself, so the joined maps are those of the whole tile.
    for name, array in expected.arrays.items():
        assert embedding.arrays[name] == pytest.approx(array, abs=1e-3)


def test_out_of_memory_while_decoding_falls_back_too(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = Predictor(model).encode(PIXELS, TILE)
    device = Accelerator(model, monkeypatch, helps=True)
    assert Predictor(model).decode(embedding, CLICK, None).logits.max() > 0
    assert device.moves == ["cpu"]


def test_a_refined_embedding_is_a_new_one_that_shares_the_other_maps(focused_model: Any) -> None:
    predictor = Predictor(focused_model)
    original = predictor.encode(PIXELS, TILE)
    kept = original.arrays["embedding"].copy()
    refined = predictor.refine_embedding(original, CLICK, np.ones((16, 16), np.float32))
    np.testing.assert_array_equal(original.arrays["embedding"], kept)
    np.testing.assert_allclose(refined.arrays["embedding"], kept + 1, atol=1e-3)
    assert refined.arrays["embedding"].dtype == np.float16
    assert refined.arrays["stride4"] is original.arrays["stride4"]
    assert (refined.tile, refined.fingerprint) == (TILE, "colour-1")
    ((_, given),) = focused_model.refined
    assert given["point_coords_xy"].tolist() == [[[20.0, 10.0]]]
    assert given["mask_logits"].shape == (1, 1, 16, 16)


def test_a_refined_embedding_that_is_not_finite_names_the_model(
    focused_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(focused_model)
    embedding = predictor.encode(PIXELS, TILE)
    refine = focused_model.refine
    monkeypatch.setattr(
        focused_model, "refine", lambda features, **given: nan(refine(features, **given))
    )
    with pytest.raises(SessionError, match="in the refined embedding that colour computed"):
        predictor.refine_embedding(embedding, CLICK, None)


def nan(features: Any) -> Any:
    return replace(features, embedding=features.embedding * torch.nan)


def test_out_of_memory_while_refining_falls_back_too(
    focused_model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = Predictor(focused_model).encode(PIXELS, TILE)
    expected = embedding.arrays["embedding"] + 1
    device = Accelerator(focused_model, monkeypatch, helps=True)
    with caplog.at_level(logging.WARNING):
        refined = Predictor(focused_model).refine_embedding(embedding, CLICK, None)
    assert device.moves == ["cpu"]
    assert "runs on the CPU from now on" in caplog.text
    assert refined.arrays["embedding"] == pytest.approx(expected, abs=1e-2)


def test_whether_a_model_refines_is_told_by_its_configuration(
    model: Any, focused_model: Any
) -> None:
    assert not Predictor(model).refines
    assert Predictor(focused_model).refines


def test_out_of_memory_on_the_cpu_is_an_error_with_a_way_out(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Accelerator(model, monkeypatch, helps=False)
    device.name = "cpu"
    with pytest.raises(SessionError, match="64 px tile.*close other programs or choose a smaller"):
        Predictor(model).encode(PIXELS, TILE)


def test_candidates_come_likeliest_first(model: Any) -> None:
    tile = Tile(0, 0, 0, 64)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:32, 16:32] = 200
    prompts = Prompts(points_yx=((20, 20),), labels=(True,))
    embedding = Predictor(model).encode(pixels, tile)
    found = Predictor(model).candidates(embedding, prompts, None)
    assert [round(one.iou, 3) for one in found] == [0.9, 0.5, 0.1]
    shares = [float((one.logits > 0).mean()) for one in found]
    assert 0.04 < shares[0] < 0.1
    assert shares[1:] == [1.0, 0.0]
    single = Predictor(model).decode(embedding, prompts, None)
    np.testing.assert_array_equal(found[0].logits, single.logits)
