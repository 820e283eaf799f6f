"""What the user said about one object: clicks and a box, in level-0 pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import PromptError
from napari_hrsam.geometry import Box, pixel_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """All prompts of one object, in the order in which they were given.

    Values are copied to plain floats and bools, so that prompts never change once made, compare by
    value and can be saved.

    Attributes
    ----------
    points_yx : tuple of (float, float)
        Clicks in level-0 pixels, pixel centres at integers.
    labels : tuple of bool
        One per click: True for "inside the object", False for "outside".
    box : (y0, x0, y1, x1) or None
        Half-open box around the object in level-0 pixels, floats allowed.

    Raises
    ------
    PromptError
        If a coordinate is not finite, the numbers of points and labels differ, or the box is
        inverted or has no area.
    """

    points_yx: tuple[tuple[float, float], ...] = ()
    labels: tuple[bool, ...] = ()
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        """Copy to plain values and check them."""
        points = tuple(_point(point) for point in self.points_yx)
        if len(points) != len(self.labels):
            raise PromptError(
                f"expected one label per point, got {len(points)} points and "
                f"{len(self.labels)} labels; give True (inside) or False (outside) for each point"
            )
        object.__setattr__(self, "points_yx", points)
        object.__setattr__(self, "labels", tuple(bool(label) for label in self.labels))
        if self.box is not None:
            object.__setattr__(self, "box", _box(self.box))

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.points_yx) + (self.box is not None)

    def with_click(self, point_yx: Sequence[float], positive: bool) -> Prompts:
        """Return these prompts and one more click."""
        return replace(
            self,
            points_yx=(*self.points_yx, _point(point_yx)),
            labels=(*self.labels, bool(positive)),
        )

    def with_box(self, box_yxyx: Sequence[float]) -> Prompts:
        """Return these prompts with this box, which replaces an earlier one."""
        return replace(self, box=_box(box_yxyx))

    def consistent(self) -> Prompts:
        """Return the prompts without the clicks that a newer one of the other sign contradicts.

        Two clicks contradict each other when they lie on one level-0 pixel; the newest wins.
        """
        newest = dict(zip(map(pixel_of, self.points_yx), self.labels, strict=True))
        kept = [
            (point, label)
            for point, label in zip(self.points_yx, self.labels, strict=True)
            if newest[pixel_of(point)] == label
        ]
        return replace(
            self,
            points_yx=tuple(point for point, _ in kept),
            labels=tuple(label for _, label in kept),
        )

    def extent_yx(self) -> NDArray[np.float64]:
        """Points (N, 2) that a tile must hold to hold these prompts: clicks and corner pixels."""
        points = list(self.points_yx)
        if self.box is not None:
            y0, x0, y1, x1 = self.box
            points.append((math.floor(y0), math.floor(x0)))
            points.append((math.ceil(y1) - 1, math.ceil(x1) - 1))
        return np.array(points, dtype=np.float64).reshape(-1, 2)

    def inside(self, shape_yx: tuple[int, int]) -> Prompts:
        """Return these prompts, checked against an image; a box beyond it is cut there.

        Raises
        ------
        PromptError
            If a click, or the whole box, lies outside the image.
        """
        height, width = shape_yx
        for y, x in self.points_yx:
            if not Box.of_shape(shape_yx).contains((y, x)):
                raise PromptError(
                    f"expected a click inside the image of shape (y, x) = ({height}, {width}), "
                    f"got (y, x) = ({y:g}, {x:g}); coordinates are level-0 pixels in (y, x) order"
                )
        if self.box is None:
            return self
        y0, x0, y1, x1 = self.box
        clipped = max(y0, 0.0), max(x0, 0.0), min(y1, float(height)), min(x1, float(width))
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            raise PromptError(
                f"expected a box inside the image of shape (y, x) = ({height}, {width}), got "
                f"(y0, x0, y1, x1) = {_text(self.box)}; coordinates are level-0 pixels, y first"
            )
        return replace(self, box=clipped)


def _numbers(values: Sequence[float], count: int, what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise PromptError(f"expected {what} as {count} numbers, got {values!r}") from error
    if len(numbers) != count:
        raise PromptError(
            f"expected {what} as {count} numbers, got {len(numbers)}: {_text(numbers)}"
        )
    if not all(math.isfinite(number) for number in numbers):
        raise PromptError(
            f"expected {what} with finite coordinates, got {_text(numbers)}; "
            "check the scale and the transform of the layer that the prompt came from"
        )
    return numbers


def _point(values: Sequence[float]) -> tuple[float, float]:
    y, x = _numbers(values, 2, "a click (y, x)")
    return y, x


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    y0, x0, y1, x1 = _numbers(values, 4, "a box (y0, x0, y1, x1)")
    if y0 >= y1 or x0 >= x1:
        raise PromptError(
            "expected a box (y0, x0, y1, x1) with y0 < y1 and x0 < x1, got "
            f"{_text((y0, x0, y1, x1))}; give the upper left corner first, and some area"
        )
    return y0, x0, y1, x1


def _text(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"


def given_prompts(
    points: Sequence[Sequence[float]] | NDArray[Any] | None,
    point_labels: Sequence[bool | int] | NDArray[Any] | None,
    box: Sequence[float] | None,
    shape_yx: tuple[int, int],
) -> Prompts:
    """Make prompts of what a call was given, checked against an image of a shape.

    Parameters
    ----------
    points : sequence of (y, x), optional
    point_labels : sequence of bool or int, optional
        1 (inside) or 0 (outside) per point; by default all are inside.
    box : (y0, x0, y1, x1), optional
    shape_yx : (int, int)

    Raises
    ------
    PromptError
        If there is none, or one is malformed or outside the image.
    """
    given = [] if points is None else list(points)
    if len(given) == 2 and all(np.ndim(value) == 0 for value in given):
        y, x = given
        raise PromptError(
            f"expected a list of points, got one point ({y}, {x}); write points=[({y}, {x})]"
        )
    labels = [True] * len(given) if point_labels is None else list(point_labels)
    if any(label not in (0, 1) for label in labels):
        raise PromptError(f"expected point labels of 1 (inside) or 0 (outside), got {labels!r}")
    prompts = Prompts(points_yx=tuple(given), labels=tuple(labels))
    prompts = (prompts if box is None else prompts.with_box(box)).inside(shape_yx)
    if len(prompts) == 0:
        raise PromptError("expected at least one point or a box, got none; say where the object is")
    return prompts
