"""Objects continued on other planes of a stack, and propagated over several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from numpy.typing import NDArray

from napari_hrsam.errors import HRSAMError, LabelsError, PromptError, SessionError
from napari_hrsam.plugin.session.controller import SegmentController

NUM, SIDE = 6, 24
GONE = 5
"""The first plane without the object."""
NOWHERE = (0, -50, 900)


def place(z: int) -> tuple[slice, slice]:
    """Where the object lies: it moves by 4 pixels per plane."""
    return slice(20, 20 + SIDE), slice(12 + 4 * z, 12 + 4 * z + SIDE)


def inside(z: int) -> tuple[float, float]:
    return 30, 24 + 4 * z


@pytest.fixture
def stack() -> NDArray[np.uint8]:
    """(6, 64, 64, 3): a red square that moves, on green, gone on the last plane."""
    image = np.zeros((NUM, 64, 64, 3), np.uint8)
    image[..., 1] = 120
    for z in range(GONE):
        image[z][place(z)] = (230, 10, 10)
    return image


@pytest.fixture
def started(
    controller: SegmentController, viewer: ViewerModel, stack: NDArray[np.uint8]
) -> SegmentController:
    viewer.add_image(stack, rgb=True, name="stack")
    viewer.scene.camera.zoom = 1.0
    controller.start()
    controller.wait()
    go(controller, 1)
    viewer.cursor.position = NOWHERE
    return controller


def go(controller: SegmentController, z: int) -> None:
    assert controller.overlay is not None
    controller.overlay.view.show_plane((z,))


def shown_plane(controller: SegmentController) -> tuple[int, ...]:
    assert controller.overlay is not None
    return controller.overlay.view.plane()


def labels(controller: SegmentController) -> NDArray[Any]:
    """What is stored, all planes."""
    assert controller.overlay is not None
    layer = controller.overlay.target
    levels = layer.data if layer.multiscale else [layer.data]
    return np.asarray(levels[0])


def is_object(mask: NDArray[np.bool_], z: int) -> bool:
    there = np.zeros(mask.shape, bool)
    there[place(z)] = True
    return bool((mask & there).sum() / (mask | there).sum() > 0.85)


def commit(controller: SegmentController, z: int = 1) -> None:
    go(controller, z)
    controller.click(inside(z))
    controller.commit()
    controller.wait()


def test_the_current_object_is_continued_and_the_view_goes_along(
    started: SegmentController,
) -> None:
    started.click(inside(1))
    started.planes.continue_on()
    assert shown_plane(started) == (2,)
    assert started.state.has_object, "before it is answered"
    started.wait()
    assert started.state.message.startswith("Object 1 continued from plane 1. ")
    assert not started.state.elsewhere
    assert started.overlay is not None
    assert started.overlay.plane == (2,)
    assert started.overlay.preview.num_pixels
    stored = labels(started)
    assert is_object(stored[1] == 1, 1), "shown as committed"
    assert not np.delete(stored, 1, 0).any()
    started.planes.continue_on(-2)
    started.wait()
    assert shown_plane(started) == (0,)
    started.commit()
    started.wait()
    assert started.state.message.startswith("Object 1 on plane 0 was committed")
    assert [bool((plane == 1).any()) for plane in labels(started)] == [True] * 3 + [False] * 3
    assert all(is_object(labels(started)[z] == 1, z) for z in range(3))
    for _ in range(3):
        started.undo()
        started.wait()
    assert not labels(started).any()


def test_what_was_painted_goes_along(started: SegmentController) -> None:
    started.click(inside(1))
    started.wait()
    assert started.overlay is not None
    preview = started.overlay.preview
    assert preview.box is not None
    preview.layer.brush_size = 1
    preview.layer.paint((0, 22 - preview.box.y0, 18 - preview.box.x0), 0)
    assert started.overlay.preview.strokes() is not None
    started.planes.continue_on()
    started.wait()
    assert labels(started)[1, 22, 18] == 0
    assert labels(started)[1, 23, 18] == 1


def test_a_committed_object_is_continued(started: SegmentController, viewer: ViewerModel) -> None:
    commit(started, 1)
    started.planes.continue_on()
    started.wait()
    assert "Object 1 continued" in started.state.message, "the one committed last"
    started.cancel()
    started.wait()
    go(started, 1)
    started.undo()
    started.wait()
    started.cancel()
    go(started, 1)
    viewer.cursor.position = (1, *inside(1))
    started.planes.continue_on(-1)
    started.wait()
    assert "Object 1 continued" in started.state.message, "the one under the mouse"
    started.commit()
    started.wait()
    assert (labels(started)[0] == 1).any()
    assert set(np.unique(labels(started))) == {0, 1}


def test_what_was_continued_and_cancelled_comes_back_under_its_id(
    started: SegmentController,
) -> None:
    commit(started, 1)
    started.planes.continue_on()
    started.click((5, 5), positive=False)
    started.wait()
    assert started.state.num_prompts == 2
    started.cancel()
    started.wait()
    assert not started.state.has_object
    go(started, 0)
    started.undo()
    started.wait()
    assert shown_plane(started) == (2,)
    assert started.state.num_prompts == 2
    started.commit()
    started.wait()
    assert is_object(labels(started)[2] == 1, 2)
    assert set(np.unique(labels(started))) == {0, 1}


def test_one_that_is_cancelled_at_once_leaves_the_one_before_committed(
    started: SegmentController,
) -> None:
    started.click(inside(1))
    started.planes.continue_on()
    started.cancel()
    started.wait()
    assert not started.state.has_object
    assert is_object(labels(started)[1] == 1, 1)
    assert not labels(started)[2].any()


def test_prompts_and_commits_may_follow_before_it_is_answered(started: SegmentController) -> None:
    started.click(inside(1))
    started.planes.continue_on()
    started.click((5, 5), positive=False)
    started.commit()
    started.wait()
    assert is_object(labels(started)[2] == 1, 2)


def test_where_it_cannot_go_everything_stays(started: SegmentController) -> None:
    for ask in (started.planes.continue_on, partial_propagate(started)):
        with pytest.raises(PromptError, match="no object to continue"):
            ask()
    commit(started, 0)
    with pytest.raises(PromptError, match="the stack ends here: expected a plane from 0 to 5"):
        started.planes.continue_on(-1)
    go(started, 1)
    started.click(inside(1))
    started.wait()
    go(started, 3)
    with pytest.raises(PromptError, match="the object is on plane 1, and this is plane 3"):
        started.planes.continue_on()
    go(started, 1)
    with pytest.raises(SessionError, match="being drawn"):
        started.planes.continue_on(1, 1)
    before = labels(started)
    started.cancel()
    go(started, 0)
    started.planes.continue_on(1, 7)
    with pytest.raises(LabelsError, match="got 7"):
        started.wait()
    assert shown_plane(started) == (0,), "back to where it was"
    assert not started.state.has_object
    np.testing.assert_array_equal(labels(started), before)


def partial_propagate(controller: SegmentController) -> Callable[[], None]:
    return lambda: controller.planes.propagate(2)


def test_an_object_that_is_there_already_is_named(started: SegmentController) -> None:
    commit(started, 1)
    started.planes.continue_on()
    started.commit()
    started.wait()
    go(started, 1)
    started.objects.edit(1)
    started.planes.continue_on()
    with pytest.raises(HRSAMError, match="object 1 is not drawn yet"):
        started.wait()
    assert started.state.has_object, "still taken up"
    assert shown_plane(started) == (1,)


def test_a_flat_image_is_no_stack(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    viewer.add_image(pixels, rgb=True, name="flat")
    controller.start()
    controller.wait()
    controller.click((30, 30))
    assert not controller.state.is_stack
    for ask in (controller.planes.continue_on, partial_propagate(controller)):
        with pytest.raises(SessionError, match="'flat' is no stack"):
            ask()


def test_an_object_is_propagated_until_it_is_gone(started: SegmentController) -> None:
    assert started.state.is_stack
    seen: list[tuple[int, int]] = []
    started.worker.progress.connect(lambda _, *at: seen.append(at))
    started.click(inside(1))
    started.planes.propagate(10)
    started.wait()
    assert seen[0] == (0, 10)
    assert started.state.progress is None
    assert shown_plane(started) == (4,), "the last one"
    message = started.state.message
    assert message.startswith(
        "Object 1 was committed on 3 planes, as far as plane 4. Not on plane 5"
    )
    assert all(is_object(labels(started)[z] == 1, z) for z in range(1, GONE))
    assert not labels(started)[[0, 5]].any()
    started.undo()
    started.wait()
    assert [bool(plane.any()) for plane in labels(started)] == [False] + [True] * 3 + [False] * 2
    go(started, 1)
    started.planes.propagate(-5, 1)
    started.wait()
    assert started.state.message == (
        "Object 1 was committed on 1 plane, as far as plane 0: the stack ends here."
    )


def test_a_propagation_that_is_cancelled_keeps_what_is_done(
    started: SegmentController, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(started, 1)
    session = started.worker._session._session
    assert session is not None
    propagate = session.propagate

    def halted(*given: Any, progress: Any, **more: Any) -> Any:
        def once(done: int, total: int) -> None:
            if done == 2:
                started.worker._commit.cancel()  # type: ignore[union-attr]
            progress(done, total)

        return propagate(*given, progress=once, **more)

    monkeypatch.setattr(session, "propagate", halted)
    started.planes.propagate(4)
    started.wait()
    assert started.state.message == "Stopped: 2 committed. Ctrl+Z undoes each."
    assert [bool(plane.any()) for plane in labels(started)] == [False] + [True] * 3 + [False] * 2
    assert not started.state.has_object
    assert started.state.progress is None


def test_cancel_reaches_a_propagation_under_way(started: SegmentController, model: Any) -> None:
    commit(started, 1)
    model.gate.clear()
    model.waiting.clear()
    started.planes.propagate(4)
    assert model.waiting.wait(120)
    started.worker.deliver()
    assert started.state.progress == (0, 4)
    started.cancel()
    assert started.state.message == "Stopping ..."
    model.gate.set()
    started.wait()
    assert started.state.message.startswith("Stopped: ")
    assert not labels(started)[4].any()


def test_the_brush_works_only_on_the_plane_of_the_current_object(
    started: SegmentController,
) -> None:
    """napari's brush raises an error on a plane that the layer lacks."""
    started.click(inside(1))
    started.wait()
    assert started.overlay is not None
    layer = started.overlay.preview.layer
    layer.mode = "paint"
    assert str(layer.mode) == "paint"
    assert started.state.tool
    go(started, 2)
    assert str(layer.mode) == "pan_zoom"
    assert not started.state.tool
    layer.mode = "paint"
    assert str(layer.mode) == "pan_zoom"
    assert not started.state.tool
    go(started, 1)
    layer.mode = "paint"
    assert str(layer.mode) == "paint"


