"""Models of the user's own: names, and which files count; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from napari_hrsam.cache import models_folder
from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.own_models import find_own, own_model_path, own_models
from napari_hrsam.modeling.registry import list_models


def put(name: str, **metadata: str) -> Path:
    models_folder().mkdir(parents=True, exist_ok=True)
    path = models_folder() / name
    save_file({"x": np.zeros(1, np.float32)}, path, metadata=metadata)
    return path


def test_models_of_the_folder_are_listed_last() -> None:
    named = [model.name for model in list_models()]
    assert own_models() == [], "the folder need not be there"
    path = put("my-cells.safetensors", model="hrsam-tiny", trained_on="30 objects", tile_px="256")
    put("again.safetensors", model="hrsam++-tiny", base_model="my-cells")
    # What is none is left out: another suffix, another network, a known name, damage.
    put("notes.txt", model="hrsam-tiny")
    put("foreign.safetensors", model="resnet")
    put("sam-b.safetensors", model="hrsam-tiny")
    (models_folder() / "damaged.safetensors").write_bytes(b"nothing")
    (models_folder() / ".x.safetensors.partial").write_bytes(b"")
    assert [model.name for model in list_models()] == [*named, "again", "my-cells"]
    mine = list_models()[-1]
    assert (mine.source, mine.weights, mine.tile_px) == ("yours", str(path), 256)
    assert mine.description == "hrsam-tiny, fine-tuned by you"
    assert mine.trained_on == "30 objects"
    assert mine.num_parameters == list_models()[0].num_parameters
    assert list_models()[-2].description.startswith("my-cells, ")
    assert find_own("my-cells") == own_models()[1]
    assert find_own("your-cells") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "a name of at most 64 letters"),
        ("a b", "a name of at most 64 letters"),
        ("../cells", "a name of at most 64 letters"),
        ("-cells", "a name of at most 64 letters"),
        ("cells+focus", "a name of at most 64 letters"),
        ("nul", "a name of at most 64 letters"),
        ("x" * 65, "a name of at most 64 letters"),
        ("cells.safetensors", "looks like a file"),
        ("HRSAM-tiny", "that of a known model"),
        ("sam-b", "that of a known model"),
        ("sam-tiny", "that of a known model"),
    ],
)
def test_names_that_cannot_be_given(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        own_model_path(name)


def test_a_name_is_given_once_unless_asked() -> None:
    assert own_model_path("My_cells.2") == models_folder() / "My_cells.2.safetensors"
    put("my-cells.safetensors", model="hrsam-tiny")
    for name in ("my-cells", "My-Cells"):
        with pytest.raises(ConfigError, match="a model .* already"):
            own_model_path(name)
    assert own_model_path("my-cells", overwrite=True).name == "my-cells.safetensors"
