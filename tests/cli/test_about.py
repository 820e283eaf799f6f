"""`models` and `info`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import napari_hrsam
from napari_hrsam.cli import main
from napari_hrsam.cli.about import _attention, _scan
from napari_hrsam.modeling.download import Progress
from napari_hrsam.modeling.registry import RegistryEntry


def test_models_are_listed_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    listed, folders = capsys.readouterr().out.split("\n\n")
    head, rule, *rows = listed.splitlines()
    assert head.split()[0] == "model"
    assert set(rule) == {"-", " "}
    assert [row.split()[0] for row in rows] == [model.name for model in napari_hrsam.list_models()]
    assert max(map(len, listed.splitlines())) <= 105
    (row,) = [row for row in rows if row.startswith("sam-b ")]
    assert "93.7" in row
    assert "Apache-2.0" in row
    assert "to fetch, 375 MB" in row
    assert "SA-1B" in row
    assert "NAPARI_HRSAM_CACHE" in folders
    assert "NAPARI_HRSAM_EMBEDDINGS" in folders


def test_models_as_json_name_size_licence_and_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    tiny = models["hrsam-tiny"]
    assert tiny["num_parameters"] > 1_000_000
    assert tiny["licence"]
    assert models["hrsam-b"]["num_parameters"] > tiny["num_parameters"]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what would have been fetched."""
    names: list[str] = []

    def fetch(entry: RegistryEntry, *, progress: Progress) -> Path:
        names.append(entry.name)
        for done in range(101):
            progress(entry.num_bytes * done // 100, entry.num_bytes)
        return Path("there") / entry.file

    monkeypatch.setattr("napari_hrsam.modeling.download.fetch", fetch)
    return names


@pytest.mark.parametrize(
    ("asked", "name"),
    [("mobile-sam", "mobile-sam"), ("sam-b+ba", "sam-b"), ("mobile-sam+focus", "mobile-sam")],
)
def test_download_fetches_what_the_model_needs(
    asked: str, name: str, fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--download", asked]) == 0
    assert fetched == [name]
    out, err = capsys.readouterr()
    assert out.startswith("model ")
    assert len(re.findall(r"\d+ of \d+ MB", err)) == 11
    assert "SHA-256 as registered" in err


def test_download_of_a_shipped_model_has_nothing_to_do(
    fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--download", "hrsam-tiny"]) == 0
    assert not fetched
    assert "come with napari-hrsam" in capsys.readouterr().err


def test_download_of_the_authors_weights_says_how_to_get_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "--download", "hrsam-b"]) == 1
    assert "cannot be fetched by a program" in capsys.readouterr().err


def test_download_of_an_unknown_model_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--download", "sam-xxl"]) == 1
    assert "model must be one of" in capsys.readouterr().err


def test_info_tells_versions_and_choices(tmp_path: Path) -> None:
    target = tmp_path / "new" / "info.json"
    assert main(["info", "--json", str(target)]) == 0
    facts = json.loads(target.read_text())
    assert facts["versions"]["napari-hrsam"] == napari_hrsam.__version__
    assert facts["versions"]["torch"]
    assert facts["torch"]["build"] == torch.__version__
    assert facts["torch"]["threads"] >= 1
    assert set(facts["folders"]) >= {"shipped", "NAPARI_HRSAM_WEIGHTS"}
    assert set(facts["used"]) == {"device", "precision", "attention", "scan"}
    usable = {b["name"] for b in facts["backends"] if b["usable"]}
    assert {facts["used"]["attention"]["name"], facts["used"]["scan"]["name"]} <= usable
    assert all(backend["why"] for backend in facts["backends"])
    assert all(used["name"] and used["why"] for used in facts["used"].values())


def test_info_says_why_the_cpu_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "no NVIDIA GPU that torch can use" in shown
    assert "xformers runs on CUDA only" in shown


def test_missing_package_is_called_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "napari_hrsam.cli.about._PACKAGES", ("no-such-package", "torch", "xformers")
    )
    assert main(["info"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("no-such-package")]
    assert line.endswith("not installed")


@pytest.mark.parametrize(
    ("device", "ready", "version", "name", "reason"),
    [
        ("cpu", False, "1.0", "sdpa", "runs on CUDA only"),
        ("cuda", False, None, "sdpa", "is not installed"),
        ("cuda", False, "1.0", "sdpa", "1.0 does not work here"),
        ("cuda", True, "1.0", "xformers", "agrees"),
    ],
)
def test_choice_of_the_attention_is_explained(
    device: str,
    ready: bool,
    version: str | None,
    name: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_hrsam.modeling.attention.xformers_ready", lambda: ready)
    used = _attention(device, version)
    assert used["name"] == name
    assert reason in used["why"]


@pytest.mark.parametrize(
    ("device", "numba", "mamba", "triton", "name", "reason"),
    [
        ("cpu", True, True, True, "numba", "installed"),
        ("cpu", False, True, True, "torch", "numba is not usable"),
        ("cuda", True, True, True, "mamba", "agrees"),
        ("cuda", True, False, True, "triton", "agrees"),
        ("cuda", True, False, False, "torch", "triton is not installed"),
        ("mps", True, False, False, "torch", "runs on CUDA only"),
    ],
)
def test_choice_of_the_scan_is_explained(
    device: str,
    numba: bool,
    mamba: bool,
    triton: bool,
    name: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_hrsam.modeling.selective_scan.numba_ready", lambda: numba)
    monkeypatch.setattr("napari_hrsam.modeling.scan_mamba.mamba_ready", lambda: mamba)
    monkeypatch.setattr("napari_hrsam.modeling.selective_scan.triton_ready", lambda: triton)
    used = _scan(device, {"numba": "0.1", "mamba-ssm": None, "triton": None})
    assert used["name"] == name
    assert reason in used["why"]
