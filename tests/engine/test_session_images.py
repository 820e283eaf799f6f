"""Sessions on images that are no plain arrays: pyramids, stacks, gigapixels."""

from __future__ import annotations

from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from napari_hrsam.engine.session import Session
from napari_hrsam.errors import LabelsError, PromptError
from napari_hrsam.storage.images.opening import open_image

Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def clicked(model: Any, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The mask that the plain array gives."""
    with Session(model, image) as session:
        return session.click((50, 60)).mask


@pytest.mark.parametrize("kind", ["dask", "zarr", "levels", "open"])
def test_every_kind_of_image_gives_the_object_of_the_array(
    kind: str, model: Any, scene: Scene
) -> None:
    image, _ = scene
    sources = {
        "dask": dask.array.from_array(image, chunks=(50, 64, 3)),
        "zarr": zarr.array(image, chunks=(50, 64, 3)),
        "levels": [image, image[::2, ::2]],
        "open": open_image(image),
    }
    with Session(model, sources[kind]) as session:
        session.click((50, 60))
        edit = session.commit()
        assert session.labels.shape_yx == (200, 160)
    assert edit.after.any()
    assert (edit.after > 0).sum() == clicked(model, image).sum()


def test_an_object_of_a_stack_stays_on_its_plane(model: Any, scene: Scene) -> None:
    image, _ = scene
    other = np.full_like(image, 120)
    with Session(model, np.stack([other, image])) as session:
        with pytest.raises(PromptError, match=r"one index per axis of lengths \(2,\), got \(\)"):
            session.click((50, 60))
        prediction = session.click((50, 60), plane=(1,))
        assert (prediction.mask == clicked(model, image)).all()
        with pytest.raises(PromptError, match=r"on the object's plane \(1,\), got \(0,\)"):
            session.click((50, 60), plane=(0,))


def test_a_gigapixel_image_can_be_clicked_without_labels(model: Any) -> None:
    image = dask.array.zeros((100_000, 100_000, 3), chunks=(1024, 1024, 3), dtype=np.uint8)
    with Session(model, image) as session:
        assert session.click((77_000, 52_000)).mask.any()
        with pytest.raises(LabelsError, match=r"shape \(100000, 100000\) is a stack or too large"):
            session.commit()
        assert session.prediction is not None


def test_a_stack_needs_labels_for_its_planes(model: Any) -> None:
    with Session(model, np.zeros((2, 80, 80), np.uint8)) as session:
        session.click((40, 40), plane=(1,))
        with pytest.raises(LabelsError, match=r"got none, and an image of shape \(2, 80, 80\)"):
            session.commit()
