"""A stand-in, until the ranking by features is merged: their scores alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from napari_hrsam.engine.everything.proposals import Proposals


def rank(
    proposals: Proposals,
    accepted: Sequence[int],  # noqa: ARG001
    rejected: Sequence[int],  # noqa: ARG001
) -> NDArray[np.float32]:
    """Return (N,) float32, 0..1: how alike each is to those that were accepted."""
    return proposals.scores
