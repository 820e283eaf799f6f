"""Where weights lie and what is known of named models; nothing here needs torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from napari_hrsam.cache import CACHE_VARIABLE, cache_folder
from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.models import MODELS, find_config, split_name
from napari_hrsam.modeling.registry import (
    WEIGHTS_VARIABLE,
    ModelInfo,
    list_models,
    load_registry,
    locate,
    weight_folders,
)

SHIPPED = Path(__file__).parents[2] / "weights"


def located(config):
    return locate(config).model


def models_by_name() -> dict[str, ModelInfo]:
    return {info.name: info for info in list_models()}


@pytest.mark.parametrize(
    ("name", "base", "options"),
    [
        ("hrsam++-tiny", "hrsam++-tiny", ()),
        ("hrsam-tiny+focus", "hrsam-tiny", ("focus",)),
        ("sam-b+ba+focus", "sam-b", ("ba", "focus")),
        ("mine+other", "mine+other", ()),
        ("+ba", "+ba", ()),
    ],
)
def test_a_name_is_a_base_and_options(name, base, options):
    assert split_name(name) == (base, options)


@pytest.mark.parametrize("name", ["sam-b+ba+ba", "hrsam-tiny+focus+focus", "+ba", "sam-b+", "mine"])
def test_names_of_no_model(name):
    with pytest.raises(ConfigError, match="model must be one of hrsam-tiny"):
        find_config(name)


def test_options_are_put_on_a_base():
    config = find_config("sam-b+ba+focus")
    assert config.name == "sam-b+ba+focus"
    assert config.focus is not None
    assert config.image_encoder.ba is not None
    assert find_config("sam-h+focus") is MODELS["sam-h+focus"]


def test_a_refiner_of_its_own_and_a_whole_focus_model(tmp_path, monkeypatch):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    base, refiner, whole = (
        tmp_path / f"{stem}.safetensors"
        for stem in ("hrsam-tiny", "hrsam-tiny-focus", "hrsam-tiny+focus")
    )
    base.touch()
    found = locate(MODELS["hrsam-tiny+focus"])
    assert (found.model, found.refiner) == (base, SHIPPED / refiner.name)
    assert not found.lacks_refiner
    refiner.touch()
    assert locate(MODELS["hrsam-tiny+focus"]).refiner == refiner
    whole.touch()
    found = locate(MODELS["hrsam-tiny+focus"])
    assert (found.model, found.refiner, found.lacks_refiner) == (whole, None, False)
    (tmp_path / "sam-h.safetensors").touch()
    assert locate(MODELS["sam-h+focus"]).lacks_refiner
    assert models_by_name()["sam-h+focus"].weights == ""
    assert models_by_name()["sam-h"].weights


def test_the_registry_is_read_once(monkeypatch):
    load_registry()
    monkeypatch.setattr(json, "loads", lambda _text: pytest.fail("read again"))
    assert list_models()


def test_the_environment_variable_names_a_folder_searched_first(tmp_path, monkeypatch):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    named = tmp_path / "hrsam-tiny.safetensors"
    save_file({"x": np.zeros(1)}, named, metadata={"trained_on": "nothing"})
    assert located(MODELS["hrsam-tiny"]) == named
    tiny = models_by_name()["hrsam-tiny"]
    assert (tiny.weights, tiny.trained_on) == (str(named), "nothing")


def test_known_sizes():
    # Encoder 96,369,152; prompt encoder 6,220; decoder 4,058,340 (model facts, section 1).
    assert models_by_name()["hrsam-b"].num_parameters == 96_369_152 + 6_220 + 4_058_340


def test_converted_weights_in_a_searched_folder_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    for name in ("hrsam-b", "sam-b"):
        (tmp_path / f"{name}.safetensors").touch()
    assert located(MODELS["hrsam-b"]) == tmp_path / "hrsam-b.safetensors"
    assert located(MODELS["sam-b+ba"]) == tmp_path / "sam-b.safetensors"
    (tmp_path / "mobile_sam.pt").touch()
    assert located(MODELS["mobile-sam+ba"]) == tmp_path / "mobile_sam.pt"
    assert located(MODELS["sam-h"]) is None


def test_where_weights_come_from_is_listed(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "mobile_sam.pt").write_bytes(b"PK\x03\x04")
    infos = models_by_name()
    assert infos["hrsam-tiny"].source == "shipped"
    assert infos["hrsam-b"].source == infos["sam-h+focus"].source == "authors"
    assert infos["sam-b"].source == infos["sam-b+ba"].source == "download"
    assert infos["mobile-sam"].source == "downloaded"
    assert infos["sam-b"].download_bytes == 375_042_383
    assert infos["hrsam-tiny"].download_bytes == infos["hrsam-b"].download_bytes == 0
    assert (infos["hrsam-b"].channel_order, infos["sam-b"].channel_order) == ("bgr", "rgb")
    assert infos["sam-b+ba"].tile_px == 2048
    assert all(info.licence for info in infos.values())
    assert all(info.trained_on for info in infos.values() if info.source != "shipped")


def test_the_registry_is_whole():
    registry = load_registry()
    for name, item in registry.items():
        assert name == item.name
        assert name in MODELS
        assert MODELS[name].channel_order == item.channel_order
        assert item.licence
        if item.get or item.url:
            assert item.trained_on
        if item.url:
            assert item.url.startswith("https://")
            assert item.url.endswith("/" + item.file)
            assert re.fullmatch("[0-9a-f]{64}", item.sha256)
            assert item.num_bytes > 10_000_000
    assert {split_name(name)[0] for name in MODELS} <= registry.keys()
    text = json.dumps([item.get for item in registry.values()])
    assert "mega.nz" in text


def test_folders_are_searched_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folders = weight_folders()
    assert folders[0] == tmp_path / "mine"
    assert folders[-1] == cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_folder().name == "napari-hrsam"


def test_downloads_know_their_site_and_a_fetched_file_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAPARI_HRSAM_CACHE", str(tmp_path))
    known = models_by_name()
    assert not known["mobile-sam"].weights
    assert known["mobile-sam"].site.endswith("githubusercontent.com")
    (tmp_path / load_registry()["mobile-sam"].file).write_bytes(b"")
    known = models_by_name()
    assert known["mobile-sam"].weights
    assert known["mobile-sam+ba"].weights, "its weights are the same"
    assert not known["sam-b"].weights


def test_a_damaged_file_does_not_disturb_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAPARI_HRSAM_WEIGHTS", str(tmp_path))
    (tmp_path / "hrsam-tiny.safetensors").write_bytes(b"damaged")
    [tiny] = [model for model in list_models() if model.name == "hrsam-tiny"]
    assert tiny.weights
    assert tiny.trained_on == ""


def test_models_are_found_without_torch() -> None:
    code = (
        "import sys\nfrom napari_hrsam.modeling.registry import list_models\n"
        "assert list_models()\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ------------------------------------------------------------------ a loading under way
