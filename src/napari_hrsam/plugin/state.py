"""What a panel shows: one frozen snapshot of the controller."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_hrsam.plugin.session_jobs import Answer

HINT_START = "Choose an image and press Start."
HINT_CLICK = "Left click adds to the object, right click takes away."
HINT_3D = "The view is 3-D; clicking works in 2-D. Press Ctrl+Y to switch."


class Phase(StrEnum):
    """What the controller is at: no session, one being opened, or one that takes prompts."""

    STOPPED = "stopped"
    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerState:
    """All that a panel shows.

    Attributes
    ----------
    phase
        Whether there is a session.
    is_busy
        Whether the inference thread has something to do.
    model, device
        Name of the model; where it runs, or an empty string while that is unknown.
    level
        Level of the current object, or the one that the view would give; None while stopped.
    encode_ms, decode_ms
        Time taken by the last prediction, or None.
    num_prompts
        Clicks and boxes of the current object, answered or not.
    num_committed
        Objects committed in this session and not undone.
    can_undo, can_redo
        Whether there is a step to take back or to repeat.
    is_subtracting
        Whether a plain click takes away.
    draws_boxes
        Whether a plain drag draws a box.
    message
        What to do next, what was done, or what went wrong.
    is_error
        Whether `message` is an error.
    """

    phase: Phase = Phase.STOPPED
    is_busy: bool = False
    model: str = ""
    device: str = ""
    level: int | None = None
    encode_ms: float | None = None
    decode_ms: float | None = None
    num_prompts: int = 0
    num_committed: int = 0
    can_undo: bool = False
    can_redo: bool = False
    is_subtracting: bool = False
    draws_boxes: bool = False
    message: str = HINT_START
    is_error: bool = False


def describe_step(answer: Answer) -> str:
    """Say in a few words what a step did and what comes next."""
    edit, prediction = answer.edit, answer.prediction
    if edit is not None and answer.is_taken_back:
        return f"Object {edit.label} was taken back."
    if edit is not None:
        return f"Object {edit.label} was committed. Click on the next one."
    if prediction is None:
        return HINT_CLICK
    if not prediction.mask.any():
        return "Nothing was found here: click again, or press Esc and zoom in."
    return f"{int(prediction.mask.sum()):,} pixels. C commits, Esc cancels."
