"""A model of the user's own: one that is there, taught by the objects of label images."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError

from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.own_models import own_model_path
from napari_hrsam.modeling.saving import save_weights
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.evaluate import evaluate, model_under_test
from napari_hrsam.training.fine_tuned import (
    AFTER,
    BEFORE,
    REGIONS,
    TRAINING,
    ClickScore,
    FineTuned,
)
from napari_hrsam.training.label_regions import Labels, RegionSamples, read_regions, write_regions
from napari_hrsam.training.settings import FineTuneConfig, fine_tune_run
from napari_hrsam.training.train import StepReport, train

PartProgress: TypeAlias = Callable[[str, int, int], None]

_THOUSAND = 1000


def fine_tune(
    labels: Labels | Sequence[Labels],
    image: Any,
    model: str = "hrsam-tiny",
    *,
    save_as: str,
    config: FineTuneConfig | None = None,
    device: str = "auto",
    overwrite: bool = False,
    out: str | PathLike[str] | None = None,
    progress: PartProgress | None = None,
) -> FineTuned:
    """Teach a model the objects of label images, and keep it as a model of your own.

    About one in four objects, spread over the image, is held out; the model is scored on these
    before and after. Images need not be labelled completely: only masks of objects are taught.

    Parameters
    ----------
    labels : LabelImage, ArrayLabels, or a sequence of them
        From ``open_labels(path, name, mode="r")``; at least 4 objects.
    image : PyramidImage, or anything that `open_image` takes
        What the objects were drawn on; a sequence with one for each of several label images.
    model : str
        Name or weight file of one of our own small models, or of one made from it by this.
    save_as : str
        Name of the new model: `list_models` lists it, `load_model` and the panel take it.
    config : FineTuneConfig, optional
        By default 5 minutes of training of prompt encoder and decoder.
    device : str
        As in `load_model`.
    overwrite : bool
        Whether a model of your own of this name is replaced.
    out : path, optional
        Folder in which samples, log and checkpoint are kept; by default they are removed.
    progress : callable (part, done, total), optional
        Called again and again in each of the parts "regions", "before", "training" and "after".
        What it raises ends the work; then no model is saved.

    Returns
    -------
    FineTuned

    Raises
    ------
    LabelsError
        If there are too few objects, or the labels are of another shape than the image.
    ConfigError
        If the name is unusable or taken, or the model cannot be fine-tuned.
    DataError
        If there is no room for samples or weights.
    ImageError, WeightsNotFoundError, CheckpointError
        If image or model are unusable.

    Examples
    --------
    >>> labels = hrsam.open_labels("slide.zarr", "cells", mode="r")  # doctest: +SKIP
    >>> hrsam.fine_tune(labels, "slide.zarr", save_as="my-cells")  # doctest: +SKIP
    FineTuned(my-cells: NoC@85 6.31 -> 5.02 on 11 held-out objects)
    """
    config = config or FineTuneConfig()
    own_model_path(save_as, overwrite=overwrite)
    loaded = _load(model, device)
    with tempfile.TemporaryDirectory() if out is None else nullcontext(str(out)) as folder:
        report = _Report(progress)
        samples = write_regions(
            labels, image, Path(folder), seed=config.seed, progress=report.of(REGIONS)
        )
        return _tuned(samples, loaded, save_as, config, overwrite, report)


def fine_tune_on(
    folder: Path,
    model: str = "hrsam-tiny",
    *,
    save_as: str,
    config: FineTuneConfig | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: PartProgress | None = None,
) -> FineTuned:
    """Do as `fine_tune`, from samples that `write_regions` wrote.

    Parameters
    ----------
    folder : Path
        Holds them; log and checkpoint come to lie beside them.
    model, save_as, config, device, overwrite, progress
        As in `fine_tune`.
    """
    config = config or FineTuneConfig()
    own_model_path(save_as, overwrite=overwrite)
    samples = read_regions(folder)
    loaded = _load(model, device)
    return _tuned(samples, loaded, save_as, config, overwrite, _Report(progress))


class _Report:
    """Hands progress on with the name of its part."""

    def __init__(self, progress: PartProgress | None) -> None:
        self._progress = progress

    def of(self, part: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(part, done, total)

        return report


def _load(model: str, device: str) -> Segmenter:
    loaded = load_model(model, device=device)
    if loaded.config.focus is not None:
        raise ConfigError(
            f"expected a model without a focus refiner, got {model!r}: its refiner was taught "
            "together with its decoder; fine-tune the model before the '+focus'"
        )
    if loaded.config.decoder.skip_channels is None:
        raise ConfigError(
            f"expected one of our own small models, such as 'hrsam-tiny', got {model!r}, whose "
            "decoder is its authors' and is not fine-tuned here"
        )
    return loaded


def _tuned(
    samples: RegionSamples,
    loaded: Segmenter,
    save_as: str,
    config: FineTuneConfig,
    overwrite: bool,
    report: _Report,
) -> FineTuned:
    run, network = samples.folder / "run", loaded.config.name
    _require_room(run, loaded)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    start = run / "start.safetensors"
    save_weights(loaded, start, dtype=torch.float32)
    before = _score(loaded, samples, config, report.of(BEFORE))
    steps: list[StepReport] = []

    def trained(step: StepReport) -> None:
        steps[:] = [step]
        by_time = step.seconds / (60 * config.minutes) if config.minutes else 0.0
        by_steps = step.step / config.steps if config.steps else 0.0
        share = min(1.0, max(by_time, by_steps))
        report.of(TRAINING)(round(_THOUSAND * share), _THOUSAND)

    report.of(TRAINING)(0, _THOUSAND)
    settings = fine_tune_run(
        config,
        model=network,
        start=str(start),
        data=str(samples.learn),
        out=str(run / "training"),
        device=str(loaded.device),
    )
    weights = train(settings, progress=trained)
    tuned = load_model(
        weights,
        device=str(loaded.device),
        tile_px=loaded.config.tile_px,
        channel_order=loaded.config.channel_order,
    )
    after = _score(tuned, samples, config, report.of(AFTER))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    done = FineTuned(
        name=save_as,
        path=own_model_path(save_as, overwrite=overwrite),
        base=loaded.name,
        num_objects=samples.num_objects,
        num_regions=samples.num_regions,
        num_held_out=min(config.num_scored, samples.num_held_out),
        before=before,
        after=after,
        num_steps=steps[-1].step,
        seconds=steps[-1].seconds,
    )
    _save(tuned, done, made)
    return done


def _score(
    model: Segmenter,
    samples: RegionSamples,
    config: FineTuneConfig,
    progress: Callable[[int, int], None],
) -> ClickScore:
    progress(0, min(config.num_scored, samples.num_held_out))
    scores = evaluate(
        model_under_test(model),
        samples.held_out(),
        num_clicks=config.num_clicks,
        max_objects=config.num_scored,
        progress=progress,
    )["overall"]
    return ClickScore(noc85=float(scores["noc85"]), iou1=float(scores["iou1"]))


def _require_room(folder: Path, model: Segmenter) -> None:
    # Start, averaged weights, and a checkpoint with two moments of each.
    needed = 6 * 4 * sum(value.numel() for value in model.state_dict().values())
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise DataError(
            f"expected about {needed / 1e6:.0f} MB of room for the training in {folder}, got "
            f"{free / 1e6:.0f} MB; free some space, or name a folder on another disk (out=, --out)"
        )


def _save(model: Segmenter, done: FineTuned, made: str) -> None:
    told = {
        "base_model": done.base,
        "fine_tuned": json.dumps(
            {
                "objects": done.num_objects,
                "held_out": done.num_held_out,
                "before": asdict(done.before),
                "after": asdict(done.after),
                "steps": done.num_steps,
                "made": made,
            }
        ),
    }
    line = (
        f"{done.num_objects} objects of yours on top of {done.base}, {made[:10]}; NoC@85 "
        f"{done.before.noc85:.2f} -> {done.after.noc85:.2f} on {done.num_held_out} held out"
    )
    try:
        done.path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(model, done.path, trained_on=line, about=told)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"expected to write the model to {done.path}, got: {error}; free some space, or "
            "name another folder with NAPARI_HRSAM_MODELS"
        ) from error
