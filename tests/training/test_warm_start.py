"""Starting a model from a related one."""

from __future__ import annotations

import pytest
import torch

from napari_hrsam.errors import CheckpointError
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.warm_start import start_near_identity, take_decoder, warm_start


def _new(name: str, seed: int) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(find_config(name)).eval()


@torch.inference_mode()
def _embedding(model: Segmenter) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return model.encode(torch.rand(1, 3, 128, 128, generator=generator) * 255).embedding


def test_the_same_model_is_copied_whole():
    source, model = _new("hrsam-tiny", 0), _new("hrsam-tiny", 1)
    done = warm_start(model, source.state_dict())
    assert done.new == ()
    assert torch.equal(_embedding(model), _embedding(source))


def test_hrsam_plusplus_starts_as_nearly_the_same_function():
    source, model = _new("hrsam-tiny", 0), _new("hrsam++-tiny", 1)
    fresh = _embedding(model)
    done = warm_start(model, source.state_dict())
    expected = _embedding(source)

    def alike(embedding: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([embedding.flatten(), expected.flatten()]))[0, 1])

    assert alike(_embedding(model)) > 0.99
    assert alike(fresh) < 0.5
    assert all("ms_mamba_blocks" in name or "multi_scale_fusion" in name for name in done.new)


def test_hrsam_plusplus_from_hrsam_plusplus_keeps_its_own_scans():
    source, model = _new("hrsam++-tiny", 0), _new("hrsam++-tiny", 1)
    assert warm_start(model, source.state_dict()).new == ()
    assert torch.equal(_embedding(model), _embedding(source))


def test_a_refiner_is_new_and_the_rest_is_copied():
    source, model = _new("hrsam-tiny", 0), _new("hrsam-tiny+focus", 1)
    done = warm_start(model, source.state_dict())
    assert done.new
    assert all(name.startswith("focus_refiner.") for name in done.new)


def test_weights_without_any_fitting_tensor_are_refused():
    with pytest.raises(CheckpointError, match="no tensor of the given weights"):
        warm_start(_new("hrsam-tiny", 0), {"something.weight": torch.zeros(3)})


def test_a_refiner_near_the_identity_hardly_changes_the_embedding():
    model = _new("hrsam-tiny+focus", 0)
    with torch.inference_mode():
        features = model.encode(torch.rand(1, 3, 128, 128) * 255)
        prompts = {
            "point_coords_xy": torch.tensor([[[60.0, 60.0]]]),
            "point_labels": torch.tensor([[1]]),
        }
        strong = model.refine(features, **prompts).embedding
        start_near_identity(model.focus_refiner)
        weak = model.refine(features, **prompts).embedding
    scale = features.embedding.std()
    assert (weak - features.embedding).std() < 0.1 * scale
    assert (strong - features.embedding).std() > 0.3 * scale


def test_the_decoder_is_taken_only_where_it_is_the_same():
    student, teacher = _new("sam-tiny", 0), _new("hrsam-tiny", 1)
    take_decoder(student, teacher)
    key = "mask_decoder.iou_token.weight"
    assert torch.equal(student.state_dict()[key], teacher.state_dict()[key])
    stem = "image_encoder.stem.proj16.weight"
    assert torch.equal(student.state_dict()[stem], teacher.state_dict()[stem])
