"""Score a model, or a classical baseline, with simulated clicks.

Every object goes through the same `Session` as a user's click: the level is the one a person would
zoom to, the session chooses the tile, and the mask is compared in level-0 pixels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.session import Session
from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.geometry import Box, best_level, coarsest_level, filling_level
from napari_hrsam.masks import mask_iou
from napari_hrsam.training.clicks import next_click
from napari_hrsam.training.datasets import Sample
from napari_hrsam.training.metrics import summarize

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter

View = Literal["object", "image"]
VIEWS: tuple[View, ...] = ("object", "image")


class MaskPrediction(Protocol):
    """What an evaluation needs of a prediction."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The object over `box`, in level-0 pixels."""

    @property
    def box(self) -> Box:
        """Where the mask lies."""


class ClickSession(Protocol):
    """What an evaluation needs of a session."""

    def click(
        self, point_yx: tuple[float, float], positive: bool = True, level: int | None = None
    ) -> MaskPrediction:
        """Add a click to the current object."""

    def cancel(self) -> None:
        """Forget the current object."""


class Evaluated(Protocol):
    """A model or baseline under test."""

    @property
    def name(self) -> str:
        """Name in the table."""

    @property
    def tile_px(self) -> int:
        """Side of its tiles in pixels."""

    def open_session(self, image: NDArray[np.uint8]) -> AbstractContextManager[ClickSession]:
        """Start to work on an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelUnderTest:
    """A segmenter behind the session that users work with.

    Attributes
    ----------
    name : str
        Name in the table.
    segmenter : Segmenter
        The loaded model.
    enforce_clicks : bool
        Whether the session corrects masks that contradict a click.
    """

    name: str
    segmenter: Segmenter
    enforce_clicks: bool = True

    @property
    def tile_px(self) -> int:
        """Side of its tiles in pixels."""
        return self.segmenter.config.tile_px

    def open_session(self, image: NDArray[np.uint8]) -> Session:
        """Start to work on an image.

        Parameters
        ----------
        image : (H, W) or (H, W, 3) uint8
        """
        return Session(self.segmenter, image, enforce_clicks=self.enforce_clicks)


def model_under_test(
    segmenter: Segmenter, *, enforce_clicks: bool = True, name: str | None = None
) -> Evaluated:
    """Prepare a loaded model for `evaluate`.

    Parameters
    ----------
    segmenter : Segmenter
        As `load_model` gives it.
    enforce_clicks : bool
        Whether the session corrects masks that contradict a click.
    name : str, optional
        Name in the table; the model's own by default.
    """
    chosen = segmenter.config.name if name is None else name
    return ModelUnderTest(name=chosen, segmenter=segmenter, enforce_clicks=enforce_clicks)


def evaluate(
    evaluated: Evaluated,
    samples: Sequence[Sample],
    *,
    view: View = "object",
    num_clicks: int = 20,
    seed: int = 42,
    max_objects: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Click on every object of the samples and score the masks.

    The first click goes to the middle of the object, every later one to the middle of the largest
    error; a perfect mask gets no further clicks and keeps its IoU. Random choices depend on the
    seed and on the object alone, never on the order of work.

    Parameters
    ----------
    evaluated : Evaluated
        From `model_under_test`, or an entry of `BASELINES`.
    samples : sequence of Sample
        Their `objects` are clicked on.
    view : {"object", "image"}
        Level of the first click, see `view_level`.
    num_clicks : int
        Clicks per object.
    seed : int
        Of the choice between equally good places.
    max_objects : int, optional
        Objects per domain at most. They are taken in turns: the first of every image, then the
        second, and so on.
    progress : callable, optional
        Called with (objects done, objects in total).

    Returns
    -------
    dict
        `model`; `overall`, the mean over all objects; `domains`, the same for each domain (see
        `summarize` for the keys); `mean_of_domains`, in which every domain weighs the same; and
        the settings `view`, `num_clicks`, `seed`, `max_objects`.

    Raises
    ------
    ConfigError
        If the view is unknown, a count is below 1, or the seed is negative.
    DataError
        If no sample has an object, or a listed object is not in its mask.
    """
    _check(view, num_clicks, max_objects, seed)
    plan = _plan(samples, max_objects)
    total, done = sum(len(objects) for _, objects in plan), 0
    curves: dict[str, list[tuple[str, int, list[float]]]] = {}
    for sample, objects in plan:
        labels = sample.labels()
        with evaluated.open_session(sample.image()) as session:
            for label in objects:
                mask = labels == label
                if not mask.any():
                    raise DataError(
                        f"object {label} of sample {sample.key} is listed, but its mask has no "
                        f"pixel of that value; correct noc_objects or {sample.labels_blob}"
                    )
                level = view_level(Box.around(mask), mask.shape, evaluated.tile_px, view)
                rng = _object_rng(seed, sample, label)
                curve = click_curve(session, mask, level=level, num_clicks=num_clicks, rng=rng)
                curves.setdefault(sample.domain, []).append((sample.key, label, curve))
                done += 1
                if progress is not None:
                    progress(done, total)
    # Sums of floats depend on their order; sorted, they do not depend on the order of the data.
    by_domain = {name: [curve for *_, curve in sorted(curves[name])] for name in sorted(curves)}
    domains = {name: summarize(rows) for name, rows in by_domain.items()}
    return {
        "model": evaluated.name,
        "overall": summarize([curve for rows in by_domain.values() for curve in rows]),
        "domains": domains,
        "mean_of_domains": _mean_of(list(domains.values())),
        "view": view,
        "num_clicks": num_clicks,
        "seed": seed,
        "max_objects": max_objects,
    }


