"""Samples come out of shards and folders as they went in, and bad data is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.errors import DataError
from napari_hrsam.training.datasets import largest_objects, open_samples

WriteTar = Callable[[str, Mapping[str, bytes]], Path]
Members = Callable[..., dict[str, bytes]]
ImageArray = NDArray[np.uint8]


def test_a_shard_gives_its_samples_in_order(
    write_tar: WriteTar, members: Members, disc_image: ImageArray, disc_labels: NDArray[np.uint16]
) -> None:
    second = members("b", domain="cells", source="s2", licence="CC0-1.0", group="nc")
    path = write_tar("train-x.tar", {**members("a"), **second})
    first, last = open_samples([path])
    np.testing.assert_array_equal(first.image(), disc_image)
    np.testing.assert_array_equal(last.labels(), disc_labels)
    assert last.labels().dtype == np.int32
    assert (first.key, first.domain, first.source) == ("a", "train-x", "train-x")
    assert (last.domain, last.source, last.licence, last.group) == ("cells", "s2", "CC0-1.0", "nc")


def test_folders_inside_a_shard_belong_to_the_key(write_tar: WriteTar, members: Members) -> None:
    path = write_tar("x.tar", {**members("one/a"), **members("two/a")})
    assert [sample.key for sample in open_samples([path])] == ["one/a", "two/a"]


def test_second_labels_are_read_where_they_are(
    write_tar: WriteTar, members: Members, png: Callable[[NDArray[Any]], bytes]
) -> None:
    nested = np.full((96, 128), 2, np.uint8)
    path = write_tar("x.tar", {**members("a"), "a.lbl2.png": png(nested), **members("b")})
    first, last = open_samples([path])
    second = first.second_labels()
    assert second is not None
    np.testing.assert_array_equal(second, nested)
    assert last.second_labels() is None


def test_listed_objects_come_before_the_largest(write_tar: WriteTar, members: Members) -> None:
    listed = members("a", noc_objects=[{"id": 7, "area": 1}])
    path = write_tar("x.tar", {**listed, **members("b")})
    assert [sample.objects for sample in open_samples([path])] == [(7,), (300, 7)]


def test_largest_objects_are_five_at_most_and_ties_go_to_the_smaller_id() -> None:
    labels = np.repeat(np.array([0, 9, 4, 2, 8, 3, 6], np.int32), [50, 3, 5, 5, 4, 4, 9])[None]
    assert largest_objects(labels, 5) == (6, 2, 4, 3, 8)
    assert largest_objects(np.zeros((3, 3), np.int32), 5) == ()


def test_sources_can_be_left_out(write_tar: WriteTar, members: Members) -> None:
    both = {**members("a", source="wbc1"), **members("b", source="emps")}
    path = write_tar("x.tar", both)
    assert [s.key for s in open_samples([path], exclude_sources=("wbc1", "wbc2"))] == ["b"]
    with pytest.raises(DataError, match="all 2 samples come from the excluded sources"):
        open_samples([path], exclude_sources=("wbc1", "emps"))


def test_paired_folders_and_paired_names_are_the_same_data(
    pairs: Path, tmp_path: Path, disc_image: ImageArray
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "disc.png").write_bytes((pairs / "images/disc.png").read_bytes())
    (flat / "disc_mask.png").write_bytes((pairs / "masks/disc.png").read_bytes())
    (flat / "notes.txt").write_text("not an image")
    for folder in (pairs, flat):
        (sample,) = open_samples([folder])
        assert (sample.key, sample.domain, sample.source) == ("disc", folder.name, folder.name)
        assert sample.objects == (300, 7)
        np.testing.assert_array_equal(sample.image(), disc_image)


def test_masks_in_the_mask_folder_may_end_in_mask(pairs: Path) -> None:
    (pairs / "masks/disc.png").rename(pairs / "masks/disc_mask.png")
    (sample,) = open_samples([pairs])
    assert sample.objects == (300, 7)


def test_shards_and_folders_mix(write_tar: WriteTar, pairs: Path, members: Members) -> None:
    path = write_tar("x.tar", members("a"))
    assert [sample.domain for sample in open_samples([pairs, path])] == ["pairs", "x"]


def test_pixels_are_read_again_only_when_asked(pairs: Path) -> None:
    (sample,) = open_samples([pairs])
    (pairs / "images/disc.png").unlink()
    with pytest.raises(DataError, match="is the file still there"):
        sample.image()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nothing.tar", "does not exist"),
        (lambda root: root, "holds no images; expected images/ and masks/"),
        (lambda root: _file(root / "x.zip", b"PK"), "neither a folder nor an uncompressed .tar"),
        (lambda root: _file(root / "x.tar", b"no tar at all" * 99), "not a readable tar shard"),
        (lambda root: _file(root / "x.tar", bytes(10240)), "is empty"),
        (lambda root: _file(root / "sub/x.tar", bytes(10240)).parent, "the shards themselves"),
    ],
)
def test_a_path_without_samples_is_refused(make, message: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(DataError, match=message):
        open_samples([make(root)])


def test_no_path_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no data given"):
        open_samples([])


@pytest.mark.parametrize("cut", ["inside the last member", "between two members"])
def test_a_truncated_shard_is_refused(cut: str, write_tar: WriteTar, members: Members) -> None:
    path = write_tar("x.tar", members("a"))
    data = path.read_bytes()
    end = data.rindex(b"a.json")
    path.write_bytes(data[: end + 520] if cut == "inside the last member" else data[:end])
    with pytest.raises(DataError, match="truncated"):
        open_samples([path])


@pytest.mark.parametrize("role", ["img", "lbl"])
def test_a_sample_without_image_or_mask_is_refused(
    role: str, write_tar: WriteTar, members: Members
) -> None:
    contents = members("a")
    del contents[f"a.{role}.png"]
    with pytest.raises(DataError, match=rf"sample a in .* has no (image|mask) \(KEY.{role}"):
        open_samples([write_tar("x.tar", contents)])


def test_two_members_of_one_role_are_refused(write_tar: WriteTar, members: Members) -> None:
    contents = {**members("a"), "a.img.jpg": b""}
    with pytest.raises(DataError, match="two members for a.img"):
        open_samples([write_tar("x.tar", contents)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must hold one JSON object, got list"),
        (json.dumps({"noc_objects": [3]}).encode(), "must hold noc_objects, a list of"),
        (json.dumps({"noc_objects": 3}).encode(), "must hold noc_objects, a list of"),
    ],
)
def test_a_broken_json_is_refused(
    text: bytes, message: str, write_tar: WriteTar, members: Members
) -> None:
    with pytest.raises(DataError, match=message):
        open_samples([write_tar("x.tar", {**members("a"), "a.json": text})])


def test_an_image_without_a_mask_is_refused(pairs: Path) -> None:
    (pairs / "masks/disc.png").rename(pairs / "masks/other.png")
    with pytest.raises(DataError, match=r"disc.png has no mask; expected masks/disc.png"):
        open_samples([pairs])


def test_hidden_files_of_a_folder_are_no_samples(pairs: Path) -> None:
    before = len(open_samples([pairs]))
    for folder in ("images", "masks"):
        for file in list((pairs / folder).iterdir()):
            file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7 Mac OS X")
    assert len(open_samples([pairs])) == before


def test_hidden_members_of_a_shard_are_no_samples(write_tar: WriteTar, members: Members) -> None:
    hidden = {f"._{name}": b"\0\5\x16\7 Mac OS X" for name in members("a")}
    shard = write_tar("hidden.tar", {**hidden, **members("a")})
    assert [sample.key for sample in open_samples([shard])] == ["a"]


def test_images_without_a_mask_folder_are_refused(pairs: Path) -> None:
    (pairs / "masks/disc.png").unlink()
    (pairs / "masks").rmdir()
    with pytest.raises(DataError, match=r"masks does not exist"):
        open_samples([pairs])


def test_a_mask_of_another_size_is_refused(pairs: Path) -> None:
    Image.fromarray(np.ones((96, 127), np.uint8)).save(pairs / "masks/disc.png")
    (sample,) = open_samples([pairs])
    with pytest.raises(DataError, match=r"is 96 x 127 px, but its image .* is 96 x 128"):
        sample.labels()


def _file(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path
