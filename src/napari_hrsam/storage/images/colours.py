"""Which channel is shown as which colour, between which limits, and how they are laid together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError

Channels = Mapping[str, int] | Sequence[int | None]
Limits = tuple[float, float] | Sequence[tuple[float, float]]
Shown = tuple[int | None, ...]
"""The channels shown as red, green and blue; None: not shown. All alike: one channel in grey.

With looks, the channels that have one instead, from the lowest to the topmost."""

NUM_COLOURS = 1024
"""Steps between the limits for which a colour is looked up."""

HIDING = ("opaque", "translucent", "translucent_no_depth")
"""Blendings of a layer that hide what is below, if it is not transparent."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Look:
    """How one channel is coloured, and how it is laid on those below it, as napari does.

    Attributes
    ----------
    colours : (N, 4) float32
        Red, green, blue and opacity, 0..1, at even steps from the lower limit to the upper one.
    gamma : float
        Power that values between the limits, 0..1, are raised to before they are coloured.
    opacity : float
        0..1, times that of the colours.
    blending : str
        A blending of napari's layers; the lowest one is laid on black.
    """

    colours: NDArray[np.float32]
    gamma: float = 1.0
    opacity: float = 1.0
    blending: str = "additive"

    @property
    def facts(self) -> tuple[float, float, str, str]:
        """All of it, to be compared and written down."""
        digest = hashlib.sha256(self.colours.astype("<f4").tobytes()).hexdigest()
        return self.gamma, self.opacity, self.blending, digest

    @property
    def hides(self) -> bool:
        """Whether nothing below it is seen."""
        if self.blending == "opaque":
            return True
        is_full = self.opacity == 1 and bool((self.colours[:, 3] == 1).all())
        return is_full and self.blending in HIDING

    @property
    def is_as_it_is(self) -> bool:
        """Whether colours alone say how it looks, if nothing but additive ones is below it."""
        return self.gamma == 1 and self.opacity == 1

    def lay(
        self, values: NDArray[np.float32], below: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Colour values and lay them on a picture.

        Parameters
        ----------
        values : (rows, columns) float32
            0 at the lower limit, 1 at the upper one.
        below : (rows, columns, 3) float32, or None
            The picture so far, 0..1; None for the lowest one.

        Returns
        -------
        (rows, columns, 3) float32
            0..1.
        """
        if self.gamma != 1:
            values = values**self.gamma
        places = np.rint(values * (len(self.colours) - 1)).astype(np.intp)
        colours = self.colours[places]
        rgb, alpha = colours[..., :3], colours[..., 3:] * np.float32(self.opacity)
        # The factors are those that napari gives to OpenGL, for a picture without holes.
        if below is None:
            return rgb if self.blending == "minimum" else rgb * alpha
        if self.blending == "additive":
            return np.minimum(below + rgb * alpha, 1)
        if self.blending == "minimum":
            return np.minimum(below, rgb)
        if self.blending == "multiplicative":
            return below * rgb
        if self.blending == "opaque":
            return rgb
        return rgb * alpha + below * (1 - alpha)


def ramp(red: float, green: float, blue: float) -> NDArray[np.float32]:
    """Return (`NUM_COLOURS`, 4) colours from black to one."""
    steps = np.linspace(0, 1, NUM_COLOURS, dtype=np.float32)
    black, full = np.array([0, 0, 0, 1]), np.array([red, green, blue, 1])
    colours: NDArray[np.float32] = (black + steps[:, None] * (full - black)).astype(np.float32)
    return colours


GREY = ramp(1, 1, 1)
PURE = (ramp(1, 0, 0), ramp(0, 1, 0), ramp(0, 0, 1))
"""Colours of a channel shown as red, green or blue."""


def looks_of(shown: Shown, gammas: Mapping[int, float]) -> tuple[Shown, tuple[Look, ...]]:
    """Say by looks what a mapping to colours shows, where channels have a gamma.

    Parameters
    ----------
    shown : (red, green, blue)
    gammas : mapping of channel to gamma
        1 where there is none.

    Returns
    -------
    shown : tuple of int
        As given where no gamma counts, else the channel of each look.
    looks : tuple of Look
        Empty where no gamma counts.
    """
    used = [channel for channel in shown if channel is not None]
    if all(gammas.get(channel, 1.0) == 1 for channel in used):
        return shown, ()
    if len(set(shown)) == 1:
        return (used[0],), (Look(colours=GREY, gamma=gammas[used[0]]),)
    looks = [
        Look(colours=colours, gamma=gammas.get(channel, 1.0))
        for channel, colours in zip(shown, PURE, strict=True)
        if channel is not None
    ]
    return tuple(used), tuple(looks)


def plain_mapping(looks: Sequence[Look]) -> tuple[int | None, ...] | None:
    """Return the places of looks shown as red, green and blue, if they are no more than that.

    So an image is the same, whether it is shown so by napari or opened so from a file.
    """
    if not all(look.is_as_it_is for look in looks):
        return None
    if len(looks) == 1 and np.allclose(looks[0].colours, GREY, atol=1e-6):
        return (0, 0, 0)
    found: list[int | None] = [None, None, None]
    for place, look in enumerate(looks):
        pure = [np.allclose(look.colours, colours, atol=1e-6) for colours in PURE]
        if not any(pure) or found[pure.index(True)] is not None:
            return None
        if place and look.blending != "additive":
            return None
        found[pure.index(True)] = place
    return tuple(found)


def shown_channels(num_channels: int, channels: Channels | None) -> Shown:
    """Check the user's mapping, or choose one where the image has at most two channels."""
    if channels is None:
        if num_channels > 2:
            raise ImageError(
                f"expected a mapping of the {num_channels} channels to colours, got none; "
                'give e.g. channels={"red": 0, "green": 1, "blue": 2}, or channels=[0] for one '
                "channel in grey"
            )
        return (0, 1, None) if num_channels == 2 else (0, 0, 0)
    if isinstance(channels, Mapping):
        unknown = set(channels) - {"red", "green", "blue"}
        chosen = [channels.get(colour) for colour in ("red", "green", "blue")]
    else:
        unknown = set()
        chosen = list(channels)
    used = [channel for channel in chosen if channel is not None]
    if unknown or not used or len(chosen) > 3 or not all(0 <= c < num_channels for c in used):
        raise ImageError(
            f"expected channels as up to three of 0..{num_channels - 1} for red, green and blue, "
            f'got {channels!r}; give e.g. channels={{"red": 0, "green": 1}}'
        )
    if len(chosen) == 1:
        chosen *= 3
    return tuple(chosen + [None] * (3 - len(chosen)))


def spread_limits(given: Limits, num_shown: int, shown: Shown) -> tuple[tuple[float, float], ...]:
    """Check the user's limits and give each of the three colours its pair."""
    try:
        pairs = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.shape == (2,):
        pairs = np.tile(pairs, (num_shown, 1))
    if len(set(shown)) == 1 and pairs.shape == (1, 2):
        pairs = np.tile(pairs, (num_shown, 1))
    if (
        pairs.shape != (num_shown, 2)
        or not np.isfinite(pairs).all()
        or (pairs[:, 0] >= pairs[:, 1]).any()
    ):
        raise ImageError(
            "expected contrast_limits as (low, high) with low < high, or one such pair per shown "
            f"channel, got {given!r}; leave it out to have them found"
        )
    rest = iter(pairs.tolist())
    return tuple((0.0, 1.0) if channel is None else tuple(next(rest)) for channel in shown)
