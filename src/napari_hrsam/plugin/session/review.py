"""Proposals that are looked through one by one: which are shown, in which order; decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from napari_hrsam.engine.everything.proposals import Proposals

UNDECIDED, ACCEPTED, REJECTED = 0, 1, 2


class Order(StrEnum):
    """What comes first: what is like the accepted ones, sure, large, or high up in the image."""

    LIKENESS = "likeness"
    SCORE = "score"
    SIZE = "size"
    PLACE = "place"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Which proposals are shown: the least score, and the least and the largest area.

    Areas are in level-0 pixels.
    """

    min_score: float = 0.0
    min_px: float = 0.0
    max_px: float = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class _Decision:
    indices: NDArray[np.int64]
    before: NDArray[np.uint8]
    decision: int
    current: int | None


class Review:
    """Decisions on proposals, each of which can be undone.

    What was decided comes first, in that order; then what is left to be decided.

    Parameters
    ----------
    proposals
        At least one.

    Attributes
    ----------
    proposals
        As given.
    decisions : (N,) uint8
        UNDECIDED, ACCEPTED or REJECTED.
    current
        Index of the proposal that is looked at; None while none is shown.
    order
        What is sorted by.
    limits
        Which are shown; those that were decided on stay as they are.
    likeness : (N,) float32, 0..1, or None
        To the accepted ones; None while there are none.
    """

    def __init__(self, proposals: Proposals) -> None:
        self.proposals = proposals
        self.decisions = np.zeros(len(proposals), np.uint8)
        self.order, self.limits = Order.LIKENESS, Limits()
        self.likeness: NDArray[np.float32] | None = None
        # Asked for often; they are made anew by every access.
        self._scores, self._areas = proposals.scores, proposals.areas_px
        self._is_in = np.ones(len(proposals), bool)
        self._is_skipped = np.zeros(len(proposals), bool)
        self._done: list[_Decision] = []
        self._undone: list[_Decision] = []
        self.current: int | None = None
        self._go_on()

    def __len__(self) -> int:
        """Return the number of proposals."""
        return len(self.decisions)

    @property
    def accepted(self) -> list[int]:
        """Indices of those that were accepted."""
        return np.flatnonzero(self.decisions == ACCEPTED).tolist()

    @property
    def rejected(self) -> list[int]:
        """Indices of those that were rejected."""
        return np.flatnonzero(self.decisions == REJECTED).tolist()

    @property
    def is_left(self) -> NDArray[np.bool_]:
        """Which are inside the limits, and not decided on: (N,)."""
        left: NDArray[np.bool_] = self._is_in & (self.decisions == UNDECIDED)
        return left

    @property
    def values(self) -> NDArray[np.float32]:
        """What "above" means, (N,), 0..1: the likeness where that sorts, else the score."""
        is_known = self.order is Order.LIKENESS and self.likeness is not None
        values = self.likeness if is_known else self._scores
        assert values is not None
        return values

    @property
    def can_undo(self) -> bool:
        """Whether there is a decision to undo."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether there is one to be made again."""
        return bool(self._undone)

    def listed(self) -> NDArray[np.int64]:
        """Return those that can be gone to: the decided ones, then what is left, sorted."""
        made = np.concatenate([np.empty(0, np.int64), *(step.indices for step in self._done)])
        # Of several decisions on one the last counts.
        _, last = np.unique(made[::-1], return_index=True)
        return np.concatenate([made[::-1][np.sort(last)[::-1]], self._left()])

    @property
    def place(self) -> int:
        """How many come before the current one."""
        found = np.flatnonzero(self.listed() == self.current)
        return int(found[0]) if len(found) else 0

    def above(self, value: float) -> NDArray[np.int64]:
        """Return those left to be decided whose value is not below this one."""
        return np.flatnonzero(self.is_left & (self.values >= value))

    # ------------------------------------------------------------------ going about

    def step(self, num: int) -> None:
        """Go on by some places, or back; the ends stay where they are."""
        listed = self.listed()
        if not len(listed):
            return
        if self.current is not None and num > 0 and self.decisions[self.current] == UNDECIDED:
            self._is_skipped[self.current] = True
        self.current = int(listed[min(max(self.place + num, 0), len(listed) - 1)])

    def go_to(self, index: int) -> None:
        """Look at one."""
        self.current = index

    def set_limits(self, limits: Limits) -> None:
        """Show others; the current one stays if it is among them."""
        self.limits = limits
        self._is_in = (
            (self._scores >= limits.min_score)
            & (self._areas >= limits.min_px)
            & (self._areas <= limits.max_px)
        )
        if self.current is None or not self._is_listed(self.current):
            self._go_on()

    # ------------------------------------------------------------------ deciding

    def decide(self, decision: int) -> bool:
        """Accept or reject the current one, and go on; False if there is none to decide on."""
        if self.current is None:
            return False
        return self.decide_all(np.array([self.current]), decision)

    def decide_all(self, indices: NDArray[np.int64], decision: int) -> bool:
        """Accept or reject several as one step, and go on; False if there are none."""
        if not len(indices):
            return False
        self._undone.clear()
        self._make(_Decision(indices, self.decisions[indices], decision, self.current))
        return True

    def undo(self) -> bool:
        """Undo the last decision, and go back to it; False if there is none."""
        if not self._done:
            return False
        step = self._done.pop()
        self._undone.append(step)
        self.decisions[step.indices] = step.before
        self._is_skipped[step.indices] = False
        self.current = step.current
        return True

    def redo(self) -> bool:
        """Make the decision again that was undone last; False if there is none."""
        if not self._undone:
            return False
        self._make(self._undone.pop())
        return True

    def _make(self, step: _Decision) -> None:
        before = self._left()
        self.decisions[step.indices] = step.decision
        self._done.append(step)
        if self.current is None or self.decisions[self.current] != UNDECIDED:
            self._go_on(before)

    def _is_listed(self, index: int) -> bool:
        return bool(self._is_in[index] or self.decisions[index] != UNDECIDED)

    def _left(self) -> NDArray[np.int64]:
        """Return those left to be decided, sorted."""
        left = np.flatnonzero(self.is_left)
        keys: dict[Order, Any] = {Order.SIZE: self._areas, Order.PLACE: -np.arange(len(self))}
        values = keys.get(self.order, self.values)
        return left[np.argsort(-values[left].astype(np.float64), kind="stable")]

    def _go_on(self, before: NDArray[np.int64] | None = None) -> None:
        """Look at the next one.

        The one that is now the most alike; where the order stays, what came after the current one.
        """
        left = self._left()
        if not len(left):
            listed = self.listed()
            self.current = int(listed[-1]) if len(listed) else None
            return
        if self._is_skipped[left].all():
            self._is_skipped[left] = False
        wanted = left[~self._is_skipped[left]]
        if before is not None and self.order is not Order.LIKENESS:
            at = np.flatnonzero(before == self.current)
            after = before[at[0] :] if len(at) else before
            later = after[np.isin(after, wanted)]
            wanted = later if len(later) else wanted
        self.current = int(wanted[0])
