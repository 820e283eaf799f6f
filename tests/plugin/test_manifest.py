"""The manifest, the sample data, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from npe2 import PluginManifest

import napari_hrsam
from napari_hrsam.plugin import sample_data

PACKAGED = Path(napari_hrsam.__file__).with_name("napari.yaml")
ROOT_LINK = Path(__file__).parents[2] / "napari.yaml"


def test_the_manifest_is_valid_and_its_commands_exist() -> None:
    manifest = PluginManifest.from_file(PACKAGED)
    manifest.validate_imports()
    assert manifest.name == "napari-hrsam"
    assert manifest.categories == ["Annotation", "Segmentation"]
    assert manifest.contributions.widgets is not None
    assert [widget.display_name for widget in manifest.contributions.widgets] == [
        "Segment by clicking"
    ]
    assert manifest.contributions.menus is not None
    assert set(manifest.contributions.menus) == {"napari/layers/segment", "napari/layers/annotate"}


def test_the_root_link_is_the_packaged_manifest() -> None:
    assert ROOT_LINK.read_bytes() == PACKAGED.read_bytes()


@pytest.mark.parametrize("load", [sample_data.photograph, sample_data.micrograph])
def test_samples_are_real_images_without_download(
    load: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://localhost:9")
    monkeypatch.setenv("https_proxy", "http://localhost:9")
    assert callable(load)
    [(pixels, options, kind)] = load()
    assert kind == "image"
    assert options["rgb"] == (pixels.ndim == 3)
    assert pixels.dtype == np.uint8
    assert min(pixels.shape[:2]) >= 300
    assert pixels.std() > 20


def test_the_panel_is_imported_without_torch() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "import napari_hrsam.plugin.controller, napari_hrsam.plugin.segment_widget\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
