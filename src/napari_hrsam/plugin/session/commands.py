"""What is asked of the session on the inference thread, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.labels.places import KeptArray, LabelFile, OwnPlace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import zarr
    from numpy.typing import NDArray

    from napari_hrsam.engine.everything.proposals import Proposals
    from napari_hrsam.engine.over_planes import PlanesReport
    from napari_hrsam.engine.prediction import Prediction
    from napari_hrsam.engine.session import DrawnObjects
    from napari_hrsam.engine.taken_up import TakenUp
    from napari_hrsam.geometry import Box
    from napari_hrsam.plugin.canvas.coordinates import BoxPrompt
    from napari_hrsam.plugin.overlay.levels import LabelView
    from napari_hrsam.plugin.overlay.strokes import Strokes
    from napari_hrsam.plugin.session.loading import ModelRequest
    from napari_hrsam.storage.images.layers import LayerImage
    from napari_hrsam.storage.labels.edits import Edit
    from napari_hrsam.storage.labels.properties import Properties, PropertiesChange
    from napari_hrsam.storage.labels.unfinished import Unfinished

LabelsPlace: TypeAlias = KeptArray | LabelFile | OwnPlace
"""What receives committed objects: an array, changed in place, or a label image on disk."""


# ---------------------------------------------------------------------- steps on the current object


@dataclass(frozen=True, slots=True)
class Click:
    """Add a click.

    Attributes
    ----------
    point_yx : (y, x) float
        Level-0 pixels.
    positive
        Whether the point belongs to the object.
    level
        At which a new object is looked at.
    plane
        One index per axis before y and x.
    """

    point_yx: tuple[float, float]
    positive: bool
    level: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetBox:
    """Set the box, half open, in level-0 pixels; level and plane as for `Click`."""

    box_yxyx: BoxPrompt
    level: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AddScribble:
    """Add a stroke, (N, 2) level-0 pixels; positive, level and plane as for `Click`."""

    points_yx: tuple[tuple[float, float], ...]
    positive: bool
    level: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DrawLasso:
    """Set the box, and add a click, by an outline (N, 2); level and plane as for `Click`."""

    points_yx: tuple[tuple[float, float], ...]
    level: int
    plane: tuple[int, ...]


Prompt: TypeAlias = Click | SetBox | AddScribble | DrawLasso


@dataclass(frozen=True, slots=True)
class TakeUp:
    """Take up a committed object of a plane as the current one."""

    label: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Delete:
    """Take a committed object of a plane out of the labels; a current object is given up."""

    label: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ContinueOn:
    """Continue an object on another plane, where it becomes the current one.

    Attributes
    ----------
    plane, from_plane
        Where to, and where it is.
    label
        Of a committed object; None: the current one, which is committed first.
    strokes
        What the user painted on the current one, if anything.
    """

    plane: tuple[int, ...]
    from_plane: tuple[int, ...]
    label: int | None
    strokes: Strokes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Propagate:
    """Continue an object plane by plane, and commit it on each, while the model is sure of it.

    Attributes
    ----------
    num_planes
        How many; negative: towards plane 0.
    axis
        Of the plane, along which to go.
    label, from_plane, strokes
        As of `ContinueOn`.
    """

    num_planes: int
    axis: int
    from_plane: tuple[int, ...]
    label: int | None
    strokes: Strokes | None = None


@dataclass(frozen=True, slots=True)
class Interpolate:
    """Draw an object on the planes between one and the nearest others on which it is drawn.

    Attributes
    ----------
    label, plane
        A committed object, and where it is drawn.
    axis
        Of the plane, along which to look.
    """

    label: int
    plane: tuple[int, ...]
    axis: int


@dataclass(frozen=True, slots=True)
class DrawEach:
    """Draw several objects of a plane, and commit each.

    Attributes
    ----------
    several
        Prompts of each.
    level
        At which they are looked at first.
    plane
        Where they lie.
    object_class
        As of `Commit`.
    """

    several: tuple[Prompts, ...]
    level: int | None
    plane: tuple[int, ...]
    object_class: str | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """Give all pixels of some committed objects of a plane to the first; as `Delete` otherwise."""

    labels: tuple[int, ...]
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Cut a committed object along a line (N, 2) in level-0 pixels; as `Delete` otherwise."""

    label: int
    line_yx: tuple[tuple[float, float], ...]
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FillHoles:
    """Fill the holes of a committed object; as `Delete` otherwise."""

    label: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Smooth:
    """Smooth the outline of a committed object; as `Delete` otherwise."""

    label: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Accept:
    """Commit proposals as one step to undo."""

    proposals: Proposals


