"""Committed objects in the colours of their classes, on the canvas."""

from __future__ import annotations

from napari_hrsam.plugin.session.controller import SegmentController

GREY = (184, 184, 184)


def shown(controller: SegmentController, label: int) -> tuple[int, ...]:
    assert controller.overlay is not None
    color = controller.overlay.target.colormap.map(label)
    return tuple(round(255 * float(part)) for part in color[:3])


def commit(controller: SegmentController, place: tuple[float, float]) -> None:
    controller.click(place)
    controller.commit()
    controller.wait()


def test_objects_have_the_colours_of_their_classes_while_asked_for(
    started: SegmentController,
) -> None:
    commit(started, (30.0, 30.0))
    commit(started, (5.0, 5.0))
    own = shown(started, 1), shown(started, 2)
    started.classes.change(lambda told: told.setting_class([1], "cell"))
    started.wait()
    assert (shown(started, 1), shown(started, 2)) == own
    started.settings.set_colors_by_class(True)
    started.wait()
    [cell] = started.objects.list.classes
    assert shown(started, 1) == cell.color
    assert shown(started, 2) == GREY
    started.classes.change(lambda told: told.changing_class("cell", color=(1, 2, 3)))
    started.classes.change(lambda told: told.setting_class([2], "debris"))
    started.wait()
    debris = started.objects.list.properties.color_of(2)
    assert (shown(started, 1), shown(started, 2)) == ((1, 2, 3), debris)
    started.undo()
    started.wait()
    assert shown(started, 2) == GREY
    started.settings.set_colors_by_class(False)
    assert (shown(started, 1), shown(started, 2)) == own


def test_the_next_session_begins_in_these_colours_and_can_leave_them(
    started: SegmentController,
) -> None:
    commit(started, (30.0, 30.0))
    own = shown(started, 1)
    started.settings.set_colors_by_class(True)
    started.wait()
    target = started.target_in_use
    started.stop()
    started.wait()
    started.start(target=target)
    started.wait()
    assert started.state.colors_by_class
    assert shown(started, 1) == GREY
    started.settings.set_colors_by_class(False)
    assert shown(started, 1) == own
