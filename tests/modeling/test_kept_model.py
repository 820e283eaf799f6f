"""The model that `segment` names is loaded once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_hrsam import segment
from napari_hrsam.errors import WeightsNotFoundError
from napari_hrsam.modeling import kept_model as kept_module
from napari_hrsam.modeling.kept_model import kept_model


@pytest.fixture(autouse=True)
def _none_kept() -> Any:
    kept_module._loaded.cache_clear()
    yield
    kept_module._loaded.cache_clear()


@pytest.fixture
def weights(untrained_weights: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(untrained_weights, tmp_path / "own.safetensors"))


def test_segment_loads_a_named_model_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = kept_module.load_model
    monkeypatch.setattr(kept_module, "load_model", lambda name: loads.append(name) or load(name))
    image = np.zeros((40, 50), np.uint8)
    image[10:30, 10:30] = 200
    for _ in range(3):
        segment(image, [(20, 20)], model=str(weights))
    assert loads == [str(weights)]


def test_a_file_written_anew_is_loaded_anew(weights: Path) -> None:
    first = kept_model(str(weights))
    assert kept_model(str(weights)) is first
    os.utime(weights, ns=(1, 1))
    assert kept_model(str(weights)) is not first


def test_one_model_is_kept(weights: Path) -> None:
    other = Path(shutil.copy(weights, weights.with_name("other.safetensors")))
    first = kept_model(str(weights))
    assert kept_model(str(other)) is not first
    assert kept_model(str(weights)) is not first
    weights.unlink()
    with pytest.raises(WeightsNotFoundError):
        kept_model(str(weights))


def test_names_stand_for_their_files() -> None:
    """A model with a refiner is made from two."""
    plain, focused = kept_module._files("hrsam-tiny"), kept_module._files("hrsam-tiny+focus")
    assert len(plain) == 1
    assert len(focused) == 2
    assert plain[0] == focused[0]
