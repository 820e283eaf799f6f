"""What the panel says: hints, and descriptions of what was done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from napari_hrsam.errors import HRSAMError
from napari_hrsam.geometry import downsample

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_hrsam.engine.over_planes import PlanesReport
    from napari_hrsam.engine.session import DrawnObjects
    from napari_hrsam.plugin.canvas.key_table import KeyMap
    from napari_hrsam.plugin.overlay.objects import ObjectsLayer
    from napari_hrsam.plugin.session.commands import Answer, Opened, Proposed
    from napari_hrsam.plugin.session.image_input import ImageInput
    from napari_hrsam.plugin.session.review import Review
    from napari_hrsam.plugin.session.state import ControllerState
    from napari_hrsam.storage.labels.edits import Edit
    from napari_hrsam.storage.labels.properties import PropertiesChange
    from napari_hrsam.storage.labels.unfinished import Unfinished

logger = logging.getLogger(__name__)

MAX_CHANNELS = 8
"""An image of planes with no more columns than this is probably one of channels."""

HINT_START = "Choose an image and press Start."
HINT_CLICK = "Left click adds to the object, right click takes away."
STILL_LOADING = "Still loading: click again when it is ready."
LOOKING = "Looking at this place ..."
SHOWN_ANEW = "The model sees the image as it is on screen now."
LOOKING_AGAIN = "The image is shown otherwise now: looking at the object again ..."
HINT_3D = "The view is 3-D; clicking works in 2-D. Press Ctrl+Y to switch."


def describe_error(error: BaseException, way_out: str) -> str:
    """Say what went wrong, as a sentence; the traceback goes to the log.

    Parameters
    ----------
    error
        The exception.
    way_out
        What to do about one that is not ours.
    """
    if isinstance(error, HRSAMError):
        message = str(error)
        logger.info("%s", message, exc_info=error)
    else:
        message = (
            f"unexpected {type(error).__name__}: {error}; the traceback is in the log. {way_out}"
        )
        logger.error("%s", message, exc_info=error)
    # A sentence begins large, but not the name of a model or a file.
    return message[:1].upper() + message[1:] if message.split(" ")[0].isalpha() else message


def describe_progress(done_bytes: int, total_bytes: int) -> str:
    """Say how far a download is."""
    if done_bytes >= total_bytes:
        return "Downloaded. Loading the model ..."
    return f"Downloading: {file_size(done_bytes)} of {file_size(total_bytes)}"


def file_size(num_bytes: int) -> str:
    """Write a size in MB, or in GB where it is large."""
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"


def describe_step(
    answer: Answer, plane_name: Callable[[tuple[int, ...]], str], keys: KeyMap
) -> str:
    """Say in a few words what a step did and what comes next.

    Parameters
    ----------
    answer
        The session after the step.
    plane_name
        Names planes; empty for a flat image.
    keys
        As they are set.
    """
    edit = answer.edit
    if answer.is_halted:
        num = len(answer.earlier_edits)
        return f"Stopped: {num} committed. {keys.text('undo')} undoes each." if num else "Stopped."
    if answer.drawn is not None:
        return _describe_drawn(answer.drawn, keys)
    if answer.planes is not None:
        return _describe_propagated(answer.planes, plane_name)
    if answer.is_cancelled:
        return f"The commit was given up; the object is still there. {_choices(keys)}"
    if edit is not None:
        plane = plane_name(edit.plane)
        return keys.spell(
            _describe_edit(edit, plane, answer.changed_by, is_undone=answer.is_undone)
        )
    return _describe_current(answer, plane_name, keys)


def _choices(keys: KeyMap) -> str:
    return keys.spell("{commit} commits, {cancel} cancels.")


def _describe_current(
    answer: Answer, plane_name: Callable[[tuple[int, ...]], str], keys: KeyMap
) -> str:
    """Say what the current object is like."""
    prediction = answer.prediction
    if prediction is None and answer.changed_by in _NO_CHANGE:
        return _NO_CHANGE[answer.changed_by]
    if prediction is None:
        return f"{SHOWN_ANEW} {HINT_CLICK}" if answer.is_shown_anew else HINT_CLICK
    num_pixels = int(prediction.level_mask.sum()) * prediction.level_downsample**2
    if not num_pixels and not any(answer.prompts.labels) and answer.prompts.box is None:
        return "There is no object yet to take away from: click on it with the other button."
    if num_pixels and prediction.is_cut:
        way = f"click again, or press {keys.text('cancel')} and zoom out"
        return f"The object goes on beyond this mask: {way}."
    if answer.taken is not None and answer.edit is None and prediction.iou == 1:
        return keys.spell(
            f"Object {answer.taken.label}: clicks correct it. {{commit}} puts it back, {{cancel}} "
            "leaves it as it was, {delete} deletes it."
        )
    found = describe_object(num_pixels, prediction.level_downsample, keys)
    if answer.carried is not None and answer.prompts == answer.begun_with:
        label, there = answer.carried
        found = f"Object {label} continued from {plane_name(there)}. {found}"
    if answer.candidate[1]:
        mask = f"Mask {answer.candidate[0]} of {answer.candidate[1]}"
        found = f"{mask}. {found} {keys.text('next_mask')}: the next."
    return f"{SHOWN_ANEW} {found}" if answer.is_shown_anew else found


_DONE = {
    "draw": "was committed. Click on the next one.",
    "replace": "was changed.",
    "delete": "was deleted. {undo} brings it back.",
}
_UNDONE = {"draw": "was taken back.", "replace": "is as it was before.", "delete": "is back."}


_NO_CHANGE = {
    "FillHoles": "The object has no holes.",
    "Smooth": "The outline is smooth already: nothing was changed.",
}
_CHANGES = {
    "Merge": "took over the other one.",
    "Split": "was cut off: it is an object of its own now.",
    "FillHoles": "has no holes any more.",
    "Smooth": "was smoothed.",
}


def _describe_edit(edit: Edit, plane: str, changed_by: str, *, is_undone: bool) -> str:
    where = f"Object {edit.label} on {plane}" if plane else f"Object {edit.label}"
    if edit.kind == "properties" and edit.change is not None:
        return _describe_properties(edit.change, is_undone=is_undone)
    if edit.is_empty:
        return f"{where} was put back as it was: nothing was changed."
    if edit.kind == "accept":
        which = f"{len(edit.objects):,} objects"
        return (
            f"{which} were taken back."
            if is_undone
            else f"{which} were committed. {{undo}} takes all of them back."
        )
    if changed_by in _CHANGES:
        return f"{where} {_CHANGES[changed_by]} {{undo}} takes that back."
    return f"{where} {(_UNDONE if is_undone else _DONE)[edit.kind]}"


def _describe_properties(change: PropertiesChange, *, is_undone: bool) -> str:
    labels = change.labels
    if not labels:
        return "The classes are as they were before." if is_undone else "The classes were changed."
    which = f"Object {labels[0]}" if len(labels) == 1 else f"{len(labels):,} objects"
    names = {sides[not is_undone].object_class for *sides, _ in change.objects}
    (name,) = names if len(names) == 1 else ("",)
    if len(names) == 1 and change.objects[0][0].object_class != change.objects[0][1].object_class:
        return f"{which}: class '{name}'." if name else f"{which}: no class."
    return f"{which}: {'as before' if is_undone else 'changed in the list'}."


def describe_search(done: int, total: int, left_s: float) -> str:
    """Say how far the search for all objects is, in tiles."""
    if not total:
        return "Looking for objects ... Cancel stops it."
    left = f", about {duration(left_s)} left" if done else ""
    return f"Looking for objects: {done} of {total} tiles{left}. Cancel stops it."


def duration(seconds: float) -> str:
    """Write a time that was estimated."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe_none(found: Proposed, level: int) -> str:
    """Say why there is nothing to review."""
    too_large = _too_large(found)
    if found.num_covered:
        all_found = f"All {found.num_covered:,} objects found here are covered by committed ones."
        return f"{all_found}{too_large} Look elsewhere."
    if too_large:
        return f"No object that is small enough was found here.{too_large}"
    return (
        f"No objects were found here at level {level}. Choose another level: objects are found "
        "best where they are 20 to 150 pixels long."
    )


