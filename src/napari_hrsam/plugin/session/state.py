"""What a panel shows: the observable state of the controller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar

from psygnal import Signal

from napari_hrsam.errors import HRSAMError
from napari_hrsam.plugin.canvas.key_table import KeyMap
from napari_hrsam.plugin.canvas.mouse import DragTool
from napari_hrsam.plugin.overlay.preview import OBJECT_COLOR
from napari_hrsam.plugin.session.messages import HINT_START, describe_error

OUTLIVE_SESSIONS = (
    "model",
    "device",
    "pinned_level",
    "outlines_fully",
    "reads_ahead",
    "shows_input",
    "peeks",
    "object_color",
    "colors_by_class",
    "keys",
)


class Phase(StrEnum):
    """What the controller is at: no session, a model being loaded, or one that takes prompts."""

    STOPPED = "stopped"
    LOADING = "loading"
    READY = "ready"


@dataclass(kw_only=True, eq=False)
class ControllerState:
    """All that a panel shows; it emits a signal when it changes.

    Attributes
    ----------
    phase
        Whether there is a session.
    is_busy
        Whether the inference thread has something to do.
    model, device
        Name or path of the model in use and where it runs; empty strings before one was loaded.
    progress
        What is done and what there is in all while weights are being downloaded (bytes), an
        outline is refined (tiles) or an object propagated (planes), else None.
    level
        Level of the current object, or the one that the next would be looked at; None while
        stopped.
    levels
        The finest and the coarsest level of the image; None while stopped.
    is_stack
        Whether the image has several planes.
    pinned_level
        The level at which new objects are looked at, at every zoom; None: that of the zoom.
    outlines_fully
        Whether outlines of large objects are refined at full resolution.
    reads_ahead
        Whether tiles of the view are encoded while nothing is asked for.
    peeks
        Whether what a click would give is shown under the mouse.
    shows_input
        Whether what the model sees is shown.
    object_color
        Of the current object: red, green and blue from 0 to 1.
    colors_by_class
        Whether committed objects have the colours of their classes.
    keys
        Which keys do what.
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
        Whether there is a step to undo or to redo.
    is_subtracting
        Whether a plain click takes away.
    drag_tool
        What a plain drag draws.
    is_editing
        Whether the current object is one that was committed before.
    has_object
        Whether there is a current object.
    is_proposing
        Whether all objects of a part of the image are being looked for.
    is_reviewing
        Whether proposals are being reviewed.
    object_class
        Name of the class that new objects get; empty for none.
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
    changed
        Emitted without arguments after changes.
    failed
        Emitted once per error, with the exception; its text is in `message`.
    """

    phase: Phase = Phase.STOPPED
    is_busy: bool = False
    model: str = ""
    device: str = ""
    progress: tuple[int, int] | None = None
    level: int | None = None
    levels: tuple[int, int] | None = None
    is_stack: bool = False
    pinned_level: int | None = None
    outlines_fully: bool = False
    reads_ahead: bool = True
    peeks: bool = False
    shows_input: bool = False
    object_color: tuple[float, float, float] = OBJECT_COLOR
    colors_by_class: bool = False
    keys: KeyMap = field(default_factory=KeyMap)
    labels_folder: str = ""
    is_beside_image: bool = False
    encode_ms: float | None = None
    decode_ms: float | None = None
    num_prompts: int = 0
    num_committed: int = 0
    can_undo: bool = False
    can_redo: bool = False
    is_subtracting: bool = False
    drag_tool: DragTool = DragTool.PAN
    is_editing: bool = False
    has_object: bool = False
    is_proposing: bool = False
    is_reviewing: bool = False
    object_class: str = ""
    tool: str = ""
    elsewhere: str = ""
    covered_by: str = ""
    message: str = HINT_START
    is_error: bool = False

    changed: ClassVar[Signal] = Signal()
    failed: ClassVar[Signal] = Signal(object)

    _unraised: BaseException | None = field(default=None, init=False, repr=False)

    @property
    def is_level_pinned(self) -> bool:
        """Whether new objects are looked at one level at every zoom."""
        return self.pinned_level is not None

    def update(self, **changes: Any) -> None:
        """Change fields; `changed` is emitted once if any is another now."""
        changes = {name: value for name, value in changes.items() if getattr(self, name) != value}
        for name, value in changes.items():
            setattr(self, name, value)
        if changes:
            self.changed.emit()

    def reset(self, message: str) -> None:
        """Go back to how everything was before the session, but for the user's settings."""
        fresh = ControllerState(message=message)
        kept = (*OUTLIVE_SESSIONS, "_unraised")
        for name in (one.name for one in fields(self) if one.name not in kept):
            setattr(self, name, getattr(fresh, name))
        self.changed.emit()

    def report(self, error: BaseException) -> None:
        """Show an error once; the traceback goes to the log."""
        message = describe_error(error, "Press Stop, then Start, to begin again")
        self._unraised = self._unraised or error
        self.update(message=message, is_error=True)
        self.failed.emit(error)

    def guard(self, action: Callable[..., None], *arguments: Any) -> None:
        """Run an action of the user; an expected error is reported instead of raised."""
        try:
            action(*arguments)
        except HRSAMError as error:
            self.report(error)

    def raise_reported(self) -> None:
        """Raise the first error reported since the last call, for callers without a panel."""
        error, self._unraised = self._unraised, None
        if error is not None:
            raise error
