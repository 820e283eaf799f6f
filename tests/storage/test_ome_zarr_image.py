"""OME-Zarr images of versions 0.4 and 0.5 on a disk: good, odd and damaged ones."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from ome_files import create_level, describe, halves, sparse_slide, write_ome
from zarr.codecs import BloscCodec

from napari_hrsam.errors import ImageError, ImageReadError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.opening import open_image
from napari_hrsam.storage.tile_source import ArrayImage

FILL = (1, 2, 3)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (200, 300), np.uint8)
LIMITS = (0, 255)
PURE = [{"color": colour, "label": colour} for colour in ("FF0000", "00FF00", "0000FF")]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_both_versions_show_every_level(version: str, tmp_path: Path) -> None:
    levels = halves(GREY, 3)
    write_ome(tmp_path / "a.zarr", levels, version=version)
    image = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS)
    assert image.shape_yx == (200, 300)
    assert image.level_shapes == [level.shape for level in levels]
    for number, level in enumerate(levels):
        pixels = image.read(Tile(number, 0, 0, 64), FILL)
        part = level[:64, :64]
        assert (pixels[: len(part), : part.shape[1], 0] == part).all()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_file_tells_its_axes_scales_and_units(version: str, tmp_path: Path) -> None:
    array = np.zeros((2, 3, 64, 64), np.uint8)
    write_ome(
        tmp_path / "a.zarr",
        [array, array[..., ::2, ::2]],
        "tzyx",
        version=version,
        scales=[[1, 2, 0.5, 0.25], [1, 2, 1, 0.5]],
    )
    image = open_image(str(tmp_path / "a.zarr"), contrast_limits=LIMITS)
    ome = image.ome
    assert ome is not None
    assert (ome.path, ome.version) == (str(tmp_path / "a.zarr"), version)
    assert ome.axes == ("t", "z", "y", "x")
    assert ome.units == ("", "micrometer", "micrometer", "micrometer")
    assert ome.datasets == ("0", "1")
    assert ome.scales == ((1, 2, 0.5, 0.25), (1, 2, 1, 0.5))
    assert ome.translations == ((0, 0, 0, 0), (0, 0, 0, 0))
    assert image.plane_shape == (2, 3)


def test_transformations_of_the_whole_image_come_on_top(tmp_path: Path) -> None:
    group = write_ome(tmp_path / "a.zarr", [GREY], scales=[[2.0, 3.0]])
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"].append(
        {"type": "translation", "translation": [1.0, 2.0]}
    )
    ome["multiscales"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [10.0, 100.0]},
        {"type": "translation", "translation": [5.0, 6.0]},
    ]
    group.attrs["ome"] = ome
    found = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS).ome
    assert found is not None
    assert found.scales == ((20.0, 300.0),)
    assert found.translations == ((15.0, 206.0),)


def test_axes_may_come_in_any_order(tmp_path: Path) -> None:
    array = RNG.integers(0, 256, (50, 3, 2, 40), np.uint8)
    write_ome(tmp_path / "a.zarr", [array], "xczy", omero=PURE)
    image = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS)
    assert (image.shape_yx, image.plane_shape) == ((40, 50), (2,))
    pixels = image.read(Tile(0, 0, 0, 64, (1,)), FILL)[:40, :50]
    assert (pixels == array[:, :, 1].transpose(2, 0, 1)).all()


def test_levels_by_other_factors_are_placed_by_their_scale(tmp_path: Path) -> None:
    coarse = GREY[:198:3, ::3]
    write_ome(tmp_path / "a.zarr", [GREY, coarse], scales=[[0.5, 0.5], [1.5, 1.5]])
    image = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS)
    levels = open_image([GREY, coarse], contrast_limits=LIMITS)
    tile = Tile(2, 0, 0, 64)
    assert (image.read(tile, FILL) == levels.read(tile, FILL)).all()


def test_pure_colours_of_active_channels_are_shown(tmp_path: Path) -> None:
    array = RNG.integers(0, 256, (4, 40, 50), np.uint8)
    channels = [PURE[2], {"color": "FFFF00", "active": False}, PURE[0], PURE[1]]
    write_ome(tmp_path / "a.zarr", [array], "cyx", omero=channels)
    image = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS)
    pixels = image.read(Tile(0, 0, 0, 64), FILL)[:40, :50]
    assert (pixels == array[[2, 3, 0]].transpose(1, 2, 0)).all()


def test_other_channels_need_a_mapping_and_the_error_names_them(tmp_path: Path) -> None:
    array = RNG.integers(0, 256, (3, 40, 50), np.uint8)
    omero = [{"label": name, "color": "FFFFFF"} for name in ("DAPI", "FITC", "Cy5")]
    write_ome(tmp_path / "a.zarr", [array], "cyx", omero=omero)
    with pytest.raises(ImageError, match=r"mapping of the 3 channels.*called \['DAPI', 'FITC'"):
        open_image(tmp_path / "a.zarr")
    shown = open_image(tmp_path / "a.zarr", channels={"green": 2}, contrast_limits=LIMITS)
    assert (shown.read(Tile(0, 0, 0, 64))[:40, :50, 1] == array[2]).all()
    rgb = open_image(tmp_path / "a.zarr", rgb=True)
    assert (rgb.read(Tile(0, 0, 0, 64))[:40, :50] == array.transpose(1, 2, 0)).all()


def test_one_channel_is_grey_and_two_are_red_and_green(tmp_path: Path) -> None:
    array = RNG.integers(0, 256, (2, 40, 50), np.uint8)
    write_ome(tmp_path / "one.zarr", [array[:1]], "cyx")
    write_ome(tmp_path / "two.zarr", [array], "cyx")
    one = open_image(tmp_path / "one.zarr", contrast_limits=LIMITS).read(Tile(0, 0, 0, 64))
    two = open_image(tmp_path / "two.zarr", contrast_limits=LIMITS).read(Tile(0, 0, 0, 64))
    assert (one[:40, :50] == array[0][..., None]).all()
    assert (two[:40, :50, 1] == array[1]).all()
    assert (two[:40, :50, 2] == 0).all()


def test_arguments_that_contradict_the_axes_are_refused(tmp_path: Path) -> None:
    array = np.zeros((2, 40, 50), np.uint8)
    write_ome(tmp_path / "c.zarr", [array], "cyx")
    write_ome(tmp_path / "z.zarr", [array], "zyx")
    with pytest.raises(ImageError, match=r"channel_axis=0 as the axes .* say, got 1"):
        open_image(tmp_path / "c.zarr", channel_axis=1)
    with pytest.raises(ImageError, match="3 or 4 channels and no mapping with rgb=True, got 2"):
        open_image(tmp_path / "c.zarr", rgb=True)
    with pytest.raises(ImageError, match="neither rgb nor channels for an image of axes"):
        open_image(tmp_path / "z.zarr", channels=[0])


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"start": 100, "end": 500, "min": 0, "max": 65535}, (100, 500)),
        ({"start": 0, "end": 65535}, None),
        ({"start": 7, "end": 7}, None),
        ({}, None),
    ],
)
def test_windows_of_the_file_are_used_if_they_say_something(
    window: dict[str, float], expected: tuple[float, float] | None, tmp_path: Path
) -> None:
    array = RNG.integers(200, 300, (1, 40, 50)).astype(np.uint16)
    write_ome(tmp_path / "a.zarr", [array], "cyx", omero=[{"color": "FFFFFF", "window": window}])
    limits = open_image(tmp_path / "a.zarr").contrast_limits[0]
    assert limits == (expected or pytest.approx((200, 299), abs=1))
    given = open_image(tmp_path / "a.zarr", contrast_limits=(1, 2))
    assert given.contrast_limits[0] == (1, 2)


def test_a_single_zarr_array_is_an_image(tmp_path: Path) -> None:
    zarr.save_array(tmp_path / "a.zarr", GREY)
    image = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS)
    assert (image.read(Tile(0, 0, 0, 64))[..., 0] == GREY[:64, :64]).all()


def test_a_picture_is_an_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    image = open_image(tmp_path / "a.tif", contrast_limits=LIMITS)
    assert isinstance(image, ArrayImage)
    assert (image.read(Tile(0, 0, 0, 64))[..., 0] == GREY[:64, :64]).all()


def test_a_relative_path_means_the_folder_of_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that are looked for elsewhere would be missing, and the image black."""
    write_ome(tmp_path / "a", [GREY], version="0.5")
    monkeypatch.chdir(tmp_path)
    image = open_image("a", contrast_limits=LIMITS)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir("sub")
    assert (image.read(Tile(0, 0, 0, 64), FILL)[..., 0] == GREY[:64, :64]).all()


