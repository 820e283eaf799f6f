"""A session on an image behind a URL whose server fails for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import SHORT_S, Server, serving
from numpy.typing import NDArray
from ome_files import write_ome

from napari_hrsam.engine.session import Session
from napari_hrsam.errors import ImageReadError
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import create_labels

Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]


@pytest.fixture
def server(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    image = scene[0].transpose(2, 0, 1)
    write_ome(tmp_path / "a.zarr", [image, image[:, ::2, ::2]], "cyx")
    monkeypatch.setattr("napari_hrsam.storage.files.remote.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("napari_hrsam.storage.files.remote.ATTEMPTS", 3)
    with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("fault", "told"), [(500, "HTTP status 500.* in 3 attempt"), ("stall", "no answer within")]
)
def test_a_click_fails_with_a_message_and_the_session_goes_on_when_the_server_is_back(
    server: Server,
    model: Any,
    tmp_path: Path,
    fault: Any,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = open_image(server.url, channels=[0, 1, 2], contrast_limits=(0, 255))
    chunks = [f"/a.zarr/{path.relative_to(tmp_path / 'a.zarr')}" for path in _chunks(tmp_path)]
    with (
        create_labels(tmp_path / "labels", "cells", like=image) as labels,
        Session(model, image, labels) as session,
    ):
        first = session.click((50, 60))
        session.commit()
        server.faults = {chunk: [fault] * 1000 for chunk in chunks}
        with monkeypatch.context() as impatient:
            impatient.setattr("napari_hrsam.storage.files.http_files.SILENCE_S", SHORT_S)
            with pytest.raises(ImageReadError, match=rf"{server.url}/.*{told}"):
                session.click((180, 20))
        # What is at hand can still be worked on, and the failed click is not part of anything.
        again = session.click((50, 60))
        np.testing.assert_array_equal(again.mask, first.mask)
        session.cancel()
        session.undo()
        session.redo()
        server.faults = {}
        other = session.click((180, 20))
        assert other.mask.any()
        session.commit()
        assert [edit.label for edit in labels.history().done] == [1, 2]


def _chunks(folder: Path) -> list[Path]:
    return [path for path in (folder / "a.zarr").rglob("*") if path.is_file() and "c" in path.parts]
