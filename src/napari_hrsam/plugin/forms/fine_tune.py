"""The form *Fine-tune on my objects*: the training runs in a process of its own."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import napari.layers
import numpy as np

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.models import MODELS
from napari_hrsam.modeling.own_models import own_model_path
from napari_hrsam.modeling.registry import ModelInfo, list_models
from napari_hrsam.plugin.forms.form import Form
from napari_hrsam.plugin.forms.jobs import Job, Progress, at_once
from napari_hrsam.plugin.forms.labels_of import labels_on_disk
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, DEFAULT_MODEL
from napari_hrsam.storage.label_image import open_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.training.fine_tuned import PARTS, FineTuned, from_figures
from napari_hrsam.training.label_regions import write_regions
from napari_hrsam.training.settings import FineTuneConfig

if TYPE_CHECKING:
    import napari.viewer

PERCENT_OF_PARTS = dict(zip(PARTS, (5, 15, 65, 15), strict=True))
"""How the bar is divided: about their time."""

LOOK_EVERY_S = 0.2
"""So soon a cancelled process is ended."""

_COMMAND = [sys.executable, "-m", "napari_hrsam.cli", "fine-tune"]
_PROGRESS = re.compile(r"(\w+): (\d+)/(\d+)")
_ERROR = "napari-hrsam: "


def prepare_fine_tune(
    image: napari.layers.Image | None = None,
    labels: napari.layers.Labels | None = None,
    folder: Path | None = None,
    name: str = "",
    model: str = DEFAULT_MODEL,
    save_as: str = "my-model",
    minutes: float = 5.0,
    whole: bool = False,
    overwrite: bool = False,
    device: Literal["auto", "cpu", "cuda"] = AUTO_DEVICE,  # type: ignore[assignment]
    *,
    among: Sequence[napari.layers.Layer] = (),
) -> Job[FineTuned]:
    """Teach a model the objects of labels, and keep it as a model of your own.

    Parameters
    ----------
    image : Image layer
        What the objects were drawn on, as it is shown now.
    labels : Labels layer, optional
        One that shows a label image on disk, or a 2-D one in memory; or:
    folder, name
        An OME-Zarr image or a folder of labels, and the name of the label image in it.
    model : str
        What to begin with: one of our own small models, or one of yours.
    save_as : str
        Name of the new model, e.g. my-cells.
    minutes : float
        Time for the training; scoring before and after comes on top.
    whole : bool
        Let the image encoder learn too: several times slower, for images unlike all others.
    overwrite : bool
        Replace a model of yours of this name.
    device : {"auto", "cpu", "cuda"}
        Where the network is trained.
    among : sequence of layers
        The viewer's: those seen together with the image belong to it, as in the panel.

    Returns
    -------
    FineTuned

    Raises
    ------
    LabelsError
        If there are too few objects, or the labels are of another shape than the image.
    ConfigError
        If the name is unusable or taken, or the model cannot be fine-tuned.
    DataError, ImageError
        If there is no room, or the image cannot be used.
    """
    own_model_path(save_as, overwrite=overwrite)
    config = FineTuneConfig(minutes=minutes, whole=whole)
    shown = read_image_layers(image, among=among).image
    place = labels_on_disk(labels, folder, name)
    in_memory = None
    if place is None:
        assert labels is not None
        in_memory = ArrayLabels(np.array(labels.data[0] if labels.multiscale else labels.data))
    options = ["--model", model, "--save-as", save_as, "--device", device]
    options += ["--minutes", str(config.minutes), *(["--whole"] if whole else [])]
    options += ["--overwrite"] if overwrite else []

    def run(progress: Progress) -> FineTuned:
        opened: Any = in_memory
        if place is not None:
            opened = open_labels(place.path, place.name, mode="r")
        with tempfile.TemporaryDirectory() as samples:
            bar = _Bar(progress)
            write_regions(
                opened,
                shown.open(),
                Path(samples),
                seed=config.seed,
                progress=lambda done, total: bar.show(PARTS[0], done, total),
            )
            return fine_tune_apart(Path(samples), options, bar)

    return run


fine_tune_layer = at_once(prepare_fine_tune)


class _Bar:
    """One bar for all parts."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def show(self, part: str, done: int, total: int) -> None:
        """Take what is done of a part."""
        before = sum(percent for one, percent in PERCENT_OF_PARTS.items() if _is_before(one, part))
        self._done = round(100 * (before + PERCENT_OF_PARTS[part] * done / max(total, 1)))
        self.keep()

    def keep(self) -> None:
        """Show the same again; raises if the job was given up."""
        self._progress(self._done, 100 * 100)


