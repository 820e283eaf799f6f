"""Layers: places, the user's image, hand edits, and layers that come and go."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Image, Labels
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, LabelsError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.canvas.coordinates import layer_position, place, placement
from napari_hrsam.plugin.overlay.strokes import Strokes, apply_strokes
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.state import Phase

INSIDE, BESIDE = (30, 30), (5, 5)
AFFINE = [[1.0, 0.3, 5.0], [0.1, 0.8, -7.0], [0.0, 0.0, 1.0]]
FRAMES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": (0.25, 0.5)},
    "translate": {"translate": (100, -40)},
    "rotate": {"rotate": 30, "scale": (2, 3)},
    "shear": {"shear": [0.4], "scale": (2, 3), "rotate": 20},
    "affine": {"affine": AFFINE, "scale": (2, 2)},
    "inverted": {"scale": (-1, 2), "translate": (9, 9)},
    "units": {"scale": (0.5, 0.5), "units": ("um", "um"), "axis_labels": ("y", "x")},
}


def agree(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether masks are the same but for the corners, which interpolation rounds."""
    return bool(mask.any()) and int((mask != other).sum()) <= 2 * 4


def session_on(controller: SegmentController, image: Image, **options: Any) -> None:
    controller.start(image, **options)
    controller.wait()


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_axes_of_length_one_do_not_stop_the_panel(
    num_axes: int,
    controller: SegmentController,
    viewer: ViewerModel,
    pixels: NDArray[np.uint8],
    square: NDArray[np.bool_],
) -> None:
    image = viewer.add_image(pixels.reshape(*(1,) * num_axes, *pixels.shape), rgb=True)
    session_on(controller, image)
    viewer.scene.camera.zoom = 1.0
    controller.click(INSIDE)
    controller.commit()
    controller.wait()
    assert controller.overlay is not None
    labels = np.asarray(controller.overlay.target.data)
    assert labels.shape == (*(1,) * num_axes, 64, 64)
    assert agree(labels.reshape(64, 64) == 1, square)


@pytest.mark.parametrize("frame", FRAMES)
def test_clicks_and_layers_are_right_in_any_frame(
    frame: str,
    controller: SegmentController,
    viewer: ViewerModel,
    pixels: NDArray[np.uint8],
    square: NDArray[np.bool_],
) -> None:
    image = viewer.add_image(pixels, rgb=True, **FRAMES[frame])
    viewer.dims.ndisplay = 2
    session_on(controller, image)
    viewer.scene.camera.zoom = 1 / np.abs(np.linalg.eigvals(image.affine.linear_matrix)).max()
    controller.click_world(image.data_to_world(INSIDE))
    controller.wait()
    layers = controller.overlay
    assert layers is not None
    np.testing.assert_allclose(layers.shown_prompts.layer.data, [INSIDE])
    box = layers.preview.box
    assert box is not None
    for layer in (layers.target, layers.shown_prompts.layer):
        np.testing.assert_allclose(layer.data_to_world((3, 4)), image.data_to_world((3, 4)))
        assert layer.units == image.units
        assert layer.axis_labels == image.axis_labels
    np.testing.assert_allclose(
        layers.preview.layer.data_to_world((3, 4)), image.data_to_world((3 + box.y0, 4 + box.x0))
    )
    controller.commit()
    controller.wait()
    assert agree(layers.target.data == 1, square)


def test_mixed_units_click_where_the_mouse_is(viewer: ViewerModel) -> None:
    micro = viewer.add_image(np.zeros((64, 64)), scale=(0.5, 0.5), units=("um", "um"))
    viewer.add_image(np.zeros((64, 64)), scale=(500, 500), units=("nm", "nm"))
    in_nm = np.array(micro.data_to_world((10, 20))) * 1000
    np.testing.assert_allclose(layer_position(viewer, micro, in_nm), (10, 20))


def test_a_plane_of_a_stack_beside_the_image_does_not_disturb(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.zeros((5, 64, 64)), name="stack")
    image = viewer.add_image(pixels, rgb=True)
    session_on(controller, image)
    controller.click_world((2.0, *INSIDE))
    controller.wait()
    assert controller.overlay is not None
    np.testing.assert_allclose(controller.overlay.shown_prompts.layer.data, [INSIDE])


numbers = st.floats(-50, 50).map(lambda x: round(x, 3))
scales = st.tuples(*[st.sampled_from([0.1, 0.5, 1.0, 3.0, -2.0])] * 2)


