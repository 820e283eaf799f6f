"""Finding, checking, loading and saving weights; bad files cost a message and nothing else."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from napari_hrsam.errors import CheckpointError, ConfigError, WeightsNotFoundError
from napari_hrsam.modeling.checkpoints import (
    WEIGHTS_VARIABLE,
    choose_device,
    choose_precision,
    find_weights,
    list_models,
    load_model,
    load_training_state,
    load_weights,
    save_training_state,
    save_weights,
)
from napari_hrsam.modeling.configs import MODELS
from napari_hrsam.modeling.segmenter import Segmenter


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(3)
    return Segmenter(MODELS["hrsam-tiny"]).eval()


@pytest.fixture
def weights(segmenter: Segmenter, tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_weights(segmenter, path, trained_on="nothing")
    return path


def _rewritten(path: Path, change) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt", "model": "hrsam-tiny"})
    return path


def test_saved_weights_load_by_path_as_half_precision_values(segmenter, weights):
    loaded = load_model(weights, device="cpu")
    assert loaded.name == "hrsam-tiny"
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    expected = segmenter.state_dict()
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=2e-3, atol=1e-4)
    code = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(loaded.state_dict()[code], expected[code])


def test_saving_leaves_no_partial_file(weights):
    assert [p.name for p in weights.parent.iterdir()] == ["mine.safetensors"]


def test_the_fingerprint_tells_weights_and_precision_apart(segmenter, weights):
    first, second = load_model(weights, device="cpu"), load_model(weights, device="cpu")
    assert first.fingerprint == second.fingerprint
    low = load_model(weights, device="cpu", precision="bfloat16")
    assert low.fingerprint != first.fingerprint
    assert segmenter.fingerprint != first.fingerprint  # full precision, before rounding


def test_the_environment_variable_names_a_folder_searched_first(weights, monkeypatch):
    named = weights.rename(weights.with_name("hrsam-tiny.safetensors"))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(named.parent))
    assert find_weights(MODELS["hrsam-tiny"]) == named


def test_list_models_tells_size_licence_and_weights(weights, monkeypatch):
    named = weights.rename(weights.with_name("hrsam-tiny.safetensors"))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(named.parent))
    infos = {info.name: info for info in list_models()}
    tiny = infos["hrsam-tiny"]
    assert tiny.weights == str(named)
    assert tiny.trained_on == "nothing"
    assert tiny.num_parameters == sum(
        p.numel() for p in Segmenter(MODELS["hrsam-tiny"]).parameters()
    )
    assert infos["hrsam-b"].weights == ""
    # Encoder 96,369,152; prompt encoder 6,220; decoder 4,058,340 (model facts, section 1).
    assert infos["hrsam-b"].num_parameters == 96_369_152 + 6_220 + 4_058_340


def test_a_name_without_weights_says_where_to_put_them():
    with pytest.raises(
        WeightsNotFoundError, match="no weights for 'hrsam-b'.*NAPARI_HRSAM_WEIGHTS"
    ):
        load_model("hrsam-b")


def test_neither_a_name_nor_a_file():
    with pytest.raises(WeightsNotFoundError, match="neither a model name .* nor a weight file"):
        load_model("hrsam-huge")


def test_a_missing_weight_file(segmenter, tmp_path):
    with pytest.raises(WeightsNotFoundError, match="does not exist"):
        load_weights(segmenter, tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 2000, -100])
def test_a_truncated_file_is_refused(weights, keep):
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load_model(weights)


def test_a_corrupt_header_is_refused(weights):
    content = bytearray(weights.read_bytes())
    content[8:40] = b"x" * 32
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(weights)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_pickle_is_never_unpickled(tmp_path, name):
    touched, path = tmp_path / "touched", tmp_path / name
    path.write_bytes(pickle.dumps(_Bomb(touched)))
    with pytest.raises(CheckpointError, match="pickled checkpoint"):
        load_model(path)
    torch.save({"x": _Bomb(touched)}, path)
    with pytest.raises(CheckpointError, match="pickled checkpoint"):
        load_model(path)
    state = tmp_path / "state.pt"
    torch.save({"config": _Bomb(touched)}, state)
    with pytest.raises(CheckpointError, match="not a readable training checkpoint"):
        load_training_state(state)
    assert not touched.exists()


def test_a_checkpoint_of_another_model_names_what_differs(weights):
    _rewritten(weights, lambda t: t.update(extra=t.pop("mask_decoder.iou_token.weight")))
    with pytest.raises(CheckpointError, match=r"1 tensors are missing \['mask_decoder.iou_token"):
        load_model(weights)


def test_a_wrong_shape_is_named(weights):
    key = "mask_decoder.iou_token.weight"
    _rewritten(weights, lambda t: t.update({key: torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match=rf"{key} has shape \(2, 2\).*expects \(1, 128\)"):
        load_model(weights)


def test_weights_that_are_not_finite_are_refused_and_change_nothing(segmenter, weights):
    key = "mask_decoder.iou_token.weight"
    _rewritten(weights, lambda t: t[key].fill_(float("nan")))
    before = {k: v.clone() for k, v in segmenter.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"{key} holds NaN"):
        load_weights(segmenter, weights)
    assert all(torch.equal(before[k], v) for k, v in segmenter.state_dict().items())


def test_a_file_of_tensors_without_a_model_name_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="does not say which of"):
        load_model(path)


def test_unknown_options_are_named(weights):
    with pytest.raises(ConfigError, match="attention must be one of auto, xformers"):
        load_model(weights, attention="flash")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scan must be one of auto, mamba"):
        load_model(weights, scan="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="precision must be"):
        load_model(weights, precision="float16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device must be 'auto'"):
        choose_device("gpu")


def test_a_device_that_is_not_there_names_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="'cuda' is not available here; available: cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_auto_precision_on_a_cpu_is_float32():
    assert choose_precision("auto", torch.device("cpu")) == "float32"


def test_a_config_that_cannot_be_is_refused():
    config = MODELS["hrsam-tiny"]
    with pytest.raises(ConfigError, match="tile_px must be a positive multiple of 16, got 500"):
        replace(config, tile_px=500)
    with pytest.raises(ConfigError, match="channel_order must be"):
        replace(config, channel_order="hsv")
    with pytest.raises(ConfigError, match="gives 64 channels but the decoder takes 128"):
        replace(config, image_encoder=replace(config.image_encoder, out_channels=64))
    with pytest.raises(ConfigError, match="stage_ends must lie in 0..11"):
        replace(config.image_encoder, stage_ends=(2, 12))
    with pytest.raises(ConfigError, match="multiple of 4 \\* num_heads"):
        replace(config.image_encoder, num_heads=7)


def test_training_state_round_trip_and_bad_files(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(CheckpointError, match="nothing to resume"):
        load_training_state(path)
    state = {key: {} for key in ("model", "averaged", "optimizer")}
    state |= {"config": "{}", "counts": torch.tensor([1, 2, 3])}
    save_training_state(state, path)
    assert load_training_state(path)["counts"].tolist() == [1, 2, 3]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="not a readable training checkpoint"):
        load_training_state(path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a training checkpoint of this project"):
        load_training_state(path)
