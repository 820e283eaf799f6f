"""Smooth star-shaped outlines: a radius for every direction, and who is inside.

One function tells the signed distance to an outline; masks and pixels both come from it, so they
agree exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outlines:
    """The outlines of N objects.

    Attributes
    ----------
    centres : (N, 2) float64
        (y, x) in level-0 pixels, pixel centres at integers.
    radii : (N,) float64
        Mean radius in level-0 pixels.
    table : (N, D + 1) float32
        Radius in D directions from +x towards +y; the first again at the end.
    slopes : (N, D + 1) float32
        Distance to the outline per distance along the ray, 0..1.
    """

    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    table: NDArray[np.float32]
    slopes: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.radii)

    @property
    def largest(self) -> NDArray[np.float32]:
        """Largest radius of every object."""
        largest: NDArray[np.float32] = self.table.max(axis=1)
        return largest

    @property
    def least(self) -> NDArray[np.float32]:
        """Least radius of every object."""
        least: NDArray[np.float32] = self.table.min(axis=1)
        return least

    @property
    def areas(self) -> NDArray[np.float64]:
        """Area of every object in level-0 pixels."""
        squares = np.mean(self.table[:, :-1].astype(np.float64) ** 2, axis=1)
        return np.asarray(math.pi * squares)

    @property
    def boxes(self) -> NDArray[np.int64]:
        """(N, 4) y0, x0, y1, x1: half-open boxes of whole level-0 pixels that hold the objects."""
        angles = np.linspace(0, 2 * math.pi, self.table.shape[1])
        ends = []
        for axis, direction in enumerate((np.sin(angles), np.cos(angles))):
            places = self.centres[:, axis, np.newaxis] + self.table * direction
            # Between two directions an outline bulges by less than 0.01 px.
            ends.append(np.ceil(places.min(axis=1) - 0.01))
            ends.append(np.floor(places.max(axis=1) + 0.01) + 1)
        return np.stack([ends[0], ends[2], ends[1], ends[3]], axis=1).astype(np.int64)

    def distance(
        self, index: int | NDArray[np.int64], dy: NDArray[np.float32], dx: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Tell how deep places lie inside objects.

        Parameters
        ----------
        index : int or integer array
            Which objects; broadcast with the offsets.
        dy, dx : float32 arrays
            Offsets from the centre in level-0 pixels; broadcast together.

        Returns
        -------
        float32 array
            Level-0 pixels to the outline, to first order: positive inside, 0 on it or outside
            negative.
        """
        num = self.table.shape[1] - 1
        turns = np.arctan2(dy, dx)
        turns *= np.float32(num / (2 * math.pi))
        turns += np.float32(num) * (turns < 0)
        place = turns.astype(np.int32)
        np.clip(place, 0, num - 1, out=place)
        turns -= place
        flat = place + np.asarray(index, np.int32) * np.int32(num + 1)
        table = self.table.reshape(-1)
        radius = table.take(flat)
        step = table.take(flat + 1)
        step -= radius
        step *= turns
        radius += step
        radius -= np.sqrt(dy * dy + dx * dx)
        radius *= self.slopes.reshape(-1).take(flat)
        return radius


def make_outlines(
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    waves: NDArray[np.float64],
    phases: NDArray[np.float64],
    num_directions: int,
) -> Outlines:
    """Make outlines ``r(t) = radius * (1 + sum over k of wave_k cos(k t + phase_k))``.

    Parameters
    ----------
    centres : (N, 2) float
    radii : (N,) float
    waves, phases : (N, K) float
        For k = 2 .. K + 1; the waves of an object add up to less than 1.
    num_directions : int
    """
    angles = np.linspace(0, 2 * math.pi, num_directions + 1)
    orders = np.arange(2, waves.shape[1] + 2)
    cosines, sines = np.cos(np.outer(orders, angles)), np.sin(np.outer(orders, angles))
    even, odd = waves * np.cos(phases), waves * np.sin(phases)
    radius = 1 + even @ cosines - odd @ sines
    rise = -(even * orders) @ sines - (odd * orders) @ cosines
    # The last direction is the first again, to the last bit.
    radius[:, -1], rise[:, -1] = radius[:, 0], rise[:, 0]
    slopes = radius / np.hypot(radius, rise)
    return Outlines(
        centres=centres,
        radii=radii,
        table=(radius * radii[:, np.newaxis]).astype(np.float32),
        slopes=slopes.astype(np.float32),
    )
