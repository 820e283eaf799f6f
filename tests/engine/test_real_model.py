"""The engine over HRSAM itself, with random weights: shapes, obedience and repeatability."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_hrsam.engine.session import Prediction, Session
from napari_hrsam.modeling.configs import HRSAMConfig, PromptDecoderConfig
from napari_hrsam.modeling.models import MODELS, ModelConfig
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.storage.embeddings.store import EmbeddingStore

LINEAR_STEM = ModelConfig(
    name="small",
    description="a model of the paper's kind, small",
    image_encoder=HRSAMConfig(
        embed_dim=32,
        depth=4,
        num_heads=2,
        window_size=4,
        state_dim=4,
        stage_ends=(1, 3),
        out_channels=32,
        pos_grid=4,
    ),
    decoder=PromptDecoderConfig(embed_dim=32, pe_grid=8, mlp_dim=32, num_heads=2, iou_head_dim=16),
    tile_px=128,
    channel_order="bgr",
)
SHIPPED = replace(MODELS["hrsam-tiny"], tile_px=128)
IMAGE = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)


@pytest.fixture(params=[LINEAR_STEM, SHIPPED], ids=["linear-stem", "hrsam-tiny"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Segmenter(request.param)


def test_a_session_draws_corrects_and_commits(segmenter: Segmenter) -> None:
    session = Session(segmenter, IMAGE)
    clicks = [((100.0, 90.0), True), ((110.0, 90.0), False), ((100.0, 97.0), True)]
    for number, (point, positive) in enumerate(clicks, 1):
        prediction = session.click(point, positive)
        assert prediction.box == prediction.tile.box0.clip((300, 200))
        assert prediction.logits.shape == (32, 32)
        for (y, x), label in clicks[:number]:
            assert prediction.mask[int(y) - prediction.box.y0, int(x) - prediction.box.x0] == label
    assert session.commit().label == 1
    prediction = session.box((10, 10, 290, 190), level=0)
    assert prediction.level == 2
    assert prediction.mask.shape == (300, 200)


def test_the_same_clicks_give_the_same_masks(segmenter: Segmenter) -> None:
    first, second = Session(segmenter, IMAGE), Session(segmenter, IMAGE)
    for session in (first, second):
        session.click((100, 90))
        session.click((110, 95), positive=False)
    assert first.prediction is not None
    assert second.prediction is not None
    np.testing.assert_array_equal(first.prediction.mask, second.prediction.mask)
    np.testing.assert_array_equal(first.prediction.logits, second.prediction.logits)
    assert first.prediction.iou == second.prediction.iou


def test_nan_weights_are_an_error_and_not_a_mask(segmenter: Segmenter) -> None:
    with torch.no_grad():
        for parameter in segmenter.image_encoder.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(
        RuntimeError, match=f"NaN or infinity in the embedding that {segmenter.name}"
    ):
        Session(segmenter, IMAGE).click((100, 90))


def test_embeddings_from_the_disk_give_the_same_masks(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(store: EmbeddingStore | None) -> list[Prediction]:
        with Session(segmenter, IMAGE, embeddings=store) as session:
            return [
                session.click((100.0, 90.0)),
                session.click((110.0, 90.0), positive=False),
                session.box((10, 10, 290, 190)),
            ]

    made, _ = drawn(None), drawn(EmbeddingStore(tmp_path))
    monkeypatch.setattr(segmenter, "encode", None)
    for first, second in zip(made, drawn(EmbeddingStore(tmp_path)), strict=True):
        np.testing.assert_array_equal(first.mask, second.mask)
        np.testing.assert_array_equal(first.logits, second.logits)
        assert first.iou == second.iou