def _too_large(found: Proposed) -> str:
    num, level = found.proposals.num_too_large, found.proposals.level
    if not num:
        return ""
    which = "1 is" if num == 1 else f"{num:,} are"
    return f" {which} too large for level {level}: look from further away, at level {level + 1}."


def describe_proposed(found: Proposed, keys: KeyMap) -> str:
    """Say what was found, and how it is reviewed."""
    num = len(found.proposals)
    text = f"{num:,} objects found." if num > 1 else "1 object found."
    if found.num_covered:
        text += f" {found.num_covered:,} others are covered by committed ones."
    how = "{accept} accepts, {reject} rejects, {commit} commits what was accepted."
    return f"{text}{_too_large(found)} {keys.spell(how)}"


def describe_proposal(review: Review, keys: KeyMap) -> str:
    """Say what the current proposal is like."""
    if review.current is None:
        return "No proposal is inside the limits of score and size: widen them."
    index = review.current
    what = f"Score {review.proposals.scores[index]:.2f}"
    if review.likeness is not None:
        what += f", likeness {review.likeness[index]:.2f}"
    what += f", {review.proposals.areas_px[index]:,} pixels"
    decision = ("", " Accepted.", " Rejected.")[review.decisions[index]]
    if not review.is_left.any():
        decision += f" None is left: {keys.text('commit')} commits the accepted ones."
    return f"{what}.{decision}"


def describe_accepted(num: int, keys: KeyMap) -> str:
    """Say how many were accepted at once."""
    if not num:
        return "None is at or above the threshold."
    return f"{num:,} accepted at once; {keys.text('undo')} undoes that."


def describe_left(num: int, keys: KeyMap) -> str:
    """Say that a review was left."""
    decisions = "1 decision" if num == 1 else f"{num:,} decisions"
    what = f"The review was left with {decisions}; nothing was committed."
    return f"{what} {keys.text('undo')} goes on with it."


