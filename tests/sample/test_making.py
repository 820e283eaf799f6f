"""Generated images are made in seconds, and other programs can read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from napari_hrsam.errors import ConfigError, ImageError
from napari_hrsam.geometry import Box
from napari_hrsam.sample import Sample, make_sample, open_sample
from napari_hrsam.sample.making import COARSE_PX
from napari_hrsam.storage.label_image import create_labels
from napari_hrsam.storage.labels.check import verify_labels


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Not to be changed."""
    return make_sample(tmp_path_factory.mktemp("sample") / "slide.ome.zarr", 100_000)


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_100k_image_takes_a_few_megabytes(sample: Sample) -> None:
    assert _num_bytes(sample.path) < 10e6
    assert len(list(sample.path.rglob("*"))) < 100


def test_it_is_an_ome_zarr_of_every_level(sample: Sample) -> None:
    ome = zarr.open_group(sample.path, mode="r").attrs["ome"]
    assert ome["version"] == "0.5"
    [multiscale] = ome["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    assert [axis.get("unit") for axis in multiscale["axes"]] == [None, "micrometer", "micrometer"]
    shapes = [
        zarr.open_array(sample.path / level["path"]).shape for level in multiscale["datasets"]
    ]
    assert shapes == [(3, *shape) for shape in sample.level_shapes]
    assert sample.level_shapes[:2] == ((100_000, 100_000), (50_000, 50_000))
    assert sample.level_shapes[-1] == (782, 782)
    image = sample.image
    assert image.level_shapes == list(sample.level_shapes)
    assert image.ome is not None
    assert image.ome.scales[2] == (1.0, 1.0, 1.0)
    assert image.ome.translations[1] == (0.0, 0.125, 0.125)
    # Red, green and blue are shown as they are.
    assert image.contrast_limits == ((0.0, 255.0),) * 3


def test_other_programs_see_the_coarse_levels(sample: Sample) -> None:
    for level, shape in enumerate(sample.level_shapes):
        array = zarr.open_array(sample.path / str(level), mode="r")
        if max(shape) > COARSE_PX:
            assert array.nchunks_initialized == 0
            assert array[:, 0, 0].tolist() == [array.fill_value] * 3
        else:
            assert array.nchunks_initialized == array.nchunks
            np.testing.assert_array_equal(array[:, 512:, 512:1024], _painted(sample, level))


def _painted(sample: Sample, level: int) -> np.ndarray:
    """Chunks of column 1 from row 1 on, as far as the image goes."""
    height, width = sample.level_shapes[level]
    rows = range(1, -(-height // 512))
    chunks = np.concatenate([sample.scene.chunk(level, row, 1) for row in rows], axis=1)
    return chunks[:, : height - 512, : min(width, 1024) - 512]


def test_what_is_there_is_never_overwritten(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="expected a new path.*choose another, or open it"):
        make_sample(sample.path, 1000)
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(ImageError, match="expected a new path"):
        make_sample(file, 1000)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("size_px", [300, 1024, 1025, 7777])
def test_any_size_can_be_made(size_px: int, tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "new" / "slide.ome.zarr", size_px, seed=5)
    assert sample.image.shape_yx == (size_px, size_px)
    assert open_sample(sample.path).objects == sample.objects
    assert sample.path.stat().st_mode & 0o700 == 0o700
    assert [path.name for path in sample.path.parent.iterdir()] == ["slide.ome.zarr"]


def test_levels_are_written_when_asked(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sample = make_sample(
        tmp_path / "slide.ome.zarr",
        6000,
        fill=(0, 1),
        fill_box=Box(500, 1000, 1100, 1500),
        progress=lambda done, total: seen.append((done, total)),
    )
    finest = zarr.open_array(sample.path / "0", mode="r")
    # Rows 0 to 2 and columns 1 to 2 of chunks.
    assert finest.nchunks_initialized == 6
    np.testing.assert_array_equal(finest[:, 512:1024, 1024:1536], sample.scene.chunk(0, 1, 2))
    assert zarr.open_array(sample.path / "1", mode="r").nchunks_initialized == 4
    num_coarse = sum(
        zarr.open_array(sample.path / str(level)).nchunks
        for level, shape in enumerate(sample.level_shapes)
        if max(shape) <= COARSE_PX
    )
    assert seen[-1] == (10 + num_coarse, 10 + num_coarse)
    assert [done for done, _ in seen] == list(range(1, 11 + num_coarse))


def test_a_whole_level_is_written_without_a_box(tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "slide.ome.zarr", 2100, fill=[0])
    for level in range(len(sample.level_shapes)):
        array = zarr.open_array(sample.path / str(level), mode="r")
        assert array.nchunks_initialized == array.nchunks


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"size_px": 10}, "expected a size of 256"),
        ({"fill": (9,)}, "expected levels of 0 to 1, got 9; an image of 2000 px has no other"),
        ({"fill": (-1,)}, "expected levels of 0 to 1, got -1"),
        (
            {"size_px": 3000, "fill": (0,), "fill_box": Box(0, 3000, 9, 4000)},
            "expected a box inside the image of .*, got Box.*; give y0",
        ),
    ],
)
def test_wishes_out_of_range_leave_nothing(
    wishes: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        make_sample(tmp_path / "slide.ome.zarr", **({"size_px": 2000} | wishes))
    assert list(tmp_path.iterdir()) == []


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "slide.ome.zarr", 2000, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_no_sample(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ImageError, match="expected a generated image, got none at .*make one"):
            open_sample(path)


def test_labels_can_be_drawn_beside_it(tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "slide.ome.zarr", 3000)
    found = sample.objects[-1]
    with create_labels(sample.path, "cells", like=sample.image) as labels:
        labels.write(found.box, sample.mask(found.label), 1)
        np.testing.assert_array_equal(labels.read(found.box) == 1, sample.mask(found.label))
    assert sample.image.level_shapes == [level.shape for level in labels.levels]


def test_labels_beside_a_generated_image_lie_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.zarr"
    sample = make_sample(path, 4096)
    with create_labels(path, "cells", like=sample.image) as labels:
        labels.write(Box(100, 200, 140, 260), np.ones((40, 60), bool), 1)
    assert verify_labels(path, "cells").problems == ()
    image = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    group = path / "labels" / "cells" / "zarr.json"
    made = json.loads(group.read_text())["attributes"]["ome"]["multiscales"][0]
    for of_image, of_labels in zip(image["datasets"], made["datasets"], strict=True):
        transforms = zip(
            of_image["coordinateTransformations"],
            of_labels["coordinateTransformations"],
            strict=True,
        )
        for told, taken in transforms:
            kind = told["type"]
            # All but the axis of channels.
            assert taken == {"type": kind, kind: told[kind][1:]}
