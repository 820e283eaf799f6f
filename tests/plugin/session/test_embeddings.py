"""The panel finds embeddings that were made before, and works without a place for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.cache import EMBEDDINGS_VARIABLE, SERVER_VARIABLE
from napari_hrsam.engine.session import Session
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.storage.embeddings.store import EmbeddingStore
from napari_hrsam.storage.images.opening import open_image

INSIDE = (30.0, 30.0)


@pytest.fixture
def encoded(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry per tile that the model encoded."""
    found: list[str] = []
    encode = model.encode

    def counted(image: Any) -> Any:
        found.append("tile")
        return encode(image)

    monkeypatch.setattr(model, "encode", counted)
    return found


def test_tiles_embedded_before_the_panel_was_opened_are_found(
    started: SegmentController, model: Any, encoded: list[str], pixels: NDArray[np.uint8]
) -> None:
    with Session(model, open_image(pixels), embeddings=EmbeddingStore()) as session:
        session.embed(0)
    assert len(encoded) == 1
    started.settings.set_reads_ahead(False)
    started.click(INSIDE)
    started.wait()
    assert started.state.decode_ms is not None
    assert len(encoded) == 1


def test_a_place_that_cannot_be_used_costs_a_warning_only(
    controller: SegmentController,
    viewer: Any,
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv(EMBEDDINGS_VARIABLE, str(tmp_path / "file"))
    viewer.add_image(pixels, rgb=True, name="scene")
    controller.start()
    controller.wait()
    controller.click(INSIDE)
    controller.wait()
    assert controller.state.decode_ms is not None
    assert "embeddings are kept in memory only: expected a folder" in caplog.text


def test_server_that_is_gone_is_told_once_and_clicks_go_on(
    controller: SegmentController,
    viewer: Any,
    encoded: list[str],
    pixels: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nobody listens at the discard port of this machine.
    monkeypatch.setenv(SERVER_VARIABLE, "http://127.0.0.1:9")
    told: list[str] = []
    controller.worker.told.connect(told.append)
    viewer.add_image(pixels, rgb=True, name="scene")
    controller.start()
    controller.wait()
    controller.click(INSIDE)
    controller.wait()
    assert controller.state.decode_ms is not None
    assert encoded
    assert len(told) == 1
    assert "tiles are encoded here until it does" in told[0]