def test_missing_chunks_are_filled(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", [GREY])
    (tmp_path / "a.zarr/0/c/0/1").unlink()
    pixels = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS).read(Tile(0, 0, 0, 128))
    assert (pixels[:64, 64:] == 0).all()
    assert (pixels[:64, :64, 0] == GREY[:64, :64]).all()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_damaged_chunk_is_named_and_the_rest_is_shown(
    damage: str, version: str, tmp_path: Path
) -> None:
    write_ome(tmp_path / "a.zarr", [GREY], version=version)
    chunk = tmp_path / "a.zarr/0" / ("c/1/2" if version == "0.5" else "1/2")
    whole = chunk.read_bytes()
    chunk.write_bytes({"truncated": whole[:100], "garbage": b"x" * 500, "empty": b""}[damage])
    image = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS)
    with pytest.raises(ImageReadError, match=r"a.zarr/0/.*1/2.* damaged|chunk 1/2 of .* damaged"):
        image.read(Tile(0, 0, 0, 256))
    assert (image.read(Tile(0, 0, 0, 64))[..., 0] == GREY[:64, :64]).all()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_chunk_cut_short_is_no_image_even_where_blosc_does_not_mind(
    zarr_format: int, tmp_path: Path
) -> None:
    codec = numcodecs.Blosc() if zarr_format == 2 else BloscCodec()
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(64, 64),
        chunks=(64, 64),
        dtype=np.uint8,
        compressors=codec,
        zarr_format=zarr_format,
    )
    array[:] = GREY[:64, :64]
    chunk = tmp_path / "a.zarr" / ("c/0/0" if zarr_format == 3 else "0.0")
    chunk.write_bytes(chunk.read_bytes()[:-9])
    image = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS)
    with pytest.raises(ImageReadError, match=r"got \d+; chunk 0/0 of the image is damaged"):
        image.read(Tile(0, 0, 0, 64))