ObjectEdit: TypeAlias = Delete | Merge | Split | FillHoles | Smooth


@dataclass(frozen=True, slots=True)
class NextCandidate:
    """Show the next of the masks that the prompts may mean."""


@dataclass(frozen=True, slots=True)
class ShowInput:
    """Answer with what the model sees of the object's tile, from now on or no longer."""

    is_shown: bool


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """Write the object to the labels, with what the user painted on it, if anything.

    Attributes
    ----------
    strokes
        What was painted.
    object_class
        Name of its class; None: as it is.
    """

    strokes: Strokes | None
    object_class: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ChangeProperties:
    """Change classes, or those of objects; what is to change is made of what is told then."""

    make: Callable[[Properties], PropertiesChange]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up the object; its prompts that are still waiting are passed over."""


@dataclass(frozen=True, slots=True)
class Undo:
    """Undo the last prompt or commit."""


@dataclass(frozen=True, slots=True)
class Redo:
    """Redo what was undone last."""


@dataclass(frozen=True, slots=True, eq=False)
class Show:
    """Go on with the session's image shown otherwise; look at the current object again."""

    image: LayerImage


@dataclass(frozen=True, slots=True)
class Describe:
    """Answer with the session as it is; sent after a step that failed."""


Step: TypeAlias = (
    Prompt
    | TakeUp
    | ObjectEdit
    | ContinueOn
    | Propagate
    | Interpolate
    | DrawEach
    | Accept
    | NextCandidate
    | ShowInput
    | Commit
    | ChangeProperties
    | Cancel
    | Undo
    | Redo
    | Show
    | Describe
)
"""Commands that are answered with an `Answer`."""