@settings(max_examples=40, deadline=None)
@given(scales, st.floats(-180, 180), st.floats(-1, 1), st.tuples(numbers, numbers), numbers)
def test_an_offset_layer_lies_on_the_pixels_of_the_image(
    scale: tuple[float, float],
    rotate: float,
    shear: float,
    translate: tuple[float, float],
    offset: float,
) -> None:
    image = Image(
        np.zeros((8, 9)),
        scale=scale,
        rotate=rotate,
        shear=[shear],
        translate=translate,
        affine=AFFINE,
    )
    made = Labels(np.zeros((4, 4), np.uint8), **placement(image, (offset, 2)))
    moved = Labels(np.zeros((4, 4), np.uint8))
    place(moved, image, (offset, 2))
    expected = image.data_to_world((1 + offset, 5))
    np.testing.assert_allclose(made.data_to_world((1, 3)), expected, atol=1e-6)
    np.testing.assert_allclose(moved.data_to_world((1, 3)), expected, atol=1e-6)


def test_layers_follow_a_moved_image(started: SegmentController, viewer: ViewerModel) -> None:
    started.click(INSIDE)
    started.wait()
    image = viewer.layers["scene"]
    image.scale = (3, 2)
    image.translate = (7, 7)
    image.rotate = 10
    layers = started.overlay
    assert layers is not None
    for layer in (*layers.own, layers.target):
        np.testing.assert_allclose(layer.data_to_world((3, 4)), image.data_to_world((3, 4)))


def snapshot(layer: Image, viewer: ViewerModel) -> dict[str, Any]:
    attributes = {name: repr(value) for name, value in layer.as_layer_data_tuple()[1].items()}
    attributes["bytes"] = hashlib.sha256(np.ascontiguousarray(layer.data).tobytes()).hexdigest()
    attributes["keymap"] = dict(layer.keymap)
    attributes["mode"] = layer.mode
    attributes["data id"] = id(layer.data)
    attributes["viewer keymap"] = dict(viewer.keymap)
    attributes["mouse"] = (
        list(viewer.mouse_drag_callbacks),
        list(viewer.mouse_double_click_callbacks),
        list(layer.mouse_drag_callbacks),
    )
    return attributes


def test_the_users_image_is_never_modified(
    controller: SegmentController, viewer: ViewerModel
) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (64, 64), np.uint16)
    image = viewer.add_image(pixels, scale=(2, 3), rotate=12, gamma=0.7, colormap="magma")

    def mine(_layer: Any) -> None:
        """A shortcut that the user made."""

    image.bind_key("C", mine)
    before = snapshot(image, viewer)
    session_on(controller, image)
    controller.click(INSIDE)
    controller.box((2, 2, 60, 60))
    controller.commit()
    controller.undo()
    controller.redo()
    controller.click(BESIDE)
    controller.cancel()
    controller.wait()
    controller.stop()
    controller.wait()
    assert snapshot(image, viewer) == before


# ------------------------------------------------------------------ hand edits


def paint(controller: SegmentController, value: int, at_yx: tuple[int, int]) -> None:
    assert controller.overlay is not None
    preview = controller.overlay.preview
    assert preview.box is not None
    preview.layer.brush_size = 1
    preview.layer.paint((at_yx[0] - preview.box.y0, at_yx[1] - preview.box.x0), value)


def test_commit_takes_what_was_painted(
    started: SegmentController, square: NDArray[np.bool_]
) -> None:
    started.click(INSIDE)
    started.wait()
    paint(started, 1, (50, 50))
    paint(started, 0, (30, 30))
    started.commit()
    started.wait()
    assert started.overlay is not None
    expected = square.copy()
    expected[50, 50], expected[30, 30] = True, False
    assert agree(started.overlay.target.data == 1, expected)
    assert started.overlay.target.data[50, 50] == 1
    assert started.overlay.target.data[30, 30] == 0


def test_strokes_survive_further_clicks_but_not_the_object(
    started: SegmentController, square: NDArray[np.bool_]
) -> None:
    started.click(INSIDE)
    started.wait()
    paint(started, 1, (50, 50))
    started.click((32, 32))
    started.commit()
    started.click(INSIDE)
    started.wait()
    layers = started.overlay
    assert layers is not None
    assert agree(layers.target.data == 1, square)
    assert layers.target.data[50, 50] == 1
    assert layers.preview.strokes() is None


def test_an_untouched_preview_commits_the_prediction(started: SegmentController) -> None:
    started.click(INSIDE)
    started.wait()
    assert started.overlay is not None
    assert started.overlay.preview.strokes() is None
    paint(started, 1, (30, 31))
    assert started.overlay.preview.strokes() is None, "painting over the object changes nothing"


