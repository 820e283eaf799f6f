"""What comes of fine-tuning, and what its parts are called. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

REGIONS, BEFORE, TRAINING, AFTER = PARTS = ("regions", "before", "training", "after")
"""What is done, in this order; `PartProgress` names them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClickScore:
    """How well a model draws held-out objects from simulated clicks.

    Attributes
    ----------
    noc85 : float
        Mean number of clicks until the IoU reaches 0.85.
    iou1 : float, 0..1
        Mean IoU after one click.
    """

    noc85: float
    iou1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuned:
    """What came of `fine_tune`.

    Attributes
    ----------
    name : str
        Of the new model, for `load_model`.
    path : Path
        Its weights.
    base : str
        The model that it was made from.
    num_objects, num_regions : int
        That it learned from.
    num_held_out : int
        Objects that it was scored on.
    before, after : ClickScore
        Of the base and of the new model, on the held-out objects.
    num_steps : int
        Of the training.
    seconds : float
        Spent on it.
    """

    name: str
    path: Path
    base: str
    num_objects: int
    num_regions: int
    num_held_out: int
    before: ClickScore
    after: ClickScore
    num_steps: int
    seconds: float

    def __repr__(self) -> str:
        """Tell the model and its scores in one line."""
        return (
            f"FineTuned({self.name}: NoC@85 {self.before.noc85:.2f} -> {self.after.noc85:.2f} on "
            f"{self.num_held_out} held-out objects)"
        )


def from_figures(figures: Mapping[str, Any]) -> FineTuned:
    """Return what ``napari-hrsam fine-tune --json`` told."""
    told = {field.name: figures[field.name] for field in fields(FineTuned)}
    scores = {name: ClickScore(**told[name]) for name in ("before", "after")}
    return FineTuned(**{**told, **scores, "path": Path(told["path"])})
