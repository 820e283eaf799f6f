"""What was changed in a label image, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.labels.properties import PropertiesChange

EditKind = Literal["draw", "replace", "delete", "properties", "accept"]
"""What an edit does: draw a new object, replace the pixels of one, or delete it; change classes and
colours alone; or draw many new objects at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnAs:
    """What is kept of an object beside its pixels: how it came about.

    Attributes
    ----------
    prompts : Prompts
        What the user said to get it.
    model : str
        Name of the model that drew it, or empty.
    object_class : str or None
        Name of its class, which is added if there is none; empty for none; None: as it is.
    level : int or None
        Pyramid level at which it was drawn.
    score : float or None
        The model's own estimate of the mask's IoU.
    first_level : int or None
        Pyramid level of the first look at it, from which the same prompts lead to the same mask.
    """

    prompts: Prompts = field(default_factory=Prompts)
    model: str = ""
    object_class: str | None = None
    level: int | None = None
    score: float | None = None
    first_level: int | None = None


NOT_SAID = DrawnAs()


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnObject:
    """One of the objects that an edit drew at once.

    Attributes
    ----------
    label : int
        Its id.
    box : Box
        The smallest box that holds it, in level-0 pixels.
    area_px : int
        Its level-0 pixels.
    score : float or None
        The model's own estimate of it.
    """

    label: int
    box: Box
    area_px: int
    score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Edit:
    """One committed change of a label image.

    Attributes
    ----------
    label : int
        The object's id; of many the highest.
    box : Box
        The smallest box that holds every changed pixel, in level-0 pixels.
    time : float
        When it was committed, in seconds since 1970.
    plane : tuple of int
        Index over the non-spatial axes of the label image; empty for a 2-D one.
    kind : "draw", "replace", "delete", "properties" or "accept"
        A new object, other pixels for one that was there, an object taken away, or classes and
        colours alone; the box is empty then, and the label 0 unless there is one object. Or many
        new objects at once.
    prompts, model, level, score, first_level
        As in `DrawnAs`.
    areas : mapping of int to int, or None
        How many pixels each object got (or lost, below 0); None if that is not known.
    change : PropertiesChange or None
        What it changes of classes and colours.
    objects : tuple of DrawnObject
        Of many new objects each.
    """

    label: int
    box: Box
    prompts: Prompts = field(default_factory=Prompts)
    model: str = ""
    time: float = 0.0
    plane: tuple[int, ...] = ()
    kind: EditKind = "draw"
    level: int | None = None
    score: float | None = None
    first_level: int | None = None
    areas: Mapping[int, int] | None = None
    change: PropertiesChange | None = None
    objects: tuple[DrawnObject, ...] = ()

    def parts(self) -> tuple[Edit, ...]:
        """Return an edit per object where many were drawn at once, else itself."""
        if self.kind != "accept":
            return (self,)
        return tuple(
            Edit(
                label=one.label,
                box=one.box,
                model=self.model,
                time=self.time,
                plane=self.plane,
                level=self.level,
                score=one.score,
                areas={one.label: one.area_px},
            )
            for one in self.objects
        )

    def part_of(self, label: int) -> Edit:
        """Return what it says of one object: itself, unless many were drawn at once."""
        return next(part for part in self.parts() if part.label == label)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was changed, so that there is nothing to take back."""
        return self.box.area == 0 and not self.change

    @property
    def num_prompts(self) -> int:
        """Clicks, scribbles and boxes that led to it."""
        return len(self.prompts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArrayEdit(Edit):
    """An edit of `ArrayLabels`, which holds what it changed.

    Attributes
    ----------
    before, after : NDArray
        The labels in the box before and after, shape ``box.shape_yx``, dtype of the label image;
        read-only.
    """

    before: NDArray[Any]
    after: NDArray[Any]

    @property
    def num_bytes(self) -> int:
        """Memory taken by the two blocks."""
        return self.before.nbytes + self.after.nbytes


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The commits that a label image remembers.

    Attributes
    ----------
    done : tuple of Edit
        Those that can be taken back, oldest first.
    undone : tuple of Edit
        Those that were taken back and can be made again; the last one is the next to be made.
    """

    done: tuple[Edit, ...] = ()
    undone: tuple[Edit, ...] = ()
