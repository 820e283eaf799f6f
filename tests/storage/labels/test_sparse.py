"""Objects far larger than memory should hold: masks that are read part by part."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from discs import Disc
from label_checks import require_consistent_levels
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError, ShapeError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import ArrayMask, BlockMask, RegionMask
from napari_hrsam.storage.label_image import LabelWriter, create_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.store import LabelStore

SHAPE = (100_000, 100_000)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_hrsam.storage.labels.writer.MAX_KEPT_BYTES", 2**23)


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[LabelWriter]:
    with create_labels(tmp_path / "a", "cells", SHAPE) as made:
        yield made


def chunks(labels: LabelWriter, level: int = 0) -> list[Path]:
    return [path for path in (labels.folder / str(level) / "c").rglob("*") if path.is_file()]


def require_disc(labels: LabelWriter, disc: Disc, label: int) -> None:
    """The disc is there, and nothing else, at every pixel of the levels that are small enough."""
    y, x = disc.centre
    for dy, dx in ((-1, 0), (0, 1), (0.7, -0.7)):
        near = Box(0, 0, 300, 300).shifted(
            int(y + dy * disc.radius) - 150, int(x + dx * disc.radius) - 150
        )
        np.testing.assert_array_equal(labels.read(near), disc.read(near) * np.uint32(label))
    # Any set pixel sets the coarse pixel over it.
    size = labels.levels[5].shape[0]
    coarse = labels.read(Box(0, 0, size, size), level=5)
    inside = np.arange(size) * 32
    clear = np.hypot(inside[:, np.newaxis] + 16 - y, inside + 16 - x)
    assert (coarse[clear < disc.radius - 32] == label).all()
    assert (coarse[clear > disc.radius + 32] == 0).all()


@pytest.mark.usefixtures("little_memory")
def test_a_huge_object_is_one_commit_that_takes_little_memory_and_few_bytes(
    labels: LabelWriter,
) -> None:
    disc = Disc((40_000, 50_000), 8_000)
    tracemalloc.start()
    edit = labels.write(disc.box, disc, 7)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The dense mask alone would take 256 MB, the labels in it 1 GB.
    assert highest < 50e6
    assert disc.num_read < disc.box.area / 5
    assert edit.box == Box(32_001, 42_001, 48_000, 58_000)
    assert len(chunks(labels)) > 700
    require_disc(labels, disc, 7)
    journal = sum(path.stat().st_size for path in (labels.folder / ".journal").iterdir())
    assert journal < 1e6
    labels.revert(edit)
    assert [path for level in range(9) for path in chunks(labels, level)] == []
    labels.apply(edit)
    require_disc(labels, disc, 7)


def test_full_chunks_of_a_huge_object_keep_other_objects_and_their_undo(
    labels: LabelWriter,
) -> None:
    small, other = Box(39_000, 50_000, 39_100, 50_100), Box(41_000, 47_000, 41_010, 47_010)
    labels.write(small, np.ones((100, 100), bool), 1)
    disc = Disc((40_000, 50_000), 6_000)
    edit = labels.write(disc.box, disc, 2)
    assert (labels.read(small) == 1).all()
    assert (labels.read(small.expand(3))[:3] == 2).all()
    labels.revert(edit)
    assert (labels.read(small.expand(9)) == 1).sum() == 100 * 100
    edit = labels.write(disc.box, disc, 2, overwrite=True)
    assert (labels.read(small) == 2).all()
    labels.write(other, np.ones((10, 10), bool), 3, overwrite=True)
    labels.revert(labels.history().done[-1])
    labels.revert(edit)
    assert (labels.read(small.expand(9)) == 1).sum() == 100 * 100
    assert len(chunks(labels)) == len(list(_chunks_of(small)))


def test_chunks_that_objects_fill_hold_each_its_own_label(store: LabelStore) -> None:
    # Whole chunks, and chunks that the end of the labels cuts.
    parts = [Box(0, 0, 900, 512), Box(0, 512, 900, 1024), Box(0, 1024, 900, 1100)]
    for label, part in enumerate(parts, 1):
        store.write(part, np.ones(part.shape_yx, bool), label)
    expected = np.zeros((900, 1100), np.uint32)
    for label, part in enumerate(parts, 1):
        expected[part.slices] = label
    np.testing.assert_array_equal(pixels(store), expected)
    edit = store.write(Box(0, 0, 900, 1100), np.ones((900, 1100), bool), 9, overwrite=True)
    assert (pixels(store) == 9).all()
    store.revert(edit)
    np.testing.assert_array_equal(pixels(store), expected)
    if isinstance(store, LabelWriter):
        require_consistent_levels(store)


def _chunks_of(box: Box) -> set[tuple[int, int]]:
    return {(y // 512, x // 512) for y in (box.y0, box.y1 - 1) for x in (box.x0, box.x1 - 1)}


@pytest.fixture(params=["array", "pyramid"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LabelStore]:
    if request.param == "array":
        yield ArrayLabels((900, 1100))
    else:
        with create_labels(tmp_path / "b", "cells", (900, 1100)) as made:
            yield made


def pixels(store: LabelStore) -> NDArray[np.uint32]:
    whole = Box.of_shape(store.shape_yx)
    return store.array if isinstance(store, ArrayLabels) else store.read(whole)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["array mask", "blocks", "dense"])
def test_every_kind_of_mask_draws_the_same(store: LabelStore, kind: str) -> None:
    disc = Disc((450, 600), 440)
    dense = disc.read(disc.box)
    masks: dict[str, NDArray[np.bool_] | RegionMask] = {
        "array mask": ArrayMask(disc.box, dense),
        "blocks": BlockMask(disc.box, disc.read, disc.fills),
        "dense": dense,
    }
    edit = store.write(disc.box, masks[kind], 5)
    expected = disc.read(Box(0, 0, 900, 1100))
    np.testing.assert_array_equal(pixels(store) == 5, expected)
    store.revert(edit)
    assert not pixels(store).any()
    store.apply(edit)
    np.testing.assert_array_equal(pixels(store) == 5, expected)


def test_only_what_lies_in_the_box_is_drawn(store: LabelStore) -> None:
    box = Box(400, 500, 600, 700)
    store.write(box, BlockMask(Box(0, 0, 900, 1100), Disc((450, 600), 440).read), 5)
    assert (pixels(store) == 5).sum() == box.area
    assert (pixels(store)[box.slices] == 5).all()


def test_masks_that_cannot_be_drawn_are_refused(store: LabelStore) -> None:
    disc = Disc((450, 600), 440)
    with pytest.raises(LabelsError, match="expected a box inside the labels"):
        store.write(disc.box.shifted(20, 0), disc, 1)
    with pytest.raises(ShapeError, match="a mask of the shape of its box"):
        store.write(disc.box, np.ones((3, 3), bool), 1)
    store.write(Box(0, 0, 900, 1100), np.ones((900, 1100), bool), 1)
    count = int(disc.read(disc.box).sum())
    with pytest.raises(LabelsError, match=f"a mask of {count} pixels that all belong to obj"):
        store.write(disc.box, disc, 2)
    if isinstance(store, LabelWriter):
        require_consistent_levels(store)
        assert len(store.history().done) == 1
