"""Which models are listed, in which order, and what choosing one asks for; without Qt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from napari_hrsam.modeling.checkpoints import list_models
from napari_hrsam.modeling.download import load_registry
from napari_hrsam.modeling.models import MODELS
from napari_hrsam.plugin.loading import ModelRequest, model_label
from napari_hrsam.plugin.model_chooser import (
    CHOOSE_FILE,
    KnownModel,
    ModelChooser,
    Picked,
    find_known_models,
)
from napari_hrsam.plugin.progress import Cancelled, Progress

TINY = KnownModel(name="hrsam-tiny", description="small", licence="BSD", is_here=True)
MOBILE = KnownModel(
    name="mobile-sam",
    description="a < b",
    licence="Apache-2.0",
    trained_on="SA-1B",
    download_bytes=40_728_226,
    site="example.org",
)
HUGE = KnownModel(
    name="sam-h", description="", licence="", download_bytes=2_564_550_879, site="example.org"
)
THEIRS = KnownModel(name="hrsam-b", description="of the paper", licence="")


@pytest.fixture
def chooser() -> ModelChooser:
    return ModelChooser([THEIRS, MOBILE, TINY, HUGE])


def texts(chooser: ModelChooser) -> list[str]:
    return ["--" if row is None else row.text for row in chooser.rows()]


def test_what_can_be_used_now_comes_first_and_nothing_dead_is_listed(
    chooser: ModelChooser,
) -> None:
    assert texts(chooser) == [
        "hrsam-tiny",
        "--",
        "mobile-sam (download 41 MB)",
        "sam-h (download 2.6 GB)",
        "--",
        "Choose a file...",
    ]


def test_tooltips_tell_description_licence_and_training(chooser: ModelChooser) -> None:
    rows = [row for row in chooser.rows() if row is not None]
    [mobile] = [row for row in rows if row.key == "mobile-sam"]
    for fact in ("a &lt; b", "Apache-2.0", "SA-1B", "example.org"):
        assert fact in mobile.tooltip
    assert rows[-1].key == CHOOSE_FILE
    assert "hrsam-b" in rows[-1].tooltip
    assert "mobile-sam" not in rows[-1].tooltip


def test_a_download_is_asked_for_and_the_question_names_size_site_and_licence(
    chooser: ModelChooser,
) -> None:
    assert chooser.pick("hrsam-tiny") is Picked.USE
    assert chooser.pick("/somewhere/mine.pth") is Picked.USE
    assert chooser.pick(CHOOSE_FILE) is Picked.FILE
    assert chooser.pick("mobile-sam") is Picked.ASK
    question = chooser.question("mobile-sam").replace("\N{NO-BREAK SPACE}", " ")
    for fact in ("mobile-sam", "41 MB", "example.org", "Apache-2.0"):
        assert fact in question


def test_a_model_is_chosen_when_it_is_in_use_and_a_failed_one_is_not(
    chooser: ModelChooser,
) -> None:
    chooser.begin("/a/mine.pth")
    assert chooser.shown == "/a/mine.pth"
    assert "mine.pth" in texts(chooser)
    chooser.settle("hrsam-tiny")
    assert chooser.shown == chooser.chosen == "hrsam-tiny"
    assert "mine.pth" not in texts(chooser)
    chooser.chosen = "sam-h"  # for the next session; not loaded yet
    chooser.begin("/a/mine.pth")
    chooser.settle("hrsam-tiny")
    assert chooser.chosen == "sam-h"
    chooser.begin("/a/mine.pth")
    chooser.settle("/a/mine.pth")
    assert chooser.chosen == "/a/mine.pth"
    chooser.begin("hrsam-tiny")
    chooser.settle("hrsam-tiny")
    assert texts(chooser)[:3] == ["hrsam-tiny", "mine.pth", "--"], "it stays in the list"


def test_files_of_one_name_are_told_apart(chooser: ModelChooser) -> None:
    for path in ("/a/mine.pth", "/b/mine.pth", "/b/mine.pth"):
        chooser.begin(path)
        chooser.settle(path)
    assert texts(chooser)[1:3] == ["mine.pth (a)", "mine.pth (b)"]


def test_a_fetched_model_moves_up(chooser: ModelChooser) -> None:
    fetched = KnownModel(name="mobile-sam", description="", licence="", is_here=True)
    chooser.refresh([TINY, fetched])
    assert texts(chooser) == ["hrsam-tiny", "mobile-sam", "--", "Choose a file..."]
    assert chooser.pick("mobile-sam") is Picked.USE


def weights_file(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path, metadata={"trained_on": f"data of {path.stem}"})


@pytest.mark.parametrize(
    "files",
    [
        [],
        ["hrsam++-tiny.safetensors", "hrsam-tiny-focus.safetensors"],
        ["hrsam-b.safetensors", "sam-h.safetensors"],
        ["sam-h+focus.safetensors", "hrsam-tiny+focus.safetensors"],
    ],
)
def test_the_disk_is_read_as_list_models_does(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAPARI_HRSAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NAPARI_HRSAM_WEIGHTS", str(tmp_path))
    for name in files:
        weights_file(tmp_path / name)
    known = find_known_models()
    assert [model.name for model in known] == list(MODELS)
    for model, info in zip(known, list_models(), strict=True):
        assert model.is_here == bool(info.weights), model.name
        facts = model.description, model.licence, model.trained_on, model.download_bytes
        assert facts == (info.description, info.licence, info.trained_on, info.download_bytes)


def test_downloads_know_their_site_and_a_fetched_file_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAPARI_HRSAM_CACHE", str(tmp_path))
    known = {model.name: model for model in find_known_models()}
    assert not known["mobile-sam"].is_here
    assert known["mobile-sam"].site.endswith("githubusercontent.com")
    (tmp_path / load_registry()["mobile-sam"].file).write_bytes(b"")
    known = {model.name: model for model in find_known_models()}
    assert known["mobile-sam"].is_here
    assert known["mobile-sam+ba"].is_here, "its weights are the same"
    assert not known["sam-b"].is_here


def test_a_damaged_file_does_not_disturb_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAPARI_HRSAM_WEIGHTS", str(tmp_path))
    (tmp_path / "hrsam-tiny.safetensors").write_bytes(b"damaged")
    [tiny] = [model for model in find_known_models() if model.name == "hrsam-tiny"]
    assert tiny.is_here
    assert tiny.trained_on == ""


def test_models_are_found_without_torch() -> None:
    code = (
        "import sys\nfrom napari_hrsam.plugin.model_chooser import find_known_models\n"
        "assert find_known_models()\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ------------------------------------------------------------------ a loading under way


def test_progress_is_thinned_out_but_the_end_is_told() -> None:
    told: list[tuple[int, int]] = []
    loading = Progress(lambda *numbers: told.append(numbers))
    for done in range(1001):
        loading(done, 1000)
    assert told[0] == (0, 1000)
    assert told[-1] == (1000, 1000)
    assert len(told) < 100


def test_a_cancelled_loading_ends_at_its_next_block_and_is_not_finished() -> None:
    loading = Progress()
    assert loading.cancel()
    with pytest.raises(Cancelled):
        loading(1, 2)
    assert not loading.finish()


def test_a_finished_loading_cannot_be_cancelled() -> None:
    loading = Progress()
    assert loading.finish()
    assert not loading.cancel()
    assert not loading.is_cancelled


def test_a_file_that_was_written_anew_is_another_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"1")
    request = ModelRequest(model=str(path))
    before = request.key
    assert request.key == before
    os.utime(path, (1, 1))
    assert request.key != before


def test_long_names_are_cut_in_the_middle() -> None:
    assert model_label("/a/b/mine.pth") == "mine.pth"
    assert model_label("hrsam++-tiny") == "hrsam++-tiny"
    label = model_label("/a/" + 30 * "x" + "_iter_160000.pth")
    assert label.endswith("160000.pth")
    assert len(label) < 40