def test_shards_are_read_and_one_cut_short_is_told(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(256, 256), shards=(256, 256), chunks=(64, 64), dtype=np.uint8
    )
    array[:] = RNG.integers(0, 256, (256, 256))
    shard = tmp_path / "a.zarr/c/0/0"
    whole = shard.read_bytes()
    image = open_image(tmp_path / "a.zarr", contrast_limits=LIMITS)
    assert (image.read(Tile(0, 64, 64, 64))[..., 0] == array[64:128, 64:128]).all()
    # The index at the end stays as it is; the chunks before it move.
    shard.write_bytes(whole[:5000] + whole[9000:])
    with pytest.raises(ImageReadError, match="damaged"):
        image.read(Tile(0, 64, 64, 192))


def test_missing_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    for path in (tmp_path / "none.zarr", tmp_path / "empty.zarr"):
        with pytest.raises(ImageError, match=r"there is none at .*check the path"):
            open_image(path)
    with pytest.raises(ImageError, match="there is none at"):
        open_image(tmp_path / "none.tif")


def test_truncated_metadata_is_told(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", [GREY])
    for name, match in (("0/zarr.json", "array of a level at"), ("zarr.json", "zarr metadata")):
        file = tmp_path / "a.zarr" / name
        file.write_text(file.read_text()[:50])
        with pytest.raises(ImageReadError, match=rf"{match}.*a.zarr.*damaged or unfinished"):
            open_image(tmp_path / "a.zarr")


def test_a_level_that_is_missing_is_told(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr")
    describe(group, 2, "yx")
    with pytest.raises(ImageReadError, match=r"array of a level at .*a.zarr/0, got KeyError"):
        open_image(tmp_path / "a.zarr")
    group.create_group("0")
    with pytest.raises(ImageError, match=r"got a group at .*a.zarr/0"):
        open_image(tmp_path / "a.zarr")


def changed(path: Path, **changes: Any) -> Path:
    """Write an image and change the metadata of its first multiscale."""
    group = write_ome(path, [GREY])
    ome = json.loads(json.dumps(dict(group.attrs["ome"])))
    ome["multiscales"][0].update(changes)
    group.attrs["ome"] = ome
    return path


@pytest.mark.parametrize("dataset", ["../0", "/etc", "a/../../b", "s3://x/y", "..\\0", "", 5])
def test_levels_outside_the_image_are_refused(dataset: Any, tmp_path: Path) -> None:
    path = changed(tmp_path / "a.zarr", datasets=[{"path": dataset}])
    with pytest.raises(ImageError, match="array inside the image, such as '0', got"):
        open_image(path)


def test_links_out_of_the_image_are_refused(tmp_path: Path) -> None:
    write_ome(tmp_path / "other.zarr", [GREY])
    path = changed(tmp_path / "a.zarr", datasets=[{"path": "link"}])
    (path / "link").symlink_to(tmp_path / "other.zarr/0")
    with pytest.raises(ImageError, match="a link that leads out of it"):
        open_image(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"axes": [{"name": "y"}, {"name": "y"}]}, r"include y and x once each, got \('y', 'y'\)"),
        ({"axes": [{"name": "a"}, {"name": "x"}]}, "include y and x"),
        (
            {"axes": [{"name": n} for n in "zyx"], "datasets": [{"path": "0"}]},
            r"expected 3 axes .* got shape \(200, 300\)",
        ),
        ({"axes": ["y", "x"]}, "missing or malformed .*TypeError"),
        ({"axes": None}, "missing or malformed"),
        ({"datasets": []}, "1..64 levels, got 0"),
        ({"datasets": [{"path": "0"}] * 100}, "1..64 levels, got 100"),
        ({"datasets": [{}]}, "missing or malformed .*KeyError: 'path'"),
        ({"coordinateTransformations": [{"type": "scale", "scale": [0, 1]}]}, "positive scale"),
        (
            {"coordinateTransformations": [{"type": "scale", "scale": [1]}]},
            "for each of 2 axes, got",
        ),
    ],
)
def test_malformed_metadata_is_refused(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=match):
        open_image(changed(tmp_path / "a.zarr", **changes))


