"""Where the objects of a scene lie: a few giant ones, many small ones, none over another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.sample.scene.outlines import Outlines, make_outlines
from napari_hrsam.sample.scene.recipe import Recipe

SMALLEST_PX, LARGEST_PX, FULL_PX = 10, 30_000, 100_000
"""Diameters in an image of `FULL_PX`; a smaller one squeezes the range from above."""

_TRIES = 24
_CANDIDATES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One class of objects.

    Attributes
    ----------
    name : str
    diameters_px : (low, high)
        In an image of `FULL_PX`.
    num : int
        How many there are at most in an image of up to `FULL_PX`.
    share : float
        Part of the image that they cover at most.
    num_waves, wave_sum : int and (low, high)
        How rough their outlines are: waves of 2, 3, ... turns, and the sum of their heights.
    num_directions : int
        Directions in which an outline's radius is kept.
    grows : bool
        Whether an image beyond `FULL_PX` holds more of them.
    """

    name: str
    diameters_px: tuple[int, int]
    num: int
    share: float
    num_waves: int
    wave_sum: tuple[float, float]
    num_directions: int
    grows: bool = False


KINDS = (
    Kind(
        name="lesion",
        diameters_px=(10_000, 30_000),
        num=6,
        share=0.2,
        num_waves=40,
        wave_sum=(0.25, 0.4),
        num_directions=8192,
        grows=True,
    ),
    Kind(
        name="lobule",
        diameters_px=(2_000, 8_000),
        num=50,
        share=0.08,
        num_waves=20,
        wave_sum=(0.2, 0.35),
        num_directions=2048,
        grows=True,
    ),
    Kind(
        name="gland",
        diameters_px=(200, 1_000),
        num=700,
        share=0.08,
        num_waves=9,
        wave_sum=(0.15, 0.32),
        num_directions=512,
    ),
    Kind(
        name="nucleus",
        diameters_px=(10, 150),
        num=6_000,
        share=0.03,
        num_waves=4,
        wave_sum=(0.08, 0.24),
        num_directions=128,
    ),
)
"""From the largest to the smallest, in the order of the labels."""

_ALONE = 0.1
"""Part of the nuclei that lie alone; the others lie in nests."""

_IN_NEST = 30
_SHIFT = 0.25
"""How far from the places of a lattice they lie at most, both ways together, in its steps."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """All objects of one kind.

    Attributes
    ----------
    kind : Kind
    outlines : Outlines
    first_label : int
        Label of the first; the others follow.
    variants : (N,) float64
        A number in [0, 1) per object that looks may use.
    """

    kind: Kind
    outlines: Outlines
    first_label: int
    variants: NDArray[np.float64]


@dataclass(slots=True, eq=False)
class _Discs:
    """Discs that do not touch, thrown one after the other."""

    size_px: int
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    num: int = 0

    def throw(self, rng: np.random.Generator, radius: float) -> NDArray[np.float64] | None:
        """Find room for a disc; None if there is none after some tries."""
        room = self.size_px - 2 * radius
        if room <= 0:
            return None
        for _ in range(_TRIES):
            candidates = radius + room * rng.random((_CANDIDATES, 2))
            offsets = candidates[:, np.newaxis] - self.centres[: self.num]
            free = (offsets**2).sum(axis=2) > (self.radii[: self.num] + radius) ** 2
            good = np.flatnonzero(free.all(axis=1))
            if good.size:
                centre: NDArray[np.float64] = candidates[good[0]]
                self.centres[self.num], self.radii[self.num] = centre, radius
                self.num += 1
                return centre
        return None


def lay_out(recipe: Recipe) -> tuple[Group, ...]:
    """Place the objects of a scene; the same recipe gives the same objects.

    Returns
    -------
    tuple of Group
        One per kind, from the largest to the smallest. No two objects touch, and all lie inside.
    """
    rng = np.random.default_rng(recipe.seed)
    most = sum(_number(kind, recipe.size_px) for kind in KINDS)
    discs = _Discs(size_px=recipe.size_px, centres=np.zeros((most, 2)), radii=np.zeros(most))
    groups: list[Group] = []
    first_label = 1
    for kind in KINDS:
        place = _nests if kind is KINDS[-1] else _singles
        group = place(rng, kind, discs, first_label)
        groups.append(group)
        first_label += len(group.outlines)
    return tuple(groups)


def scaled_diameter(diameter_px: float, size_px: int) -> float:
    """Squeeze a diameter of a `FULL_PX` image into a smaller one; the smallest stays."""
    largest = min(size_px, FULL_PX) / FULL_PX * LARGEST_PX
    squeeze = math.log(largest / SMALLEST_PX) / math.log(LARGEST_PX / SMALLEST_PX)
    return float(SMALLEST_PX * (diameter_px / SMALLEST_PX) ** squeeze)


def _range(kind: Kind, size_px: int) -> tuple[float, float]:
    low, high = kind.diameters_px
    return scaled_diameter(low, size_px), scaled_diameter(high, size_px)


def _number(kind: Kind, size_px: int) -> int:
    """How many objects to try to place."""
    low, high = _range(kind, size_px)
    # Mean of the square of a log-uniform diameter.
    area = math.pi / 4 * (high**2 - low**2) / (2 * math.log(high / low))
    most = kind.num * max(1.0, min(4.0, (size_px / FULL_PX) ** 2)) if kind.grows else kind.num
    return max(2, min(int(most), int(kind.share * size_px**2 / area)))


def _diameters(kind: Kind, size_px: int, num: int) -> NDArray[np.float64]:
    """Log-evenly spread over the kind's range, the largest first, both ends among them."""
    low, high = _range(kind, size_px)
    return np.geomspace(high, low, num)


