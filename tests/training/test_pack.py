"""What goes into a pack comes out of it."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from napari_hrsam.errors import DataError
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.pack import (
    EncodedSample,
    PackedSample,
    encode_image,
    encode_labels,
    encode_sample,
    read_pack,
    write_pack,
)

ROOT = Path(__file__).parents[2]


def _sample(**changes: object) -> PackedSample:
    """A grey image with a gradient, ids above 255, and every column of ids different."""
    y, x = np.mgrid[:40, :60]
    labels = np.where((y - 20) ** 2 + (x - 30) ** 2 < 200, 300 + x // 4, 0).astype(np.int16)
    sample = PackedSample(
        key="a/b",
        domain="grains",
        source="somewhere",
        licence="CC0",
        split="train",
        pixels=(2 * y + 2 * x).astype(np.uint8),
        labels=labels,
    )
    return replace(sample, **changes)  # type: ignore[arg-type]


@pytest.fixture
def samples() -> list[PackedSample]:
    grey = _sample()
    colour = np.stack([grey.pixels, 255 - grey.pixels, np.full_like(grey.pixels, 90)], 2)
    second = (grey.labels > 0).astype(np.int32) * 40_000
    return [
        grey,
        _sample(key="c", pixels=colour, second_labels=second, split="val", noc_objects=(301, 305)),
    ]


@pytest.fixture
def packed(samples: list[PackedSample], tmp_path: Path) -> Path:
    path = tmp_path / "pack.zip"
    write_pack(path, [encode_sample(s, quality=90) for s in samples])
    return path


def test_a_pack_gives_back_what_was_packed(samples: list[PackedSample], packed: Path) -> None:
    back = read_pack(packed, workers=2)
    assert len(back) == len(samples)
    for before, after in zip(samples, back, strict=True):
        for name in ("key", "domain", "source", "licence", "split", "noc_objects"):
            assert getattr(after, name) == getattr(before, name)
        assert after.pixels.shape == before.pixels.shape
        assert after.pixels.dtype == np.uint8
        assert np.abs(after.pixels.astype(int) - before.pixels).mean() < 4
        assert np.array_equal(after.labels, before.labels)
        assert after.labels.dtype == np.int16
    assert back[0].second_labels is None
    assert np.array_equal(back[1].second_labels, samples[1].second_labels)
    assert back[1].second_labels.dtype == np.int32


def test_one_part_can_be_read_alone(packed: Path) -> None:
    assert [s.key for s in read_pack(packed, split="val")] == ["c"]
    assert [s.key for s in read_pack(packed, split="train")] == ["a/b"]


def test_all_ids_are_kept_exactly(tmp_path: Path) -> None:
    labels = np.arange(65536, dtype=np.int32).reshape(256, 256)
    sample = _sample(pixels=np.zeros((256, 256), np.uint8), labels=labels)
    write_pack(tmp_path / "p.zip", [encode_sample(sample, quality=50)])
    assert np.array_equal(read_pack(tmp_path / "p.zip")[0].labels, labels)


def test_a_lower_quality_is_smaller_and_the_file_is_as_long_as_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)
    sizes = []
    for quality in (20, 90):
        sample = encode_sample(_sample(pixels=noise), quality=quality)
        sizes.append(write_pack(tmp_path / "p.zip", [sample]))
        assert sizes[-1] == (tmp_path / "p.zip").stat().st_size
    assert sizes[0] < sizes[1]
    assert not list(tmp_path.glob("*.part"))


def test_the_same_samples_give_the_same_file(
    samples: list[PackedSample], packed: Path, tmp_path: Path
) -> None:
    write_pack(tmp_path / "again.zip", [encode_sample(s, quality=90) for s in samples])
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_pack_is_refused(packed: Path, share: float) -> None:
    data = packed.read_bytes()
    packed.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match="truncated or damaged.*copy it again"):
        read_pack(packed)


def test_a_flipped_byte_is_noticed(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    data[data.index(b"RIFF") + 30] ^= 255
    packed.write_bytes(bytes(data))
    with pytest.raises(DataError, match="truncated or damaged"):
        read_pack(packed)


def test_what_is_no_pack_is_refused(samples: list[PackedSample], tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    with pytest.raises(DataError, match="does not exist"):
        read_pack(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("index.json", json.dumps({"format": "other", "version": 1}))
    with pytest.raises(DataError, match="of version 1, got .'other', 1"):
        read_pack(path)
    good = encode_sample(samples[0], quality=50)
    write_pack(path, [EncodedSample({**good.info, "shape": [40, 61]}, good.parts)])
    with pytest.raises(DataError, match="a/b of .* must be .40, 61., got an image of .40, 60"):
        read_pack(path)
    write_pack(path, [EncodedSample(good.info, {**good.parts, "image": b"nothing"})])
    with pytest.raises(DataError, match="a/b of .* cannot be decoded"):
        read_pack(path)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="0 to 65535, got 0 to 65536"):
        encode_labels(np.array([[0, 65536]]))
    with pytest.raises(DataError, match="up to 16383 px"):
        encode_image(np.zeros((1, 16384), np.uint8), quality=50)


@pytest.mark.torch
def test_packs_and_crops_need_no_storage_libraries() -> None:
    """The GPU machine has torch, numpy and Pillow."""
    missing = ["zarr", "numcodecs", "pooch", "tifffile", "requests", "platformdirs", "filelock"]
    missing += ["skimage", "scipy"]
    code = (
        f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
        "import napari_hrsam.training.pack\nimport napari_hrsam.training.device_crops\n"
        "import napari_hrsam.training.device_clicks\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pack_for_gpu", ROOT / "scripts/pack_for_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_packs_shards(script, members, write_tar, tmp_path, monkeypatch, disc_labels):
    contents = {}
    for i in range(10):
        source = "bad" if i == 3 else "good"
        contents |= members(f"k{i}", domain="discs", source=source, licence="CC0")
    train = write_tar("train.tar", contents)
    noc = [{"id": 300, "area": 1000}, {"id": 7, "area": 400}]
    val = write_tar("val.tar", {**members("v", domain="discs", source="bad", noc_objects=noc)})
    out = tmp_path / "out.zip"
    arguments = ["--train", str(train), "--val", str(val), "--exclude-source", "bad"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["pack", *arguments, "--max-mib", "0.05", "--val-objects", "1", "--out", str(out)],
    )
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    script.main()
    assert out.stat().st_size <= 0.05 * 2**20
    samples = read_pack(out)
    assert [s.key for s in samples if s.split == "train"] == [f"k{i}" for i in range(10) if i != 3]
    (chosen,) = [s for s in samples if s.split == "val"]
    assert chosen.noc_objects == (300,)
    assert chosen.source == "bad"
    assert np.array_equal(chosen.labels, disc_labels)
    # Stretched, as training sees it: the darkest pixel of the file is 40, the brightest 219.
    assert chosen.pixels.min() < 15
    assert chosen.pixels.max() > 240


def test_a_limit_that_cannot_be_kept_is_told(script, members, write_tar, tmp_path):
    train = open_samples([write_tar("train.tar", members("k", domain="d"))])
    with pytest.raises(SystemExit, match="even at quality 20"):
        script.pack(train, [], max_bytes=1000, out=tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_validation_images_are_spread_over_the_domain(script, members, write_tar):
    contents = {}
    for i in range(9):
        noc = [{"id": 7, "area": 400}, {"id": 300, "area": 1000}]
        contents |= members(f"k{i}", domain="a" if i < 8 else "b", noc_objects=noc)
    samples = open_samples([write_tar("val.tar", contents)])
    chosen = script.choose_val(samples, max_images=4, max_objects=6)
    assert [s.key for s, _ in chosen] == ["k0", "k2", "k4", "k6", "k8"]
    assert [len(ids) for _, ids in chosen] == [2, 2, 1, 1, 2]
