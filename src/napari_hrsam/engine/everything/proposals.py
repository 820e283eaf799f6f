"""Objects that are proposed: looked through, filtered, and accepted into a label image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.embed import box_on
from napari_hrsam.engine.everything.auto import loaded
from napari_hrsam.engine.everything.field import CELL_PX
from napari_hrsam.engine.everything.found import (
    Found,
    cell0_px,
    find_objects,
    in_sequence,
    joined,
    rules_for,
)
from napari_hrsam.engine.everything.plan import BLOCK_PX
from napari_hrsam.engine.everything.ranking import rank
from napari_hrsam.engine.everything.strokes import WantedClass, field_of
from napari_hrsam.errors import ConfigError, LabelsError, SessionError
from napari_hrsam.geometry import Box, Grid, as_box, filling_level
from napari_hrsam.masks import ArrayMask
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.edits import DrawnAs, Edit
from napari_hrsam.storage.labels.painted import REGIONS
from napari_hrsam.storage.labels.store import LabelStore

if TYPE_CHECKING:
    from napari_hrsam.engine.predictor import Predictor
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.images.tile_source import PyramidImage

MAX_CELLS = 2**28
"""Cells of the largest box in which objects are proposed at once."""

MAX_COVERED = 0.5
"""Share of an object that others may cover: of one that they cover further nothing is accepted."""

MAX_PREVIEW_PX = 2**24
PREVIEW_ROWS = 256
"""Rows of a preview that are drawn at once."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Proposal:
    """One object that is proposed.

    Attributes
    ----------
    mask : ArrayMask
        Its pixels: ``proposal.mask.read(box)``.
    box : Box
        Where it lies, in level-0 pixels.
    score : float, 0..1
        Mean probability of being foreground.
    area_px : int
        Level-0 pixels, with those beyond the image at its lower and right border.
    mean_rgb, std_rgb : tuple of float, 0..255
        Colours as the model sees them: mean and standard deviation.
    solidity : float, 0..1
        Share of the convex hull that it fills.
    features : (F,) float32
        Means of what the dense head reads its maps off, of the embedding and of the stem's maps.
    """

    mask: ArrayMask
    box: Box
    score: float
    area_px: int
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    solidity: float
    features: NDArray[np.float32]


