"""Which channel is shown as which colour, and between which limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from napari_hrsam.errors import ImageError

Channels = Mapping[str, int] | Sequence[int | None]
Limits = tuple[float, float] | Sequence[tuple[float, float]]
Shown = tuple[int | None, ...]
"""The channels shown as red, green and blue; None: not shown. All alike: one channel in grey."""


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
        pairs = np.tile(pairs, (3, 1))
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