def test_undo_takes_strokes_first(started: SegmentController, square: NDArray[np.bool_]) -> None:
    started.click(INSIDE)
    started.wait()
    layers = started.overlay
    assert layers is not None
    paint(started, 1, (50, 50))
    started.undo()
    assert layers.preview.strokes() is None
    assert agree(layers.preview.layer.data != 0, square)
    started.redo()
    assert layers.preview.layer.data[50, 50] == 1
    started.undo()
    started.undo()
    started.wait()
    assert not layers.preview.layer.data.any()
    assert started.state.num_prompts == 0


def test_old_strokes_are_not_pasted_into_a_new_prediction(started: SegmentController) -> None:
    started.click(INSIDE)
    started.wait()
    paint(started, 1, (50, 50))
    layers = started.overlay
    assert layers is not None
    layers.preview.layer.mode = "paint"
    started.click((32, 32))
    started.wait()
    before = layers.preview.layer.data.copy()
    layers.preview.layer.undo()
    np.testing.assert_array_equal(layers.preview.layer.data, before)
    assert str(layers.preview.layer.mode) == "paint"


def test_edits_that_could_not_be_committed_come_back(started: SegmentController) -> None:
    started.click(INSIDE)
    started.commit()
    started.wait()
    started.click(INSIDE)
    started.wait()
    paint(started, 0, (30, 30))
    started.commit()
    with pytest.raises(LabelsError):
        started.wait()
    assert started.overlay is not None
    assert started.overlay.preview.layer.data[30, 30] == 0
    paint(started, 1, (50, 50))
    started.commit()
    started.wait()
    assert started.overlay.target.data[50, 50] == 2


def test_edits_outside_the_box_are_left_out() -> None:
    edits = Strokes(Box(0, 0, 2, 2), np.array([[1, 2], [2, 0]], np.uint8))
    mask = np.array([[True, True], [False, True]])
    shifted = apply_strokes(mask, Box(1, 1, 3, 3), edits)
    np.testing.assert_array_equal(shifted, [[False, True], [False, True]])
    np.testing.assert_array_equal(apply_strokes(mask, Box(5, 5, 7, 7), edits), mask)


# ------------------------------------------------------------------ targets


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint32])
def test_commits_to_a_chosen_layer(
    dtype: type, started: SegmentController, viewer: ViewerModel, square: NDArray[np.bool_]
) -> None:
    data = np.zeros((64, 64), dtype)
    data[0, 0] = 7
    mine = viewer.add_labels(data, name="mine")
    session_on(started, viewer.layers["scene"], target=mine)
    started.click(INSIDE)
    started.commit()
    started.wait()
    assert agree(np.asarray(mine.data) == 8, square)
    assert mine.data[0, 0] == 7
    assert np.dtype(mine.data.dtype).itemsize >= 4
    started.stop()
    started.wait()
    assert mine in viewer.layers


def bad_targets() -> dict[str, tuple[Labels, str]]:
    zeros = np.zeros((64, 64), np.uint32)
    frozen = zeros.copy()
    frozen.flags.writeable = False
    return {
        "shape": (Labels(np.zeros((32, 64), np.uint32)), "image's shape"),
        "place": (Labels(zeros, scale=(2, 2)), "another scale or position"),
        "multiscale": (Labels([zeros, zeros[::2, ::2]]), "multiscale"),
        "negative": (Labels(np.full((64, 64), -1, np.int32)), "negative"),
        "read-only": (Labels(frozen), "written to"),
    }


@pytest.mark.parametrize("kind", bad_targets())
def test_a_target_that_does_not_fit_is_told(
    kind: str, started: SegmentController, viewer: ViewerModel
) -> None:
    layer, message = bad_targets()[kind]
    viewer.add_layer(layer)
    with pytest.raises(LabelsError, match=message):
        started.start(viewer.layers["scene"], target=layer)
    assert started.state.phase is Phase.STOPPED


def test_going_on_with_the_sessions_own_empty_target(
    started: SegmentController, viewer: ViewerModel
) -> None:
    assert started.overlay is not None
    kept = started.overlay.target
    session_on(started, viewer.layers["scene"], target=kept)
    assert started.overlay is not None
    assert started.overlay.target == kept
    assert kept in viewer.layers


# ------------------------------------------------------------------ layers that come and go


@pytest.mark.parametrize("name", ["scene", "scene [objects]", "scene [current]", "scene [prompts]"])
def test_removing_a_needed_layer_ends_the_session_with_a_message(
    name: str, started: SegmentController, viewer: ViewerModel, model: Any
) -> None:
    model.gate.clear()
    started.click(INSIDE)
    assert model.waiting.wait(120)
    viewer.layers.remove(name)
    assert started.state.phase is Phase.STOPPED
    model.gate.set()
    with pytest.raises(SessionError, match="was removed"):
        started.wait()
    assert started.state.is_error
    assert not any("current" in layer.name for layer in viewer.layers)
    if name != "scene":
        session_on(started, viewer.layers["scene"])
        assert started.state.phase is Phase.READY


