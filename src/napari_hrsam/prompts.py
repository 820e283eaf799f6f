"""What the user said about one object: clicks, scribbles and a box, in level-0 pixels."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import PromptError
from napari_hrsam.geometry import Box, pixel_of

MAX_SCRIBBLE_POINTS = 10_000
"""Points of one scribble; no hand draws more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scribble:
    """A freehand stroke inside the object, or outside of it.

    Attributes
    ----------
    points_yx : tuple of (float, float)
        One or more, in level-0 pixels, pixel centres at integers; joined by straight lines.
    positive : bool
        True for "inside the object", False for "outside".
    num_clicks : int
        Clicks of the object that were made before it.
    told_yx : tuple of (float, float)
        The clicks on it by which the model was told of it: its prompt encoder knows no strokes.

    Raises
    ------
    PromptError
        If there is no point, there are more than `MAX_SCRIBBLE_POINTS`, or a coordinate is not
        finite.
    """

    points_yx: tuple[tuple[float, float], ...]
    positive: bool = True
    num_clicks: int = 0
    told_yx: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        """Copy to plain values and check them."""
        try:
            num = len(self.points_yx)
        except TypeError:
            num = 0
        if not 1 <= num <= MAX_SCRIBBLE_POINTS:
            raise PromptError(
                f"expected a scribble of 1 to {MAX_SCRIBBLE_POINTS:,} points (y, x), got "
                f"{num:,}; give an (N, 2) array, and leave out points that lie close together"
            )
        points = tuple(_point(point, "a point of a scribble (y, x)") for point in self.points_yx)
        object.__setattr__(self, "points_yx", points)
        object.__setattr__(self, "positive", bool(self.positive))
        object.__setattr__(self, "num_clicks", int(self.num_clicks))
        object.__setattr__(self, "told_yx", tuple(_point(point) for point in self.told_yx))

    def along(self, step_px: float = 1.0) -> NDArray[np.float64]:
        """Points (N, 2) along the stroke, at most a step apart, with both ends."""
        points = np.array(self.points_yx)
        parts = [points[:1]]
        for start, end in itertools.pairwise(points):
            num = max(1, math.ceil(math.dist(start, end) / step_px))
            parts.append(start + np.arange(1, num + 1)[:, None] / num * (end - start))
        return np.concatenate(parts)

    def spread(self, num: int) -> NDArray[np.float64]:
        """Points (N, 2), at most ``num``, each in the middle of an equal share of the length."""
        num = min(num, 1 + int(self.length_px))
        return self._at((np.arange(num) + 0.5) / num)

    def evenly(self, num: int) -> NDArray[np.float64]:
        """Points (num, 2) spread evenly over the length of the stroke, from end to end."""
        return self._at(np.linspace(0, 1, num))

    @property
    def length_px(self) -> float:
        """Length of the stroke."""
        return float(self._lengths[-1])

    @property
    def _lengths(self) -> NDArray[np.float64]:
        """Length of the stroke up to each of its points."""
        steps = np.linalg.norm(np.diff(np.array(self.points_yx), axis=0), axis=1)
        return np.concatenate([[0.0], np.cumsum(steps)])

    def _at(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        points, lengths = np.array(self.points_yx), self._lengths
        places = shares * lengths[-1]
        return np.stack([np.interp(places, lengths, points[:, axis]) for axis in (0, 1)], axis=1)


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
    scribbles : tuple of Scribble
        Freehand strokes; each tells how many clicks came before it.

    Raises
    ------
    PromptError
        If a coordinate is not finite, the numbers of points and labels differ, or the box is
        inverted or has no area.
    """

    points_yx: tuple[tuple[float, float], ...] = ()
    labels: tuple[bool, ...] = ()
    box: tuple[float, float, float, float] | None = None
    scribbles: tuple[Scribble, ...] = ()

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
        object.__setattr__(self, "scribbles", tuple(self.scribbles))

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.points_yx) + (self.box is not None) + len(self.scribbles)

    @property
    def num_points(self) -> int:
        """Points of all prompts: clicks, those of scribbles, and one for a box."""
        return len(self) + sum(len(scribble.points_yx) - 1 for scribble in self.scribbles)

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

    def with_scribble(
        self, points_yx: Sequence[Sequence[float]] | NDArray[Any], positive: bool
    ) -> Prompts:
        """Return these prompts and one more scribble."""
        scribble = Scribble(
            points_yx=points_yx,  # type: ignore[arg-type]  # copied and checked
            positive=positive,
            num_clicks=len(self.points_yx),
        )
        return replace(self, scribbles=(*self.scribbles, scribble))

    def with_lasso(self, points_yx: Sequence[Sequence[float]] | NDArray[Any]) -> Prompts:
        """Return these prompts with an outline drawn around the object, which closes by itself.

        SAM's prompt encoder knows no outlines: it counts as its box, and a click at the place
        inside that is farthest from it. Where it crosses itself, odd windings are inside.

        Raises
        ------
        PromptError
            If it has fewer than 3 points or encloses less than one pixel.
        """
        stroke = Scribble(points_yx=points_yx)  # type: ignore[arg-type]  # copied and checked
        points: NDArray[np.float64] = np.array(stroke.points_yx)
        low, high = points.min(axis=0), points.max(axis=0)
        if len(points) < 3 or min(high - low) < 1:
            raise PromptError(
                f"expected an outline of 3 or more points around a pixel, got {len(points)} points "
                "that enclose nothing; draw around the object"
            )
        (y0, x0), (y1, x1) = low - 0.5, high + 0.5
        return self.with_box((y0, x0, y1, x1)).with_click(_deepest(points), True)

    def telling(self, point_yx: tuple[float, float]) -> Prompts:
        """Return these prompts with one more click told of the newest scribble."""
        *before, newest = self.scribbles
        newest = replace(newest, told_yx=(*newest.told_yx, point_yx))
        return replace(self, scribbles=(*before, newest))

    def one_by_one(self) -> Iterator[Prompts]:
        """Go through the prompts as they were given, one more each time; the box comes first.

        The clicks that a model was told of a scribble are left out: another one may need others.
        """
        told = Prompts(box=self.box)
        if self.box is not None:
            yield told
        scribbles = [replace(scribble, told_yx=()) for scribble in self.scribbles]
        for number in range(len(self.points_yx) + 1):
            while scribbles and scribbles[0].num_clicks == number:
                told = replace(told, scribbles=(*told.scribbles, scribbles.pop(0)))
                yield told
            if number < len(self.points_yx):
                told = told.with_click(self.points_yx[number], self.labels[number])
                yield told

    def since(self, before: Prompts) -> Prompts:
        """Return the clicks and scribbles that were given after some of these prompts."""
        num = len(before.points_yx)
        return Prompts(
            points_yx=self.points_yx[num:],
            labels=self.labels[num:],
            scribbles=self.scribbles[len(before.scribbles) :],
        )

    def consistent(self) -> Prompts:
        """Return the prompts without the clicks that a newer prompt of the other sign contradicts.

        Two clicks contradict each other when they lie on one level-0 pixel, a click and a scribble
        when it lies on a pixel of the stroke; the newest wins. Scribbles are kept as they are:
        what a newer prompt says of one of their pixels does not touch the others.
        """
        newest = dict(zip(map(pixel_of, self.points_yx), self.labels, strict=True))
        drawn = [
            (scribble, np.floor(scribble.along(0.5) + 0.5))
            for scribble in self.scribbles
            if self.points_yx
        ]
        kept: list[int] = []
        for number, (point, label) in enumerate(zip(self.points_yx, self.labels, strict=True)):
            is_drawn_over = any(
                scribble.num_clicks > number
                and scribble.positive != label
                and bool((pixels == pixel_of(point)).all(axis=1).any())
                for scribble, pixels in drawn
            )
            if newest[pixel_of(point)] == label and not is_drawn_over:
                kept.append(number)
        return self.keeping(kept)

    def seen_in(self, box: Box) -> Prompts:
        """Return the prompts without the negative clicks outside a box."""
        clicks = enumerate(zip(self.points_yx, self.labels, strict=True))
        return self.keeping([n for n, (point, label) in clicks if label or box.contains(point)])

    def keeping(self, kept: Sequence[int]) -> Prompts:
        """Return the prompts with some of the clicks, given by their numbers in rising order."""
        return replace(
            self,
            points_yx=tuple(self.points_yx[number] for number in kept),
            labels=tuple(self.labels[number] for number in kept),
            scribbles=tuple(
                replace(scribble, num_clicks=bisect_left(kept, scribble.num_clicks))
                for scribble in self.scribbles
            ),
        )

    def as_clicks(self) -> Prompts:
        """Return the prompts with clicks in place of every scribble: those told, or its middle.

        A click that a newer prompt of the other sign contradicts is not among them.
        """
        if not self.scribbles:
            return self
        points: list[tuple[float, float]] = []
        labels: list[bool] = []
        scribbles: list[Scribble] = []
        done = 0
        for scribble in self.scribbles:
            points += self.points_yx[done : scribble.num_clicks]
            labels += self.labels[done : scribble.num_clicks]
            done = scribble.num_clicks
            along = scribble.told_yx or scribble.spread(1).tolist()
            points += [(y, x) for y, x in along]
            labels += [scribble.positive] * len(along)
            scribbles.append(replace(scribble, num_clicks=len(points)))
        points += self.points_yx[done:]
        labels += self.labels[done:]
        told = Prompts(
            points_yx=tuple(points),
            labels=tuple(labels),
            box=self.box,
            scribbles=tuple(scribbles),
        )
        return replace(told.consistent(), scribbles=())

    def extent_yx(self) -> NDArray[np.float64]:
        """Points (N, 2) that a tile must hold: clicks, strokes, and corner pixels of the box."""
        points = list(self.points_yx)
        for scribble in self.scribbles:
            points += scribble.points_yx
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
            If a click, a point of a scribble, or the whole box, lies outside the image.
        """
        height, width = shape_yx
        places = [("a click", point) for point in self.points_yx]
        for scribble in self.scribbles:
            places += [("a scribble", point) for point in scribble.points_yx]
        for what, (y, x) in places:
            if not Box.of_shape(shape_yx).contains((y, x)):
                raise PromptError(
                    f"expected {what} inside the image of shape (y, x) = ({height}, {width}), "
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


def _deepest(points: NDArray[np.float64]) -> tuple[float, float]:
    """Return about the place inside a polygon (N, 2) that is farthest from its outline.

    It is looked for on a grid of 33 x 33 places over the polygon's box.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    points = points[:: math.ceil(len(points) / 500)]
    # Halves between: the outline itself, along a row or a column, is on neither side.
    steps = (np.arange(33) + 0.5) / 33
    y, x = (low[axis] + steps * (high[axis] - low[axis]) for axis in (0, 1))
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    start, end = points[None], np.roll(points, -1, axis=0)[None]
    along = end - start
    crosses = (start[..., 0] > grid[..., 0]) != (end[..., 0] > grid[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        at = start[..., 1] + (grid[..., 0] - start[..., 0]) * along[..., 1] / along[..., 0]
    is_inside = (crosses & (grid[..., 1] < at)).sum(axis=1) % 2 == 1
    if not is_inside.any():
        y0, x0 = points.mean(axis=0)
        return float(y0), float(x0)
    length = np.maximum((along**2).sum(axis=-1), 1e-12)
    share = np.clip(((grid - start) * along).sum(axis=-1) / length, 0, 1)
    apart = np.linalg.norm(grid - start - share[..., None] * along, axis=-1).min(axis=1)
    y0, x0 = grid[np.argmax(np.where(is_inside, apart, -1)), 0]
    return float(y0), float(x0)


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


def _point(values: Sequence[float], what: str = "a click (y, x)") -> tuple[float, float]:
    y, x = _numbers(values, 2, what)
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
