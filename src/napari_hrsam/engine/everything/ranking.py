"""Proposals in the order of how much they are like those that were accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from napari_hrsam.errors import PromptError
from napari_hrsam.modeling.configs import DENSE_FEATURES

if TYPE_CHECKING:
    from napari_hrsam.engine.everything.proposals import Proposals

# Both chosen with `benchmarks/find_similar.py`.
PENALTY = 3.0
"""Of the squared weights."""

REST = 0.3
"""Weight of embedding and stem maps beside the head's features and the look: there are many."""

MAX_OTHERS = 2000
"""Proposals without a decision that stand against the accepted ones where none was rejected."""


def rank(
    proposals: Proposals, accepted: Sequence[int], rejected: Sequence[int]
) -> NDArray[np.float32]:
    """Tell how much every proposal is like the accepted ones, and unlike the rejected ones.

    A logistic regression on what the network says of each, on its size, colours, fill and score;
    milliseconds for a thousand proposals, so that it can be asked after every decision.

    Parameters
    ----------
    proposals : Proposals
    accepted, rejected : sequence of int
        Their indices. Where none was rejected, all that were not accepted count as rejected, a
        little.

    Returns
    -------
    (N,) float32, 0..1
        The accepted and rejected ones among them.

    Raises
    ------
    PromptError
        If none was accepted, or an index is out of range or in both.
    """
    taken, refused = _indices(accepted, len(proposals)), _indices(rejected, len(proposals))
    if not len(taken):
        raise PromptError(
            "expected an accepted proposal that others are compared with, got none; accept one"
        )
    if len(both := np.intersect1d(taken, refused)):
        raise PromptError(
            f"expected every proposal to be accepted or rejected, got both for {both.tolist()}"
        )
    table = _table(proposals)
    if not len(refused):
        others = np.setdiff1d(np.arange(len(proposals)), taken)
        # Spread evenly, so that the answer is the same every time.
        refused = others[:: max(1, -(-len(others) // MAX_OTHERS))]
    if not len(refused):
        return np.ones(len(proposals), np.float32)
    rows = np.concatenate([taken, refused])
    is_taken = np.arange(len(rows)) < len(taken)
    scores = table @ _weights(table[rows], is_taken)
    # The middle between the two kinds is where neither is likelier.
    middle = (scores[taken].mean() + scores[refused].mean()) / 2
    likeness: NDArray[np.float32] = (1 / (1 + np.exp(middle - scores))).astype(np.float32)
    return likeness


def _indices(given: Sequence[int], num: int) -> NDArray[np.int64]:
    found = np.unique(np.asarray(given, np.int64))
    if found.size and not (found[0] >= 0 and found[-1] < num):
        raise PromptError(f"expected indices of {num} proposals, got {found[0]} to {found[-1]}")
    return found


def _table(proposals: Proposals) -> NDArray[np.float64]:
    """Return the features of each, comparable with one another: (N, F)."""
    boxes = proposals.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    look = np.column_stack(
        [
            np.log(np.maximum(proposals.areas_px, 1)),
            proposals.mean_rgb,
            proposals.std_rgb,
            proposals.areas_px / np.maximum(sides.prod(axis=1), 1),
            proposals.solidity,
            proposals.scores,
        ]
    )
    table = np.column_stack([look, proposals.features]).astype(np.float64)
    # A feature that is the same everywhere says nothing.
    spread = table.std(axis=0)
    table = (table - table.mean(axis=0)) / np.where(spread > 1e-6, spread, np.inf)
    table[:, look.shape[1] + DENSE_FEATURES :] *= REST
    found: NDArray[np.float64] = table
    return found


def _weights(table: NDArray[np.float64], is_taken: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fit the regression; both kinds count alike, however many there are of each."""
    sign = np.where(is_taken, 1.0, -1.0)
    weight = np.where(is_taken, 0.5 / is_taken.sum(), 0.5 / (~is_taken).sum())

    def loss(guess: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (table @ guess[:-1] + guess[-1])
        slope = -weight * sign / (1 + np.exp(margin))
        gradient = np.append(slope @ table + PENALTY * guess[:-1], slope.sum())
        value = weight @ np.logaddexp(0, -margin) + PENALTY / 2 * (guess[:-1] ** 2).sum()
        return float(value), gradient

    start = np.zeros(table.shape[1] + 1)
    found: NDArray[np.float64] = optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x
    return found[:-1]
