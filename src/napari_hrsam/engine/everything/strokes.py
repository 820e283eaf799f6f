"""Classes from strokes over a level: what looks like the stroked pixels, and the objects of it.

The features of a cell depend on its place alone, as the maps of `field.Field` do, so that a whole
level can be classified part by part without seams.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skimage.draw import line

from napari_hrsam.engine.everything.field import CELL_PX, Field, FieldPart
from napari_hrsam.engine.everything.pixel_classes import (
    BANK_REACH,
    PixelClassifier,
    filter_bank,
    fit_pixel_classes,
)
from napari_hrsam.errors import ConfigError, PromptError
from napari_hrsam.geometry import Box, downsample

if TYPE_CHECKING:
    from napari_hrsam.engine.predictor import Predictor
    from napari_hrsam.storage.images.tile_source import PyramidImage

MAX_STROKE_CELLS = 20_000
"""Cells of one class that are learned from; of more, so many spread evenly."""

PART_CELLS = 256
"""Side of the parts of a field in which the features of stroked cells are computed."""

Strokes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedClass:
    """Whose objects are looked for.

    Attributes
    ----------
    classifier : PixelClassifier
    name : str
        One of its classes.
    touching : bool
        Whether objects that touch are told apart, by the dense head; otherwise every connected
        area is an object, which also finds kinds that the head does not know.

    Raises
    ------
    ConfigError
        If the classifier has no such class.
    """

    classifier: PixelClassifier
    name: str
    touching: bool = True

    def __post_init__(self) -> None:
        """Check the name."""
        if self.name not in self.classifier.names:
            raise ConfigError(
                f"expected one of the classes {', '.join(self.classifier.names)}, got {self.name!r}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "name": self.name,
            "touching": self.touching,
            "classifier": self.classifier.as_dict(),
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> WantedClass:
        """Take what `as_dict` gave; `DataError` or `ConfigError` if it is something else."""
        return cls(
            classifier=PixelClassifier.from_dict(told["classifier"]),
            name=str(told["name"]),
            touching=bool(told["touching"]),
        )


def field_of(
    image: PyramidImage,
    predictor: Predictor,
    level: int,
    plane: tuple[int, ...],
    *,
    skip_blank: bool = False,
    wanted: WantedClass | None = None,
) -> Field:
    """Make the field in which objects are looked for: all of them, or those of a class."""
    if wanted is None:
        return Field(image, predictor, level, plane, skip_blank=skip_blank)
    return StrokedField(image, predictor, level, plane, skip_blank=skip_blank, wanted=wanted)


class StrokedField(Field):
    """A field whose cells have features, and whose foreground may be a class.

    Parameters
    ----------
    image, predictor, level, plane, skip_blank
        As in `Field`.
    wanted : WantedClass, optional
        Its class takes the place of the foreground.

    Raises
    ------
    ConfigError
        As in `Field`, or if the classifier was made with another model.
    """

    keeps_fine = True

    def __init__(
        self,
        image: PyramidImage,
        predictor: Predictor,
        level: int,
        plane: tuple[int, ...] = (),
        *,
        skip_blank: bool = False,
        wanted: WantedClass | None = None,
    ) -> None:
        super().__init__(image, predictor, level, plane, skip_blank=skip_blank)
        if wanted is not None and wanted.classifier.made_from != predictor.fingerprint:
            raise ConfigError(
                f"expected classes that were made with {predictor.name} ({predictor.fingerprint}), "
                f"got some of the model {wanted.classifier.made_from or 'unknown'}; stroke them "
                "with this model, or load the other one"
            )
        self._wanted = wanted

    def read(self, box: Box, step: Callable[[], None] | None = None) -> FieldPart:
        """Compute a part of the field, as `Field.read`; a wanted class is its foreground."""
        part = super().read(box, step)
        if self._wanted is None:
            return part
        found = self._wanted.classifier.probabilities(self.features(box, step))
        index = self._wanted.classifier.names.index(self._wanted.name)
        # Above a half where no other class is likelier, however many there are.
        foreground = found[index] / (found[index] + np.delete(found, index, axis=0).max(axis=0))
        if self._wanted.touching:
            maps = np.stack([foreground, part.maps[1], np.minimum(part.maps[2], 2 * foreground)])
        else:
            # All of a connected area is its own seed.
            maps = np.stack([foreground, np.zeros_like(foreground), foreground])
        return replace(part, maps=maps)

    def features(self, box: Box, step: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Compute the features of cells: what the model says of them, and a filter bank.

        Parameters
        ----------
        box : Box
            In cells, inside the field.
        step : callable, optional
            As in `read`.

        Returns
        -------
        (F, h, w) float32
            The three maps, the features of the dense head, the stem's maps, and `filter_bank`.
        """
        wide = super().read(box.expand(BANK_REACH).clip(self.shape), step)
        inner = box.shifted(-wide.box.y0, -wide.box.x0).slices
        bank = filter_bank(wide.rgb)[:, *inner]
        told = self._told(box, step)
        return np.concatenate([wide.maps[:, *inner], told, bank])

    def _told(self, box: Box, step: Callable[[], None] | None) -> NDArray[np.float32]:
        """Blend what the tiles say of some cells."""
        sums: NDArray[np.float32] | None = None
        total = np.zeros(box.shape_yx, np.float32)
        for place in self.tiles_of(box):
            if step is not None:
                step()
            where = self._box(place)
            common = where.intersection(box)
            out = common.shifted(-box.y0, -box.x0).slices
            inside = common.shifted(-where.y0, -where.x0)
            weights = self._window[inside.slices]
            total[out] += weights
            values = [_enlarged(fine, self._side, inside) for fine in self._tile(place).fine]
            if values:
                told = np.concatenate(values)
                if sums is None:
                    sums = np.zeros((len(told), *box.shape_yx), np.float32)
                sums[:, *out] += weights * told
        if sums is None:
            raise PromptError(
                "expected a part of the image that shows something, got one of a single colour"
            )
        return sums / total