def view_level(
    object_box: Box, shape_yx: tuple[int, ...], tile_px: int, view: View = "object"
) -> int:
    """Choose the level that a person would zoom to before the first click.

    Parameters
    ----------
    object_box : Box
        Smallest box around the object, level-0 pixels.
    shape_yx : (H, W)
        Of the image in level-0 pixels.
    tile_px : int
        Side of the model's tiles.
    view : {"object", "image"}
        "object": the object's longer side spans 1/8 (exclusive) to 1/4 of the tile, as far as
        levels allow: none is finer than -2, and none coarser than the one at which the whole image
        fits one tile. "image": the whole image fills the tile as far as levels allow.

    Returns
    -------
    int
        At this level the object lies whole in the tile that is nearest to any point of it.
    """
    height, width = shape_yx
    coarsest = coarsest_level((height, width), tile_px)
    if view == "image":
        return coarsest or filling_level((height, width), tile_px)
    return best_level(max(object_box.shape_yx), (height, width), tile_px)


def click_curve(
    session: ClickSession,
    gt: NDArray[np.bool_],
    *,
    level: int,
    num_clicks: int,
    rng: np.random.Generator,
) -> list[float]:
    """Draw one object with simulated clicks.

    Parameters
    ----------
    session : ClickSession
        Without a current object; left so.
    gt : (H, W) bool
        The object in level-0 pixels, not empty.
    level : int
        At which to look at the object.
    num_clicks : int
        1 or more.
    rng : numpy.random.Generator
        Decides between equally good places.

    Returns
    -------
    list of float
        IoU after each click.
    """
    gt_box = Box.around(gt)
    window, pred = gt_box, np.zeros(gt_box.shape_yx, bool)
    clicked: list[tuple[int, int]] = []
    ious: list[float] = []
    for _ in range(num_clicks):
        # Nothing is wrong outside the window, so the click found in it is that of the whole image.
        inside = [(y - window.y0, x - window.x0) for y, x in clicked]
        click = next_click(pred, gt[window.slices], inside, rng=rng)
        if click is not None:
            place = click.y + window.y0, click.x + window.x0
            clicked.append(place)
            prediction = session.click(place, click.positive, level)
            window = gt_box.union(prediction.box)
            pred = np.zeros(window.shape_yx, bool)
            pred[prediction.box.shifted(-window.y0, -window.x0).slices] = prediction.mask
        ious.append(mask_iou(pred, gt[window.slices]))
    session.cancel()
    return ious


def _check(view: str, num_clicks: int, max_objects: int | None, seed: int) -> None:
    if view not in VIEWS:
        raise ConfigError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
    if num_clicks < 1 or (max_objects is not None and max_objects < 1):
        raise ConfigError(
            f"num_clicks and max_objects must be 1 or more, got {num_clicks} and {max_objects}"
        )
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, got {seed}")


def _plan(samples: Sequence[Sample], max_objects: int | None) -> list[tuple[Sample, list[int]]]:
    """Objects to draw, per sample; each domain's share is dealt out image by image."""
    objects = [sample.objects for sample in samples]
    if not any(objects):
        raise DataError(
            f"none of the {len(samples)} samples has an object; expected masks with values above 0"
        )
    taken: list[list[int]] = [[] for _ in samples]
    limit = math.inf if max_objects is None else max_objects
    left = dict.fromkeys((sample.domain for sample in samples), limit)
    for turn in range(max(map(len, objects))):
        for place, sample in enumerate(samples):
            if turn < len(objects[place]) and left[sample.domain] > 0:
                taken[place].append(objects[place][turn])
                left[sample.domain] -= 1
    return [(sample, ids) for sample, ids in zip(samples, taken, strict=True) if ids]


def _object_rng(seed: int, sample: Sample, label: int) -> np.random.Generator:
    name = f"{sample.domain}/{sample.key}/{label}"
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _mean_of(rows: list[dict[str, float | int | None]]) -> dict[str, float | int | None]:
    """Plain mean over the domains; the objects are added up."""
    mean: dict[str, float | int | None] = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        mean[name] = float(np.mean(values)) if values else None
    mean["num_objects"] = sum(int(row["num_objects"] or 0) for row in rows)
    return mean
