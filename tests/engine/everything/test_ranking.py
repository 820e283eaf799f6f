"""Find similar: proposals ranked by those that were accepted and rejected."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.engine.everything.found import Found
from napari_hrsam.engine.everything.proposals import Proposals
from napari_hrsam.engine.everything.ranking import rank
from napari_hrsam.errors import PromptError
from napari_hrsam.modeling.configs import DENSE_FEATURES

NUM = 60
KIND = np.arange(NUM) % 3
"""Every third one is of kind 0, and so on."""


def proposals(*, told_by: str = "head", num: int = NUM) -> Proposals:
    """Objects of three kinds, which differ in one thing alone, with some noise in it."""
    rng = np.random.default_rng(0)
    kind = KIND[:num]
    offset = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])[kind] + rng.normal(0, 0.5, (num, 2))
    features, colours = np.zeros((num, DENSE_FEATURES + 20)), np.full((num, 3), 128.0)
    side = np.full(num, 10)
    if told_by == "head":
        features[:, :2] = offset
    elif told_by == "embedding":
        features[:, DENSE_FEATURES : DENSE_FEATURES + 2] = offset
    elif told_by == "colour":
        colours[:, :2] += 20 * offset
    else:
        side = np.rint(rng.integers(8, 12, num) * np.array([1, 1, 8])[kind]).astype(int)
    first = np.stack([np.arange(num) * 200, np.zeros(num)], axis=1).astype(np.int32)
    return Proposals(
        Found(
            first=first,
            boxes=np.concatenate([first, first + side[:, None]], axis=1).astype(np.int32),
            areas=(side**2).astype(np.int32),
            scores=np.full(num, 0.7, np.float32),
            mean_rgb=colours.astype(np.float32),
            std_rgb=np.ones((num, 3), np.float32),
            solidity=np.ones(num, np.float32),
            features=features.astype(np.float16),
            runs=np.zeros((0, 4), np.int32),
            too_large=np.zeros((0, 2), np.int32),
        ),
        (200 * NUM * 2, 1000),
        level=0,
    )


@pytest.mark.parametrize(
    ("told_by", "wanted"),
    [("head", 1), ("head", 2), ("embedding", 1), ("colour", 2), ("size", 2)],
)
def test_proposals_of_the_accepted_kind_come_first(told_by: str, wanted: int) -> None:
    found = proposals(told_by=told_by)
    accepted = np.flatnonzero(wanted == KIND)[:5]
    rejected = np.flatnonzero(wanted != KIND)[:6]
    likeness = found.rank(accepted, rejected)
    assert likeness.shape == (NUM,)
    decided = np.concatenate([accepted, rejected])
    rest = np.setdiff1d(np.arange(NUM), decided)
    best = rest[np.argsort(-likeness[rest])][:12]
    assert (wanted == KIND[best]).mean() >= 0.9
    assert likeness[accepted].min() > 0.5 > likeness[rejected].max()


def test_one_accepted_proposal_is_enough() -> None:
    likeness = proposals().rank([1])
    assert (KIND[np.argsort(-likeness)][:10] == 1).mean() >= 0.8


def test_answer_does_not_depend_on_the_order_of_the_decisions() -> None:
    found = proposals()
    np.testing.assert_array_equal(rank(found, [3, 0, 6], [1, 2]), rank(found, [6, 3, 0], [2, 1]))


def test_where_all_were_accepted_all_are_alike() -> None:
    np.testing.assert_array_equal(proposals(num=3).rank([0, 1, 2]), np.ones(3))


@pytest.mark.parametrize(
    ("accepted", "rejected", "message"),
    [
        ([], [1], "expected an accepted proposal"),
        ([1, 2], [2], r"got both for \[2\]"),
        ([NUM], [], "expected indices of 60 proposals, got 60 to 60"),
        ([0], [-1], "expected indices of 60 proposals, got -1 to -1"),
    ],
)
def test_decisions_that_make_no_sense_are_told(
    accepted: list[int], rejected: list[int], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        proposals().rank(accepted, rejected)