def learn_classes(
    image: Any,
    strokes: Strokes,
    level: int | None = None,
    *,
    plane: tuple[int, ...] = (),
    model: Any = "hrsam-tiny",
) -> PixelClassifier:
    """Learn classes of pixels from a few strokes.

    Parameters
    ----------
    image : path, URL, array, or anything that `open_image` takes
    strokes : mapping of str to sequence of (N, 2) array
        For every class the strokes in it, each a line through points (y, x) in level-0 pixels; one
        point is a dot. One class may be what is no object.
    level : int, optional
        Level at which the pixels are looked at, -1 or more; by default as `propose` chooses.
    plane : tuple of int
        Index over the axes before y and x.
    model : Segmenter or str
        With a dense head.

    Returns
    -------
    PixelClassifier
        For `propose` and `auto`, at the same level; `PixelClassifier.save` keeps it.

    Raises
    ------
    PromptError
        If there are fewer than two classes, a class has no stroke, or a stroke is malformed or
        leaves the image.
    ConfigError
        If the model has no dense head, or there is no such level.
    ImageReadError
        If pixels cannot be read.
    """
    from napari_hrsam.engine.everything.proposals import looked_at

    opened, predictor, level = looked_at(image, model, level)
    field = StrokedField(opened, predictor, level, plane)
    names = list(strokes)
    cells = [_cells(strokes[name], name, level, opened.shape_yx) for name in names]
    parts, classes = [], []
    for index, places in enumerate(cells):
        if len(places):
            parts.append(_features_at(field, places))
            classes.append(np.full(len(places), index))
    features = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
    return fit_pixel_classes(
        features,
        np.concatenate(classes) if classes else np.zeros(0, np.int64),
        names,
        made_from=predictor.fingerprint,
        level=level,
    )


def _cells(
    strokes: Sequence[Any], name: str, level: int, shape_yx: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the cells under the strokes of a class, each once: (N, 2)."""
    cell = CELL_PX * downsample(level)
    found = []
    for stroke in strokes:
        points = np.asarray(stroke, np.float64)
        points = points[None] if points.shape == (2,) else points
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise PromptError(
                f"expected strokes of {name!r} as points (y, x), (N, 2), got {points.shape}"
            )
        if not (points >= 0).all() or not (points <= np.array(shape_yx) - 1).all():
            raise PromptError(
                f"expected strokes of {name!r} inside the image of {shape_yx} px, got points from "
                f"{points.min(axis=0).tolist()} to {points.max(axis=0).tolist()}"
            )
        places = (points // cell).astype(int)
        found.append(places[:1])
        for first, last in itertools.pairwise(places):
            found.append(np.stack(line(*first, *last), axis=1))
    if not found:
        return np.zeros((0, 2), np.int64)
    unique = np.unique(np.concatenate(found), axis=0)
    return unique[:: -(-len(unique) // MAX_STROKE_CELLS)]


def _features_at(field: StrokedField, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute the features of some cells, (F, N), part by part of the field."""
    parts = places // PART_CELLS
    out: list[NDArray[np.float32]] = []
    order: list[NDArray[np.int64]] = []
    for part in np.unique(parts, axis=0):
        index = np.flatnonzero((parts == part).all(axis=1))
        here = places[index]
        (y0, x0), (y1, x1) = here.min(axis=0), here.max(axis=0) + 1
        features = field.features(Box(int(y0), int(x0), int(y1), int(x1)))
        out.append(features[:, here[:, 0] - y0, here[:, 1] - x0])
        order.append(index)
    found: NDArray[np.float32] = np.concatenate(out, axis=1)
    return found[:, np.argsort(np.concatenate(order))]


def _enlarged(values: NDArray[np.float16], side: int, inside: Box) -> NDArray[np.float32]:
    """Enlarge a part of the (C, h, w) maps of a tile to cells, bilinearly."""
    factor = side // values.shape[1]
    # A cell more around: the values between two need both.
    step = Box(
        max(0, inside.y0 // factor - 1),
        max(0, inside.x0 // factor - 1),
        min(values.shape[1], -(-inside.y1 // factor) + 1),
        min(values.shape[2], -(-inside.x1 // factor) + 1),
    )
    found = values[:, *step.slices].astype(np.float32)
    for axis, (size, first, count) in enumerate(
        (
            (values.shape[1], (step.y0, inside.y0), inside.height),
            (values.shape[2], (step.x0, inside.x0), inside.width),
        ),
        start=1,
    ):
        start, begin = first
        # Centres of cells, in those of the map.
        at = (np.arange(begin, begin + count) + 0.5) / factor - 0.5
        at = np.clip(at, 0, size - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, size - 1)
        share = (at - low).astype(np.float32)
        share = share.reshape([-1 if i == axis else 1 for i in range(3)])
        found = (1 - share) * found.take(low - start, axis) + share * found.take(high - start, axis)
    return found
