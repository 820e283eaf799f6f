"""A cancelled object as the commands that draw it again."""

from __future__ import annotations

from napari_hrsam.plugin.overlay.overlay import GivenUp
from napari_hrsam.plugin.session import commands
from napari_hrsam.plugin.session.replay import commands_of
from napari_hrsam.prompts import Prompts

PLANE, LEVEL = (3,), 1
CLICK = commands.Click((5.0, 6.0), True, LEVEL, PLANE)
BOX = commands.SetBox((1, 2, 20, 30), LEVEL, PLANE)
STROKE = commands.AddScribble(((7.0, 8.0), (9.0, 9.0)), False, LEVEL, PLANE)
LATER = commands.Click((8.0, 4.0), False, LEVEL, PLANE)

FIRST = Prompts().with_click(CLICK.point_yx, True)
ALL = (
    FIRST.with_scribble(STROKE.points_yx, False)
    .with_click(LATER.point_yx, False)
    .with_box(BOX.box_yxyx)
)


def given_up(
    label: int = 0, taken: Prompts | None = None, carried: tuple[int, tuple[int, ...]] | None = None
) -> GivenUp:
    return GivenUp(
        prompts=ALL,
        label=label,
        taken_prompts=taken or Prompts(),
        plane=PLANE,
        level=LEVEL,
        strokes=None,
        carried=carried,
    )


def test_a_new_object_is_drawn_by_all_its_prompts_in_their_order() -> None:
    assert list(commands_of(given_up())) == [BOX, CLICK, STROKE, LATER]


def test_one_that_was_taken_up_gets_only_what_was_added_to_it() -> None:
    take_up = commands.TakeUp(4, PLANE)
    assert list(commands_of(given_up(4, FIRST))) == [take_up, BOX, STROKE, LATER]
    assert list(commands_of(given_up(4, ALL))) == [take_up]


def test_one_that_was_continued_is_continued_again() -> None:
    first, *others = commands_of(given_up(taken=FIRST, carried=(4, (2,))))
    assert isinstance(first, commands.ContinueOn)
    assert (first.plane, first.from_plane, first.label) == (PLANE, (2,), 4)
    assert others == [BOX, STROKE, LATER]