def _is_before(one: str, other: str) -> bool:
    return PARTS.index(one) < PARTS.index(other)


def fine_tune_apart(samples: Path, options: Sequence[str], bar: _Bar) -> FineTuned:
    """Run ``napari-hrsam fine-tune`` on samples, in a process that ends when this is given up.

    Python's lock is held for long by a training; here it is another Python's.

    Raises
    ------
    ConfigError
        With what the process said, if it failed.
    """
    result = samples / "result.json"
    process = subprocess.Popen(  # noqa: S603  no shell, and the texts are options of ours
        [*_COMMAND, "--samples", str(samples), *options, "--json", str(result)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_environment(),
        # Windows would open a console.
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    try:
        said = _follow(process, bar)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise ConfigError(_what_failed(said))
    return from_figures(json.loads(result.read_text(encoding="utf-8")))


def _environment() -> dict[str, str]:
    """Leave one core to the viewer, unless the user says how many there are to use."""
    cores = max(1, (os.cpu_count() or 2) - 1)
    return {"OMP_NUM_THREADS": str(cores), **os.environ, "PYTHONIOENCODING": "utf-8"}


def _follow(process: subprocess.Popen[str], bar: _Bar) -> list[str]:
    """Show the progress that a process tells until it ends; return what else it said."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    assert process.stderr is not None
    reader = threading.Thread(target=_read, args=(process.stderr, lines), daemon=True)
    reader.start()
    said: list[str] = []
    while True:
        try:
            line = lines.get(timeout=LOOK_EVERY_S)
        except queue.Empty:
            bar.keep()
            continue
        if line is None:
            process.wait()
            return said
        told = _PROGRESS.match(line)
        if told and told[1] in PERCENT_OF_PARTS:
            bar.show(told[1], int(told[2]), int(told[3]))
        else:
            said.append(line.rstrip())


def _read(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _what_failed(said: Sequence[str]) -> str:
    errors = [line.removeprefix(_ERROR) for line in said if line.startswith(_ERROR)]
    if errors:
        return errors[-1]
    last = " ".join(said[-3:]) or "nothing"
    return f"expected the training to end with a model, but its process failed; it said: {last}"


def can_be_tuned(model: ModelInfo) -> bool:
    """Whether `fine_tune` takes a model of the list."""
    if model.source == "yours":
        return True
    config = MODELS[model.name]
    is_ours = config.decoder.skip_channels is not None and config.focus is None
    return is_ours and bool(model.weights)


class FineTuneForm(Form):
    """The dock: what to learn from, for how long, and how the model is called."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(
            napari_viewer,
            prepare_fine_tune,
            action="Fine-tune",
            options={
                "image": {"label": "Image"},
                "labels": {"label": "Labels"},
                "folder": {"label": "or folder", "mode": "d"},
                "name": {"label": "its labels", "hint": "the only ones"},
                "model": {
                    "label": "Begin with",
                    "choices": lambda _: [m.name for m in list_models() if can_be_tuned(m)],
                    "widget_type": "ComboBox",
                },
                "save_as": {"label": "New name"},
                "minutes": {"label": "Minutes", "min": 0.1, "max": 10_000.0},
                "whole": {"label": "Encoder too"},
                "overwrite": {"label": "Replace"},
                "device": {"label": "Device"},
            },
        )
        self.fields.changed.connect(self.show_labels_fields)
        self.show_labels_fields()

    def describe(self, result: FineTuned) -> str:
        """Say what it is worth, and where it is."""
        before, after = result.before, result.after
        self.fields.reset_choices()
        scores = (
            f"On {result.num_held_out} others that it did not see: {after.noc85:.1f} clicks to an "
            f"IoU of 0.85, before {before.noc85:.1f}; IoU after one click {after.iou1:.3f}, before "
            f"{before.iou1:.3f}."
        )
        lines = [
            f"{result.name} learned {result.num_objects} objects in {result.num_steps} steps.",
            scores,
            f"Choose {result.name} in the list of models of the panel.",
        ]
        if after.noc85 > before.noc85:
            lines.insert(2, "It needs more clicks than before: more objects may help.")
        return "\n\n".join(lines)

    def describe_cancel(self, done: int, total: int) -> str:  # noqa: ARG002
        """Say that nothing is left."""
        return "Cancelled; no model was saved."
