"""*Fine-tune on my objects*: fields, the process of its own, and its end."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_files import blobs, write_labels
from napari.layers import Image, Labels

from napari_hrsam.errors import ConfigError, LabelsError
from napari_hrsam.modeling.own_models import own_model_path
from napari_hrsam.plugin.forms import fine_tune as module
from napari_hrsam.plugin.forms.fine_tune import FineTuneForm, fine_tune_layer, prepare_fine_tune
from napari_hrsam.plugin.session.progress import Cancelled, Progress

TIMEOUT_MS = 120_000
SCORES = {"noc85": 4.0, "iou1": 0.5}
FIGURES = {
    "name": "mine",
    "path": "mine.safetensors",
    "base": "hrsam-tiny",
    "num_objects": 6,
    "num_regions": 3,
    "num_held_out": 2,
    "before": SCORES,
    "after": {"noc85": 3.0, "iou1": 0.6},
    "num_steps": 9,
    "seconds": 1.0,
}
NOTE = "import json, os, sys, time\nargs = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
FINE = (
    NOTE
    + f"""
assert os.path.isdir(args['--samples'] + '/learn/images')
print('training: 250/1000, 3 s left', file=sys.stderr, flush=True)
open(args['--json'], 'w').write({json.dumps(FIGURES)!r})
"""
)
FAILS = "import sys\nprint('napari-hrsam: expected something else', file=sys.stderr)\nsys.exit(1)"
CRASHES = "raise ValueError('what is this')"
ENDLESS = (
    NOTE
    + """
open(os.environ['PID_FILE'], 'w').write(str(os.getpid()))
print('training: 500/1000', file=sys.stderr, flush=True)
time.sleep(600)
"""
)


@pytest.fixture
def layers() -> dict[str, Any]:
    """An image, and objects on it in memory."""
    array = blobs((60, 80), 6)
    return {"image": Image((array > 0) * 200), "labels": Labels(array)}


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the command line by a script."""

    def use(script: str) -> None:
        monkeypatch.setattr(module, "_COMMAND", [sys.executable, "-c", script])

    return use


def test_samples_are_written_and_the_process_tells_its_progress(
    layers: dict[str, Any], process: Any, tmp_path: Path
) -> None:
    process(FINE)
    told: list[tuple[int, int]] = []
    job = prepare_fine_tune(**layers, save_as="mine")
    done = job(lambda *both: told.append(both))
    assert (done.name, done.after.noc85, done.path) == ("mine", 3.0, Path("mine.safetensors"))
    assert (2000 + 6500 // 4, 10_000) in told
    assert told == sorted(told)
    write_labels(tmp_path / "a.zarr", blobs((60, 80), 6), num_levels=2)
    stored = {"image": layers["image"], "folder": tmp_path / "a.zarr"}
    assert fine_tune_layer(**stored, save_as="mine").num_objects == 6


@pytest.mark.parametrize(
    ("script", "message"), [(FAILS, "^expected something else$"), (CRASHES, "what is this")]
)
def test_what_the_process_says_is_told(
    layers: dict[str, Any], process: Any, script: str, message: str
) -> None:
    process(script)
    with pytest.raises(ConfigError, match=message):
        fine_tune_layer(**layers, save_as="mine")


def test_a_cancelled_process_is_ended(
    layers: dict[str, Any], process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process(ENDLESS)
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    half = threading.Event()
    progress = Progress(lambda done, _: half.set() if done > 5000 else None)
    ended: list[BaseException] = []
    job = prepare_fine_tune(**layers, save_as="mine")

    def work() -> None:
        try:
            job(progress)
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert half.wait(TIMEOUT_MS / 1000)
    progress.cancel()
    thread.join(TIMEOUT_MS / 1000)
    assert len(ended) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_is_wrong_is_told_before_a_process_begins(layers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="that of a known model"):
        prepare_fine_tune(**layers, save_as="sam-b")
    with pytest.raises(LabelsError, match="at least 4 objects"):
        fine_tune_layer(layers["image"], Labels(np.zeros((60, 80), int)), save_as="mine")
    with pytest.raises(LabelsError, match="labels of the image's shape"):
        fine_tune_layer(layers["image"], Labels(blobs((60, 90), 6)), save_as="mine")


def test_the_form_teaches_and_the_panel_offers_the_model(
    make_napari_viewer: Any, qtbot: Any, process: Any
) -> None:
    from safetensors.numpy import save_file

    from napari_hrsam.plugin.panel.model import ModelBox

    process(FINE)
    viewer = make_napari_viewer()
    viewer.add_image((blobs((60, 80), 6) > 0) * 200)
    viewer.add_labels(blobs((60, 80), 6))
    models = ModelBox()
    qtbot.addWidget(models)
    form = FineTuneForm(viewer)
    viewer.window.add_dock_widget(form)
    assert "hrsam-tiny" in form.fields["model"].choices
    assert not {"sam-b", "hrsam-tiny+focus"} & set(form.fields["model"].choices)
    form.fields["save_as"].value = "mine"
    path = own_model_path("mine")
    path.parent.mkdir(parents=True)
    form.run_button.click()
    qtbot.waitUntil(lambda: not form.is_busy, timeout=TIMEOUT_MS)
    assert "mine learned 6 objects in 9 steps." in form.message
    assert "3.0 clicks to an IoU of 0.85, before 4.0" in form.message
    save_file({"x": np.zeros(1)}, path, metadata={"model": "hrsam-tiny"})
    assert models.findData("mine") == -1
    models.showPopup()
    models.hidePopup()
    assert models.findData("mine") >= 0
    form.fields.reset_choices()
    assert "mine" in form.fields["model"].choices
