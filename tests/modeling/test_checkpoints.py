"""Finding, checking, loading and saving weights; bad files cost a message and nothing else."""

from __future__ import annotations

import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import manifest, mark, synthetic
from safetensors.torch import load_file, save_file

from napari_hrsam.errors import CheckpointError, ConfigError, WeightsNotFoundError
from napari_hrsam.modeling.checkpoints import load_model, load_weights
from napari_hrsam.modeling.devices import choose_device, choose_precision
from napari_hrsam.modeling.download import CACHE_VARIABLE
from napari_hrsam.modeling.models import MODELS
from napari_hrsam.modeling.registry import WEIGHTS_VARIABLE, list_models
from napari_hrsam.modeling.saving import save_refiner, save_weights
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.weight_files import (
    load_training_state,
    open_weight_file,
    save_training_state,
)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has downloaded is none of the tests' business."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))


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
    first, second = (load_model(weights, device="cpu", precision="float32") for _ in range(2))
    assert first.fingerprint == second.fingerprint
    low = load_model(weights, device="cpu", precision="bfloat16")
    assert low.fingerprint != first.fingerprint
    assert segmenter.fingerprint != first.fingerprint  # full precision, before rounding


def test_a_name_without_weights_says_where_to_get_them_and_where_to_put_them():
    with pytest.raises(
        WeightsNotFoundError,
        match=r"no weights for 'hrsam-b'.*mega.nz.*napari-hrsam convert.*NAPARI_HRSAM_WEIGHTS",
    ):
        load_model("hrsam-b")
    with pytest.raises(
        WeightsNotFoundError,
        match=r"fetch them \(375 MB\) with `napari-hrsam models --download sam-b` or "
        r"load_model\('sam-b\+ba', download=True\)",
    ):
        load_model("sam-b+ba")
    with pytest.raises(WeightsNotFoundError, match=r"no focus refiner for 'sam-h\+focus'.*focsam"):
        load_model("sam-h+focus")


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
    with pytest.raises(CheckpointError, match="pickled checkpoint of more than tensors"):
        load_model(path)
    for zipped in (True, False):
        torch.save({"x": _Bomb(touched)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"it asks for \w*\.?getattr\).*weights_only"):
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


def test_a_file_of_unknown_tensors_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no weight file known here"):
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


@pytest.mark.parametrize("native", [False, True])
def test_auto_precision_on_a_cpu_is_that_of_the_processor_for_our_models(native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == "float32"
    assert choose_precision("auto", cpu, on_cpu=True) == ("bfloat16" if native else "float32")
    assert choose_precision("float32", cpu, on_cpu=True) == "float32"
    # What torch cannot tell is not native.
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert choose_precision("auto", cpu, on_cpu=True) == "float32"


def test_a_config_that_cannot_be_is_refused():
    config = MODELS["hrsam-tiny"]
    with pytest.raises(ConfigError, match="tile_px must be a positive multiple of 16, got 500"):
        replace(config, tile_px=500)
    with pytest.raises(ConfigError, match="channel_order must be"):
        replace(config, channel_order="hsv")
    with pytest.raises(ConfigError, match="gives 64 channels but the decoder takes 128"):
        replace(config, image_encoder=replace(config.image_encoder, out_channels=64))
    with pytest.raises(ConfigError, match="stage_ends must lie in 0..5"):
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


@pytest.mark.parametrize("keep", [4, 60, 3000, -200])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_torch_checkpoint_is_refused(segmenter, tmp_path, keep, zipped):
    path = tmp_path / "x.pth"
    torch.save(segmenter.state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or corrupt|no weight file known|pickled"):
        load_model(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_checkpoints_with_any_byte_changed_load_or_are_refused(tmp_path, zipped):
    path = tmp_path / "x.pth"
    torch.save(
        {"state_dict": {"a": torch.arange(4.0), "b": torch.zeros(2, 2)}, "epoch": 3},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x15]) + good[place + 1 :])
        try:
            assert open_weight_file(path).tensors
        except CheckpointError:
            continue


@pytest.mark.parametrize(
    "content", [{"a": 1}, [torch.zeros(1)], {"state_dict": {"a": torch.zeros(1), "b": 2}}]
)
def test_a_torch_file_without_a_state_dict_is_refused(content, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"no tensors by name|'b' is no plain tensor"):
        load_model(path)


def test_the_log_of_mmengine_beside_the_tensors_is_passed_over(segmenter, tmp_path, monkeypatch):
    """Its history buffers hold numpy arrays; neither is made, and mmengine is not needed."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    made = []

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self._max_length = np.float64(5)

        def __setstate__(self, state: object) -> None:
            made.append(state)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    path = tmp_path / "iter_160000.pth"
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        log = {"log_scalars": {"loss": HistoryBuffer()}}
        torch.save({"message_hub": log, "state_dict": segmenter.state_dict()}, path)
        loaded = load_model(path, device="cpu")
    assert loaded.name == "hrsam-tiny"
    assert not made
    assert load_model(path, device="cpu").fingerprint == loaded.fingerprint  # without mmengine
    allowed = [str(entry) for entry in torch.serialization.get_safe_globals()]
    assert not any("numpy" in entry or "_Inert" in entry for entry in allowed)


def test_a_refused_name_beside_the_log_is_still_refused(tmp_path):
    touched, path = tmp_path / "touched", tmp_path / "x.pth"
    torch.save({"log": np.arange(3), "x": _Bomb(touched)}, path)
    with pytest.raises(CheckpointError, match="it asks for getattr"):
        load_model(path)
    assert not touched.exists()


def test_channel_order_and_tile_are_kept_in_the_file_and_may_be_overridden(segmenter, tmp_path):
    path = tmp_path / "bgr.safetensors"
    odd = Segmenter(replace(MODELS["hrsam-tiny"], channel_order="bgr", tile_px=256))
    odd.load_state_dict(segmenter.state_dict())
    save_weights(odd, path, dtype=torch.float32)
    loaded = load_model(path, device="cpu")
    assert (loaded.config.channel_order, loaded.config.tile_px) == ("bgr", 256)
    turned = load_model(path, device="cpu", channel_order="rgb")
    large = load_model(path, device="cpu", tile_px=1024)
    assert (turned.config.channel_order, turned.config.tile_px) == ("rgb", 256)
    assert (large.config.channel_order, large.config.tile_px) == ("bgr", 1024)
    assert len({m.fingerprint for m in (segmenter, loaded, turned, large)}) == 4
    with pytest.raises(ConfigError, match="tile_px must be a positive multiple of 16, got 100"):
        load_model(path, tile_px=100)
    with pytest.raises(ConfigError, match="channel_order must be"):
        load_model(path, channel_order="hsv")  # type: ignore[arg-type]


def test_settings_of_a_file_hold_when_the_model_is_asked_for_by_name(tmp_path, monkeypatch):
    odd = Segmenter(replace(MODELS["hrsam-tiny"], channel_order="bgr"))
    save_weights(odd, tmp_path / "hrsam-tiny.safetensors")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    assert load_model("hrsam-tiny", device="cpu").config.channel_order == "bgr"


@pytest.fixture(scope="module")
def focused() -> Segmenter:
    torch.manual_seed(4)
    return Segmenter(MODELS["hrsam-tiny+focus"]).eval()


@pytest.fixture
def base_and_refiner(focused, tmp_path) -> tuple[Path, Path]:
    base = Segmenter(MODELS["hrsam-tiny"])
    base.load_state_dict({k: v for k, v in focused.state_dict().items() if "focus_" not in k})
    base_path = tmp_path / "hrsam-tiny.safetensors"
    save_weights(base, base_path, trained_on="some")
    # The refiner is trained on what was loaded from the file, not on what was saved to it.
    whole = Segmenter(MODELS["hrsam-tiny+focus"])
    whole.load_state_dict(load_model(base_path, device="cpu").state_dict(), strict=False)
    whole.focus_refiner.load_state_dict(focused.focus_refiner.state_dict())
    save_refiner(whole, tmp_path / "hrsam-tiny-focus.safetensors", trained_on="clicks")
    return base_path, tmp_path / "hrsam-tiny-focus.safetensors"


def _refines_as(model: Segmenter, focused: Segmenter) -> bool:
    pairs = zip(
        model.focus_refiner.state_dict().values(),
        focused.focus_refiner.state_dict().values(),
        strict=True,
    )
    return all(torch.allclose(a, b, rtol=2e-3, atol=1e-4) for a, b in pairs)


def test_a_refiner_is_put_on_its_model_by_name_and_by_path(
    base_and_refiner, focused, monkeypatch, caplog
):
    base, refiner = base_and_refiner
    assert not any("focus" not in key for key in load_file(refiner))
    by_path = load_model(base, device="cpu", focus=refiner)
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(base.parent))
    by_name = load_model("hrsam-tiny+focus", device="cpu")
    mixed = load_model("hrsam-tiny", device="cpu", focus=refiner)
    for model in (by_path, by_name, mixed):
        assert model.name == "hrsam-tiny+focus"
        assert _refines_as(model, focused)
        assert model.fingerprint == by_name.fingerprint
    assert not caplog.records
    info = next(i for i in list_models() if i.name == "hrsam-tiny+focus")
    assert (info.weights, info.trained_on, info.source) == (str(base), "clicks", "shipped")


def test_a_whole_focus_model_is_one_file_as_well(focused, tmp_path):
    path = tmp_path / "whole.safetensors"
    save_weights(focused, path)
    loaded = load_model(path, device="cpu")
    assert loaded.name == "hrsam-tiny+focus"
    assert _refines_as(loaded, focused)


def test_a_refiner_trained_on_other_weights_is_told_of(base_and_refiner, segmenter, caplog):
    base, refiner = base_and_refiner
    save_weights(segmenter, base)
    load_model(base, device="cpu", focus=refiner)
    assert "trained on other weights of hrsam-tiny+focus" in caplog.text


def test_a_refiner_alone_is_no_model(base_and_refiner):
    _, refiner = base_and_refiner
    with pytest.raises(CheckpointError, match=r"focus refiner alone.*load_model\('hrsam-tiny', f"):
        load_model(refiner)


def test_a_model_is_no_refiner(base_and_refiner):
    base, _ = base_and_refiner
    with pytest.raises(CheckpointError, match="holds no focus refiner but 'hrsam-tiny'"):
        load_model(base, focus=base)


def test_a_refiner_of_another_width_is_refused(base_and_refiner, tmp_path):
    base, _ = base_and_refiner
    path = tmp_path / "theirs.pth"
    shapes = {k: s for k, s in manifest("focsam_vit_h").items() if k.startswith("refine_head.")}
    torch.save(synthetic(shapes), path)
    with pytest.raises(CheckpointError, match="hrsam-tiny.safetensors with .*theirs.pth"):
        load_model(base, focus=path)


def test_focsams_refiner_fits_other_models_with_256_channels_and_is_told_of(tmp_path, caplog):
    whole = manifest("focsam_vit_h")
    refiner, base = tmp_path / "focsam.pth", tmp_path / "mobile_sam.pt"
    shapes = {k: s for k, s in whole.items() if not k.startswith("backbone.")}
    torch.save({"state_dict": synthetic(shapes)}, refiner)
    torch.save(synthetic(manifest("mobile_sam_vit_t")), base)
    model = load_model(base, device="cpu", focus=refiner)
    assert model.name == "mobile-sam+focus"
    assert model.config.channel_order == "rgb"
    state = model.state_dict()
    index = list(shapes).index("refine_head.token_proj.weight")
    assert state["focus_refiner.token_proj.weight"][0, 1] == mark(index)
    # The decoder stays the model's own; FocSAM's belongs to SAM ViT-H.
    index = list(manifest("mobile_sam_vit_t")).index("mask_decoder.iou_token.weight")
    assert state["mask_decoder.iou_token.weight"][0, 1] == mark(index)
    assert "was trained for sam-h+focus and is used with mobile-sam+focus" in caplog.text
    with pytest.raises(WeightsNotFoundError, match="no weights for 'sam-h'.*--download sam-h"):
        load_model(refiner)


def test_a_model_without_a_refiner_has_none_to_save(segmenter, tmp_path):
    with pytest.raises(ConfigError, match="'hrsam-tiny' has no focus refiner to save"):
        save_refiner(segmenter, tmp_path / "x.safetensors")


def test_statistics_of_batch_norms_stay_exact_in_half_precision(tmp_path):
    model = Segmenter(MODELS["mobile-sam"])
    key = "image_encoder.patch_embed.seq.0.bn.running_var"
    model.state_dict()[key].fill_(1e6)  # beyond half precision
    save_weights(model, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", device="cpu").state_dict()[key][0] == 1e6


@pytest.mark.parametrize("name", list(MODELS))
def test_the_registry_knows_the_number_of_parameters(name):
    [info] = [info for info in list_models() if info.name == name]
    with torch.device("meta"):
        model = Segmenter(MODELS[name])
    assert info.num_parameters == sum(p.numel() for p in model.parameters())