def _wavy(
    rng: np.random.Generator, kind: Kind, num: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw heights and phases of the outlines' waves."""
    heights = (0.3 + 0.7 * rng.random((num, kind.num_waves))) / np.arange(
        2, kind.num_waves + 2
    ) ** 1.4
    low, high = kind.wave_sum
    heights *= ((low + (high - low) * rng.random(num)) / heights.sum(axis=1))[:, np.newaxis]
    return heights, 2 * math.pi * rng.random((num, kind.num_waves))


def _gap(radius: float) -> float:
    """Room left around an object."""
    return 4 + 0.05 * radius


def _singles(rng: np.random.Generator, kind: Kind, discs: _Discs, first_label: int) -> Group:
    """Place objects one by one."""
    radii = _diameters(kind, discs.size_px, _number(kind, discs.size_px)) / 2
    waves, phases = _wavy(rng, kind, len(radii))
    centres, kept = [], []
    for number, radius in enumerate(radii):
        centre = discs.throw(rng, radius * (1 + waves[number].sum()) + _gap(radius))
        if centre is not None:
            centres.append(centre)
            kept.append(number)
    return _group(rng, kind, first_label, np.array(centres), radii[kept], waves[kept], phases[kept])


def _nests(rng: np.random.Generator, kind: Kind, discs: _Discs, first_label: int) -> Group:
    """Place objects in nests of about one size, and some alone."""
    num = _number(kind, discs.size_px)
    num_alone = max(2, round(_ALONE * num))
    num_nests = max(1, (num - num_alone) // _IN_NEST)
    low, high = _range(kind, discs.size_px)
    reach = 1 + kind.wave_sum[1]
    centres, radii = [], []
    for middle in np.geomspace(high, low, num_nests):
        sizes = np.clip(middle * (0.75 + 0.45 * rng.random(_IN_NEST)), low, high) / 2
        # Two neighbours may each move by half the shift along both axes, towards each other.
        step = (2 * sizes.max() * reach + _gap(sizes.max())) / (1 - math.sqrt(2) * _SHIFT)
        places = _hexagons(_IN_NEST) * step
        places += (rng.random(places.shape) - 0.5) * _SHIFT * step
        outer = float(np.hypot(*places.T).max() + sizes.max() * reach + _gap(sizes.max()))
        centre = discs.throw(rng, outer)
        if centre is not None:
            centres.extend(centre + places)
            radii.extend(sizes)
    for diameter in _diameters(kind, discs.size_px, num_alone):
        centre = discs.throw(rng, diameter / 2 * reach + _gap(diameter / 2))
        if centre is not None:
            centres.append(centre)
            radii.append(diameter / 2)
    waves, phases = _wavy(rng, kind, len(radii))
    return _group(rng, kind, first_label, np.array(centres), np.array(radii), waves, phases)


def _hexagons(num: int) -> NDArray[np.float64]:
    """Return (num, 2) places of a hexagonal lattice with step 1, from the middle outwards."""
    side = math.ceil(math.sqrt(num)) + 1
    rows, columns = np.mgrid[-side : side + 1, -side : side + 1].reshape(2, -1)
    places = np.stack([rows * math.sqrt(3) / 2, columns + rows % 2 / 2], axis=1)
    order = np.argsort(np.hypot(*places.T), kind="stable")
    chosen: NDArray[np.float64] = places[order[:num]]
    return chosen


def _group(
    rng: np.random.Generator,
    kind: Kind,
    first_label: int,
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    waves: NDArray[np.float64],
    phases: NDArray[np.float64],
) -> Group:
    outlines = make_outlines(centres.reshape(-1, 2), radii, waves, phases, kind.num_directions)
    return Group(
        kind=kind,
        outlines=outlines,
        first_label=first_label,
        variants=rng.random(len(radii)),
    )
