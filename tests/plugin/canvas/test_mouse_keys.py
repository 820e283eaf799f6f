"""Mouse and keys on a viewer without a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mouse_events import LEFT, MIDDLE, RIGHT, drag, mouse_event
from napari.components import ViewerModel
from napari.utils.interactions import (
    mouse_double_click_callbacks,
    mouse_move_callbacks,
    mouse_press_callbacks,
    mouse_release_callbacks,
)
from napari.utils.key_bindings import KeymapHandler

from napari_hrsam.plugin.canvas.mouse import DragTool
from napari_hrsam.plugin.session.controller import SegmentController

INSIDE, BESIDE = (30, 30), (5, 5)


def prompts(controller: SegmentController) -> list[tuple[tuple[float, ...], int]]:
    controller.wait()
    assert controller.overlay is not None
    points = controller.overlay.shown_prompts.layer
    labels = points.features["label"] if len(points.data) else []
    return [(tuple(p), int(n)) for p, n in zip(points.data, labels, strict=True)]


@pytest.mark.parametrize(
    ("button", "modifiers", "label"),
    [
        (LEFT, (), 1),
        (RIGHT, (), 0),
        (LEFT, ("Control",), 0),
        (LEFT, ("Shift",), 0),
    ],
)
def test_buttons_and_modifiers_give_the_sign(
    button: int,
    modifiers: tuple[str, ...],
    label: int,
    started: SegmentController,
    viewer: ViewerModel,
) -> None:
    drag(viewer, INSIDE, button=button, modifiers=modifiers)
    assert prompts(started) == [(INSIDE, label)]


def test_polarity_can_be_swapped(started: SegmentController, viewer: ViewerModel) -> None:
    started.state.update(is_subtracting=True)
    drag(viewer, INSIDE)
    drag(viewer, BESIDE, button=RIGHT)
    assert [label for _, label in prompts(started)] == [0, 1]


@pytest.mark.parametrize(("button", "modifiers"), [(MIDDLE, ()), (LEFT, ("Alt",))])
def test_other_buttons_are_left_alone(
    button: int, modifiers: tuple[str, ...], started: SegmentController, viewer: ViewerModel
) -> None:
    drag(viewer, INSIDE, button=button, modifiers=modifiers)
    assert prompts(started) == []


def test_a_drag_is_left_to_napari(started: SegmentController, viewer: ViewerModel) -> None:
    assert not drag(viewer, (10, 10), (40, 40))
    assert prompts(started) == []
    drag(viewer, INSIDE, (31, 32))
    assert len(prompts(started)) == 1, "a hand that trembles still clicks"


@pytest.mark.parametrize("with_tool", [False, True])
def test_a_box_is_drawn(with_tool: bool, started: SegmentController, viewer: ViewerModel) -> None:
    started.state.update(drag_tool=DragTool.BOX if with_tool else DragTool.PAN)
    modifiers = () if with_tool else ("Shift",)
    assert drag(viewer, (40, 24), (8, 6), modifiers=modifiers), "the view must not move"
    started.wait()
    assert started.overlay is not None
    assert not started.overlay.prompts.points_yx
    dots = started.overlay.shown_prompts.layer.data
    np.testing.assert_allclose(dots.min(axis=0), (8, 6))
    np.testing.assert_allclose(dots.max(axis=0), (40, 24))
    assert started.state.num_prompts == 1


def test_a_box_is_shown_while_it_is_drawn(started: SegmentController, viewer: ViewerModel) -> None:
    press = mouse_event((10, 10), (10, 10), modifiers=("Shift",))
    mouse_press_callbacks(viewer, press)
    mouse_move_callbacks(
        viewer, mouse_event((30, 40), (40, 30), "mouse_move", modifiers=("Shift",))
    )
    assert started.overlay is not None
    assert len(started.overlay.shown_prompts.layer.data) > 4
    assert started.state.num_prompts == 0
    mouse_move_callbacks(
        viewer, mouse_event((11, 11), (11, 11), "mouse_move", modifiers=("Shift",))
    )
    mouse_release_callbacks(
        viewer, mouse_event((11, 11), (11, 11), "mouse_release", modifiers=("Shift",))
    )
    assert prompts(started) == [((11, 11), 0)]


def test_a_double_click_that_another_plugin_added_meanwhile_is_kept(
    started: SegmentController, viewer: ViewerModel
) -> None:
    def other(*_: Any) -> None:
        """Do nothing."""

    viewer.mouse_double_click_callbacks.append(other)
    started.stop()
    assert viewer.mouse_double_click_callbacks[-1] is other
    assert len(viewer.mouse_double_click_callbacks) == 2, "and napari's own"


def test_a_double_click_clicks_and_does_not_zoom(
    started: SegmentController, viewer: ViewerModel
) -> None:
    zoom = viewer.scene.camera.zoom
    drag(viewer, INSIDE)
    mouse_double_click_callbacks(viewer, mouse_event(INSIDE, INSIDE, "mouse_double_click"))
    assert len(prompts(started)) == 2
    assert viewer.scene.camera.zoom == zoom
    started.stop()
    mouse_double_click_callbacks(viewer, mouse_event(INSIDE, INSIDE, "mouse_double_click"))
    assert viewer.scene.camera.zoom != zoom


def test_painting_is_left_to_napari(started: SegmentController, viewer: ViewerModel) -> None:
    assert started.overlay is not None
    viewer.layers.selection.active = started.overlay.preview.layer
    started.overlay.preview.layer.mode = "paint"
    drag(viewer, INSIDE)
    assert prompts(started) == []
    started.overlay.preview.layer.mode = "pan_zoom"
    drag(viewer, INSIDE)
    assert len(prompts(started)) == 1


def test_a_click_beside_the_image_goes_to_the_status_line(
    started: SegmentController, viewer: ViewerModel
) -> None:
    drag(viewer, (-20, 10))
    assert started.state.is_error
    assert "outside the image 'scene'" in started.state.message


def press(viewer: ViewerModel, key: str, active: Any) -> None:
    """Press a key as the canvas does: the active layer is asked first."""
    handler = KeymapHandler()
    handler.keymap_providers = [active, viewer]
    handler.press_key(key)


@pytest.mark.parametrize("name", ["scene", "objects", "current", "prompts"])
def test_keys_work_whatever_layer_is_active(
    name: str, started: SegmentController, viewer: ViewerModel
) -> None:
    assert started.overlay is not None
    layer = next(layer for layer in viewer.layers if name in layer.name.split("[")[-1])
    limits = viewer.layers["scene"].contrast_limits
    started.click(INSIDE)
    press(viewer, "C", layer)
    started.wait()
    assert started.overlay.target.data.max() == 1
    press(viewer, "Control-Z", layer)
    started.wait()
    assert started.overlay.target.data.max() == 0
    press(viewer, "Control-Shift-Z", layer)
    started.wait()
    assert started.overlay.target.data.max() == 1
    started.click(BESIDE)
    press(viewer, "Escape", layer)
    started.wait()
    assert started.state.num_prompts == 0
    press(viewer, "T", layer)
    press(viewer, "B", layer)
    assert started.state.is_subtracting
    assert started.state.drag_tool is DragTool.BOX
    assert viewer.layers["scene"].contrast_limits == limits


def test_keys_work_with_no_layer_active(started: SegmentController, viewer: ViewerModel) -> None:
    started.click(INSIDE)
    handler = KeymapHandler()
    handler.keymap_providers = [viewer]
    handler.press_key("C")
    started.wait()
    assert started.state.num_committed == 1


def test_undo_in_the_painted_target_is_its_own(
    started: SegmentController, viewer: ViewerModel
) -> None:
    assert started.overlay is not None
    target = started.overlay.target
    started.click(INSIDE)
    started.commit()
    started.wait()
    viewer.layers.selection.active = target
    target.mode = "paint"
    target.paint((60, 60), 9)
    press(viewer, "Control-Z", target)
    started.wait()
    assert target.data[60, 60] == 0
    assert target.data.max() == 1, "the commit stays"
    press(viewer, "Control-Shift-Z", target)
    assert target.data[60, 60] == 9


def test_paused_tools_leave_mouse_and_keys_alone(
    started: SegmentController, viewer: ViewerModel
) -> None:
    started.canvas.set_paused(True)
    assert started.overlay is not None
    assert not viewer.keymap
    assert not started.overlay.preview.layer.keymap
    drag(viewer, INSIDE)
    assert prompts(started) == []
    started.canvas.set_paused(False)
    drag(viewer, INSIDE)
    assert len(prompts(started)) == 1


def test_close_gives_everything_back(started: SegmentController, viewer: ViewerModel) -> None:
    before = ViewerModel()
    started.close()
    assert len(viewer.mouse_drag_callbacks) == len(before.mouse_drag_callbacks)
    assert viewer.mouse_double_click_callbacks == before.mouse_double_click_callbacks
    assert not viewer.keymap
    viewer.scene.camera.zoom = 3
    viewer.layers.clear()