# ---------------------------------------------------------------------- sessions and models


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Have ready what the layers of a session need; see `compile_layers`."""


@dataclass(frozen=True, slots=True)
class FindDevices:
    """Find the devices that a model can run on, "auto" first: a tuple of names."""


@dataclass(frozen=True, slots=True)
class WarmColors:
    """Have ready what shows labels of a type in the colours of classes."""

    dtype: np.dtype[np.generic]


@dataclass(frozen=True, slots=True)
class KeepEmbeddings:
    """Keep embeddings in a folder ("" for the user's), from the next session on.

    It may take ``max_bytes``; 0 for what it was given last.
    """

    folder: str
    max_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Open:
    """Load a model, unless it is loaded, and begin a session: `Opened`."""

    image: LayerImage
    place: LabelsPlace
    request: ModelRequest


@dataclass(frozen=True, slots=True)
class UseModel:
    """Load a model, and let the session, if there is one, go on with it: `Opened`.

    Commits and their undo stay. After an error, or when cancelled, everything is as before.
    """

    request: ModelRequest


@dataclass(frozen=True, slots=True)
class SetOutline:
    """Refine outlines of large objects at a level, or at that of the first prompt (None)."""

    level: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Save:
    """Write the objects to a label TIFF: an array, or what is on disk (None)."""

    path: Path
    array: NDArray[np.integer] | None


@dataclass(frozen=True, slots=True)
class Close:
    """End the session and let others write its labels; the model stays for the next one.

    Attributes
    ----------
    gives_up
        Whether the current object is given up for good, not kept for the next session.
    """

    gives_up: bool = False


@dataclass(frozen=True, slots=True)
class ListObjects:
    """Tell which objects there are, as far as that takes no pixel on disk: an `ObjectList`."""


@dataclass(frozen=True, slots=True)
class NextTurn:
    """Do nothing: what follows it is for the next turn of the window's event loop."""


@dataclass(frozen=True, slots=True)
class Peek:
    """Return what a first click would give, a prediction, if its tile is encoded; else None."""

    point_yx: tuple[float, float]
    level: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Encode one tile around a part of the image: whether there is more to do."""

    box0: Box
    level: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Propose:
    """Find all objects in a part of the image: `Proposed`, or None if that was given up.

    Attributes
    ----------
    box0
        Where they begin, half open, in level-0 pixels.
    level
        At which they are looked for.
    plane
        One index per axis before y and x.
    """

    box0: Box
    level: int
    plane: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rank:
    """Tell how much each proposal is like those accepted, and unlike those rejected: (N,) float32.

    Attributes
    ----------
    proposals
        Those that are to be compared.
    accepted, rejected
        Their indices.
    """

    proposals: Proposals
    accepted: tuple[int, ...]
    rejected: tuple[int, ...]


Question: TypeAlias = FindDevices | ListObjects | Peek | Propose | Rank | ReadAhead
"""Commands that change nothing, and are answered with what they ask for."""

Command: TypeAlias = (
    Step
    | Question
    | WarmUp
    | WarmColors
    | KeepEmbeddings
    | Open
    | UseModel
    | SetOutline
    | Save
    | Close
    | NextTurn
)


# ---------------------------------------------------------------------- answers


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenedLabels:
    """A label image on disk that is open for writing.

    Attributes
    ----------
    file
        Where it is.
    levels
        Its stored arrays, finest first, for reading on any thread.
    view
        What shows them, true after every edit.
    """

    file: LabelFile
    levels: tuple[zarr.Array[Any], ...]
    view: LabelView


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opened:
    """A model is loaded, and the session on it, if there is one, is ready.

    Attributes
    ----------
    model
        Its name or path, as it was asked for.
    device
        Where the model runs, such as "cpu" or "cuda:0".
    tile_px
        Side of the model's tile in level pixels.
    can_undo, can_redo
        Whether the session has a step to undo or to redo.
    labels
        The label image on disk, if there is one.
    copy
        Where the objects of an array are kept, too.
    why_no_copy
        Why they are not; else empty.
    unfinished
        The object that was not committed when the last session ended, if it can be drawn again.
    why_lost
        Why it cannot be; else empty.
    """

    model: str
    device: str
    tile_px: int
    can_undo: bool = False
    can_redo: bool = False
    labels: OpenedLabels | None = None
    copy: LabelFile | None = None
    why_no_copy: str = ""
    unfinished: Unfinished | None = None
    why_lost: str = ""

    @property
    def folder(self) -> str:
        """Where objects are kept on disk; empty if they are not."""
        file = self.copy if self.labels is None else self.labels.file
        return "" if file is None else str(file.folder)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Proposed:
    """Objects that were found in a part of the image.

    Attributes
    ----------
    proposals
        Those that no committed object covers.
    num_covered
        How many others there were.
    numbers : (h, w) uint32
        The proposals, drawn as 1, 2, ...
    box, step
        Where that lies, and level-0 pixels per pixel of it.
    """

    proposals: Proposals
    num_covered: int
    numbers: NDArray[np.uint32]
    box: Box
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The session after a step.

    Attributes
    ----------
    prediction
        Of the current object; None if it has no prompts.
    prompts
        Of the current object.
    can_undo, can_redo
        Whether there is a step to undo or to redo.
    num_committed
        Objects committed in this session and not undone.
    taken
        The committed object that the current one was; None for a new one.
    carried
        Id and plane of the object that the current one continues; None for one of this plane.
    begun_with
        The prompts that the current object had when it was taken up or continued.
    earlier_edits
        What was changed in the label image before `edit`, and not answered yet.
    planes
        How far an object was propagated or interpolated by this step, and why no further.
    drawn
        Which of several objects were drawn by this step, and which were not.
    candidate
        Which of how many masks of the same prompts is shown, from 1; (0, 0) for the likeliest.
    model_input : (size, size, 3) uint8
        What the model sees of the prediction's tile, if that is to be shown.
    edit
        What this step changed in the label image, if anything.
    changed_by
        Name of the command that changed a committed object, or found nothing to change; else empty.
    is_undone
        Whether `edit` was undone by this step.
    is_halted
        Whether the step was one of many commits that was given up; what it committed stays.
    is_cancelled
        Whether the step was a commit that was given up: the object is still the current one.
    newest
        Where a commit was undone: the newest one of its object that still counts.
    strokes
        Of a commit that was given up.
    is_shown_anew
        Whether the image is shown otherwise from this step on.
    """

    prediction: Prediction | None
    prompts: Prompts
    can_undo: bool
    can_redo: bool
    num_committed: int
    taken: TakenUp | None = None
    carried: tuple[int, tuple[int, ...]] | None = None
    begun_with: Prompts = field(default_factory=Prompts)
    earlier_edits: tuple[Edit, ...] = ()
    planes: PlanesReport | None = None
    drawn: DrawnObjects | None = None
    candidate: tuple[int, int] = (0, 0)
    model_input: NDArray[np.uint8] | None = None
    edit: Edit | None = None
    changed_by: str = ""
    is_undone: bool = False
    is_halted: bool = False
    newest: Edit | None = None
    is_cancelled: bool = False
    strokes: Strokes | None = None
    is_shown_anew: bool = False
