"""What a panel shows: one frozen snapshot of the controller."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from psygnal import Signal

from napari_hrsam.errors import HRSAMError
from napari_hrsam.geometry import downsample

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_hrsam.plugin.session.inference import Answer

logger = logging.getLogger(__name__)

HINT_START = "Choose an image and press Start."
HINT_CLICK = "Left click adds to the object, right click takes away."
GIVEN_UP = "The object was given up. Ctrl+Z brings it back."
STILL_LOADING = "Still loading: click again when it is ready."
LOOKING = "Looking at this place ..."
SHOWN_ANEW = "The model sees the image as it is on screen now."
LOOKING_AGAIN = "The image is shown otherwise now: looking at the object again ..."
HINT_3D = "The view is 3-D; clicking works in 2-D. Press Ctrl+Y to switch."


class Phase(StrEnum):
    """What the controller is at: no session, a model being loaded, or one that takes prompts."""

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
        Name or path of the model in use and where it runs; empty strings before one was loaded.
    progress
        What is done and what there is in all while weights are being downloaded (bytes) or an
        outline is refined (tiles), else None.
    level
        Level of the current object, or the one that the next would be looked at; None while
        stopped.
    levels
        The finest and the coarsest level of the image; None while stopped.
    is_level_pinned
        Whether new objects are looked at one level at every zoom.
    outlines_fully
        Whether outlines of large objects are refined at full resolution.
    reads_ahead
        Whether tiles of the view are encoded while nothing is asked for.
    labels_folder
        Where the objects are kept on disk; empty while they are in memory alone.
    is_beside_image
        Whether that is in the folder of the image.
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
    tool
        Which tool has the mouse, if clicks do not add to the object; else empty.
    elsewhere
        Where the current object is, if another plane is shown; else empty.
    covered_by
        Name of the image layer that hid the image at the last click; else empty.
    message
        What to do next, what was done, or what went wrong.
    is_error
        Whether `message` is an error.
    """

    phase: Phase = Phase.STOPPED
    is_busy: bool = False
    model: str = ""
    device: str = ""
    progress: tuple[int, int] | None = None
    level: int | None = None
    levels: tuple[int, int] | None = None
    is_level_pinned: bool = False
    outlines_fully: bool = False
    reads_ahead: bool = True
    labels_folder: str = ""
    is_beside_image: bool = False
    encode_ms: float | None = None
    decode_ms: float | None = None
    num_prompts: int = 0
    num_committed: int = 0
    can_undo: bool = False
    can_redo: bool = False
    is_subtracting: bool = False
    draws_boxes: bool = False
    tool: str = ""
    elsewhere: str = ""
    covered_by: str = ""
    message: str = HINT_START
    is_error: bool = False


class StateBoard:
    """Holds the present state and tells when it changes.

    Attributes
    ----------
    changed
        Emitted without arguments after each change of `state`.
    failed
        Emitted once per error, with the exception; its text is in ``state.message``.
    """

    changed: ClassVar[Signal] = Signal()
    failed: ClassVar[Signal] = Signal(object)

    def __init__(self) -> None:
        self.state = ControllerState()
        self._unraised: BaseException | None = None

    def update(self, **changes: Any) -> None:
        """Change fields of the state."""
        state = replace(self.state, **changes)
        if state != self.state:
            self.state = state
            self.changed.emit()

    def report(self, error: BaseException) -> None:
        """Show an error once; the traceback goes to the log."""
        if isinstance(error, HRSAMError):
            message = str(error)
            logger.info("%s", message, exc_info=error)
        else:
            message = (
                f"unexpected {type(error).__name__}: {error}; the traceback is in the log. Press "
                "Stop, then Start, to begin again"
            )
            logger.error("%s", message, exc_info=error)
        self._unraised = self._unraised or error
        # A sentence begins large, but not the name of a model or a file.
        if message.split(" ")[0].isalpha():
            message = message[:1].upper() + message[1:]
        self.update(message=message, is_error=True)
        self.failed.emit(error)

    def raise_reported(self) -> None:
        """Raise the first error reported since the last call, for callers without a panel."""
        error, self._unraised = self._unraised, None
        if error is not None:
            raise error


def describe_progress(done_bytes: int, total_bytes: int) -> str:
    """Say how far a download is."""
    if done_bytes >= total_bytes:
        return "Downloaded. Loading the model ..."
    return f"Downloading: {file_size(done_bytes)} of {file_size(total_bytes)}"


def file_size(num_bytes: int) -> str:
    """Write a size in MB, or in GB where it is large."""
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"


def describe_step(answer: Answer, plane_name: Callable[[tuple[int, ...]], str]) -> str:
    """Say in a few words what a step did and what comes next.

    Parameters
    ----------
    answer
        The session after the step.
    plane_name
        Names planes; empty for a flat image.
    """
    edit, prediction = answer.edit, answer.prediction
    if answer.is_cancelled:
        return "The commit was given up; the object is still there. C commits, Esc cancels."
    if edit is not None:
        name = plane_name(edit.plane)
        where = f"Object {edit.label} on {name}" if name else f"Object {edit.label}"
        if answer.is_taken_back:
            return f"{where} was taken back."
        return f"{where} was committed. Click on the next one."
    if prediction is None:
        return f"{SHOWN_ANEW} {HINT_CLICK}" if answer.is_shown_anew else HINT_CLICK
    num_pixels = int(prediction.level_mask.sum()) * prediction.level_downsample**2
    if not num_pixels and not any(answer.prompts.labels) and answer.prompts.box is None:
        return "There is no object yet to take away from: click on it with the other button."
    if num_pixels and prediction.is_cut:
        return "The object goes on beyond this mask: click again, or press Esc and zoom out."
    found = describe_object(num_pixels, prediction.level_downsample)
    return f"{SHOWN_ANEW} {found}" if answer.is_shown_anew else found


def describe_object(num_pixels: int, step: int) -> str:
    """Say how large the current object is.

    Parameters
    ----------
    num_pixels
        Level-0 pixels.
    step
        Level-0 pixels per pixel of its mask.
    """
    if not num_pixels:
        return "Nothing was found here: click again, or press Esc and zoom in."
    about = "About " if step > 1 else ""
    return f"{about}{num_pixels:,} pixels. C commits, Esc cancels."


def shown_message(state: ControllerState) -> str:
    """Put together what a panel says in its line."""
    if state.is_error:
        return state.message
    if state.elsewhere:
        return state.elsewhere
    if not state.tool:
        return state.message
    # While a tool has the mouse, a click adds nothing.
    message = state.message.replace(HINT_CLICK, "").strip()
    return f"{message} {state.tool}".strip()


def describe_outline(done: int, total: int) -> str:
    """Say how far the outline of a large object is."""
    return f"Drawing the outline: {done} of {total} parts. Cancel stops it."


def describe_level(level: int) -> str:
    """Write a level with the image pixels that one of its pixels covers along an axis."""
    return f"level {level} · {downsample(level):g}x"
