"""An object that was cancelled, as the commands that draw it once more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from napari_hrsam.plugin.session import commands
from napari_hrsam.prompts import Prompts

if TYPE_CHECKING:
    from napari_hrsam.plugin.overlay.overlay import GivenUp


def commands_of(object_: GivenUp) -> Iterator[commands.Step]:
    """Yield the commands that draw an object again, in the order in which it was drawn."""
    prompts, level, plane = object_.prompts, object_.level, object_.plane
    taken = Prompts()
    if object_.label:
        taken = object_.taken_prompts
        yield commands.TakeUp(object_.label, plane)
    elif object_.carried:
        taken = object_.taken_prompts
        label, from_plane = object_.carried
        yield commands.ContinueOn(plane, from_plane, label)
    if prompts.box is not None and prompts.box != taken.box:
        yield commands.SetBox(prompts.box, level, plane)
    scribbles = [
        (one.num_clicks, commands.AddScribble(one.points_yx, one.positive, level, plane))
        for one in prompts.scribbles[len(taken.scribbles) :]
    ]
    clicks = list(enumerate(zip(prompts.points_yx, prompts.labels, strict=True)))
    for number, (point, positive) in clicks[len(taken.points_yx) :]:
        while scribbles and scribbles[0][0] <= number:
            yield scribbles.pop(0)[1]
        yield commands.Click(point, positive, level, plane)
    for _, scribble in scribbles:
        yield scribble
