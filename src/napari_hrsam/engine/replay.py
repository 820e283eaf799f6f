"""The objects of a label image drawn again, from the prompts of their commits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from napari_hrsam.engine.embed import Progress
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.engine.session import Session, loaded
from napari_hrsam.engine.tasks import (
    Crew,
    Shard,
    Tally,
    do_by_others,
    fingerprints_of,
    part_of,
    require_same_work,
)
from napari_hrsam.errors import ConfigError, HRSAMError, LabelsError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import mask_iou
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import LabelImage, LabelWriter
from napari_hrsam.storage.labels.objects import ObjectRow

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.images.tile_source import PyramidImage

COMPARED_PX = 2048
"""Longest side of masks that are compared; of a larger object it is a coarser level."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedObject:
    """One object of the label image, and what the model made of its prompts.

    Attributes
    ----------
    label : int
        Its id.
    plane : tuple of int
        Of the label image.
    object_class : str
        Empty for none.
    model : str
        That drew it before, or empty.
    num_prompts : int
        Clicks, scribbles and boxes that are known of it.
    iou : float or None
        Of the committed mask and the new one; None if there is no new one.
    problem : str
        Why there is none, else empty.
    seconds : float
        Spent on it.
    is_written : bool
        Whether the new mask took the place of the committed one.
    """

    label: int
    plane: tuple[int, ...]
    object_class: str
    model: str
    num_prompts: int
    iou: float | None = None
    problem: str = ""
    seconds: float = 0.0
    is_written: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What became of all objects.

    Attributes
    ----------
    model : str
        That drew them.
    objects : tuple of ReplayedObject
        By plane and id.
    """

    model: str
    objects: tuple[ReplayedObject, ...]

    @property
    def ious(self) -> list[float]:
        """Of the objects that were drawn, by plane and id."""
        return [one.iou for one in self.objects if one.iou is not None]

    @property
    def mean_iou(self) -> float | None:
        """Mean of `ious`; None if nothing was drawn."""
        return fmean(self.ious) if self.ious else None

    @property
    def median_iou(self) -> float | None:
        """Median of `ious`; None if nothing was drawn."""
        return median(self.ious) if self.ious else None

    @property
    def num_written(self) -> int:
        """Objects whose new mask took the place of the committed one."""
        return sum(one.is_written for one in self.objects)

    def __repr__(self) -> str:
        """Tell the model, the number of objects and the mean IoU in one line."""
        mean = "nothing drawn" if self.mean_iou is None else f"mean IoU {self.mean_iou:.3f}"
        return (
            f"Replayed({self.model}: {len(self.ious)} of {len(self.objects)} objects drawn, {mean})"
        )


def replay(
    labels: LabelImage,
    image: Any,
    model: Segmenter | str = "hrsam-tiny",
    *,
    objects: Collection[int] | None = None,
    write: bool = False,
    workers: int | Crew = 1,
    shard: Shard | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """Draw the objects of a label image again from their prompts, and compare.

    The journal of a label image keeps the prompts of every commit. Another model is given the same
    prompts in the same order, and looks at the object first at the same level. Objects of which no
    prompt is known (imported, merged or painted ones, another program's) are listed, not drawn.

    Parameters
    ----------
    labels : LabelImage
        From ``open_labels(path, name, mode="r")``; with `write`, from ``open_labels(path, name)``.
    image : PyramidImage, or anything that `open_image` takes
        What was annotated.
    model : Segmenter or str
        A loaded model, or a name for `load_model`.
    objects : collection of int, optional
        Only these ids; by default all.
    write : bool
        Whether new masks replace the committed ones under the same ids, each as one step that can
        be taken back. Pixels of other objects stay theirs. By default nothing is changed.
    workers : int or Crew
        Processes, or a cluster, as in `auto`; not with `write`, which is for one.
    shard : (int, int), optional
        Which part of the objects to draw, of how many, as in `auto`; the others are not listed.
    progress : callable (done, total), optional
        Called before every object; by several workers, after it. What it raises ends the work; what
        was written stays.

    Returns
    -------
    Replayed

    Raises
    ------
    LabelsError
        If the labels cannot be read, an id in `objects` is not there, or `write` is asked of
        labels that were opened for reading.
    ConfigError
        If there is no such shard, or several workers are to write.
    ImageError, CheckpointError
        If image or model are unusable, or the labels are of another shape than the image.

    Examples
    --------
    >>> with hrsam.open_labels("slide.zarr", "cells", mode="r") as labels:  # doctest: +SKIP
    ...     print(hrsam.replay(labels, "slide.zarr", "hrsam++-tiny").mean_iou)
    """
    if write and not isinstance(labels, LabelWriter):
        raise LabelsError(
            "expected labels opened for writing to put new masks into them, got labels opened for "
            'reading; use open_labels(path, name) without mode="r"'
        )
    rows = labels.objects()
    if objects is not None:
        rows = _chosen(rows, objects)
    rows = part_of(rows, shard)
    if workers != 1:
        return _replay_by_others(labels, image, model, rows, workers, write, progress)
    done: list[ReplayedObject] = []
    with Session(model, image, labels if isinstance(labels, LabelWriter) else None) as session:
        _require_same_shape(labels, session.image)
        for number, row in enumerate(rows):
            if progress is not None:
                progress(number, len(rows))
            done.append(_replayed(session, labels, row, write=write))
        return Replayed(model=session.model_name, objects=tuple(done))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayJob:
    """Objects of a label image to be drawn again, for another process or machine.

    Attributes
    ----------
    image : PyramidImage
    model : Segmenter
    fingerprints : (str, str)
        Of both.
    path, name : str
        The label image, under the same path everywhere.
    """

    image: PyramidImage
    model: Segmenter
    fingerprints: tuple[str, str]
    path: str
    name: str

    def open(self, step: Callable[[], None]) -> Callable[[int], list[ReplayedObject]]:
        """Return what draws an object on all its planes; raise SessionError for another image."""
        from napari_hrsam.engine.predictor import Predictor, use_one_thread
        from napari_hrsam.storage.label_image import open_labels

        use_one_thread()
        predictor = Predictor(self.model)
        require_same_work(self.image, predictor, self.fingerprints)
        labels = open_labels(self.path, self.name, mode="r")
        rows: dict[int, list[ObjectRow]] = {}
        for row in labels.objects():
            rows.setdefault(row.label, []).append(row)
        session = Session(self.model, self.image)

        def do(label: int) -> list[ReplayedObject]:
            step()
            return [_replayed(session, labels, row, write=False) for row in rows[label]]

        return do


def _replay_by_others(
    labels: LabelImage,
    image: Any,
    model: Segmenter | str,
    rows: list[ObjectRow],
    workers: int | Crew,
    write: bool,
    progress: Progress | None,
) -> Replayed:
    if write:
        raise ConfigError(
            "expected one worker to write new masks, got several: compare with several, and write "
            "with one"
        )
    from napari_hrsam.engine.predictor import Predictor

    tally = Tally(dict.fromkeys(row.label for row in rows))
    num = len(tally.left)

    def done() -> None:
        if progress is not None:
            progress(len(tally.values) + len(tally.failed), num)

    opened, segmenter = open_image(image), loaded(model)
    _require_same_shape(labels, opened)
    predictor = Predictor(segmenter)
    job = ReplayJob(
        image=opened,
        model=segmenter,
        fingerprints=fingerprints_of(opened, predictor),
        path=str(labels.path),
        name=labels.name,
    )
    if num:
        do_by_others(workers, job, tally, done=done)
    if tally.failed:
        label, problem = next(iter(tally.failed.items()))
        raise SessionError(
            f"expected to draw all objects, but {len(tally.failed)} of {num} failed several "
            f"times, one of them {label} by {problem.error}; leave them out (objects=...)"
        )
    drawn = {(one.label, one.plane): one for several in tally.values.values() for one in several}
    return Replayed(
        model=predictor.name, objects=tuple(drawn[row.label, row.plane] for row in rows)
    )


def _chosen(rows: list[ObjectRow], objects: Collection[int]) -> list[ObjectRow]:
    missing = sorted(set(objects) - {row.label for row in rows})
    if missing:
        raise LabelsError(
            f"expected ids of objects in the labels, got {missing[:5]}, which are not there; "
            f"labels.objects() lists them"
        )
    return [row for row in rows if row.label in objects]


def _require_same_shape(labels: LabelImage, image: PyramidImage) -> None:
    if labels.shape_yx != image.shape_yx:
        raise LabelsError(
            f"expected labels of the image's shape (y, x) = {image.shape_yx}, got "
            f"{labels.shape_yx}; name the image that the objects were drawn on"
        )
    planes = labels.plane_shape, image.plane_shape
    # Axes of length 1 need not be there.
    if planes[0] != planes[1] and not set(planes[0]) | set(planes[1]) <= {1}:
        raise LabelsError(
            f"expected labels with the planes of the image, of shape {planes[1]}, got "
            f"{planes[0]}; name the image that the objects were drawn on"
        )


def _replayed(
    session: Session, labels: LabelImage, row: ObjectRow, *, write: bool
) -> ReplayedObject:
    started = time.perf_counter()
    edit = labels.newest_of(row.label, row.plane)
    prompts = Prompts() if edit is None else edit.prompts
    told = ReplayedObject(
        label=row.label,
        plane=row.plane,
        object_class=row.object_class,
        model=row.model,
        num_prompts=len(prompts),
    )
    if not len(prompts):
        return replace(told, problem="no prompts are known of it")
    plane = row.plane if labels.plane_shape == session.image.plane_shape else ()
    plane = plane or (0,) * len(session.image.plane_shape)
    try:
        drawn = session.draw(prompts, None if edit is None else edit.first_level, plane)
        drawn = session.refine_outline()
        if not drawn:
            raise LabelsError("the model finds nothing there")
        iou = _iou(labels, row, drawn)
        if write:
            session.commit(replaces=row.label)
    # An object that cannot be drawn is told; the others are.
    except HRSAMError as error:
        return replace(told, problem=str(error), seconds=time.perf_counter() - started)
    finally:
        session.cancel()
    return replace(told, iou=iou, seconds=time.perf_counter() - started, is_written=write)


def _iou(labels: LabelImage, row: ObjectRow, drawn: Prediction) -> float:
    """Compare a prediction with an object of the label image, both at the same level."""
    region = row.box.union(drawn.extent)
    level = max(0, math.ceil(math.log2(max(region.shape_yx) / COMPARED_PX)))
    level = min(level, len(labels.levels) - 1)
    scale = 2**level
    box = Box(
        region.y0 // scale, region.x0 // scale, -(-region.y1 // scale), -(-region.x1 // scale)
    ).clip(labels.level_shape(level))
    committed = labels.read(box, level, row.plane) == row.label
    return mask_iou(drawn.multiscale.sample(level, box) > 0, committed)
