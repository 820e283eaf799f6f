"""The manifest, the sample data, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from npe2 import PluginManager, PluginManifest

import napari_hrsam
from napari_hrsam.cache import CACHE_VARIABLE
from napari_hrsam.plugin.contrib import samples
from napari_hrsam.plugin.contrib.readers import generated_reader
from napari_hrsam.sample import make_sample
from napari_hrsam.storage.labels.places import ome_zarr_of

PACKAGED = Path(napari_hrsam.__file__).with_name("napari.yaml")
ROOT_LINK = Path(__file__).parents[3] / "napari.yaml"


def test_the_manifest_is_valid_and_its_commands_exist() -> None:
    manifest = PluginManifest.from_file(PACKAGED)
    manifest.validate_imports()
    assert manifest.name == "napari-hrsam"
    assert manifest.categories == ["Annotation", "Segmentation"]
    assert manifest.contributions.widgets is not None
    assert [widget.display_name for widget in manifest.contributions.widgets] == [
        "Segment by clicking",
        "Export labels",
        "Import objects",
        "Verify labels",
        "Encode ahead",
        "Segment everything",
        "Replay with another model",
        "Fine-tune on my objects",
    ]
    assert manifest.contributions.menus is not None
    assert set(manifest.contributions.menus) == {
        "napari/layers/segment",
        "napari/layers/annotate",
        "napari/layers/data",
    }


def test_the_root_link_is_the_packaged_manifest() -> None:
    assert ROOT_LINK.read_bytes() == PACKAGED.read_bytes()


@pytest.mark.parametrize("load", [samples.photograph, samples.micrograph])
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


@pytest.fixture
def small_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The generated slide in a small size and another cache; tells the cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(samples, "SLIDE_PX", 5000)
    return tmp_path


def test_the_generated_slide_is_made_once(small_slide: Path) -> None:
    [(levels, options, kind)] = samples.slide()
    assert kind == "image"
    assert options["rgb"]
    assert options["multiscale"]
    assert [level.shape for level in levels] == [
        (5000, 5000, 3),
        (2500, 2500, 3),
        (1250, 1250, 3),
        (625, 625, 3),
    ]
    [made] = (small_slide / "samples").iterdir()
    assert options["metadata"]["path"] == str(made)
    before = made.stat().st_mtime_ns
    samples.slide()
    assert list((small_slide / "samples").iterdir()) == [made]
    assert made.stat().st_mtime_ns == before


def test_napari_draws_the_generated_slide(small_slide: Path, viewer: ViewerModel) -> None:
    assert small_slide.is_dir()
    [(levels, options, _)] = samples.slide()
    layer = viewer.add_image(levels, **options)
    assert layer.multiscale
    assert layer.rgb
    assert str(layer.units[0]) == "micrometer"
    assert tuple(layer.scale) == (0.25, 0.25)
    # The thumbnail comes from the coarsest level, and is no plain colour.
    assert layer.thumbnail[..., :3].std() > 10
    layer.corner_pixels = np.array([[1000, 1000], [1300, 1400]])
    layer.data_level = 0
    layer.refresh()
    np.testing.assert_array_equal(
        np.asarray(layer._slice.image.raw)[:300, :400], levels[0][1000:1300, 1000:1400]
    )


def test_a_generated_image_is_opened_by_its_path(
    tmp_path: Path, viewer: ViewerModel, npe2pm: PluginManager
) -> None:
    npe2pm.register(PluginManifest.from_file(PACKAGED))
    path = tmp_path / "my slide.sample.zarr"
    sample = make_sample(path, 5000)
    [layer] = viewer.open(str(path), plugin="napari-hrsam")
    assert layer.name == "my slide"
    assert layer.multiscale
    assert layer.source.path == str(path)
    np.testing.assert_array_equal(
        layer.data[0][512:1024, :512], sample.scene.chunk(0, 1, 0).transpose(1, 2, 0)
    )
    # Objects go beside the image.
    assert ome_zarr_of(layer) == path


def test_other_images_are_left_to_other_readers(tmp_path: Path, npe2pm: PluginManager) -> None:
    manifest = PluginManifest.from_file(PACKAGED)
    npe2pm.register(manifest)
    # napari asks the user when two plugins claim a name, and *.zarr has readers enough.
    assert not list(npe2pm.iter_compatible_readers("slide.ome.zarr"))
    assert list(npe2pm.iter_compatible_readers("slide.sample.zarr"))
    (tmp_path / "other.zarr").mkdir()
    assert generated_reader(str(tmp_path / "other.zarr")) is None
    assert generated_reader([str(tmp_path)]) is None
    assert generated_reader(str(tmp_path / "none.zarr")) is None


def test_the_forms_are_imported_without_torch() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from napari_hrsam.plugin.forms import embed, everything, export, importing, verify\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