def describe_object(num_pixels: int, step: int, keys: KeyMap) -> str:
    """Say how large the current object is.

    Parameters
    ----------
    num_pixels
        Level-0 pixels.
    step
        Level-0 pixels per pixel of its mask.
    keys
        As they are set.
    """
    if not num_pixels:
        return f"Nothing was found here: click again, or press {keys.text('cancel')} and zoom in."
    about = "About " if step > 1 else ""
    return f"{about}{num_pixels:,} pixels. {_choices(keys)}"


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


def _describe_drawn(drawn: DrawnObjects, keys: KeyMap) -> str:
    num, num_all = len(drawn.edits), len(drawn.edits) + len(drawn.skipped)
    text = f"{num} of {num_all} objects drawn and committed. {keys.text('undo')} undoes each."
    if drawn.skipped:
        number, why = drawn.skipped[0]
        text += f" Not number {number + 1}: {why}"
        if len(drawn.skipped) > 1:
            text += f"; and {len(drawn.skipped) - 1} more"
    return text


def describe_drawing(done: int, total: int) -> str:
    """Say how many of several objects are drawn."""
    return f"Drawing: {done} of {total} objects. Cancel stops it."


def _describe_propagated(report: PlanesReport, plane_name: Callable[[tuple[int, ...]], str]) -> str:
    drawn = f"Object {report.label} was committed on {_num_planes(len(report.planes))}"
    if report.planes:
        drawn = f"{drawn}, as far as {plane_name(report.planes[-1])}"
    if report.stopped_at is None:
        return f"{drawn}: {report.stop}."
    return f"{drawn}. Not on {plane_name(report.stopped_at)}: {report.stop}."


def _num_planes(num: int) -> str:
    return {0: "no plane", 1: "1 plane"}.get(num, f"{num} planes")


def describe_planes(done: int, total: int) -> str:
    """Say how far an object is propagated."""
    return f"Continuing the object: {done} of {total} planes. Cancel stops it."


def describe_outline(done: int, total: int) -> str:
    """Say how far the outline of a large object is."""
    return f"Drawing the outline: {done} of {total} parts. Cancel stops it."


def describe_level(level: int) -> str:
    """Write a level with the image pixels that one of its pixels covers along an axis."""
    return f"level {level} · {downsample(level):g}x"


def describe_committed(label: int, objects: ObjectsLayer, keys: KeyMap) -> str:
    """Say that an object was committed already, and how it is changed."""
    edit = f"select the layer '{objects.layer.name}' and paint (P) or erase (1)"
    how = f", or {edit}" if objects.is_paintable else ""
    keys_do = keys.spell("{edit} changes it, {delete} deletes it")
    return (
        f"This is object {label}, committed already. {keys_do}{how}. "
        "Click again for a new one over it."
    )


def warn_of_image(image: ImageInput) -> str:
    """Say so where channels are taken for columns, or the image's layer is none of the colours."""
    name, width = image.layer.name, image.shape_yx[1]
    warning = ""
    if width <= MAX_CHANNELS and image.image.plane_shape:
        warning = (
            f"The last axis of '{name}', of {width}, counts as columns. If it holds channels, add "
            "the image with channel_axis=-1, or move that axis to the front. "
        )
    if image.channels and image.layer not in image.seen:
        warning += f"The model does not see '{name}' itself, but the layers chosen as colours. "
    return warning


def describe_given_up(keys: KeyMap) -> str:
    """Say that the current object was cancelled."""
    return f"The object was given up. {keys.text('undo')} brings it back."


def describe_class(name: str, keys: KeyMap) -> str:
    """Say which class the current object gets."""
    what = f"Class '{name}'" if name else "No class"
    return f"{what}. {keys.text('commit')} commits the object."


def describe_opened(opened: Opened, image: ImageInput) -> str:
    """Say where the objects of a session are kept, and what is odd about its image."""
    if opened.why_no_copy:
        return f"Objects are kept in memory only: {opened.why_no_copy}. "
    where = f"Objects are kept in {opened.folder}. " if opened.folder else ""
    lost = ""
    if opened.why_lost:
        lost = f"The object not committed last time cannot be drawn again: {opened.why_lost}. "
    return f"{where}{lost}{warn_of_image(image)}"


def describe_unfinished(left: Unfinished, model: str) -> str:
    """Say that an object of the last session is the current one again."""
    num = len(left.prompts) - len(left.begun_with)
    what = f"object {left.label}" if left.label else "the object"
    other = "" if left.model == model else f" It was drawn by {left.model} before."
    return (
        f"Last time {what} was not committed: it is drawn again from its {num} prompts. C commits "
        f"it, Esc gives it up.{other}"
    )


def describe_elsewhere(plane_name: str, keys: KeyMap) -> str:
    """Say on which plane the current object is, where another one is shown."""
    keys_do = keys.spell("{commit} goes back to it, {cancel} cancels it")
    return f"The object is on {plane_name}. {keys_do}."
