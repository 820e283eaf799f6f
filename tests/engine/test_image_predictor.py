"""Pictures encoded once and decoded with prompts, NumPy in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_hrsam.engine.image_predictor import ImagePredictor
from napari_hrsam.errors import ImageError, PromptError, SessionError, ShapeError


@pytest.mark.parametrize("side", [32, 64, 256])
def test_a_picture_of_any_size_is_decoded_in_its_own_pixels(model: Any, side: int) -> None:
    picture = np.zeros((side, side - 7, 3), np.uint8)
    truth = np.zeros(picture.shape[:2], bool)
    truth[side // 4 : side // 2, side // 4 : side // 2] = True
    picture[truth] = 200
    predictor = ImagePredictor(model)
    encoded = predictor.encode(picture)
    found = predictor.decode(encoded, points=[(side * 0.4, side * 0.4)])
    assert found.masks.shape == (1, *picture.shape[:2])
    assert (found.masks[0] & truth).sum() / (found.masks[0] | truth).sum() > 0.7
    assert found.iou == pytest.approx([0.9])
    assert found.logits.shape == (1, 16, 16)
    boxed = predictor.decode(encoded, box=(0, 0, side // 2, side // 2))
    assert not boxed.masks[0, side // 2 + 4 :].any()
    assert model.num_encoded == 1
    assert repr(encoded).startswith(f"EncodedImage({side} x {side - 7} px")


def test_candidates_and_a_prior(model: Any) -> None:
    predictor = ImagePredictor(model)
    encoded = predictor.encode(np.eye(64, dtype=np.uint8) * 200)
    found = predictor.decode(encoded, points=[(5, 5)], multimask=True)
    assert found.masks.shape == (3, 64, 64)
    assert list(found.iou) == sorted(found.iou, reverse=True)
    predictor.decode(encoded, [(5, 5), (40, 9)], [1, 0], prior=found.logits[0])
    np.testing.assert_array_equal(model.priors[-1][0, 0].numpy(), found.logits[0])


def test_what_is_malformed_is_refused(model: Any) -> None:
    predictor = ImagePredictor(model)
    encoded = predictor.encode(np.zeros((64, 64), np.uint8))
    with pytest.raises(PromptError, match="write points=\\[\\(5, 6\\)\\]"):
        predictor.decode(encoded, points=(5, 6))
    with pytest.raises(PromptError, match="at least one point or a box"):
        predictor.decode(encoded)
    with pytest.raises(ShapeError, match="expected a prior of shape \\(16, 16\\)"):
        predictor.decode(encoded, [(5, 6)], prior=np.zeros((8, 8), np.float32))
    with pytest.raises(ImageError, match="expected a flat image"):
        predictor.encode(np.zeros((4, 64, 64), np.uint8))
    model.fingerprint = "another"
    with pytest.raises(SessionError, match="encode it again"):
        predictor.decode(encoded, [(5, 6)])
