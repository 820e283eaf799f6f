"""Which models are listed, in which order, and what choosing one asks for; without Qt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from napari_hrsam.modeling.registry import ModelInfo
from napari_hrsam.plugin.panel.model_chooser import (
    CHOOSE_FILE,
    ModelChooser,
    Picked,
)
from napari_hrsam.plugin.session.loading import ModelRequest, model_label

TINY = ModelInfo(name="hrsam-tiny", description="small", licence="BSD", weights="here")
MOBILE = ModelInfo(
    name="mobile-sam",
    description="a < b",
    licence="Apache-2.0",
    trained_on="SA-1B",
    download_bytes=40_728_226,
    site="example.org",
)
HUGE = ModelInfo(
    name="sam-h", description="", licence="", download_bytes=2_564_550_879, site="example.org"
)
THEIRS = ModelInfo(name="hrsam-b", description="of the paper", licence="")


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
    fetched = ModelInfo(name="mobile-sam", description="", licence="", weights="here")
    chooser.refresh([TINY, fetched])
    assert texts(chooser) == ["hrsam-tiny", "mobile-sam", "--", "Choose a file..."]
    assert chooser.pick("mobile-sam") is Picked.USE


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
