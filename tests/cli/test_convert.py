"""`convert`: the authors' files become safetensors with a card."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_files import as_mmengine, manifest, synthetic, tiny_state
from safetensors import safe_open
from safetensors.torch import load_file

from napari_hrsam.cli import main
from napari_hrsam.modeling import conversion
from napari_hrsam.modeling.checkpoints import load_model, read_state
from napari_hrsam.modeling.models import MODELS
from napari_hrsam.modeling.registry import load_registry
from napari_hrsam.modeling.saving import save_refiner
from napari_hrsam.modeling.segmenter import Segmenter


@pytest.fixture
def authors_file(tmp_path: Path) -> Path:
    """hrsam-tiny as HRSAM's training code would save it."""
    path = tmp_path / "iter_160000.pth"
    torch.save({"state_dict": as_mmengine(tiny_state()), "meta": {"epoch": 1}}, path)
    return path


@pytest.fixture
def mobile_file(tmp_path: Path) -> Path:
    path = tmp_path / "mobile_sam.pt"
    torch.save(synthetic(manifest("mobile_sam_vit_t")), path)
    return path


def test_a_converted_file_is_the_same_model_and_has_a_card(
    authors_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "mine.safetensors"
    assert main(["convert", str(authors_file), "--out", str(out), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["model"], done["layout"], done["dtype"]) == ("hrsam-tiny", "hrsam", "float32")
    state = tiny_state()
    assert done["num_tensors"] == len(state)
    assert (
        done["num_values"] == sum(done["parts"].values()) == sum(v.numel() for v in state.values())
    )
    assert done["output_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    original, converted = (load_model(path, device="cpu") for path in (authors_file, out))
    assert original.fingerprint == converted.fingerprint
    assert all(torch.equal(v, state[k]) for k, v in converted.state_dict().items())
    card = out.with_suffix(".md").read_text()
    sha256 = hashlib.sha256(authors_file.read_bytes()).hexdigest()
    for fact in ("iter_160000.pth", sha256, "| hrsam |", "rgb", "no published hash", "licence"):
        assert fact in card
    assert str(tmp_path) not in card


def test_channel_order_is_kept_in_the_converted_file(authors_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    assert main(["convert", str(authors_file), "--out", str(out), "--channel-order", "bgr"]) == 0
    assert load_model(out, device="cpu").config.channel_order == "bgr"
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(out), "--out", str(again)]) == 0
    assert load_model(again, device="cpu").config.channel_order == "bgr"
    with safe_open(again, framework="pt") as stored:
        assert stored.metadata()["layout"] == "hrsam"


def test_mobile_sam_in_half_precision_without_its_classifier(
    mobile_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with the registered hash brings licence and training data into the card."""
    sha256 = hashlib.sha256(mobile_file.read_bytes()).hexdigest()
    entry = replace(load_registry()["mobile-sam"], sha256=sha256)
    monkeypatch.setattr(conversion, "load_registry", lambda: {"mobile-sam": entry})
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(mobile_file), "--dtype", "float16", "--json", "done.json"]) == 0
    done = json.loads(Path("done.json").read_text())
    assert (done["output"], done["known_as"]) == ("mobile-sam.safetensors", "mobile-sam")
    assert len(done["dropped"]) == 4
    stored = load_file("mobile-sam.safetensors")
    assert stored["image_encoder.neck.0.weight"].dtype == torch.float16
    assert stored["image_encoder.patch_embed.seq.0.bn.running_var"].dtype == torch.float16
    assert stored["image_encoder.patch_embed.seq.0.bn.num_batches_tracked"].dtype == torch.int64
    card = Path("mobile-sam.md").read_text()
    for fact in ("Apache-2.0", "SA-1B", "the published file of `mobile-sam`", "head.weight"):
        assert fact in card
    assert load_model("mobile-sam.safetensors", device="cpu").name == "mobile-sam"


def test_what_is_there_is_kept_unless_forced(
    authors_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    out.write_text("precious")
    arguments = ["convert", str(authors_file), "--out", str(out)]
    assert main(arguments) == 1
    assert out.read_text() == "precious"
    assert "exists already; choose another name, or overwrite it with --force" in (
        capsys.readouterr().err
    )
    assert main([*arguments, "--force"]) == 0
    out.unlink()
    assert main(arguments) == 1  # the card is there
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--model", "sam-b"], "recognised as 'hrsam-tiny' (hrsam), not 'sam-b'"),
        (["--model", "sam-x"], "model must be one of"),
        (["--out", "x.pth"], "expected an output that ends in .safetensors"),
    ],
)
def test_wrong_wishes_are_told(
    options: list[str], problem: str, authors_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(authors_file), *options]) == 1
    assert problem in capsys.readouterr().err


def test_bad_files_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tiny_state()
    path, out = tmp_path / "x.pth", tmp_path / "x.safetensors"
    key = "mask_decoder.iou_token.weight"
    for bad, problem in (
        ({k: v for k, v in state.items() if k != key}, "1 tensors are missing"),
        (state | {key: state[key] * float("nan")}, "holds NaN"),
        (state | {key: torch.full_like(state[key], 1e6)}, "as float16: tensor mask_decoder.iou"),
    ):
        torch.save(bad, path)
        assert main(["convert", str(path), "--out", str(out), "--dtype", "float16"]) == 1
        assert problem in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_a_file_that_does_not_read_back_is_told(
    authors_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def faulty(tensors: dict[str, torch.Tensor], *rest: object) -> None:
        changed = {**tensors, "mask_decoder.iou_token.weight": torch.zeros(1, 128)}
        save(changed, *rest)

    save = conversion.save_tensors
    monkeypatch.setattr(conversion, "save_tensors", faulty)
    out = tmp_path / "x.safetensors"
    assert main(["convert", str(authors_file), "--out", str(out)]) == 1
    assert "does not read back as it was written (1 tensors differ" in capsys.readouterr().err


def test_an_encoder_alone_is_converted_as_such(tmp_path: Path) -> None:
    path, out = tmp_path / "e.pth", tmp_path / "e.safetensors"
    torch.save(synthetic(manifest("flash_swin_no_ssm_vit_b")), path)
    assert main(["convert", str(path), "--out", str(out), "--dtype", "float16"]) == 0
    state, name = read_state(out)
    assert (name, len(state)) == ("flash-swin-b", 183)


def test_a_refiner_alone_keeps_what_it_was_trained_on(tmp_path: Path) -> None:
    path, out = tmp_path / "r.safetensors", tmp_path / "again.safetensors"
    save_refiner(Segmenter(MODELS["hrsam-tiny+focus"]), path, trained_on="clicks")
    assert main(["convert", str(path), "--out", str(out)]) == 0
    with safe_open(path, framework="pt") as a, safe_open(out, framework="pt") as b:
        for key in ("base", "part", "trained_on", "model"):
            assert a.metadata()[key] == b.metadata()[key]


def test_initial_weights_are_no_model_to_convert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mae.pth"
    torch.save({"backbone.blocks.0.attn.qkv.weight": torch.zeros(3, 1)}, path)
    assert main(["convert", str(path)]) == 1
    assert "initial weights for training HRSAM" in capsys.readouterr().err