def test_other_groups_and_versions_are_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "plain.zarr", attributes={"bioformats2raw.layout": 3})
    with pytest.raises(ImageError, match=r"multiscales, got one with \['bioformats2raw.layout'\]"):
        open_image(tmp_path / "plain.zarr")
    group = write_ome(tmp_path / "new.zarr", [GREY])
    group.attrs["ome"] = {**dict(group.attrs["ome"]), "version": "0.9"}
    with pytest.raises(ImageError, match=r"version 0.4 or 0.5, got 0.9.*list of levels"):
        open_image(tmp_path / "new.zarr")


def test_levels_that_do_not_shrink_are_refused(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", [GREY[:50, :50], GREY])
    with pytest.raises(ImageError, match=r"from the finest to the coarsest.*sort them"):
        open_image(tmp_path / "a.zarr")


def test_absurd_shapes_and_chunks_of_a_file_are_refused(tmp_path: Path) -> None:
    for name, shape, chunk in (
        ("wide", 2**62, 1024),
        ("chunky", 2**20, 2**20),
    ):
        group = zarr.create_group(tmp_path / name)
        create_level(group, "0", (shape, shape), np.uint8, "yx", chunks=(chunk, chunk))
        describe(group, 1, "yx")
        with pytest.raises(ImageError, match="pixels along an axis|448 MiB"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_chunks_of_nothing_are_refused(version: str, tmp_path: Path) -> None:
    write_ome(tmp_path, [GREY], version=version)
    file = tmp_path / "0" / {"0.4": ".zarray", "0.5": "zarr.json"}[version]
    metadata = json.loads(file.read_text())
    if version == "0.4":
        metadata["chunks"][0] = 0
    else:
        metadata["chunk_grid"]["configuration"]["chunk_shape"][0] = 0
    file.write_text(json.dumps(metadata))
    with pytest.raises(ImageReadError, match=r"chunks of 1 pixel or more, got \[0, .*copy"):
        open_image(tmp_path)


def test_nothing_in_the_folder_changes(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", halves(GREY, 2))
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    image = open_image(tmp_path / "a.zarr")
    for level in (-1, 0, 1, 3):
        image.read(Tile(level, 0, 0, 64))
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before


def test_a_folder_that_may_only_be_read_is_enough(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", [GREY])
    for folder, _, _ in os.walk(tmp_path / "a.zarr"):
        Path(folder).chmod(0o555)
    assert open_image(tmp_path / "a.zarr").shape_yx == (200, 300)


def test_a_sparse_gigapixel_slide_needs_little_memory(tmp_path: Path) -> None:
    sparse_slide(tmp_path / "slide.zarr", 100_000, [(77_000, 52_000, 300)])
    tracemalloc.start()
    image = open_image(tmp_path / "slide.zarr")
    for level in range(8):
        y0, x0 = (76_900 >> level), (51_900 >> level)
        image.read(Tile(level, y0, x0, 512), FILL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape_yx == (100_000, 100_000)
    assert image.read(Tile(0, 76_900, 51_900, 512))[100, 100].tolist() == [230, 60, 90]
    assert image.read(Tile(6, 77_000 // 64 - 4, 52_000 // 64 - 4, 8))[4, 4].tolist() == [
        230,
        60,
        90,
    ]
    assert peak < 60 * 2**20


@pytest.mark.parametrize("num_axes", [40, 1000])
def test_more_axes_than_there_can_be_are_refused(tmp_path: Path, num_axes: int) -> None:
    ones = [1] * num_axes
    said = {"zarr_format": 2, "shape": ones, "chunks": ones, "dtype": "|u1", "order": "C"}
    (tmp_path / "a.zarr").mkdir()
    more = {"compressor": None, "filters": None, "fill_value": 0}
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps({**said, **more}))
    with pytest.raises(ImageError, match=f"at most 32 axes, got {num_axes}"):
        open_image(tmp_path / "a.zarr")