def test_an_object_is_drawn_here_too_and_between(started: SegmentController) -> None:
    commit(started, 0)
    go(started, 4)
    # The object moved so far that the model finds another one: a click says where it is.
    started.planes.continue_here()
    started.click(inside(4))
    started.commit()
    started.wait()
    assert set(np.unique(labels(started))) == {0, 1}
    assert not labels(started)[1:4].any()
    started.planes.interpolate()
    started.wait()
    found = labels(started)
    assert all((found[z] == 1).any() for z in range(5))
    assert "on 3 planes" in started.state.message
    for _ in range(3):
        started.undo()
    started.wait()
    assert not labels(started)[1:4].any()
    assert labels(started)[4].any()


def test_what_cannot_be_filled_in_is_told(started: SegmentController) -> None:
    with pytest.raises(PromptError, match="no object to continue here"):
        started.planes.continue_here()
    commit(started, 1)
    with pytest.raises(PromptError, match="no object to continue here"):
        started.planes.continue_here()
    started.planes.interpolate()
    with pytest.raises(LabelsError, match="on another plane with some between"):
        started.wait()
    started.click((2, 2))
    started.wait()
    with pytest.raises(SessionError, match="before filling in another one"):
        started.planes.interpolate()


def test_a_click_leaves_the_slider_as_long_as_the_stack(
    started: SegmentController, viewer: ViewerModel
) -> None:
    before = viewer.dims.range
    viewer.scene.camera.zoom = 0.1
    started.click(inside(1))
    started.wait()
    assert viewer.dims.range == before
