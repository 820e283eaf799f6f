"""Generated images: chunks that are not on disk are painted when they are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from napari_hrsam.errors import ImageError, ImageReadError
from napari_hrsam.geometry import Tile
from napari_hrsam.sample import Sample, generated, make_sample
from napari_hrsam.sample.generated import GeneratedStore, read_recipe
from napari_hrsam.sample.scene.recipe import FILE_NAME
from napari_hrsam.sample.scene.scene import Scene
from napari_hrsam.storage.images.opening import open_image

SIZE_PX = 5000


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Not to be changed."""
    return make_sample(tmp_path_factory.mktemp("generated") / "slide.ome.zarr", SIZE_PX)


def _files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_pixels_that_are_not_on_disk_are_painted_and_not_written(sample: Sample) -> None:
    before = _files(sample.path)
    image = open_image(sample.path)
    assert image.shape_yx == (SIZE_PX, SIZE_PX)
    tile = image.read(Tile(0, 1024, 1536, 512))
    np.testing.assert_array_equal(tile, sample.scene.chunk(0, 2, 3).transpose(1, 2, 0))
    assert _files(sample.path) == before
    assert not (sample.path / "0" / "c").exists()


def test_a_tile_over_chunk_borders_is_the_same_however_it_is_read(sample: Sample) -> None:
    image = open_image(sample.path)
    whole = image.read(Tile(0, 512, 512, 1024))
    part = image.read(Tile(0, 712, 800, 512))
    np.testing.assert_array_equal(part, whole[200:712, 288:800])


def test_coarse_tiles_are_the_mean_of_fine_ones(sample: Sample) -> None:
    image = open_image(sample.path)
    fine = image.read(Tile(0, 2048, 1024, 1024)).astype(float)
    coarse = image.read(Tile(2, 512, 256, 256)).astype(float)
    mean = fine.reshape(256, 4, 256, 4, 3).mean(axis=(1, 3))
    assert np.abs(coarse - mean).mean() < 2


def test_a_chunk_on_disk_is_read_as_it_is(tmp_path: Path) -> None:
    path = make_sample(tmp_path / "slide.ome.zarr", 3000).path
    array = zarr.open_array(path / "0", mode="r+")
    array[:, :512, 512:1024] = 7
    image = open_image(path)
    assert (image.read(Tile(0, 0, 512, 512)) == 7).all()
    assert image.read(Tile(0, 0, 1024, 512)).std() > 5


def test_a_single_level_is_painted_too(sample: Sample) -> None:
    image = open_image(
        sample.path / "1", channel_axis=0, channels=[0, 1, 2], contrast_limits=(0, 255)
    )
    np.testing.assert_array_equal(
        image.read(Tile(0, 512, 0, 512)), sample.scene.chunk(1, 1, 0).transpose(1, 2, 0)
    )


def test_another_zarr_image_is_read_from_disk(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "0", shape=(600, 600), chunks=(100, 100), dtype="uint8")
    assert read_recipe(tmp_path) is None
    image = open_image(tmp_path / "0", contrast_limits=(0, 255))
    assert not image.read(Tile(0, 0, 0, 512)).any()


def test_keys_that_are_no_chunk_of_the_image_are_not_painted(sample: Sample) -> None:
    store = GeneratedStore(LocalStore(sample.path, read_only=True), sample.scene)
    for key in ("0/c/0/0/10", "0/c/0/10/0", "9/c/0/0/0", "0/c/1/0/0", "labels/a/0/c/0/0", "x"):
        assert sync(store.get(key, default_buffer_prototype())) is None
        assert not sync(store.exists(key))
    assert sync(store.exists("0/c/0/9/9"))
    assert sync(store.exists("zarr.json"))


def test_a_part_of_a_chunk_can_be_read(sample: Sample) -> None:
    store = GeneratedStore(LocalStore(sample.path, read_only=True), sample.scene)

    def read(part: object) -> bytes:
        found = sync(store.get("0/c/0/1/1", default_buffer_prototype(), part))
        return found.to_bytes()

    whole = read(None)
    assert read(RangeByteRequest(10, 30)) == whole[10:30]
    assert read(OffsetByteRequest(100)) == whole[100:]
    assert read(SuffixByteRequest(50)) == whole[-50:]
    request = [("0/c/0/1/1", RangeByteRequest(0, 5))]
    [found] = sync(store.get_partial_values(default_buffer_prototype(), request))
    assert found.to_bytes() == whole[:5]


def test_chunks_painted_last_are_kept_in_bounded_memory(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted: list[tuple[int, int, int]] = []
    chunk = Scene.chunk

    def count(scene: Scene, *place: int) -> np.ndarray:
        painted.append(place)
        return chunk(scene, *place)

    monkeypatch.setattr(Scene, "chunk", count)
    monkeypatch.setattr(generated, "MAX_KEPT_BYTES", 1_000_000)
    store = GeneratedStore(LocalStore(sample.path, read_only=True), sample.scene)
    for key in ("0/c/0/0/0", "0/c/0/0/1", "0/c/0/0/0"):
        sync(store.get(key, default_buffer_prototype()))
    assert painted == [(0, 0, 0), (0, 0, 1)]
    assert len(store._kept) == 2
    for column in range(5):
        sync(store.get(f"0/c/0/2/{column}", default_buffer_prototype()))
    assert 0 < store._kept.num_bytes <= 1_000_000
    assert 1 <= len(store._kept) < 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "expected the recipe of a generated image, got JSONDecodeError"),
        ("[]", "expected the recipe of a generated image, got TypeError"),
        ("{}", "expected the recipe of a generated image, got KeyError: 'kind'"),
        (None, "of version 1, got .* of version 99 in .*generated.json; make the image again"),
        (True, "got TypeError.*shape.*make the image again"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_named(
    text: str | bool | None, told: str, tmp_path: Path
) -> None:
    path = make_sample(tmp_path / "slide.ome.zarr", 256).path
    if not isinstance(text, str):
        entries = json.loads((path / FILE_NAME).read_text())
        text = json.dumps(entries | ({"shape": 1} if text else {"version": 99}))
    (path / FILE_NAME).write_text(text)
    with pytest.raises(ImageError, match=told):
        open_image(path)


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = make_sample(tmp_path / "slide.ome.zarr", 256).path
    (path / FILE_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImageReadError, match="that can be read, got .* check its rights"):
        open_image(path)


def test_a_200k_image_opens_at_once_in_little_memory(tmp_path: Path) -> None:
    make_sample(tmp_path / "slide.ome.zarr", 200_000)
    code = """
import resource, sys, time
import zarr
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.images.opening import open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
image = open_image(sys.argv[1])
opened = time.process_time() - started
for place in range(4):
    assert image.read(Tile(0, 50_000 * place, 70_000, 1024)).std() > 3
print(opened, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "slide.ome.zarr")],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    seconds, megabytes = (float(part) for part in done.stdout.split())
    assert seconds < 2
    assert megabytes < 150
