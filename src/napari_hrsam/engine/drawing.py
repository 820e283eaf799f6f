"""The object that a session draws: its prompts, and what the model makes of them step by step."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.carried import SAME_OVERLAP, Carried, click_in
from napari_hrsam.engine.click_correction import to_low_res
from napari_hrsam.engine.embed import Progress
from napari_hrsam.engine.local_correction import STROKE_PLACES, is_deep
from napari_hrsam.engine.multiscale_mask import MultiscaleMask
from napari_hrsam.engine.object_predictor import ObjectPredictor, TileResult
from napari_hrsam.engine.outline import Refiner, refine_outline
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.engine.predictor import Embedding
from napari_hrsam.engine.taken_up import StoredMask, TakenUp, prediction_of, take_up
from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.geometry import Box, Tile, TileGrid, best_level, pixel_of
from napari_hrsam.prompts import Prompts, Scribble
from napari_hrsam.storage.images.tile_source import PyramidImage
from napari_hrsam.storage.labels.store import LabelStore

MAX_TOLD = 5
"""Clicks by which the model is told of one scribble."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The current object after one prompt, or as it was taken up.

    ``focused`` is the embedding that was refined for the object, if that is done: steps share it,
    and it goes with them. ``first_level`` is where the object was first looked at. ``taken`` is
    what it was in the label image before, ``carried`` what it was on the plane that it comes from.
    """

    prompts: Prompts
    prediction: Prediction
    focused: Embedding | None
    first_level: int
    taken: TakenUp | None = None
    carried: Carried | None = None

    @property
    def label(self) -> int:
        """The id that it has in the label image; 0 for a new object."""
        known = self.taken or self.carried
        return 0 if known is None else known.label


class Drawing:
    """One object at a time, in steps that can be taken back.

    Parameters
    ----------
    image : PyramidImage
        What is annotated.
    objects : ObjectPredictor
        The model on it.
    outliner : Refiner
        Draws outlines at finer levels.

    Attributes
    ----------
    steps : tuple of Step
        Of the current object; empty between objects.
    undone : list of tuple of Step
        What can be drawn again; the last one is the next.
    """

    def __init__(self, image: PyramidImage, objects: ObjectPredictor, outliner: Refiner) -> None:
        self._image = image
        self._objects = objects
        self._outliner = outliner
        self.steps: tuple[Step, ...] = ()
        self.undone: list[tuple[Step, ...]] = []

    @property
    def step(self) -> Step | None:
        """The last step."""
        return self.steps[-1] if self.steps else None

    @property
    def prompts(self) -> Prompts:
        """All prompts of the current object."""
        return self.steps[-1].prompts if self.steps else Prompts()

    @property
    def prediction(self) -> Prediction | None:
        """The current object, or None between objects."""
        return self.steps[-1].prediction if self.steps else None

    def required(self) -> Step:
        """Return the last step; `SessionError` if there is none."""
        if not self.steps:
            raise SessionError("expected an object to commit, got none; click on one first")
        return self.steps[-1]

    def end(self) -> None:
        """Forget the object, and all that could be drawn again."""
        self.steps = ()
        self.undone.clear()

    def cancel(self) -> None:
        """Drop the object; it can be drawn again."""
        if self.steps:
            self.undone.append(self.steps)
            self.steps = ()

    def undo(self) -> None:
        """Take back the last step."""
        self.undone.append(self.steps)
        self.steps = self.steps[:-1]

    def redo(self) -> None:
        """Take back the last `undo` or `cancel`."""
        self.steps = self.undone.pop()

    def draw(self, prompts: Prompts, first_level: int, plane: tuple[int, ...]) -> Prediction:
        """Predict from all prompts, as a new step; only a success changes anything.

        Parameters
        ----------
        prompts : Prompts
            All of the object.
        first_level : int
            Level at which a new object is looked at.
        plane : tuple of int
        """
        started = time.perf_counter()
        prompts = prompts.inside(self._image.shape_yx)
        step = self.step
        first_level = first_level if step is None else step.first_level
        tile = self._tile_for(prompts, first_level, plane)
        scribbles = prompts.scribbles
        untold = scribbles[-1] if scribbles and not scribbles[-1].told_yx else None
        if untold is not None:
            mask = None if step is None else step.prediction.multiscale
            place = self._place_to_tell(untold, mask, plane)
            prompts = prompts.telling(place or _middle(untold))
        result, results = self._look(tile, prompts, first_level)
        for _ in range(MAX_TOLD - 1 if untold is not None else 0):
            assert untold is not None
            seen = MultiscaleMask(result.tile, result.logits, self._image.shape_yx)
            place = self._place_to_tell(untold, seen, plane)
            if place is None:
                break
            prompts = prompts.telling(place)
            result = self._look_again(result, prompts)
            results.append(result)
        consistent = prompts.consistent()
        result = self._objects.obey(result, consistent)
        prediction = self._prediction(result, results, consistent, started)
        new = Step(prompts, prediction, result.focused, first_level)
        if step is not None:
            new = replace(new, taken=step.taken, carried=step.carried)
        self._take(new)
        return prediction

    def peek(self, prompts: Prompts, first_level: int, plane: tuple[int, ...]) -> Prediction:
        """Predict for a new object from these prompts, but take no step."""
        steps, undone = self.steps, self.undone
        self.steps, self.undone = (), []
        try:
            return self.draw(prompts, first_level, plane)
        finally:
            self.steps, self.undone = steps, undone

    def _look(
        self, tile: Tile, prompts: Prompts, first_level: int
    ) -> tuple[TileResult, list[TileResult]]:
        """Ask the model in a tile, and where it shows the object better."""
        step, consistent = self.step, prompts.consistent()
        told = consistent.seen_in(tile.box0)
        if step is None:
            return self._objects.predict(tile, told, None, None, first_level)
        if step.taken is not None:
            return self._corrected(tile, prompts, step, step.taken)
        prior = step.prediction.logits if step.prediction.tile == tile else None
        best, results = self._objects.predict(tile, told, prior, step.focused, first_level)
        if self._means_a_part(prompts, step):
            # What is meant may be too small to be seen in any tile that holds all the clicks.
            numbers = [n for n, label in enumerate(consistent.labels) if label]
            clicks = consistent.keeping(numbers)
            grid = self._objects.grid(tile, 0)
            part, looks = self._objects.predict(
                grid.smallest_holding(clicks.extent_yx()), clicks, None, None, 0
            )
            results += looks
            if part.iou > best.iou and self._is_outside(part, consistent):
                best = part
        return best, results

    def _means_a_part(self, prompts: Prompts, step: Step) -> bool:
        """Whether the new prompt is a negative click in the body of a large object.

        Then not a piece of the mask is wrong but nearly all of it: what was clicked on at first is
        much smaller.
        """
        new, tile = prompts.since(step.prompts), step.prediction.tile
        return (
            tile.level > 0
            and not (prompts.scribbles or prompts.box)
            and new.labels == (False,)
            and True in prompts.consistent().labels
            and is_deep(new.points_yx[0], step.prediction.logits, tile)
        )

    def _is_outside(self, result: TileResult, prompts: Prompts) -> bool:
        """Whether all negative clicks lie outside a mask."""
        mask = MultiscaleMask(result.tile, result.logits, self._image.shape_yx)
        clicks = zip(prompts.points_yx, prompts.labels, strict=True)
        return not any(mask.read(_pixel(*point)).item() for point, label in clicks if not label)

    def _look_again(self, result: TileResult, prompts: Prompts) -> TileResult:
        """Ask the model again, which is told more of the same."""
        step = self.step
        if step is not None and step.taken is not None:
            return self._corrected(result.tile, prompts, step, step.taken)[0]
        return self._objects.predict_tile(
            result.tile,
            prompts.consistent().seen_in(result.tile.box0),
            result.low_res,
            result.focused,
        )

    def _corrected(
        self, tile: Tile, prompts: Prompts, step: Step, taken: TakenUp
    ) -> tuple[TileResult, list[TileResult]]:
        # A new box says where all of the object is.
        new = prompts.since(step.prompts) if prompts.box == step.prompts.box else None
        return self._objects.correct(
            tile, prompts.consistent(), new, step.prediction.multiscale, step.focused, taken.box
        )

    def _place_to_tell(
        self, scribble: Scribble, mask: MultiscaleMask | None, plane: tuple[int, ...]
    ) -> tuple[float, float] | None:
        """Return the middle of the longest part of a stroke where a mask contradicts it, if any."""
        places = scribble.spread(STROKE_PLACES).tolist()
        wrong = [
            (mask is None or mask.read(_pixel(y, x)).item() != scribble.positive)
            # The model would see nothing but the fill.
            and (not scribble.positive or self._is_present((y, x), plane))
            for y, x in places
        ]
        ends = np.flatnonzero(np.diff([False, *wrong, False]))
        if ends.size == 0:
            return None
        start, end = max(
            zip(ends[::2], ends[1::2], strict=True), key=lambda part: part[1] - part[0]
        )
        y, x = places[(start + end) // 2]
        return y, x

    def take_up(
        self,
        labels: LabelStore,
        label: int,
        plane: tuple[int, ...],
        stored: tuple[int, ...],
        first_level: int,
    ) -> Prediction:
        """Begin with an object of the label image as it is there.

        Parameters
        ----------
        labels : LabelStore
        label : int
        plane, stored : tuple of int
            Its plane, of the image and of the label image.
        first_level : int
            Level at which a new object would be looked at.
        """
        taken, mask = take_up(labels, label, stored)
        grid = TileGrid(self._image.shape_yx, self._objects.predictor.tile_px, 0, plane)
        prediction = prediction_of(mask, taken.box, taken.prompts, grid, first_level)
        self._take(Step(taken.prompts, prediction, None, first_level, taken))
        return prediction

    def carry(self, carried: Carried, first_level: int, plane: tuple[int, ...]) -> Prediction:
        """Begin with an object of another plane: the model is shown its mask, and looks for it.

        Parameters
        ----------
        carried : Carried
        first_level : int
            Level at which a new object would be looked at.
        plane : tuple of int
            Where it is looked for.
        """
        started = time.perf_counter()
        box = Prompts(box=carried.loose_box(self._image.shape_yx))
        tile = self._tile_for(box, first_level, plane)
        logits = carried.logits_on(tile)
        click = click_in(logits, tile, self._image.shape_yx)
        # Where the image has no data, the model would see nothing but the fill.
        prompts = Prompts().with_click(click, True) if self._is_present(click, plane) else box
        result, results = self._objects.predict(tile, prompts, None, None, first_level)
        overlap = carried.overlap(result.tile, result.logits)
        if overlap < SAME_OVERLAP:
            # The click alone may mean another object, or a part; with the mask, it is this one.
            other, looks = self._objects.predict(
                tile, prompts, to_low_res(logits), None, first_level
            )
            results += looks
            if carried.overlap(other.tile, other.logits) > overlap:
                result = other
        prediction = self._prediction(result, results, prompts, started)
        self._take(Step(prompts, prediction, result.focused, first_level, carried=carried))
        return prediction

    def follow(self, steps: tuple[Step, ...]) -> None:
        """Take the steps of another drawing on the same image, shown otherwise."""
        for step in steps:
            if step.taken is not None and not self.steps:
                self._take(replace(step, focused=None))
            elif step.carried is not None and not self.steps:
                self.carry(step.carried, step.first_level, step.prediction.tile.plane)
            else:
                self.draw(step.prompts, step.first_level, step.prediction.tile.plane)

    def candidates(self) -> tuple[Prediction, ...]:
        """Return the masks that the prompts may mean, likeliest first."""
        started = time.perf_counter()
        step = self.required()
        if len(step.prompts) == 0:
            raise SessionError(
                "expected a prompt that may mean several masks, got an object as it was taken up; "
                "click on it first"
            )
        tile = step.prediction.tile
        before = self.steps[-2] if len(self.steps) > 1 else None
        if before is None and step.taken is not None:
            before = step
        prior = None
        if before is not None and before.prediction.tile == tile:
            prior = before.prediction.logits
        consistent = step.prompts.consistent().seen_in(tile.box0)
        results = [
            self._objects.obey(result, consistent)
            for result in self._objects.candidates(tile, consistent, prior, step.focused)
        ]
        return tuple(
            self._prediction(result, results[:1], consistent, started) for result in results
        )

    def choose(self, candidate: Prediction) -> None:
        """Take a candidate, as a new step."""
        step = self.required()
        if candidate.tile != step.prediction.tile:
            raise SessionError(
                "expected one of the candidates of the current object, got a prediction in "
                "another tile; call candidates() again"
            )
        self._take(replace(step, prediction=candidate))

    def refine_outline(self, level: int, progress: Progress | None) -> Prediction:
        """Draw the outline at a finer level, where that is coarser; no new step."""
        step = self.required()
        prediction = step.prediction
        if prediction.multiscale.level <= level:
            return prediction
        multiscale = refine_outline(
            self._image,
            self._outliner,
            prediction.multiscale,
            step.prompts.consistent() if self._objects.enforce_clicks else Prompts(),
            level,
            progress,
        )
        prediction = replace(prediction, multiscale=multiscale)
        self.steps = (*self.steps[:-1], replace(step, prediction=prediction))
        return prediction

    def require_data(self, points_yx: NDArray[np.float64], plane: tuple[int, ...]) -> None:
        """Refuse places at none of which the model would see anything but the fill."""
        if not any(self._is_present((y, x), plane) for y, x in points_yx.tolist()):
            y, x = points_yx[-1]
            raise PromptError(
                f"no data here: the image's pixel at {pixel_of((y, x))} (y, x) is missing (NaN, "
                "infinite, masked, transparent or declared no data), so no object can be there; "
                "click on a pixel of the object, or paint it"
            )

    def _take(self, step: Step) -> None:
        self.steps = (*self.steps, step)
        self.undone.clear()

    def _prediction(
        self, result: TileResult, results: list[TileResult], consistent: Prompts, started: float
    ) -> Prediction:
        clicks = [
            (point, label)
            for point, label in zip(consistent.points_yx, consistent.labels, strict=True)
            # Shown otherwise than when it was clicked on, the image may lack the pixel.
            if not label or self._is_present(point, result.tile.plane)
        ]
        clicks = clicks if self._objects.enforce_clicks else []
        image: PyramidImage | None = self._image
        before = None if self.step is None else self.step.prediction.multiscale
        if result.changed is not None and isinstance(before, StoredMask):
            multiscale: MultiscaleMask = before.corrected(
                result.tile, result.logits, clicks, result.changed
            )
            # What another program drew where the image has no data stays.
            image = None
        else:
            multiscale = MultiscaleMask(result.tile, result.logits, self._image.shape_yx, clicks)
        return Prediction(
            multiscale=multiscale,
            image=image,
            iou=result.iou,
            logits=result.low_res,
            is_cut=self._objects.is_cut(result, consistent),
            seconds={
                "encode_s": sum(one.encode_s for one in results),
                "decode_s": sum(one.decode_s for one in results),
                "refine_s": sum(one.refine_s for one in results),
                "total_s": time.perf_counter() - started,
            },
        )

    def _is_present(self, point_yx: tuple[float, float], plane: tuple[int, ...]) -> bool:
        """Whether the image has the pixel under a point."""
        if not self._image.may_lack_pixels:
            return True
        y, x = pixel_of(point_yx)
        return bool(self._image.present(Box(y, x, y + 1, x + 1), plane).item())

    def _tile_for(self, prompts: Prompts, first_level: int, plane: tuple[int, ...]) -> Tile:
        """Keep the object's tile while it holds all prompts, else take the smallest that does.

        Older negative clicks outside the tile do not count: the object was found without them.
        """
        shape, tile_px = self._image.shape_yx, self._objects.predictor.tile_px
        step = self.step
        if step is None:
            extent = prompts.extent_yx()
            level = first_level
            if prompts.box is not None:
                y0, x0, y1, x1 = prompts.box
                level = best_level(max(y1 - y0, x1 - x0), shape, tile_px)
            return TileGrid(shape, tile_px, level, plane).smallest_holding(extent)
        last = step.prediction.tile
        if plane != last.plane:
            raise PromptError(
                f"expected a prompt on the object's plane {last.plane}, got {plane}; "
                "commit or cancel the object before you go to another plane"
            )
        old = len(step.prompts.points_yx)
        clicks = enumerate(zip(prompts.points_yx, prompts.labels, strict=True))
        extent = prompts.keeping(
            [n for n, (at, label) in clicks if label or n >= old or last.box0.contains(at)]
        ).extent_yx()
        if all(last.box0.contains((y, x)) for y, x in extent):
            return last
        if step.taken is not None:
            # What it was before is known from its mask, not from its prompts.
            box = step.taken.box
            extent = np.concatenate([extent, [(box.y0, box.x0), (box.y1 - 1, box.x1 - 1)]])
        return TileGrid(shape, tile_px, last.level, plane).smallest_holding(extent)


def _pixel(y: float, x: float) -> Box:
    row, column = pixel_of((y, x))
    return Box(row, column, row + 1, column + 1)


def _middle(scribble: Scribble) -> tuple[float, float]:
    y, x = scribble.spread(1)[0].tolist()
    return y, x
