"""The objects of a label image, one by one: what commits tell of them, and what pixels do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.properties import (
    Color,
    Properties,
    PropertiesChange,
)

Plane = tuple[int, ...]
Key = tuple[Plane, int]
"""A plane, and the id of an object in it."""

UNIT_SYMBOLS = {
    "micrometer": "µm",
    "nanometer": "nm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "angstrom": "Å",
}
"""Short forms of the commonest units of OME-Zarr."""

ROWS = 1024
"""Rows of an array that are measured at once."""

MAX_PARTS = 200_000
"""Rows of partial sums that are kept before they are joined."""

_SUMS = np.dtype([("label", "u8"), *((name, "i8") for name in ("area", "y0", "x0", "y1", "x1"))])


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRow:
    """One object on one plane.

    Attributes
    ----------
    label : int
        Its id.
    plane : tuple of int
        Where it lies.
    box : Box
        It holds the object, in level-0 pixels; it may be a little larger.
    area_px : int or None
        Its pixels; None where neither the journal nor a measurement knows them.
    area : float or None
        The same in the square of `unit`.
    unit : str
        Of the label image's scale; empty if it tells none.
    object_class : str
        Name of its class; empty for none.
    color : (int, int, int) or None
        Its own, else that of its class.
    model : str
        That drew it last, or empty.
    time : float or None
        Of its last commit, in seconds since 1970.
    num_prompts : int or None
        Clicks, scribbles and boxes that led to it.
    level : int or None
        Pyramid level at which it was drawn.
    score : float or None
        The model's own estimate of the mask's IoU.
    """

    label: int
    plane: Plane = ()
    box: Box
    area_px: int | None = None
    area: float | None = None
    unit: str = ""
    object_class: str = ""
    color: Color | None = None
    model: str = ""
    time: float | None = None
    num_prompts: int | None = None
    level: int | None = None
    score: float | None = None

    @property
    def unit_symbol(self) -> str:
        """Short form of the unit, where it has a common one."""
        return UNIT_SYMBOLS.get(self.unit, self.unit)


class Commit(Protocol):
    """What is read of an edit, or of a row of the journal."""

    @property
    def label(self) -> int: ...  # noqa: D102
    @property
    def plane(self) -> Plane: ...  # noqa: D102
    @property
    def box(self) -> Box: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def time(self) -> float: ...  # noqa: D102
    @property
    def num_prompts(self) -> int: ...  # noqa: D102
    @property
    def level(self) -> int | None: ...  # noqa: D102
    @property
    def score(self) -> float | None: ...  # noqa: D102
    @property
    def areas(self) -> Mapping[int, int] | None: ...  # noqa: D102
    @property
    def change(self) -> PropertiesChange | None: ...  # noqa: D102


class WholeCommit(Commit, Protocol):
    """A commit that may have drawn many objects at once."""

    def parts(self) -> Sequence[Commit]: ...  # noqa: D102


@dataclass(slots=True)
class _Known:
    row: ObjectRow
    is_there: bool = True
    # The row with class, colour and area, until something changes.
    told: ObjectRow | None = None


class ObjectList:
    """The objects of a label image, kept up to date by its edits.

    Parameters
    ----------
    properties : Properties
        Classes and colours.
    commits : iterable of Commit
        Those that count, oldest first.
    pixel_area : float
        Of one pixel, in the square of the unit.
    unit : str
        Of the scale; empty for none.
    has_others : bool
        Whether there may be objects, or pixels of them, that no commit tells.

    Attributes
    ----------
    properties : Properties
        Classes and colours now.
    unit : str
        Of the scale; empty for none.
    """

    def __init__(
        self,
        properties: Properties | None = None,
        commits: Iterable[Commit] = (),
        *,
        pixel_area: float = 1.0,
        unit: str = "",
        has_others: bool = False,
    ) -> None:
        self.properties = properties or Properties()
        self._pixel_area, self.unit = pixel_area, unit
        self._has_others = has_others
        self._known: dict[Key, _Known] = {}
        self._measured: set[Plane] = set()
        self._edited_since: set[Key] = set()
        for commit in commits:
            self._take(commit)

    def __len__(self) -> int:
        """Return the number of objects."""
        return sum(known.is_there for known in self._known.values())

    @property
    def needs_measuring(self) -> bool:
        """Whether only the pixels can tell which objects there are, and how large."""
        if not self._has_others:
            return any(k.is_there and k.row.area_px is None for k in self._known.values())
        return not self._measured

    def row(self, key: Key) -> ObjectRow | None:
        """Return one object, None if there is none."""
        known = self._known.get(key)
        return self._told(known) if known is not None and known.is_there else None

    def rows(self, plane: Plane | None = None) -> list[ObjectRow]:
        """Return all objects, or those of a plane, by plane and id."""
        return [
            self._told(known)
            for (place, _), known in sorted(self._known.items())
            if known.is_there and plane in (None, place)
        ]

    def edited(
        self, edit: WholeCommit, *, is_undone: bool, newest: Commit | None = None
    ) -> set[Key]:
        """Take note of an edit.

        Parameters
        ----------
        edit : WholeCommit
            What was committed, taken back, or made again.
        is_undone : bool
            Whether it was taken back.
        newest : Commit, optional
            After it was taken back: the newest commit of the object that counts.

        Returns
        -------
        set of (plane, label)
            The objects that are other ones now, or not there any more.
        """
        if edit.change is not None:
            self.properties = self.properties.after(edit.change, is_done=not is_undone)
        changed: set[Key] = set()
        if edit.change is not None:
            labels = set(edit.change.labels)
            classes = edit.change.classes is not None
            changed |= {key for key in self._known if classes or key[1] in labels}
        if edit.kind != "properties" and edit.box.area:
            parts = edit.parts()
            for part in parts:
                # Of those that are drawn at once nothing was there before.
                earlier = newest if len(parts) == 1 else None
                changed |= self._take(part, is_undone=is_undone, newest=earlier)
            self._edited_since |= changed
        for key in changed:
            self._known[key].told = None
        return changed

    def set_unit(self, pixel_area: float, unit: str) -> None:
        """Tell areas otherwise: of one pixel, in the square of a unit."""
        self._pixel_area, self.unit = pixel_area, unit
        for known in self._known.values():
            known.told = None

    def begin_measuring(self) -> None:
        """Take note that pixels are read from now on; see `measured`."""
        self._edited_since = set()

    def measured(self, plane: Plane, found: Mapping[int, tuple[int, Box]]) -> None:
        """Take over what a plane holds, by id; what was edited meanwhile stays as edits tell it.

        Parameters
        ----------
        plane : tuple of int
            That was looked at.
        found : mapping of int to (area in pixels, Box)
            Its objects.
        """
        self._measured.add(plane)
        for label, (area, box) in found.items():
            if (plane, label) not in self._edited_since:
                known = self._known.setdefault(
                    (plane, label), _Known(ObjectRow(label=label, plane=plane, box=box))
                )
                known.row = replace(known.row, box=box, area_px=area)
                known.is_there, known.told = True, None
        for (place, label), known in self._known.items():
            if place == plane and label not in found and (place, label) not in self._edited_since:
                known.is_there = False

    # ------------------------------------------------------------------ inside

    def _told(self, known: _Known) -> ObjectRow:
        row = known.row
        if known.told is None:
            known.told = replace(
                row,
                object_class=self.properties.of(row.label).object_class,
                color=self.properties.color_of(row.label),
                area=None if row.area_px is None else row.area_px * self._pixel_area,
                unit=self.unit,
            )
        return known.told

    def _take(
        self, commit: Commit, *, is_undone: bool = False, newest: Commit | None = None
    ) -> set[Key]:
        if commit.kind == "properties":
            return set()
        key = commit.plane, commit.label
        known = self._known.get(key)
        if known is None:
            # A new one has no pixel yet; of one that others drew nobody knows how many.
            area = 0 if commit.kind == "draw" else None
            row = ObjectRow(label=commit.label, plane=commit.plane, box=commit.box, area_px=area)
            known = self._known[key] = _Known(row, is_there=is_undone)
        told = newest if is_undone else commit
        if told is not None and told.kind != "delete":
            known.row = replace(
                known.row,
                box=known.row.box.union(told.box),
                model=told.model,
                time=told.time,
                num_prompts=told.num_prompts,
                level=told.level,
                score=told.score,
            )
        changed = {key}
        if commit.areas is None:
            known.row = replace(known.row, area_px=None)
        for label, delta in (commit.areas or {}).items():
            place = commit.plane, label
            other = self._known.get(place)
            if other is None:
                continue
            changed.add(place)
            gained = -delta if is_undone else delta
            if gained > 0:
                other.row = replace(other.row, box=other.row.box.union(commit.box))
            if other.row.area_px is not None:
                area = max(0, other.row.area_px + gained)
                other.row = replace(other.row, area_px=area)
                other.is_there = area > 0
        if known.row.area_px is None:
            known.is_there = (commit.kind == "delete") == is_undone or (
                is_undone and commit.kind == "replace"
            )
        return changed


# ---------------------------------------------------------------------- pixels


class Areas:
    """Areas and boxes of objects, added up part by part in memory of the objects' number."""

    def __init__(self) -> None:
        self._parts: list[NDArray[Any]] = []
        self._num, self._limit = 0, MAX_PARTS

    def add(self, values: NDArray[Any], y0: int = 0, x0: int = 0) -> None:
        """Add a part, (H, W) integer, whose first pixel lies at (y0, x0)."""
        is_first = np.ones(values.shape, bool)
        np.not_equal(values[:, 1:], values[:, :-1], out=is_first[:, 1:])
        places = np.flatnonzero(is_first)
        labels = values[is_first]
        lengths = np.diff(places, append=values.size)
        kept = labels > 0
        y, x = np.divmod(places[kept], max(1, values.shape[1]))
        part = np.empty(int(np.count_nonzero(kept)), _SUMS)
        part["label"], part["area"] = labels[kept], lengths[kept]
        part["y0"], part["x0"] = y + y0, x + x0
        part["y1"], part["x1"] = part["y0"] + 1, part["x0"] + lengths[kept]
        self._parts.append(_joined(part))
        self._num += len(self._parts[-1])
        if self._num > self._limit:
            self._parts = [_joined(np.concatenate(self._parts))]
            self._num = len(self._parts[0])
            self._limit = MAX_PARTS + 2 * self._num

    def found(self) -> dict[int, tuple[int, Box]]:
        """Return area and smallest box of each object, by id."""
        parts = _joined(np.concatenate(self._parts or [np.empty(0, _SUMS)]))
        return {label: (area, Box(*ends)) for label, area, *ends in parts.tolist()}


def measure_array(
    array: NDArray[Any], progress: Callable[[int, int], None] | None = None
) -> dict[int, tuple[int, Box]]:
    """Return area and box of each object of a 2-D array, by id."""
    areas = Areas()
    height = array.shape[0]
    for y0 in range(0, height, ROWS):
        areas.add(array[y0 : y0 + ROWS], y0)
        if progress is not None:
            progress(min(y0 + ROWS, height), height)
    return areas.found()


def _joined(parts: NDArray[Any]) -> NDArray[Any]:
    if len(parts) < 2:
        return parts
    parts = parts[np.argsort(parts["label"], kind="stable")]
    starts = np.flatnonzero(np.r_[True, parts["label"][1:] != parts["label"][:-1]])
    joined = parts[starts]
    joined["area"] = np.add.reduceat(parts["area"], starts)
    for name in ("y0", "x0"):
        joined[name] = np.minimum.reduceat(parts[name], starts)
    for name in ("y1", "x1"):
        joined[name] = np.maximum.reduceat(parts[name], starts)
    return joined