class Proposals:
    """Objects that are proposed for an image, none of which overlap; made by `propose`.

    Parameters
    ----------
    found : Found
    shape_yx : (int, int)
        Of the image in level-0 pixels.
    level : int
        At which they were found.
    plane : tuple of int
    model : str
        Name of the model.

    Attributes
    ----------
    shape_yx, level, plane, model
        As given.
    """

    def __init__(
        self,
        found: Found,
        shape_yx: tuple[int, int],
        level: int,
        plane: tuple[int, ...] = (),
        model: str = "",
    ) -> None:
        self._found, self._cell = found, cell0_px(level)
        self.shape_yx, self.level, self.plane, self.model = shape_yx, level, plane, model

    def __repr__(self) -> str:
        """Tell their number and level in one line."""
        return f"Proposals({len(self)} objects at level {self.level})"

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self._found)

    def __getitem__(self, index: int) -> Proposal:
        """Return one object; raises IndexError if there is none."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        index %= len(self)
        found, box = self._found, self._box(index)
        one = self._of(found.take(np.array([index])))
        return Proposal(
            mask=ArrayMask(box, one.labels(box) != 0),
            box=box,
            score=float(found.scores[index]),
            area_px=int(found.areas[index]) * self._cell**2,
            mean_rgb=tuple(found.mean_rgb[index].tolist()),
            std_rgb=tuple(found.std_rgb[index].tolist()),
            solidity=float(found.solidity[index]),
            features=found.features[index].astype(np.float32),
        )

    def __iter__(self) -> Iterator[Proposal]:
        """Go through the objects."""
        return (self[index] for index in range(len(self)))

    @property
    def scores(self) -> NDArray[np.float32]:
        """Score of each, (N,), 0..1."""
        return self._found.scores

    @property
    def areas_px(self) -> NDArray[np.int64]:
        """Level-0 pixels of each, (N,)."""
        areas: NDArray[np.int64] = self._found.areas.astype(np.int64) * self._cell**2
        return areas

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Half-open box of each in level-0 pixels, (N, 4): y0, x0, y1, x1."""
        height, width = self.shape_yx
        boxes = self._found.boxes.astype(np.int64) * self._cell
        return np.minimum(boxes, [height, width, height, width])

    @property
    def mean_rgb(self) -> NDArray[np.float32]:
        """Mean colour of each, (N, 3), 0..255."""
        return self._found.mean_rgb

    @property
    def std_rgb(self) -> NDArray[np.float32]:
        """Standard deviation of the colours of each, (N, 3), 0..255."""
        return self._found.std_rgb

    @property
    def solidity(self) -> NDArray[np.float32]:
        """Share of the convex hull that each fills, (N,), 0..1."""
        return self._found.solidity

    @property
    def features(self) -> NDArray[np.float32]:
        """Mean features of each, (N, F), see `Proposal`."""
        return self._found.features.astype(np.float32)

    @property
    def num_too_large(self) -> int:
        """Objects that were left out because they are too large for the level."""
        return len(self._found.too_large)

    def take(self, indices: Sequence[int] | NDArray[Any]) -> Proposals:
        """Return some of them: by their indices in any order, or by a (N,) bool array."""
        kept = np.asarray(indices)
        if kept.dtype == np.bool_ and kept.shape == (len(self),):
            kept = np.flatnonzero(kept)
        if kept.ndim != 1 or (kept.size and kept.dtype.kind not in "iu"):
            raise ConfigError(
                f"expected indices, or {len(self)} times True or False, got {kept.dtype} of shape "
                f"{kept.shape}"
            )
        if kept.size and not (-len(self) <= kept.min() and kept.max() < len(self)):
            raise ConfigError(f"expected indices below {len(self)}, got {kept.max()}")
        kept = kept.astype(np.int64) % max(1, len(self))
        if len(np.unique(kept)) < len(kept):
            raise ConfigError("expected each index once, got some of them twice")
        return self._of(self._found.take(kept))

    def filter(
        self,
        *,
        min_score: float = 0.0,
        min_area_px: float = 0.0,
        max_area_px: float = float("inf"),
        min_solidity: float = 0.0,
        box: Box | Sequence[int] | None = None,
    ) -> Proposals:
        """Return those that are good, large and small enough, and lie in a box wholly.

        Parameters
        ----------
        min_score, min_solidity : float, 0..1
        min_area_px, max_area_px : float
            In level-0 pixels.
        box : (y0, x0, y1, x1) or Box, optional
            In level-0 pixels.
        """
        areas = self.areas_px
        kept = (self.scores >= min_score) & (areas >= min_area_px) & (areas <= max_area_px)
        kept &= self._found.solidity >= min_solidity
        if box is not None:
            around, boxes = as_box(box), self.boxes
            kept &= (boxes[:, :2] >= (around.y0, around.x0)).all(axis=1)
            kept &= (boxes[:, 2:] <= (around.y1, around.x1)).all(axis=1)
        return self.take(kept)

    def labels(self, box: Box | Sequence[int] | None = None) -> NDArray[np.uint32]:
        """Draw them as 1, 2, ... in their order.

        Parameters
        ----------
        box : (y0, x0, y1, x1) or Box, optional
            In level-0 pixels, inside the image; by default the whole image.

        Returns
        -------
        (box.height, box.width) uint32
        """
        part = Box.of_shape(self.shape_yx) if box is None else as_box(box)
        return self._painted(part, np.arange(1, len(self) + 1))

    def rank(self, accepted: Sequence[int], rejected: Sequence[int] = ()) -> NDArray[np.float32]:
        """Tell how much each is like some of them and unlike others, (N,), 0..1.

        See `ranking.rank`, also for the errors.
        """
        return rank(self, accepted, rejected)

    def not_covered(self, labels: LabelStore | NDArray[Any]) -> Proposals:
        """Return those that objects of a label image do not cover by more than half.

        Parameters
        ----------
        labels
            As in `accept`.

        Raises
        ------
        LabelsError
            If the labels are of another shape, or cannot be read.
        """
        store, plane = self._store(labels)
        if not len(self):
            return self
        covered = np.zeros(len(self) + 1, np.int64)
        for part in REGIONS.parts(self._whole_box()):
            own = self.labels(part)
            taken = own[np.asarray(store.read(part, plane=plane)) != 0]
            covered += np.bincount(taken, minlength=len(covered))
        return self.take(covered[1:] <= MAX_COVERED * self.areas_px)

    def preview(self, max_pixels: int = MAX_PREVIEW_PX) -> tuple[NDArray[np.uint32], Box, int]:
        """Draw them as 1, 2, ... to be looked at, as coarsely as that needs.

        Parameters
        ----------
        max_pixels : int
            Of the drawing.

        Returns
        -------
        labels : (h, w) uint32
        box : Box
            Where they lie, in level-0 pixels; it begins on a multiple of ``step``, and may reach
            beyond the image at its lower and right border.
        step : int
            Level-0 pixels per pixel of the drawing.
        """
        if not len(self):
            return np.zeros((1, 1), np.uint32), Box(0, 0, self._cell, self._cell), self._cell
        boxes = self._found.boxes.astype(np.int64)
        (y0, x0), (y1, x1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        stride = 1
        while (y1 - y0) * (x1 - x0) > max_pixels * stride**2:
            stride *= 2
        y0, x0, y1, x1 = (
            int(place) for place in (y0 // stride, x0 // stride, -(-y1 // stride), -(-x1 // stride))
        )
        drawn = np.zeros((y1 - y0, x1 - x0), np.uint32)
        numbers = np.arange(1, len(self) + 1)
        for row in range(y0, y1, PREVIEW_ROWS):
            last = min(row + PREVIEW_ROWS, y1)
            cells = Box(row * stride, x0 * stride, last * stride, x1 * stride)
            drawn[row - y0 : last - y0] = self._found.paint(cells, numbers)[::stride, ::stride]
        step = stride * self._cell
        return drawn, Box(y0 * step, x0 * step, y1 * step, x1 * step), step

    def followed_by(self, others: Proposals) -> Proposals:
        """Return these and others, which may overlap them, as examples to rank with.

        Raises
        ------
        ConfigError
            If the others are of another model, level or image: they cannot be compared.
        """
        if (self.model, self.level, self.shape_yx) != (others.model, others.level, others.shape_yx):
            raise ConfigError(
                f"expected proposals of {self.model} at level {self.level} of an image of shape "
                f"{self.shape_yx}, got those of {others.model} at level {others.level} of "
                f"{others.shape_yx}; propose both in the same way"
            )
        return self._of(in_sequence([self._found, others._found]))

    def accept(self, labels: LabelStore | NDArray[Any]) -> Edit:
        """Commit all of them to a label image as one step, which can be taken back as one.

        Objects that are there stay as they are: of a proposal what lies on them is left out, and
        all of it if they cover more than half.

        Parameters
        ----------
        labels : LabelStore, or (H, W) integer array
            As `create_labels` or `open_labels` return them, or `Session.labels`; an array is
            changed in place.

        Returns
        -------
        Edit
            ``edit.objects`` tells ids, boxes and areas; ``labels.revert(edit)`` takes it back.

        Raises
        ------
        LabelsError
            If there is none to accept, or more than fit into one step, the labels are of another
            shape, or cannot be written to; nothing is changed then.
        """
        store, plane = self._store(labels)
        kept = self.not_covered(store)
        if not len(kept):
            raise LabelsError(
                "expected proposals to accept, got none that others do not cover already; propose "
                "elsewhere, or filter less"
            )
        first = store.next_label()
        ids = np.arange(first, first + len(kept))
        return store.accept(
            kept._whole_box(),  # noqa: SLF001  # another one of this class
            lambda part: kept._painted(part, ids),  # noqa: SLF001
            dict(zip(ids.tolist(), kept.scores.astype(float).tolist(), strict=True)),
            plane=plane,
            drawn=DrawnAs(model=self.model, level=self.level),
        )

    def _of(self, found: Found) -> Proposals:
        return Proposals(found, self.shape_yx, self.level, self.plane, self.model)

    def _box(self, index: int) -> Box:
        return Box(*self.boxes[index].tolist())

    def _whole_box(self) -> Box:
        boxes = self.boxes
        return Box(*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())

    def _store(self, labels: LabelStore | NDArray[Any]) -> tuple[LabelStore, tuple[int, ...]]:
        """Return a label image of the image's shape, and our plane in it."""
        store = ArrayLabels(labels) if isinstance(labels, np.ndarray) else labels
        if store.shape_yx != self.shape_yx:
            raise LabelsError(
                f"expected labels of the image's shape {self.shape_yx}, got {store.shape_yx}; give "
                "labels made for this image"
            )
        return store, () if set(store.plane_shape) <= {1} else self.plane

    def _painted(self, box: Box, numbers: NDArray[Any]) -> NDArray[np.uint32]:
        cell = self._cell
        cells = Box(box.y0 // cell, box.x0 // cell, -(-box.y1 // cell), -(-box.x1 // cell))
        large = self._found.paint(cells, numbers).repeat(cell, 0).repeat(cell, 1)
        inside = Box.of_shape(box.shape_yx).shifted(
            box.y0 - cells.y0 * cell, box.x0 - cells.x0 * cell
        )
        return large[inside.slices]


def looked_at(
    image: Any, model: Segmenter | str, level: int | None
) -> tuple[PyramidImage, Predictor, int]:
    """Open image and model, and choose the level: full size, or double for a small image."""
    from napari_hrsam.engine.predictor import Predictor

    opened = open_image(image)
    predictor = Predictor(loaded(model))
    if level is None:
        level = max(-1, filling_level(opened.shape_yx, predictor.tile_px))
    return opened, predictor, level


def propose(
    image: Any,
    box: Sequence[float] | Box | None = None,
    level: int | None = None,
    *,
    plane: tuple[int, ...] = (),
    model: Segmenter | str = "hrsam-tiny",
    smallest_px: float | None = None,
    largest_px: float | None = None,
    wanted: WantedClass | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Proposals:
    """Find all objects in a part of an image; nothing is committed.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) array, path, or anything that `open_image` takes
    box : (y0, x0, y1, x1), optional
        Only objects that begin in it, in level-0 pixels; by default the whole image.
    level : int, optional
        Level at which to look: 0 full size, 1 half of it, -1 double. One at which objects are 20
        to 150 pixels long is best. By default full size, or double for a small image.
    plane : tuple of int
        Index over the axes before y and x.
    model : Segmenter or str
        With a dense head.
    smallest_px, largest_px : float, optional
        Smallest area and longest side of an object in level pixels, as in `auto`.
    wanted : WantedClass, optional
        Only objects of this class, which was learned from strokes (`learn_classes`), and at whose
        level they are looked for unless another one is named.
    progress : callable, optional
        Told how many tiles are done, and how many there are.
    should_stop : callable, optional
        Asked before each tile; True ends the work with a `SessionError`.

    Returns
    -------
    Proposals
        In the order of their first pixels, row by row.

    Raises
    ------
    ConfigError
        If the model has no dense head, there is no such level, a number is out of range, or the
        box is too large for the memory.
    PromptError
        If the box is malformed or outside the image.
    SessionError
        If it was stopped.
    ImageReadError
        If pixels cannot be read.
    """
    if level is None and wanted is not None:
        level = wanted.classifier.level
    opened, predictor, level = looked_at(image, model, level)
    field = field_of(opened, predictor, level, plane, wanted=wanted)
    rules = rules_for(predictor.tile_px, smallest_px, largest_px)
    box0, cell = box_on(opened.shape_yx, box), cell0_px(level)
    region = Box(box0.y0 // cell, box0.x0 // cell, -(-box0.y1 // cell), -(-box0.x1 // cell))
    if region.area > MAX_CELLS:
        raise ConfigError(
            f"expected a box of at most {MAX_CELLS * CELL_PX**2:,} pixels of level {level}, got "
            f"{region.area * CELL_PX**2:,}; give a smaller box or a coarser level, or use auto, "
            "which needs no memory of that size"
        )

    side = BLOCK_PX // CELL_PX
    cores = list(Grid((side, side)).parts(region))
    num_tiles = len(
        {
            place
            for core in cores
            for place in field.tiles_of(core.expand(rules.halo).clip(field.shape))
        }
    )

    def step() -> None:
        if should_stop is not None and should_stop():
            raise SessionError("stopped: nothing is proposed; propose again")
        if progress is not None:
            # A tile that was let go of between two blocks is encoded twice.
            progress(min(field.num_tiles + field.num_blank, num_tiles - 1), num_tiles)

    found = [find_objects(field, core, rules, step=step) for core in cores]
    if progress is not None:
        progress(num_tiles, num_tiles)
    return Proposals(joined(found), opened.shape_yx, level, plane, predictor.name)
