"""Recognising whose file it is: every tensor of every published layout finds its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_files import as_mmengine, manifest, mark, mmengine_name, synthetic, tiny_state
from safetensors.torch import save_file

from napari_hrsam.errors import CheckpointError
from napari_hrsam.modeling.checkpoints import load_model, load_weights, read_state
from napari_hrsam.modeling.configs import HRSAMConfig
from napari_hrsam.modeling.hrsam import HRSAMEncoder
from napari_hrsam.modeling.layouts import (
    describe_nearest,
    expected_state,
    our_name,
    part_of,
    recognise,
    renamed,
)
from napari_hrsam.modeling.models import MODELS, find_config
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.weight_files import open_weight_file, read_metadata

WHOLE = [
    ("hrsam_vit_b", "hrsam", "hrsam-b", "bgr"),
    ("hrsam_plusplus_vit_b", "hrsam++", "hrsam++-b", "bgr"),
    ("focsam_vit_h", "focsam", "sam-h+focus", "bgr"),
    ("mobile_sam_vit_t", "mobile-sam", "mobile-sam", "rgb"),
    ("sam_vit_b", "sam", "sam-b", "rgb"),
    ("sam_vit_l", "sam", "sam-l", "rgb"),
    ("sam_vit_h", "sam", "sam-h", "rgb"),
]


@pytest.mark.parametrize(("file", "layout", "model", "order"), WHOLE)
def test_every_tensor_of_a_published_file_has_its_place_and_shape(file, layout, model, order):
    shapes = manifest(file)
    found = recognise(shapes)
    assert (found.name, found.model) == (layout, model)
    assert found.config.channel_order == order
    expected = {key: tuple(value.shape) for key, value in expected_state(found.config).items()}
    assert {ours: shapes[theirs] for theirs, ours in found.names.items()} == expected
    assert len(found.names) + len(found.dropped) == len(shapes)


def test_only_the_classifier_of_mobile_sam_is_dropped():
    for file, *_ in WHOLE:
        dropped = recognise(manifest(file)).dropped
        head = {f"image_encoder.{m}.{p}" for m in ("norm_head", "head") for p in ("weight", "bias")}
        assert set(dropped) == (head if file == "mobile_sam_vit_t" else set())


def test_no_tensor_of_any_model_is_taken_for_unused():
    for config in MODELS.values():
        state = expected_state(config)
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        assert recognise(shapes, {"model": config.name}).dropped == ()


@pytest.mark.parametrize("file", ["hrsam_vit_b", "hrsam_plusplus_vit_b", "focsam_vit_h"])
def test_the_authors_names_come_back(file):
    for key in manifest(file):
        assert mmengine_name(our_name(key)) == key
        assert our_name(our_name(key)) == our_name(key)


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("hrsam_vit_b", "hrsam-b"),
        ("hrsam_plusplus_vit_b", "hrsam++-b"),
        ("mobile_sam_vit_t", "mobile-sam"),
        ("sam_vit_b", "sam-b"),
    ],
)
def test_a_full_size_checkpoint_loads_and_every_value_lands(file, model, tmp_path):
    shapes = manifest(file)
    path = tmp_path / "iter_160000.pth"
    torch.save({"state_dict": synthetic(shapes), "meta": {"iter": 3}}, path)
    loaded = load_model(path, device="cpu")
    path.unlink()
    assert loaded.name == model
    state = loaded.state_dict()
    for index, key in enumerate(shapes):
        if "head." in key and key not in state and our_name(key) not in state:
            assert key.startswith(("image_encoder.head.", "image_encoder.norm_head."))
            continue
        value = state.pop(our_name(key))
        if key.endswith("num_batches_tracked"):
            assert int(value) == index
            continue
        flat = value.view(-1)
        assert flat[0] == 0
        assert torch.equal(flat[1:], torch.full_like(flat[1:], mark(index)))
    assert not state


@pytest.mark.parametrize(
    ("model", "parameters"), [("hrsam-b", 96_369_152), ("hrsam++-b", 106_934_016)]
)
def test_encoders_have_the_parameters_of_the_paper(model, parameters):
    with torch.device("meta"):
        encoder = Segmenter(MODELS[model]).image_encoder
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_the_encoder_without_state_space_lands_but_is_no_segmenter(tmp_path):
    shapes = manifest("flash_swin_no_ssm_vit_b")
    found = recognise(shapes)
    assert (found.name, found.parts) == ("flash-swin", {"image_encoder"})
    with torch.device("meta"):
        encoder = HRSAMEncoder(
            HRSAMConfig(state_dim=0, anchor_sizes=(256,), shift_small=False)
        ).state_dict()
    assert {f"image_encoder.{k}": tuple(v.shape) for k, v in encoder.items()} == {
        ours: shapes[theirs] for theirs, ours in found.names.items()
    }
    path = tmp_path / "encoder.pth"
    torch.save(synthetic(shapes), path)
    with pytest.raises(CheckpointError, match="holds the encoder of 'flash-swin-b' alone"):
        load_model(path)
    state, name = read_state(path)
    assert name == "flash-swin-b"
    assert len(state) == len(shapes)


def test_with_a_decoder_the_encoder_without_state_space_is_a_segmenter():
    shapes = manifest("flash_swin_no_ssm_vit_b")
    shapes |= {k: s for k, s in manifest("hrsam_vit_b").items() if not k.startswith("backbone.")}
    found = recognise(shapes)
    assert found.config.image_encoder.state_dim == 0
    assert set(found.names.values()) == set(expected_state(found.config))


def test_focsam_without_its_encoder_is_recognised():
    shapes = {k: s for k, s in manifest("focsam_vit_h").items() if not k.startswith("backbone.")}
    found = recognise(shapes)
    assert (found.name, found.model) == ("focsam", "sam-h+focus")
    assert found.parts == {"prompt_encoder", "mask_decoder", "focus_refiner"}
    expected = part_of(expected_state(found.config), found.parts)
    assert set(found.names.values()) == set(expected)


def test_sam_under_the_names_of_focsams_code_has_its_norms_and_channels():
    shapes = {k: s for k, s in manifest("focsam_vit_h").items() if not k.startswith("refine_head")}
    found = recognise(shapes)
    assert (found.name, found.model) == ("mmengine-sam", "sam-h")
    assert found.config.image_encoder.norm_eps == 1e-5
    assert found.config.channel_order == "bgr"
    again = recognise(
        {found.names[k]: s for k, s in shapes.items()},
        {"model": "sam-h", "layout": "mmengine-sam", "channel_order": "bgr"},
    )
    assert again.config == found.config


@pytest.mark.parametrize(
    ("file", "model", "attention"),
    [
        ("sam_vit_b", "sam-b+ba", "image_encoder.blocks.0.attn.coefficient"),
        ("mobile_sam_vit_t", "mobile-sam+ba", "image_encoder.layers.1.blocks.0.attn.coefficient"),
    ],
)
def test_ba_sam_is_told_by_its_coefficients(file, model, attention):
    shapes = manifest(file)
    shapes.pop("image_encoder.pos_embed", None)  # its ViT has none
    for key in list(shapes):
        if key.startswith("image_encoder.") and key.endswith("attn.qkv.weight"):
            shapes[key.replace("qkv.weight", "coefficient")] = (1,)
    assert attention in shapes
    found = recognise(shapes)
    assert (found.name, found.model) == ("ba-sam", model)
    assert found.config.image_encoder.ba.coefficient
    assert found.config.image_encoder.ba.form == "released"
    assert found.config.tile_px == 1024
    state = renamed(found, {k: torch.zeros(s, device="meta") for k, s in shapes.items()})
    expected = expected_state(found.config)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
    if file == "sam_vit_b":
        assert not state["image_encoder.pos_embed"].any()
        again = recognise({k: tuple(v.shape) for k, v in state.items()}, {"model": model})
        assert again.config.image_encoder == found.config.image_encoder


def test_counters_that_older_files_lack_are_added():
    shapes = manifest("mobile_sam_vit_t")
    tensors = {
        k: torch.ones(s, device="meta")
        for k, s in shapes.items()
        if not k.endswith("num_batches_tracked")
    }
    found = recognise({k: tuple(v.shape) for k, v in tensors.items()})
    state = renamed(found, tensors)
    assert state.keys() == expected_state(MODELS["mobile-sam"]).keys()


def test_initial_weights_are_told_from_a_model(tmp_path):
    shapes = manifest("hrsam_vit_b")
    keep = ("pos_embed", "patch_embed", "norm1", "norm2", "qkv", "attn.proj", "mlp")
    mae = {
        k: s
        for k, s in shapes.items()
        if not k.startswith("backbone.") or (any(p in k for p in keep) and "mamba" not in k)
    }
    mae |= {"backbone.cls_token": (1, 1, 768), "backbone.norm.weight": (768,)}
    found = recognise(mae)
    assert (found.name, found.config) == ("mae-pretrain", None)
    assert found.dropped == ("backbone.cls_token", "backbone.norm.weight")
    assert set(found.names.values()) < set(expected_state(MODELS["hrsam-b"]))
    path = tmp_path / "mae_vit_base_sam_huge_dec.pth"
    torch.save({k: torch.zeros(1, dtype=torch.float16).expand(s) for k, s in mae.items()}, path)
    with pytest.raises(CheckpointError, match="initial weights for training.*train --init"):
        load_model(path)
    assert read_state(path)[1] == "mae-pretrain"


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module"])
def test_wrappers_and_prefixes_are_taken_off(wrap, tmp_path):
    state = tiny_state()
    saved = as_mmengine(state)
    wrapped = {
        "plain": saved,
        "state_dict": {
            "state_dict": saved,
            "epoch": 3,
            "model": "vit_b",
            "optimizer": {"state": {0: {"step": torch.ones(1)}}},
            "best_mae": 0.1,
            "path_helper": {"root": "x"},
        },
        "model": {"model": saved, "iter": 2},
        "module": {"state_dict": {f"module.{k}": v for k, v in saved.items()}},
    }[wrap]
    path = tmp_path / "any.pt"
    torch.save(wrapped, path)
    loaded = load_model(path, device="cpu")
    assert loaded.name == "hrsam-tiny"
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key])


def test_safetensors_without_our_metadata_are_recognised_too(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(as_mmengine(tiny_state()), path)
    assert load_model(path, device="cpu").name == "hrsam-tiny"


def test_an_unknown_file_names_the_nearest_model():
    shapes = manifest("sam_vit_l")
    trimmed = {k: s for k, s in shapes.items() if "attn." not in k}
    with pytest.raises(
        CheckpointError, match=r"no weight file known here; nearest is 'sam-l': \d+ of its 482"
    ):
        recognise(trimmed)
    with pytest.raises(CheckpointError, match=r"none of its 1 tensors .* \['a'\]"):
        recognise({"a": (2,)})
    assert "nearest is 'mobile-sam'" in describe_nearest(manifest("mobile_sam_vit_t"))


def test_tensors_under_two_names_are_refused():
    shapes = manifest("hrsam_vit_b")
    key = next(iter(shapes))
    with pytest.raises(CheckpointError, match="tensors twice"):
        recognise(shapes | {our_name(key): shapes[key]})


def test_a_missing_an_unknown_and_a_misshapen_tensor_are_named(tmp_path):
    path = tmp_path / "bad.pth"
    saved = as_mmengine(tiny_state())
    key = "decode_head.iou_token.weight"
    torch.save({k: v for k, v in saved.items() if k != key}, path)
    with pytest.raises(CheckpointError, match=r"'hrsam-tiny': 1 tensors are missing \['mask_dec"):
        load_model(path)
    torch.save(saved | {"decode_head.new": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 are unknown \['mask_decoder.new'\]"):
        load_model(path)
    torch.save(saved | {key: torch.zeros(3, 128)}, path)
    with pytest.raises(CheckpointError, match=r"iou_token.weight has shape \(3, 128\)"):
        load_model(path)
    torch.save(saved | {key: torch.full((1, 128), float("nan"))}, path)
    with pytest.raises(CheckpointError, match="iou_token.weight holds NaN"):
        load_model(path)
    torch.save(saved | {key: torch.zeros(1, 128, dtype=torch.int64)}, path)
    with pytest.raises(CheckpointError, match=r"iou_token.weight holds torch.int64"):
        load_model(path)


def test_the_authors_file_loads_into_a_model_of_ours_by_the_trainers_door(tmp_path):
    state = tiny_state()
    path = tmp_path / "any.pth"
    torch.save(as_mmengine(state), path)
    model = Segmenter(find_config("hrsam-tiny"))
    load_weights(model, path)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"model": "hrsam-xxl"}, "model must be one of"),
        ({"model": "hrsam-tiny", "tile_px": "many"}, "invalid literal"),
        ({"model": "hrsam-tiny", "channel_order": "hsv"}, "channel_order must be"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(metadata, problem, tmp_path):
    path = Path(tmp_path / "odd.safetensors")
    save_file(tiny_state(), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"metadata cannot be used .*{problem}"):
        load_model(path)


def test_a_safetensors_header_that_begins_like_a_pickle_is_no_pickle(tmp_path):
    """The header's length, 640 bytes here, is written as 80 02: how pickles of protocol 2 begin."""
    path = tmp_path / "x.safetensors"
    for pad in range(480, 680, 8):
        save_file({"a": torch.ones(2)}, path, metadata={"note": "x" * pad})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        raise AssertionError("no such header was made")
    file = open_weight_file(path)
    assert file.kind == "safetensors"
    assert file.tensors["a"].tolist() == [1, 1]
    assert len(read_metadata(path)["note"]) == pad
