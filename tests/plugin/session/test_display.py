"""What the model sees is what is on screen, also when that changes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from numpy.typing import NDArray

from napari_hrsam.engine.session import Session
from napari_hrsam.geometry import Tile
from napari_hrsam.plugin.canvas.display_watch import QUIET_S
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.storage.embeddings.store import EmbeddingStore
from napari_hrsam.storage.images.fingerprint import identify

INSIDE, BESIDE = (30.0, 30.0), (5.0, 5.0)


@pytest.fixture
def counts(square: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """(64, 64) uint16: a square of 3000 on a ground that rises from 500 to 900."""
    counts = np.tile(np.linspace(500, 900, 64), (64, 1))
    counts[square] = 3000
    return counts.astype(np.uint16)


@pytest.fixture
def encoded(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8]]:
    """The pictures that the model encoded."""
    found: list[NDArray[np.uint8]] = []
    encode = model.encode

    def noted(image: Any) -> Any:
        found.append(image[0].cpu().numpy().transpose(1, 2, 0))
        return encode(image)

    monkeypatch.setattr(model, "encode", noted)
    return found


def session_of(controller: SegmentController) -> Session:
    session = controller.worker._session._session
    assert session is not None
    return session


def seen(controller: SegmentController) -> NDArray[np.uint8]:
    """The picture that the model sees now."""
    return session_of(controller).image.read(Tile(0, 0, 0, 64))


def key(controller: SegmentController) -> str:
    return identify(session_of(controller).image).digest


def start(controller: SegmentController, layer: Any, **options: Any) -> None:
    controller.settings.set_reads_ahead(False)
    controller.start(layer, **options)
    controller.wait()


def wait_for_quiet(controller: SegmentController) -> None:
    """Deliver as a window does."""
    end = time.monotonic() + 20
    while controller._context.display_watch.is_pending and time.monotonic() < end:
        time.sleep(0.02)
        controller.worker.deliver()
    controller.wait()


CHANGES: dict[str, dict[str, Any]] = {
    "limits": {"contrast_limits": (700, 1200)},
    "gamma": {"gamma": 0.5},
    "colormap": {"colormap": "viridis"},
    "inverted": {"colormap": "gray_r"},
    "opacity": {"opacity": 0.5},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_start_is_seen_as_by_a_fresh_start(
    change: str, controller: SegmentController, viewer: ViewerModel, counts: NDArray[np.uint16]
) -> None:
    layer = viewer.add_image(counts, contrast_limits=(0, 65535))
    start(controller, layer)
    before, old = seen(controller), key(controller)
    for name, value in CHANGES[change].items():
        setattr(layer, name, value)
    wait_for_quiet(controller)
    assert controller.state.message.startswith("The model sees the image as it is on screen now.")
    after, new = seen(controller), key(controller)
    assert not np.array_equal(after, before)
    start(controller, layer)
    np.testing.assert_array_equal(seen(controller), after)
    assert old != key(controller) == new


def test_the_object_keeps_its_prompts_and_is_looked_at_again(
    controller: SegmentController,
    viewer: ViewerModel,
    counts: NDArray[np.uint16],
    square: NDArray[np.bool_],
    encoded: list[Any],
) -> None:
    layer = viewer.add_image(counts, contrast_limits=(0, 65535))
    start(controller, layer)
    controller.click(INSIDE)
    controller.click(BESIDE, positive=False)
    controller.wait()
    blurred = session_of(controller).prediction
    assert blurred is not None
    assert not np.array_equal(blurred.mask, square)
    layer.contrast_limits = (0, 3000)
    controller.wait()
    assert len(encoded) == 2
    assert encoded[-1].max() > 5 * encoded[0].max()
    session = session_of(controller)
    assert session.prompts.points_yx == (INSIDE, BESIDE)
    assert controller.state.num_prompts == 2
    assert controller.overlay is not None
    assert len(controller.overlay.shown_prompts.layer.data) == 2
    controller.undo()
    controller.commit()
    controller.wait()
    target = controller.overlay.target.data == 1
    assert int((target != square).sum()) <= 8
    assert controller.state.num_committed == 1
    controller.undo()
    controller.wait()
    assert not controller.overlay.target.data.any(), "commits can still be taken back"


def test_nothing_is_encoded_while_a_slider_is_dragged(
    controller: SegmentController,
    viewer: ViewerModel,
    counts: NDArray[np.uint16],
    encoded: list[Any],
) -> None:
    layer = viewer.add_image(counts, contrast_limits=(0, 65535))
    start(controller, layer)
    controller.click(INSIDE)
    controller.wait()
    assert len(encoded) == 1
    for high in range(60_000, 3000, -3000):
        layer.contrast_limits = (0, high)
        time.sleep(QUIET_S / 10)
        controller.worker.deliver()
    assert len(encoded) == 1
    wait_for_quiet(controller)
    assert len(encoded) == 2
    # Back and forth is no change.
    layer.gamma = 0.5
    layer.gamma = 1.0
    wait_for_quiet(controller)
    assert len(encoded) == 2


def test_a_click_is_for_what_is_on_screen_at_that_moment(
    controller: SegmentController,
    viewer: ViewerModel,
    counts: NDArray[np.uint16],
    encoded: list[Any],
) -> None:
    layer = viewer.add_image(counts, contrast_limits=(0, 65535))
    start(controller, layer)
    layer.contrast_limits = (0, 3000)
    controller.click(INSIDE)
    controller.wait()
    assert len(encoded) == 1
    assert encoded[0][30, 30, 0] == pytest.approx(encoded[0].max())
    assert seen(controller)[30, 30, 0] == 255


def test_a_change_while_the_model_is_loaded_is_not_lost(
    controller: SegmentController, viewer: ViewerModel, counts: NDArray[np.uint16]
) -> None:
    layer = viewer.add_image(counts, contrast_limits=(0, 65535))
    controller.start(layer)
    layer.contrast_limits = (0, 3000)
    controller.wait()
    assert seen(controller)[30, 30, 0] == 255


def test_channels_come_go_and_change_places(
    controller: SegmentController, viewer: ViewerModel, square: NDArray[np.bool_]
) -> None:
    options: dict[str, Any] = {"contrast_limits": (0, 255), "blending": "additive"}
    one = viewer.add_image(square * np.uint8(200), colormap="magenta", name="one", **options)
    two = viewer.add_image(~square * np.uint8(100), colormap="green", name="two", **options)

    def colours() -> tuple[list[int], list[int]]:
        wait_for_quiet(controller)
        picture = seen(controller)
        return picture[30, 30].tolist(), picture[5, 5].tolist()

    start(controller, one)
    assert colours() == ([200, 0, 200], [0, 100, 0])
    assert controller.image_layer is one
    two.visible = False
    assert colours() == ([200, 0, 200], [0, 0, 0])
    two.visible, one.visible = True, False
    assert colours() == ([0, 0, 0], [0, 100, 0])
    two.visible = False
    assert colours() == ([200, 0, 200], [0, 0, 0]), "the image alone where nothing is visible"
    one.visible = two.visible = True
    two.blending = "multiplicative"
    assert colours() == ([0, 0, 0], [0, 0, 0])
    viewer.layers.move(viewer.layers.index(two), 0)
    assert colours() == ([200, 0, 200], [0, 100, 0])
    three = viewer.add_image(square * np.uint8(55), colormap="green", name="three", **options)
    assert colours() == ([200, 55, 200], [0, 100, 0])
    viewer.layers.remove(three)
    viewer.layers.remove(two)
    assert colours() == ([200, 0, 200], [0, 0, 0])
    assert not controller.state.is_error


def test_layers_chosen_as_colours_follow_limits_and_gamma_only(
    controller: SegmentController, viewer: ViewerModel, square: NDArray[np.bool_]
) -> None:
    one = viewer.add_image(square * np.uint8(100), contrast_limits=(0, 200), name="one")
    two = viewer.add_image(~square * np.uint8(100), contrast_limits=(0, 200), name="two")
    start(controller, one, channels={"green": two})
    assert "does not see 'one' itself" in controller.state.message
    start(controller, one, channels={"red": one, "green": two})
    assert "does not see" not in controller.state.message
    two.visible, two.colormap, two.gamma, one.contrast_limits = False, "blue", 0.5, (0, 100)
    wait_for_quiet(controller)
    np.testing.assert_allclose(seen(controller)[30, 30], (255, 0, 0), atol=1)
    np.testing.assert_allclose(seen(controller)[5, 5], (0, 255 * 0.5**0.5, 0), atol=1)


def test_old_tiles_leave_memory_and_stay_on_disk(
    controller: SegmentController,
    viewer: ViewerModel,
    counts: NDArray[np.uint16],
    encoded: list[Any],
) -> None:
    layer = viewer.add_image(counts, contrast_limits=(0, 65535))
    start(controller, layer)
    assert isinstance(session_of(controller)._embeddings, EmbeddingStore)
    controller.click(INSIDE)
    controller.wait()
    for limits in ((0, 3000), (0, 65535), (0, 3000)):
        old = session_of(controller)._tiles
        layer.contrast_limits = limits
        controller.wait()
        assert not old._seen
    assert len(encoded) == 2, "each picture is encoded once"


def test_a_session_that_ended_follows_no_more(
    started: SegmentController, viewer: ViewerModel
) -> None:
    image = viewer.layers["scene"]
    image.gamma = 0.5
    started.stop()
    image.gamma = 0.7
    time.sleep(1.5 * QUIET_S)
    started.wait()
    assert not started._context.display_watch.is_pending
    assert started.state.message.startswith("Choose an image")