def test_removing_all_layers_at_once(started: SegmentController, viewer: ViewerModel) -> None:
    viewer.layers.selection = set(viewer.layers)
    viewer.layers.remove_selected()
    with pytest.raises(SessionError, match="was removed"):
        started.wait()
    assert len(viewer.layers) == 0


def test_renamed_and_hidden_layers_do_no_harm(
    started: SegmentController, viewer: ViewerModel, model: Any, square: NDArray[np.bool_]
) -> None:
    model.gate.clear()
    started.click(INSIDE)
    for layer in viewer.layers:
        layer.name = f"renamed {layer.name}"
        layer.visible = False
    model.gate.set()
    started.commit()
    started.wait()
    assert started.overlay is not None
    assert agree(started.overlay.target.data == 1, square)


def test_replaced_pixels_end_the_session_with_a_message(
    started: SegmentController, viewer: ViewerModel, model: Any
) -> None:
    model.gate.clear()
    started.click(INSIDE)
    viewer.layers["scene"].data = np.zeros((32, 32, 3), np.uint8)
    model.gate.set()
    with pytest.raises(SessionError, match="was replaced"):
        started.wait()
    session_on(started, viewer.layers["scene"])
    assert started.state.phase is Phase.READY


# ------------------------------------------------------------------ images


def test_without_an_image_layer_it_says_what_to_do(controller: SegmentController) -> None:
    with pytest.raises(ImageError, match="open an image"):
        controller.start()


def test_a_labels_layer_is_no_image(controller: SegmentController, viewer: ViewerModel) -> None:
    labels = viewer.add_labels(np.zeros((64, 64), np.uint8))
    with pytest.raises(ImageError, match="Labels layer"):
        controller.start(labels)


def test_level_0_of_a_pyramid_is_taken(
    controller: SegmentController,
    viewer: ViewerModel,
    pixels: NDArray[np.uint8],
    square: NDArray[np.bool_],
) -> None:
    image = viewer.add_image([pixels, pixels[::2, ::2]], rgb=True, multiscale=True)
    session_on(controller, image)
    controller.click(INSIDE)
    controller.commit()
    controller.wait()
    assert controller.overlay is not None
    assert agree(controller.overlay.target.data == 1, square)


@pytest.mark.parametrize("dtype", [bool, np.int16, np.uint16, np.uint32, np.float32, ">f8"])
def test_pixel_types(
    dtype: Any, controller: SegmentController, viewer: ViewerModel, square: NDArray[np.bool_]
) -> None:
    grey = np.zeros((64, 64), dtype)
    grey[24:40, 20:44] = 1
    session_on(controller, viewer.add_image(grey))
    controller.click(INSIDE)
    controller.wait()
    assert controller.overlay is not None
    assert agree(controller.overlay.preview.layer.data == 1, square)


def test_constant_and_partly_nan_images_work(
    controller: SegmentController, viewer: ViewerModel
) -> None:
    holes = np.ones((64, 64))
    holes[10:20], holes[20, 20] = np.nan, np.inf
    for data in (np.full((64, 64), 7, np.uint8), holes, np.ones((1, 64))):
        session_on(controller, viewer.add_image(data, contrast_limits=(0, 8)))
        controller.click((0, 5))
        controller.wait()
        assert controller.state.num_prompts == 1


def test_an_image_of_nan_is_told(controller: SegmentController, viewer: ViewerModel) -> None:
    viewer.add_image(np.full((64, 64), np.nan), contrast_limits=(0, 1))
    controller.start()
    with pytest.raises(ImageError, match="finite pixel"):
        controller.wait()
    assert controller.state.phase is Phase.STOPPED
    assert controller.state.is_error


def test_an_empty_image_is_told(
    controller: SegmentController, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image(np.zeros((4, 64)))
    # napari makes no layer of an empty array, but other array types may lose their pixels later.
    monkeypatch.setattr(Image, "data", property(lambda _: np.zeros((0, 64))))
    with pytest.raises(ImageError, match="empty"):
        controller.start(image)


def test_a_scale_of_nan_is_told(controller: SegmentController) -> None:
    image = Image(np.zeros((64, 64)), scale=(np.nan, 1))
    with pytest.raises(ImageError, match="finite scale"):
        controller.start(image)
