"""What learns in each stage of a training, from what, and what a teacher's embeddings are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from napari_hrsam.errors import CheckpointError, ConfigError
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.models import COMPARISONS, find_config
from napari_hrsam.modeling.saving import save_weights
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.focus_rounds import FocusRounds
from napari_hrsam.training.losses import dice_loss, normalized_focal_loss
from napari_hrsam.training.settings import (
    ClickConfig,
    CropConfig,
    CropSize,
    DistillConfig,
    FocusTaskConfig,
    TrainConfig,
)
from napari_hrsam.training.train import Trainer, train

CROPS = CropConfig(sizes=(CropSize(crop_px=64, batch_size=2, objects_per_crop=2),))
CLICKS = ClickConfig(max_clicks=3)


@pytest.fixture
def config(pairs: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=(str(pairs),), out=str(tmp_path / "run"), crops=CROPS, clicks=CLICKS, steps=3, warmup=1
    )


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    path = tmp_path / "teacher.safetensors"
    save_weights(Segmenter(find_config("hrsam-tiny")), path, dtype=torch.float32)
    return path


def _changed(config: TrainConfig) -> set[str]:
    """First parts of the names of the parameters that a run changed."""
    trainer = Trainer(config)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    for _ in trainer.run():
        pass
    return {
        ".".join(name.split(".")[:2]) if name.startswith("image_encoder") else name.split(".")[0]
        for name, value in trainer.model.named_parameters()
        if not torch.equal(value, before[name])
    }


def test_clicks_teach_everything_but_a_refiner(config):
    changed = _changed(replace(config, model="hrsam-tiny+focus"))
    assert {"image_encoder.blocks", "image_encoder.stem", "mask_decoder"} <= changed
    assert "focus_refiner" not in changed


def test_the_stage_decoder_leaves_the_encoder_alone(config, teacher):
    started = replace(config, stage="decoder", init=(str(teacher),))
    assert _changed(started) == {"prompt_encoder", "mask_decoder"}


@pytest.fixture
def focus(config: TrainConfig, teacher: Path) -> TrainConfig:
    return replace(config, model="hrsam-tiny+focus", stage="focus", init=(str(teacher),))


def test_the_stage_focus_teaches_the_refiner_alone(focus):
    assert _changed(focus) == {"focus_refiner"}


def test_a_refiner_goes_on_from_its_own_file_beside_the_model_it_belongs_to(focus, teacher):
    first = train(focus)
    again = Trainer(replace(focus, init=(str(teacher), str(first))))
    trained = load_file(first)
    assert all(name.startswith("focus_refiner.") for name in trained)
    loaded = again.model.state_dict()
    for name, value in trained.items():
        torch.testing.assert_close(loaded[name], value.float())
    base = load_file(teacher)
    assert all(torch.equal(loaded[name], value) for name, value in base.items())


def test_a_trained_refiner_is_known_to_belong_to_its_base_weights(focus, teacher, caplog):
    # A weight of -0 becomes +0 in the averaged model; that is the same model.
    state = load_file(teacher)
    next(iter(state.values())).view(-1)[0] = -0.0
    save_file(state, teacher, metadata={"model": "hrsam-tiny"})
    # The average only leaves the copied values as they are after some steps.
    refiner = train(replace(focus, steps=12))
    load_model(teacher, device="cpu", focus=refiner)
    assert "other weights" not in caplog.text


@pytest.mark.parametrize("stage", ["decoder", "focus"])
def test_parts_of_a_model_are_not_taught_on_random_weights(focus, stage):
    with pytest.raises(ConfigError, match="got no weights to start from"):
        replace(focus, stage=stage, init=())


def test_only_parts_that_learn_are_in_training_mode(focus):
    trainer = Trainer(focus)
    next(iter(trainer.run()))
    assert trainer.model.focus_refiner.training
    assert not trainer.model.image_encoder.training
    assert not trainer.model.mask_decoder.training


def test_the_stage_focus_needs_a_refiner():
    with pytest.raises(ConfigError, match=r"needs a model with a focus refiner.*hrsam-tiny\+focus"):
        TrainConfig(stage="focus")


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigError, match="stage must be one of clicks, decoder, focus, distill"):
        TrainConfig(stage="everything")


def _rounds(click_decay: float = 1.0, **focus: float) -> FocusRounds:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 8:40] = masks[1, 20:60, 30:50] = True
    return FocusRounds(
        masks,
        np.random.default_rng(0),
        ClickConfig(max_clicks=6, click_decay=click_decay),
        FocusTaskConfig(**{"refine_decay": 0.0, **focus}),
    )


class _Watched(Segmenter):
    """The real segmenter, noting calls in their order."""

    def refine(self, features, **prompts):
        before = getattr(self, "calls", [])
        refined = super().refine(features, **prompts)
        # The prediction that the refinement starts from is its own affair.
        self.calls = [*before, ("refine", prompts)]
        return refined

    def decode_all(self, features, **prompts):
        self.calls = [*getattr(self, "calls", []), ("decode", prompts)]
        return super().decode_all(features, **prompts)


def _watched_run(rounds: FocusRounds) -> _Watched:
    torch.manual_seed(0)
    model = _Watched(find_config("hrsam-tiny+focus"))
    with torch.no_grad():
        features = model.encode(torch.rand(2, 3, 64, 64) * 255)
    found = rounds.run(model, features)
    found.loss.backward()
    assert len(found.ious) == rounds.num_rounds
    return model


def test_refinement_comes_once_at_the_second_click_as_in_a_session():
    model = _watched_run(_rounds())
    names = [name for name, _ in model.calls]
    assert names == ["decode", "refine"] + ["decode"] * 5
    refined, second = model.calls[1][1], model.calls[2][1]
    assert refined["point_labels"].shape[1] == 2
    assert torch.equal(refined["point_coords_xy"], second["point_coords_xy"])
    # Both decodings of that click are given the same earlier logits.
    assert refined["mask_logits"] is second["mask_logits"]
    assert all(1.0 <= ratio <= 1.4 for ratio in refined["box_expansion"])


def test_refinement_can_be_put_off_but_not_beyond_the_last_click():
    rounds = _rounds(refine_decay=1.0)
    assert (rounds.refine_at, rounds.num_rounds) == (5, 6)
    assert [name for name, _ in _watched_run(rounds).calls] == ["decode"] * 5 + ["refine", "decode"]


def test_there_are_two_rounds_at_least():
    rounds = _rounds(click_decay=0.0)
    assert (rounds.refine_at, rounds.num_rounds) == (1, 2)


def test_the_point_loss_is_taken_at_the_clicks():
    rounds = _rounds()
    rounds.coords = torch.tensor([[(19.0, 9.0)], [(40.5, 30.5)]])
    rounds.signs = torch.tensor([[1], [0]])
    logits = torch.full((2, 1, 32, 32), -20.0)
    plain = normalized_focal_loss(logits, rounds.labels).mean()
    # Crop pixels 18 and 19 are label pixel 9.
    assert rounds._focus_loss(logits) - plain == pytest.approx(0.5, abs=1e-5)
    logits[0, 0, 4, 9] = 20.0
    plain = normalized_focal_loss(logits, rounds.labels).mean()
    assert rounds._focus_loss(logits) - plain == pytest.approx(0.0, abs=1e-5)


def test_the_dice_loss_is_added_on_request():
    logits = torch.linspace(-3, 3, 2 * 32 * 32).view(2, 1, 32, 32)
    plain, with_dice = _rounds(point_weight=0.0), _rounds(point_weight=0.0, dice_weight=2.0)
    expected = plain._focus_loss(logits) + 2 * dice_loss(logits, plain.labels).mean()
    torch.testing.assert_close(with_dice._focus_loss(logits), expected)


@pytest.fixture
def distilled(config: TrainConfig, teacher: Path) -> TrainConfig:
    return replace(
        config, stage="distill", distill=DistillConfig(teacher=str(teacher), num_batches=2)
    )


def test_a_student_comes_near_its_teacher(distilled):
    student = replace(distilled, steps=60, learning_rate=2e-3, warmup=5, model="sam-tiny")
    losses = [report.loss for report in Trainer(student).run()]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_distillation_teaches_the_encoder_and_takes_the_decoder_of_the_teacher(distilled, teacher):
    assert _changed(distilled) <= {
        f"image_encoder.{part}" for part in ("blocks", "mamba_blocks", "lateral_convs", "out_conv")
    }
    trained = load_model(train(replace(distilled, out=distilled.out + "2")), device="cpu")
    loaded = load_model(teacher, device="cpu")
    image = torch.rand(1, 3, 64, 64) * 255
    ours, theirs = trained.encode(image), loaded.encode(image)
    # The frozen stem and the decoder's share of it are the teacher's, up to half precision.
    torch.testing.assert_close(ours.stride4, theirs.stride4, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(ours.embedding, theirs.embedding, rtol=1e-2, atol=1e-2)


def test_the_embeddings_of_a_teacher_are_computed_once(distilled):
    train(distilled)
    folder = Path(distilled.out) / "teacher"
    files = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert sorted(files) == ["000000.npy", "000001.npy"]
    Trainer(distilled)
    assert files == {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    (folder / "000001.npy").unlink()
    Trainer(distilled)
    again = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert again["000000.npy"] == files["000000.npy"]
    assert "000001.npy" in again


def test_embeddings_of_other_crops_are_not_used(distilled):
    Trainer(distilled)
    other = replace(distilled, crops=replace(CROPS, polarity=0.9))
    with pytest.raises(CheckpointError, match="another teacher or of other crops; delete it"):
        Trainer(other)


def test_a_broken_embedding_is_named(distilled):
    trainer = Trainer(distilled)
    for path in (Path(distilled.out) / "teacher").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"00000\d\.npy cannot be read"):
        next(iter(trainer.run()))


def test_a_teacher_may_see_the_crops_larger(distilled):
    larger = replace(distilled, distill=replace(distilled.distill, teacher_px=128))
    trainer = Trainer(larger)
    crops, target = trainer.stage.cache.read(0)
    teacher = load_model(larger.distill.teacher, device="cpu")
    image = torch.from_numpy(crops).permute(0, 3, 1, 2).float()
    seen = torch.nn.functional.interpolate(image, (128, 128), mode="bilinear")
    expected = torch.nn.functional.avg_pool2d(teacher.encode(seen).embedding, 2)
    torch.testing.assert_close(target, expected, rtol=2e-3, atol=2e-3)


def test_a_teacher_with_other_channels_goes_through_a_linear_map(distilled, monkeypatch):
    tiny = find_config("hrsam-tiny")
    narrow = replace(
        tiny,
        name="narrow",
        image_encoder=replace(tiny.image_encoder, out_channels=64),
        decoder=replace(tiny.decoder, embed_dim=64),
    )
    monkeypatch.setitem(COMPARISONS, "narrow", narrow)
    trainer = Trainer(replace(distilled, model="narrow", steps=2))
    before = trainer.stage.helper.weight.clone()
    assert before.shape == (128, 64, 1, 1)
    reports = list(trainer.run())
    assert not torch.equal(trainer.stage.helper.weight, before)
    trainer.save(Path(trainer.config.out) / "state.pt")
    again = Trainer(trainer.config)
    again.load(Path(trainer.config.out) / "state.pt")
    assert torch.equal(again.stage.helper.weight, trainer.stage.helper.weight)
    assert reports[0].iou_first is None


def test_a_distillation_resumes_where_it_stopped(distilled, tmp_path):
    whole = replace(distilled, out=str(tmp_path / "whole"), steps=4)
    reports = list(Trainer(whole).run())
    first = Trainer(replace(distilled, steps=4))
    for report in first.run():
        if report.step == 2:
            break
    first.save(tmp_path / "state.pt")
    second = Trainer(replace(distilled, steps=4))
    second.load(tmp_path / "state.pt")
    assert [r.loss for r in second.run()] == [r.loss for r in reports[2:]]


def test_a_teacher_and_the_stage_belong_together():
    with pytest.raises(ConfigError, match="belong together"):
        TrainConfig(stage="distill")
    with pytest.raises(ConfigError, match="belong together"):
        TrainConfig(distill=DistillConfig(teacher="sam-b"))
