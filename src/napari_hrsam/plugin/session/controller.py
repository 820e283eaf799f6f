"""Joins the layers of a viewer to a session: everything the panel does, without Qt.

It is long because it is the only place that sees canvas, worker, overlay and state together: they
know nothing of each other, nor of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.errors import HRSAMError, LabelsError, PromptError, SessionError
from napari_hrsam.plugin.canvas.canvas import Canvas
from napari_hrsam.plugin.canvas.coordinates import box_between, pixel_area
from napari_hrsam.plugin.canvas.display_watch import DisplayWatch
from napari_hrsam.plugin.canvas.layer_watch import LayerWatch
from napari_hrsam.plugin.canvas.mouse import Drag, DragTool
from napari_hrsam.plugin.overlay.objects import MemoryObjects
from napari_hrsam.plugin.overlay.overlay import GivenUp, Overlay
from napari_hrsam.plugin.session import commands, messages
from napari_hrsam.plugin.session.image_input import ChannelLayers, read_image_layers
from napari_hrsam.plugin.session.loading import (
    AUTO_DEVICE,
    DEFAULT_MODEL,
    ModelLoader,
    ModelRequest,
    load_named_model,
    model_label,
)
from napari_hrsam.plugin.session.objects_list import CommittedObjects, labels_of
from napari_hrsam.plugin.session.setup import Setup
from napari_hrsam.plugin.session.state import ControllerState, Phase
from napari_hrsam.plugin.session.targets import MemoryTarget, Target
from napari_hrsam.plugin.session.worker import Worker
from napari_hrsam.prompts import Prompts, Scribble
from napari_hrsam.storage.labels.properties import Properties

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Image

    from napari_hrsam.engine.prediction import Prediction
    from napari_hrsam.storage.labels.objects import Key, ObjectList
    from napari_hrsam.storage.labels.properties import PropertiesChange
    from napari_hrsam.storage.labels.store import Edit

_DONE = object()

MAX_LOOKS = 50
"""Places along a line at which it is looked for the object that is to be cut."""


class SegmentController:
    """Segment objects of an image layer by clicks.

    All methods are called on the viewer's thread and return at once; the model and the session
    live on one inference thread, which takes commands in order. No prompt is dropped; of the
    answers only the newest is shown. A script calls `wait` to have its requests answered; a panel
    has ``worker.deliver`` called on the viewer's thread, see ``worker.set_notify``.

    Parameters
    ----------
    viewer
        A napari viewer, or a `napari.components.ViewerModel` without a window.
    load_model
        Makes a model; see `ModelLoader`.

    Attributes
    ----------
    state
        What there is to show; it emits `changed` and `failed`.
    canvas
        Mouse, keys and view.
    worker
        The way to the inference thread.
    overlay
        The layers of the running session, or None.
    objects
        The committed objects and their classes.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        *,
        load_model: ModelLoader = load_named_model,
    ) -> None:
        self._viewer = viewer
        self.state = state = ControllerState()
        self.worker = Worker(load_model)
        self.overlay: Overlay | None = None
        guard = state.guard
        self.canvas = Canvas(
            viewer,
            {
                "C": partial(guard, self.commit),
                "Escape": partial(guard, self.cancel),
                "Control-Z": partial(guard, self.undo),
                "Control-Shift-Z": partial(guard, self.redo),
                "T": lambda: state.update(is_subtracting=not state.is_subtracting),
                "B": partial(self.use_tool, DragTool.BOX),
                "S": partial(self.use_tool, DragTool.SCRIBBLE),
                "L": partial(self.use_tool, DragTool.LASSO),
                "K": partial(self.use_tool, DragTool.CUT),
                "E": partial(guard, self.edit_under_cursor),
                "M": partial(guard, self.merge_under_cursor),
                "Delete": partial(guard, self.delete_under_cursor),
                "N": partial(guard, self.next_candidate),
                "Shift-Right": partial(guard, self.continue_on, 1),
                "Shift-Left": partial(guard, self.continue_on, -1),
                "H": lambda: self.set_peeks(not state.peeks),
                **{
                    f"Alt-{digit}": partial(guard, self.assign_key, digit) for digit in range(1, 10)
                },
            },
            on_click=partial(guard, self.click_world),
            on_drag=partial(guard, self.drag),
            is_subtracting=lambda: state.is_subtracting,
            drag_tool=lambda: state.drag_tool,
        )
        self.objects = CommittedObjects(self.worker)
        self.objects.classes_changed.connect(self._on_classes)
        self._taken_class: str | None = None
        self._setup: Setup | None = None
        self._ending: Overlay | None = None
        self._newest_edit: Edit | None = None
        self._described_label = 0
        self._is_peeking = False
        self._peek_at: tuple[float, ...] | None = None
        self._layer_watch = LayerWatch(viewer, self._on_layer_lost)
        self._display_watch = DisplayWatch(viewer, self._on_display, self._on_display_quiet)
        self.canvas.changed.connect(self._on_canvas)
        self.canvas.hovered.connect(self._on_hover)
        self.worker.answered.connect(self._on_answer)
        self.worker.failed.connect(self._on_failure)
        self.worker.progress.connect(self._on_progress)
        self.worker.sent.connect(self._update)
        self.worker.delivered.connect(self._on_delivered)

    @property
    def image_layer(self) -> Image | None:
        """The layer being annotated, or None while there is no session."""
        return None if self._setup is None else self._setup.image.layer

    @property
    def target_in_use(self) -> Target | None:
        """Where the objects of the running session go, or None."""
        if self.overlay is None or self._setup is None:
            return None
        target = self._setup.target
        return self.overlay.target if isinstance(target, MemoryTarget) else target

    # ------------------------------------------------------------------ begin and end

    def start(
        self,
        image_layer: Image | None = None,
        model: str = DEFAULT_MODEL,
        *,
        channels: ChannelLayers | None = None,
        target: Target | None = None,
        device: str = AUTO_DEVICE,
    ) -> None:
        """Open a session; the model is loaded in the background.

        Parameters
        ----------
        image_layer
            What to annotate, of any size, flat or a stack; by default the active image layer, else
            the first visible one. The model sees it as it is on screen: with its contrast limits,
            gamma and colormap, together with the visible layers on its pixel grid that it is
            blended with. It goes on doing so when they change.
        model
            A name of `napari_hrsam.list_models`, or a checkpoint's path.
        channels
            Layers on the same pixel grid that the model sees as colours, such as
            ``{"red": layer, "green": other}``, whether they are visible or not, between their
            contrast limits and with their gamma; by default what is on screen.
        target
            Where objects go: a Labels layer in memory; `NewLayer`, for a new one; or a label image
            on disk, a `LabelFile` (gone on with, or made) or an `OwnPlace`. By default a new layer
            for a small flat image in memory, else the label image "objects" beside an OME-Zarr
            image, else one in the user's data folder.
        device
            "auto", "cpu" or "cuda".

        Raises
        ------
        ImageError
            If there is no usable image layer.
        LabelsError
            If `target` cannot take the image's objects.
        """
        self._end(messages.HINT_START, next_target=target)
        layers = self._viewer.layers
        self._setup = setup = Setup.choose(layers, image_layer, channels, target)
        self._layer_watch.start(setup.image.layers)
        self._display_watch.start()
        request = ModelRequest(model=model, device=device)
        self._show_message(f"Loading {request.label} ...", phase=Phase.LOADING)
        self.canvas.listen()
        self.worker.send(commands.WarmUp())
        opening = commands.Open(setup.image.image, setup.place(layers), request)
        self.worker.send(opening, self._on_opened)

    def use_model(self, model: str, *, device: str = AUTO_DEVICE, download: bool = False) -> None:
        """Load a model in the background; a running session goes on with it.

        Committed objects stay and can still be undone. Until the model is loaded no prompts are
        taken; if it fails or is cancelled, the model before it is used on.

        Parameters
        ----------
        model
            A name of `napari_hrsam.list_models`, or a checkpoint's path.
        device
            "auto", "cpu" or "cuda".
        download
            Whether missing weights may be fetched from the internet.

        Raises
        ------
        SessionError
            If an object is being drawn, or a model is being loaded already.
        """
        if self.state.phase is Phase.LOADING:
            raise SessionError("a model is being loaded already; wait for it, or cancel it")
        if self.overlay is not None and self.overlay.has_object:
            raise SessionError(
                "expected no object being drawn; commit or cancel it before you change the model"
            )
        self.canvas.stop()
        if self.overlay is not None:
            self.canvas.listen()
        request = ModelRequest(model=model, device=device, download=download)
        self._show_message(f"Loading {request.label} ...", phase=Phase.LOADING)
        self.worker.send(commands.UseModel(request), self._on_model)

    def stop(self, message: str = messages.HINT_START) -> None:
        """End the session; committed objects stay, the current one is given up.

        Commits that were asked for are still made; the session's own layers go after them.
        """
        self._end(message)

    def close(self) -> None:
        """Let go of the viewer and end the inference thread; for the end of panel or viewer.

        Returns at once; the thread ends after the commits that were asked for, and lets others
        write the labels; ``worker.join`` waits for that. Layers are left as they are.
        """
        if self.worker.is_closed:
            return
        self.objects.cancel()
        self.worker.close()
        self.canvas.close()
        if self.overlay is not None:
            self.overlay.disconnect()
        self._layer_watch.close()
        self._display_watch.stop()

    def wait(self, timeout_s: float = 60.0) -> None:
        """Have all requests answered, on the image as it is shown now; for scripts and tests.

        Raises
        ------
        SessionError
            If it takes longer than `timeout_s` seconds.
        HRSAMError or any other error
            The first one reported since the last call.
        """
        if self._display_watch.is_pending:
            self._follow_display()
        if not self.worker.wait(timeout_s):
            raise SessionError(
                f"expected all requests answered within {timeout_s:g} s, but the inference thread "
                "is still busy; wait longer, or cancel"
            )
        self.state.raise_reported()

    # ------------------------------------------------------------------ prompts and steps

    def click(self, point_yx: Sequence[float], positive: bool = True) -> None:
        """Add a click to the current object, on the plane that is shown.

        Parameters
        ----------
        point_yx : (y, x) float
            Level-0 pixels of the image, pixel centres at integers.
        positive
            Whether the point belongs to the object.

        Raises
        ------
        PromptError
            If the point lies outside the image, or the object is on another plane.
        SessionError
            If no session is ready.
        """
        overlay, plane = self._ready_for_prompt()
        prompts = overlay.prompts.with_click(point_yx, positive)
        level = self._ask(overlay, prompts, plane)
        self.worker.send(commands.Click(prompts.points_yx[-1], positive, level, plane))

    def click_world(self, world: Sequence[float], positive: bool = True) -> None:
        """Add a click of the mouse at a world position of the viewer; see `click`.

        The first click of an object that lies on a committed one is not taken, but names that; a
        second one there is.
        """
        if self._is_loading():
            return
        overlay = self._ready()
        position = overlay.view.position(world)
        if not overlay.view.holds(position.point_yx):
            raise PromptError(
                f"this place is outside the image '{overlay.image.layer.name}': click inside it, "
                "or choose another image in the panel"
            )
        label = 0
        if not overlay.has_object:
            label = overlay.objects.label_at(position.point_yx, position.plane)
        if label and label != self._described_label:
            self._described_label = label
            key = self.objects.key_of(label, position.plane)
            if key is not None:
                self.objects.picked.emit(key)
            self._show_message(messages.describe_committed(label, overlay.objects))
            return
        self._described_label = 0
        self.click(position.point_yx, positive)
        cover = overlay.view.covering(world)
        self._update(covered_by="" if cover is None else cover.name)

    def box(self, box_yxyx: Sequence[float]) -> None:
        """Set the box of the current object, on the plane that is shown.

        Parameters
        ----------
        box_yxyx : (y0, x0, y1, x1) float
            Half open, level-0 pixels; cut at the image's border.

        Raises
        ------
        PromptError
            If the box is empty or lies outside the image, or the object is on another plane.
        SessionError
            If no session is ready.
        """
        overlay, plane = self._ready_for_prompt()
        prompts = overlay.prompts.with_box(box_yxyx)
        level = self._ask(overlay, prompts, plane)
        box = overlay.prompts.box
        assert box is not None
        self.worker.send(commands.SetBox(box, level, plane))

    def scribble(self, points_yx: Sequence[Sequence[float]], positive: bool = True) -> None:
        """Add a stroke to the current object, on the plane that is shown.

        Parameters
        ----------
        points_yx : (N, 2) float
            Level-0 pixels, joined by straight lines.
        positive
            Whether it belongs to the object.

        Raises
        ------
        PromptError
            If it leaves the image, or the object is on another plane.
        SessionError
            If no session is ready.
        """
        overlay, plane = self._ready_for_prompt()
        prompts = overlay.prompts.with_scribble(points_yx, positive)
        level = self._ask(overlay, prompts, plane)
        points = prompts.scribbles[-1].points_yx
        self.worker.send(commands.AddScribble(points, positive, level, plane))

    def lasso(self, points_yx: Sequence[Sequence[float]]) -> None:
        """Draw an outline around the current object, on the plane that is shown.

        Parameters
        ----------
        points_yx : (N, 2) float
            Level-0 pixels; it closes by itself.

        Raises
        ------
        PromptError
            If it encloses nothing or leaves the image, or the object is on another plane.
        SessionError
            If no session is ready.
        """
        overlay, plane = self._ready_for_prompt()
        level = self._ask(overlay, overlay.prompts.with_lasso(points_yx), plane)
        points = tuple((float(y), float(x)) for y, x in points_yx)
        self.worker.send(commands.DrawLasso(points, level, plane))

    def drag(self, drag: Drag) -> None:
        """Show what is being drawn with the mouse, and make a prompt of it when it is done."""
        if self._is_loading():
            return
        overlay = self._ready()
        ends = [overlay.view.position(world) for world in drag.path]
        plane, points = ends[-1].plane, [end.point_yx for end in ends]
        if drag.is_done:
            overlay.show_prompts()
        match drag.tool:
            case DragTool.BOX if drag.is_done:
                self.box(box_between(points[0], points[-1]))
            case DragTool.BOX:
                box = box_between(points[0], points[-1])
                shown = replace(overlay.prompts, box=box) if box[0] < box[2] else overlay.prompts
                overlay.show_drag(shown, plane)
            case DragTool.SCRIBBLE if drag.is_done:
                self.scribble(points, drag.is_positive)
            case DragTool.SCRIBBLE:
                overlay.show_drag(overlay.prompts.with_scribble(points, drag.is_positive), plane)
            case DragTool.CUT if drag.is_done:
                self.cut(points)
            case DragTool.CUT:
                overlay.show_drag(overlay.prompts.with_scribble(points, False), plane)
            case DragTool.LASSO if drag.is_done:
                self.lasso(points)
            case DragTool.LASSO:
                overlay.show_drag(overlay.prompts, plane, points)

    def use_tool(self, tool: DragTool) -> None:
        """Draw something with plain drags of the mouse; the same once more: move the view again."""
        self.state.update(drag_tool=DragTool.PAN if self.state.drag_tool is tool else tool)

    def next_candidate(self) -> None:
        """Show the next of the masks that the prompts of the current object may mean.

        Raises
        ------
        SessionError
            If no session is ready, or there is no object with a prompt.
        """
        overlay = self._ready()
        if not len(overlay.prompts):
            raise SessionError(
                "expected an object with a click or a box to show other masks of, got none; click "
                "on one first"
            )
        self.worker.send(commands.NextCandidate())

    # ------------------------------------------------------------------ committed objects

    def edit(self, label: int) -> None:
        """Take up a committed object of the plane that is shown, to change it.

        Prompts correct its mask; `commit` puts it back under its id, `cancel` leaves it as it was.

        Raises
        ------
        SessionError
            If no session is ready, or an object is being drawn.
        """
        overlay, plane = self._ready_for_prompt()
        self._require_no_object(overlay, "changing another one")
        self._begin_anew()
        self._taken_class = None
        overlay.take_up(label, plane)
        self._show_message(messages.LOOKING)
        self.worker.send(commands.TakeUp(label, plane))

    def delete(self, label: int) -> None:
        """Delete a committed object of the plane that is shown; `undo` brings it back.

        Raises
        ------
        SessionError
            If no session is ready, or another object is being drawn.
        """
        overlay, plane = self._ready_for_prompt()
        if overlay.label != label:
            self._require_no_object(overlay, "deleting another one")
        overlay.forget_object()
        self.worker.send(commands.Delete(label, plane))

    def merge(self, labels: Sequence[int]) -> None:
        """Give all pixels of some committed objects of the plane that is shown to the first.

        Raises
        ------
        SessionError
            If no session is ready, or an object is being drawn.
        """
        self._edit_object(lambda plane: commands.Merge(tuple(labels), plane), labels)

    def split(self, label: int, line_yx: Sequence[Sequence[float]]) -> None:
        """Cut a committed object of the plane that is shown along a line in level-0 pixels.

        Raises
        ------
        PromptError, SessionError
            If the line is malformed, no session is ready, or an object is being drawn.
        """
        line = Scribble(points_yx=line_yx).points_yx  # type: ignore[arg-type]  # copied, checked
        self._edit_object(lambda plane: commands.Split(label, line, plane), (label,))

    def fill_holes(self, label: int) -> None:
        """Fill the holes of a committed object of the plane that is shown.

        Raises
        ------
        SessionError
            If no session is ready, or another object is being drawn.
        """
        self._edit_object(lambda plane: commands.FillHoles(label, plane), (label,))

    def smooth(self, label: int) -> None:
        """Smooth the outline of a committed object of the plane that is shown.

        Raises
        ------
        SessionError
            If no session is ready, or another object is being drawn.
        """
        self._edit_object(lambda plane: commands.Smooth(label, plane), (label,))

    def _edit_object(
        self,
        command: Callable[[tuple[int, ...]], commands.ObjectEdit],
        labels: Sequence[int],
    ) -> None:
        overlay, plane = self._ready_for_prompt()
        is_drawn_on = len(overlay.prompts) > len(overlay.taken_prompts)
        if overlay.label not in labels or is_drawn_on:
            self._require_no_object(overlay, "changing others")
        overlay.forget_object()
        self.worker.send(command(plane))

    def merge_under_cursor(self) -> None:
        """Merge the committed object under the mouse into the one that was taken up; see `merge`.

        Raises
        ------
        PromptError
            If none is under the mouse.
        SessionError
            If none was taken up.
        """
        first = self._ready().label
        if not first:
            raise SessionError(
                "no object was taken up: point at the one that is to stay and press E, then at the "
                "other one and press M"
            )
        self.merge((first, self._label_under_cursor("M")))

    def cut(self, line_yx: Sequence[tuple[float, float]]) -> None:
        """Cut the committed object that a line crosses most; see `split`.

        Raises
        ------
        PromptError
            If it crosses none.
        """
        overlay, plane = self._ready_for_prompt()
        places = Scribble(points_yx=tuple(line_yx)).evenly(MAX_LOOKS).tolist()
        seen = [
            overlay.objects.label_at((y, x), plane) for y, x in places if overlay.view.holds((y, x))
        ]
        found = Counter(label for label in seen if label)
        if not found:
            raise PromptError(
                "no committed object is under this line: draw it across the one to cut in two"
            )
        self.split(found.most_common(1)[0][0], line_yx)

    def change_under_cursor(self, change: Callable[[int], None], key: str) -> None:
        """Change the object that was taken up, else the one under the mouse."""
        change(self._ready().label or self._label_under_cursor(key))

    def edit_under_cursor(self) -> None:
        """Take up the committed object under the mouse; see `edit`."""
        self.edit(self._label_under_cursor("E"))

    def delete_under_cursor(self) -> None:
        """Delete the object that is being changed, else the one under the mouse; see `delete`."""
        overlay = self._ready()
        self.delete(overlay.label or self._label_under_cursor("Delete"))

    def continue_on(self, step: int = 1, label: int | None = None) -> None:
        """Continue an object on the next plane of a stack, or the one before; the view goes along.

        It becomes the current object there; `commit` writes it under the same id.

        Parameters
        ----------
        step
            Planes to go along the last axis before y and x; negative: back.
        label
            A committed object of the plane that is shown. By default the current object, which is
            committed first, else the object under the mouse, else the one committed last.

        Raises
        ------
        PromptError
            If there is no such plane, no object, or the current one is on another plane.
        SessionError
            If no session is ready, the image is no stack, or a label is given while an object is
            being drawn.
        """
        overlay, plane, axis = self._ready_for_planes()
        following = list(plane)
        following[axis] += step
        size = overlay.image.image.plane_shape[axis]
        if not 0 <= following[axis] < size:
            raise PromptError(
                f"the stack ends here: expected a plane from 0 to {size - 1}, got {following[axis]}"
            )
        label = self._label_to_continue(overlay, plane, label)
        self._begin_anew()
        strokes = overlay.preview.take_strokes()
        there = tuple(following)
        overlay.expect(there)
        overlay.view.show_plane(there)
        self._show_message(messages.LOOKING)
        self.worker.send(commands.ContinueOn(there, plane, label, strokes))

    def propagate(self, num_planes: int, label: int | None = None) -> None:
        """Continue an object over several planes, and commit it on each, while the model is sure.

        `cancel` ends it; what is committed until then stays, and each plane can be undone.

        Parameters
        ----------
        num_planes
            How many along the last axis before y and x; negative: back.
        label
            As of `continue_on`.

        Raises
        ------
        PromptError, SessionError
            As of `continue_on`.
        """
        overlay, plane, axis = self._ready_for_planes()
        label = self._label_to_continue(overlay, plane, label)
        self._begin_anew()
        strokes = overlay.preview.take_strokes()
        overlay.forget_object()
        command = commands.Propagate(num_planes, axis, plane, label, strokes)
        self._show_message(messages.describe_planes(0, abs(num_planes)))
        self.worker.send(command)

    def _ready_for_planes(self) -> tuple[Overlay, tuple[int, ...], int]:
        """Return the plane that is shown, and the axis along which objects are continued."""
        overlay, plane = self._ready_for_prompt()
        axes = [axis for axis, size in enumerate(overlay.image.image.plane_shape) if size > 1]
        if not axes:
            raise SessionError(
                f"'{overlay.image.layer.name}' is no stack: there is no other plane to go to"
            )
        return overlay, plane, axes[-1]

    def _label_to_continue(
        self, overlay: Overlay, plane: tuple[int, ...], label: int | None
    ) -> int | None:
        """Return the id of a committed object; None for the current one."""
        if label is not None:
            self._require_no_object(overlay, "continuing another one")
            return label
        if overlay.has_object:
            return None
        position = overlay.view.position(self._viewer.cursor.position)
        if overlay.view.holds(position.point_yx):
            label = overlay.objects.label_at(position.point_yx, plane)
        edit = self._newest_edit
        if not label and edit is not None and edit.plane == plane and edit.kind != "delete":
            label = edit.label
        if not label:
            raise PromptError(
                "no object to continue: draw one, or point at a committed one, then press the key"
            )
        return label

    def _label_under_cursor(self, key: str) -> int:
        overlay = self._ready()
        position = overlay.view.position(self._viewer.cursor.position)
        label = 0
        if overlay.view.holds(position.point_yx):
            label = overlay.objects.label_at(position.point_yx, position.plane)
        if not label:
            raise PromptError(
                f"no committed object is under the mouse: point at one, then press {key}"
            )
        return label

    def _require_no_object(self, overlay: Overlay, what: str) -> None:
        if overlay.has_object:
            raise SessionError(f"an object is being drawn: commit or cancel it before {what}")

    def show_object(self, key: Key) -> None:
        """Move the view to a committed object, and to its plane.

        Raises
        ------
        SessionError
            If no session is ready, or there is no such object.
        """
        overlay, row = self._ready(), self.objects.row(key)
        if row is None:
            raise SessionError(f"expected a committed object to show, got {key[1]}, which is gone")
        overlay.view.show_plane(self._image_plane(overlay, row.plane))
        overlay.view.show_box(row.box)

    def _image_plane(self, overlay: Overlay, plane: tuple[int, ...]) -> tuple[int, ...]:
        """Return a plane of the labels as one of the image: axes of length 1 may differ."""
        num = len(overlay.plane)
        return plane if len(plane) == num else (0,) * num

    def edit_object(self, key: Key) -> None:
        """Take up a committed object of any plane; see `edit`."""
        overlay = self._ready()
        self._require_no_object(overlay, "changing another one")
        self.show_object(key)
        self.edit(key[1])

    def delete_objects(self, keys: Sequence[Key]) -> None:
        """Delete committed objects of any plane, each as one step to undo; see `delete`."""
        overlay = self._ready()
        self._require_no_object(overlay, "deleting others")
        for plane, label in keys:
            self.worker.send(commands.Delete(label, self._image_plane(overlay, plane)))

    # ------------------------------------------------------------------ classes

    def assign_class(self, name: str) -> None:
        """Give the current object a class, else the selected ones, else the one under the mouse.

        The current object gets it when it is committed, and so do the new ones after it.

        Parameters
        ----------
        name
            Of the class, which is added if there is none; "" for none.

        Raises
        ------
        PromptError
            If there is neither.
        SessionError
            If no session is ready.
        """
        overlay = self._ready()
        if overlay.label:
            self._taken_class = name
        elif overlay.has_object:
            self._update(object_class=name)
        else:
            labels = labels_of(self.objects.selected) or (self._label_under_cursor("its key"),)
            self.change_classes(partial(Properties.setting_class, labels=labels, name=name))
            return
        self._show_message(messages.describe_class(name))

    def assign_key(self, digit: int) -> None:
        """Assign the class with a digit from 1 to 9; see `assign_class`.

        Raises
        ------
        LabelsError
            If no class has it.
        """
        self._ready()
        found = self.objects.class_with(digit)
        if found is None:
            raise LabelsError(
                f"expected a class with the digit {digit}, got none; add one under Objects in the "
                "panel"
            )
        self.assign_class(found.name)

    def change_classes(self, make: Callable[[Properties], PropertiesChange]) -> None:
        """Change classes, or those of objects, as one step to undo; see `Properties`.

        Parameters
        ----------
        make
            Makes the change of what is told when it is made.

        Raises
        ------
        SessionError
            If no session is ready.
        """
        self._ready()
        self.worker.send(commands.ChangeProperties(make))

    def choose_class(self, name: str) -> None:
        """Give new objects a class from now on; "" for none."""
        self._update(object_class=name)

    def _on_classes(self) -> None:
        if self.objects.properties.get(self.state.object_class) is None:
            self._update(object_class="")

    def _list_objects(self, opened: commands.Opened, found: ObjectList | None) -> None:
        overlay = self.overlay
        if found is None or overlay is None:
            return
        labels = opened.labels
        if not found.unit:
            # Labels in memory tell no size of a pixel; the image's layer may.
            found.set_unit(*pixel_area(overlay.image.layer))
        planes = () if labels is None else tuple(labels.levels[0].shape[:-2])
        self.objects.begin(found, None if labels is None else labels.file, planes)

    def commit(self) -> None:
        """Write the current object, as painted over by hand, to the target.

        The outline of an object larger than a tile is refined first, which takes a while; `cancel`
        gives it up meanwhile.
        """
        overlay = self._ready()
        self._begin_anew()
        if not overlay.has_object:
            self._show_message(f"There is nothing to commit. {messages.HINT_CLICK}")
            return
        if elsewhere := overlay.elsewhere:
            overlay.view.show_plane(overlay.plane)
            self._show_message(f"This is the object, on {elsewhere}. C commits it, Esc cancels it.")
            return
        if not self.worker.is_busy and not overlay.preview.num_pixels:
            self._show_message(
                "There is nothing to commit yet: no pixel is marked. Click on the object."
            )
            return
        object_class = self._taken_class if overlay.label else self.state.object_class
        self._taken_class = None
        overlay.forget_object()
        self.worker.send(commands.Commit(overlay.preview.take_strokes(), object_class))

    def cancel(self) -> None:
        """Give up the current object, or the commit under way, or the loading of a model.

        Earlier commits stay. A commit that is given up leaves its object as the current one.
        """
        if self.state.phase is Phase.LOADING:
            self._cancel_loading()
            return
        overlay = self._ready()
        if not overlay.has_object and self.state.progress and self.worker.cancel_commit():
            self._show_message("Stopping ...")
            return
        self._begin_anew()
        overlay.give_up_object(overlay.next_level(self.state.pinned_level))
        self.worker.send(commands.Cancel())

    def undo(self) -> None:
        """Undo the last brush stroke, else the last prompt, cancel or commit."""
        overlay = self._ready()
        if overlay.is_painting_target:
            overlay.target.undo()
        elif overlay.preview.undo_stroke():
            self._count_pixels()
        elif overlay.given_up is not None:
            self._restore(overlay, overlay.given_up)
        else:
            self.worker.send(commands.Undo())

    def redo(self) -> None:
        """Redo what was undone last."""
        overlay = self._ready()
        if overlay.is_painting_target:
            overlay.target.redo()
        elif overlay.preview.redo_stroke():
            self._count_pixels()
        else:
            self.worker.send(commands.Redo())

    def save_objects(self, path: Path) -> None:
        """Write the objects, after the commits asked for, as a label TIFF with all planes.

        Objects on disk that are too large for one file are reported as an error in the panel.

        Raises
        ------
        SessionError
            If no session is ready.
        """
        objects = self._ready().objects
        array = objects.layer.data if isinstance(objects, MemoryObjects) else None
        message = f"The objects were saved as {path}."
        self.worker.send(commands.Save(path, array), lambda _: self._show_message(message))

    # ------------------------------------------------------------------ settings

    def pin_level(self, level: int | None) -> None:
        """Look at new objects at one level at every zoom, or at that of the zoom (None).

        Parameters
        ----------
        level
            -2 (full size enlarged four times) to the coarsest level of the image; the nearest that
            there is will be taken. The current object keeps its own.
        """
        self._update(pinned_level=level)
        self._show_level()

    def set_outlines_fully(self, is_full: bool) -> None:
        """Refine outlines of objects larger than a tile at full resolution when they are committed.

        Otherwise they are refined at the level of the object's first prompt, as it was seen.
        """
        self._update(outlines_fully=is_full)
        self.worker.send(commands.SetOutline(0 if is_full else None))

    def show_model_input(self, is_shown: bool) -> None:
        """Show the tile of each object as the model sees it, in a layer under it, or do not."""
        self._update(shows_input=is_shown)
        if self.overlay is not None:
            self.worker.send(commands.ShowInput(is_shown))

    def set_peeks(self, peeks: bool) -> None:
        """Show under the mouse what a click would give, where that is encoded, or do not."""
        self._update(peeks=peeks)
        if not peeks:
            self._show_peek(None)

    def set_reads_ahead(self, reads_ahead: bool) -> None:
        """Encode tiles of the view while nothing else is asked for, or do not."""
        self._update(reads_ahead=reads_ahead)
        if reads_ahead:
            self._look_ahead()
        else:
            self.worker.read_ahead(None)

    # ------------------------------------------------------------------ the worker's signals

    def _on_opened(self, opened: commands.Opened) -> None:
        setup = self._setup
        assert setup is not None

        def report(error: HRSAMError) -> None:
            # It was found on whatever thread draws.
            self.worker.call(partial(self.state.report, error))

        try:
            objects = setup.objects_layer(self._viewer, opened, report)
        except HRSAMError as error:
            self.stop()
            self.state.report(error)
            return
        overlay = Overlay(self._viewer, setup.image, objects, opened.tile_px)
        self._layer_watch.add([objects.layer])
        self._add_next_layer(opened, overlay, overlay.add_layers())

    def _add_next_layer(
        self, opened: commands.Opened, overlay: Overlay, left: Iterator[None]
    ) -> None:
        """Add a layer in the next turn of the window's event loop."""

        def add(_: None) -> None:
            if self._setup is None or self._setup.image is not overlay.image:
                # It was stopped meanwhile.
                overlay.remove(keeps_target=False)
                return
            known = len(overlay.own)
            is_more = next(left, _DONE) is not _DONE
            self._layer_watch.add(overlay.own[known:])
            if is_more:
                self._add_next_layer(opened, overlay, left)
            else:
                self._take_prompts(opened, overlay, self._setup)

        self.worker.send(commands.NextTurn(), add)

    def _take_prompts(self, opened: commands.Opened, overlay: Overlay, setup: Setup) -> None:
        self.overlay = overlay
        overlay.preview.layer.events.paint.connect(self._on_paint)
        self.canvas.start(overlay.all)
        self._update(
            phase=Phase.READY,
            model=opened.model,
            device=opened.device,
            can_undo=opened.can_undo,
            can_redo=opened.can_redo,
            levels=overlay.levels,
            is_stack=any(size > 1 for size in overlay.image.image.plane_shape),
            labels_folder=opened.folder,
            is_beside_image=setup.is_beside_image,
            message=f"{messages.describe_opened(opened, setup.image)}{self._hint()}",
        )
        self._on_canvas("tool")
        self._show_level()
        if self.state.shows_input:
            self.worker.send(commands.ShowInput(True))
        self.worker.send(commands.ListObjects(), partial(self._list_objects, opened))
        # It may have been changed while the model was loaded.
        self._follow_display()

    def _on_model(self, opened: commands.Opened) -> None:
        self.state.update(
            model=opened.model,
            device=opened.device,
            can_undo=opened.can_undo,
            can_redo=opened.can_redo,
            encode_ms=None,
            decode_ms=None,
        )
        self._go_on(f"{model_label(opened.model)} is loaded.", opened.tile_px)

    def _on_answer(self, answer: commands.Answer, is_newest: bool, follows_error: bool) -> None:
        overlay = self.overlay
        # A commit may be made after its session was stopped.
        shown = overlay or self._ending
        edits = (*answer.earlier_edits, *([] if answer.edit is None else [answer.edit]))
        for edit in edits:
            if shown is not None and edit.box.area:
                shown.objects.edited(edit)
        if edits:
            self._newest_edit = None if answer.is_undone else edits[-1]
        if overlay is not None:
            self.objects.answered(answer)
        if overlay is None or not is_newest:
            self._update(progress=None)
            return
        overlay.show_answer(answer)
        if answer.planes is not None and answer.planes.planes:
            overlay.view.show_plane(answer.planes.planes[-1])
        is_given_up = overlay.given_up is not None
        changes: dict[str, Any] = {}
        if answer.prediction is not None:
            seconds = answer.prediction.seconds
            changes |= {f"{part}_ms": 1000 * seconds[f"{part}_s"] for part in ("encode", "decode")}
        if not follows_error:
            message = messages.describe_step(answer, overlay.view.plane_name)
            if is_given_up and answer.prediction is None:
                message = messages.GIVEN_UP
            changes |= {"message": message, "is_error": False}
        self._update(
            progress=None,
            can_undo=answer.can_undo or is_given_up,
            can_redo=answer.can_redo,
            num_committed=answer.num_committed,
            level=overlay.level(self.state.pinned_level),
            **changes,
        )
        self._look_ahead()

    def _on_failure(self, command: commands.Command, error: BaseException, is_newest: bool) -> None:
        match command:
            case commands.Open():
                self.stop()
            case commands.Peek():
                self._is_peeking = False
            case commands.UseModel():
                # The model before it is still in use.
                self._go_on("")
            case commands.Commit() | commands.ContinueOn() | commands.Propagate() if (
                is_newest and self.overlay is not None
            ):
                self.overlay.preview.put_strokes(command.strokes)
                if not isinstance(command, commands.Commit):
                    self.overlay.view.show_plane(command.from_plane)
        if isinstance(command, commands.Step):
            self._update(progress=None)
        self.state.report(error)

    def _on_progress(self, command: commands.Command, done: int, total: int) -> None:
        is_done = done >= total
        if isinstance(command, commands.Propagate):
            self._show_message(messages.describe_planes(done, total), progress=(done, total))
        elif not isinstance(command, commands.Commit):
            self.state.update(progress=None if is_done else (done, total))
            # Whoever clicked meanwhile has to read that it did not count.
            if self.state.message != messages.STILL_LOADING:
                self.state.update(message=messages.describe_progress(done, total))
        elif self.overlay is not None and not is_done:
            self._show_message(messages.describe_outline(done, total), progress=(done, total))

    def _on_delivered(self) -> None:
        if self.overlay is not None:
            self.overlay.objects.refresh()
        self.state.update(is_busy=self.worker.is_busy)

    # ------------------------------------------------------------------ the canvas's signals

    def _on_canvas(self, what: str) -> None:
        overlay = self.overlay
        match what:
            case "zoom" if overlay is not None:
                overlay.rescale()
                self._show_level()
            case "center":
                self._look_ahead()
            case "point":
                self._update()
                self._look_ahead()
            case "ndisplay" if overlay is not None:
                self._show_message(self._hint())
            case "tool":
                tool = self.canvas.tool
                back = f"{tool}; Esc or C goes back to clicking."
                self._update(tool=back if tool and overlay is not None else "")

    def _on_hover(self, world: Sequence[float]) -> None:
        """Ask what a click under the mouse would give; one question at a time, the newest next."""
        overlay = self.overlay
        if overlay is None or not self.state.peeks or overlay.has_object or self.canvas.tool:
            return
        self._peek_at = tuple(world)
        if self._is_peeking or self._display_watch.is_pending:
            return
        world, self._peek_at = self._peek_at, None
        try:
            position = overlay.view.position(world)
        except PromptError:
            return
        if not overlay.view.holds(position.point_yx):
            self._show_peek(None)
            return
        self._is_peeking = True
        level = overlay.next_level(self.state.pinned_level)
        self.worker.send(commands.Peek(position.point_yx, level, position.plane), self._on_peek)

    def _on_peek(self, prediction: Prediction | None) -> None:
        self._is_peeking = False
        if self.state.peeks:
            self._show_peek(prediction)
        if self._peek_at is not None:
            self._on_hover(self._peek_at)

    def _show_peek(self, prediction: Prediction | None) -> None:
        if self.overlay is not None and not self.overlay.has_object:
            self.overlay.show_peek(prediction)

    def _on_paint(self) -> None:
        # napari reports some strokes before they are in the pixels.
        self.worker.call(self._count_pixels)

    def _on_layer_lost(self, what: str) -> None:
        message = f"The session ended: {what}. {messages.HINT_START}"
        self._end(message, error=SessionError(message))

    def _on_display(self) -> None:
        """Encode nothing ahead that is shown otherwise now."""
        self.worker.read_ahead(None)

    def _on_display_quiet(self) -> None:
        # It comes on a thread of its own.
        self.worker.call(self._settle_display)

    def _settle_display(self) -> None:
        if self._display_watch.is_quiet:
            self._follow_display()

    def _follow_display(self) -> None:
        """Let the model see the image as it is shown now, if that has changed."""
        self._display_watch.settle()
        overlay, setup = self.overlay, self._setup
        if overlay is None or setup is None:
            return
        image = setup.image
        try:
            now = read_image_layers(image.layer, image.channels, self._viewer.layers)
        except HRSAMError as error:
            self._show_message(f"The model sees the image as before: {error}.", is_error=True)
            return
        self._setup = replace(setup, image=now)
        overlay.show_image(now)
        if now.image.is_same_picture(image.image):
            self._look_ahead()
            return
        if overlay.has_object:
            self._show_message(messages.LOOKING_AGAIN)
        self.worker.send(commands.Show(now.image))

    # ------------------------------------------------------------------ inside

    def _ready(self) -> Overlay:
        if self.overlay is None:
            raise SessionError(
                f"expected a started session, but it is {self.state.phase}; press Start and wait "
                "for the model"
            )
        return self.overlay

    def _is_loading(self) -> bool:
        """Whether a model is being loaded; then the panel says that the mouse does nothing yet."""
        is_loading = self.state.phase is Phase.LOADING
        if is_loading:
            self._show_message(messages.STILL_LOADING)
        return is_loading

    def _ready_for_prompt(self) -> tuple[Overlay, tuple[int, ...]]:
        """Return what a prompt is shown on, and its plane: the image as it is on screen now."""
        overlay = self._ready()
        if self._display_watch.is_pending:
            self._follow_display()
        return overlay, overlay.plane_for_prompt()

    def _ask(self, overlay: Overlay, prompts: Prompts, plane: tuple[int, ...]) -> int:
        """Show prompts before they are answered; return the level of a new object."""
        prompts = prompts.inside(overlay.image.shape_yx)
        level = overlay.next_level(self.state.pinned_level)
        overlay.ask(prompts, plane)
        self._show_message(messages.LOOKING)
        return level

    def _begin_anew(self) -> None:
        """Go back to clicks that add."""
        self.canvas.take_mouse()
        self._described_label = 0
        self._update(is_subtracting=False, covered_by="")

    def _restore(self, overlay: Overlay, object_: GivenUp) -> None:
        """Draw an object that was cancelled once more."""
        overlay.view.show_plane(object_.plane)
        prompts, level, plane = object_.prompts, object_.level, object_.plane
        taken = Prompts()
        if object_.label:
            taken = object_.taken_prompts
            overlay.take_up(object_.label, plane)
            self.worker.send(commands.TakeUp(object_.label, plane))
        elif object_.carried:
            taken = object_.taken_prompts
            label, from_plane = object_.carried
            self.worker.send(commands.ContinueOn(plane, from_plane, label))
        overlay.ask(prompts, plane)
        overlay.preview.put_strokes(object_.strokes)
        if prompts.box is not None and prompts.box != taken.box:
            self.worker.send(commands.SetBox(prompts.box, level, plane))
        scribbles = list(prompts.scribbles[len(taken.scribbles) :])
        clicks = list(enumerate(zip(prompts.points_yx, prompts.labels, strict=True)))
        for number, (point, positive) in clicks[len(taken.points_yx) :]:
            while scribbles and scribbles[0].num_clicks <= number:
                self._send_scribble(scribbles.pop(0), level, plane)
            self.worker.send(commands.Click(point, positive, level, plane))
        for scribble in scribbles:
            self._send_scribble(scribble, level, plane)

    def _send_scribble(self, scribble: Scribble, level: int, plane: tuple[int, ...]) -> None:
        self.worker.send(commands.AddScribble(scribble.points_yx, scribble.positive, level, plane))

    def _cancel_loading(self) -> None:
        # A session that is not there yet has no model to go on with.
        if self._setup is not None and self.overlay is None:
            self.stop(f"Loading was cancelled. {messages.HINT_START}")
        # False: it is done already, and its answer comes at once.
        elif self.worker.cancel_loading():
            is_partial = self.state.progress is not None
            kept = " What has come is kept for next time." if is_partial else ""
            self._go_on(f"Loading was cancelled.{kept}")

    def _go_on(self, message: str, tile_px: int | None = None) -> None:
        """Leave the loading, with the session there is and perhaps a model with other tiles."""
        overlay, phase = self.overlay, Phase.STOPPED
        if overlay is not None:
            overlay.tile_px = overlay.tile_px if tile_px is None else tile_px
            self.canvas.start(overlay.all)
            phase = Phase.READY
            self._update(levels=overlay.levels)
        message = f"{message} {self._hint()}".strip()
        self._show_message(message, progress=None, phase=phase)
        self._show_level()

    def _end(
        self,
        message: str,
        *,
        next_target: Target | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.canvas.stop()
        self.worker.cancel_loading()
        self._newest_edit = None
        setup, overlay = self._setup, self.overlay
        self._setup = self.overlay = None
        self._is_peeking, self._peek_at = False, None
        self._layer_watch.stop()
        self._display_watch.stop()
        self.objects.end()
        if setup is not None:
            if overlay is not None:
                overlay.disconnect()
                self._ending = overlay
            keeps_target = overlay is not None and next_target == overlay.target
            finish = partial(self._finish_end, overlay, keeps_target, error)
            self.worker.send(commands.Close(), finish)
        self.state.reset(message)
        self._update()

    def _finish_end(
        self, overlay: Overlay | None, keeps_target: bool, error: BaseException | None, _: Any
    ) -> None:
        self._ending = None
        if overlay is not None:
            overlay.objects.refresh()
            overlay.remove(keeps_target=keeps_target)
        # A window that closes removes its layers too, and hides the panel: that is no error.
        if error is not None and not self.canvas.is_paused:
            self.state.report(error)

    def _hint(self) -> str:
        if self.overlay is None:
            return messages.HINT_START
        return messages.HINT_3D if self.canvas.is_3d else messages.HINT_CLICK

    def _update(self, **changes: Any) -> None:
        """Change the state, and what follows from the layers and the worker."""
        overlay = self.overlay
        elsewhere = "" if overlay is None else overlay.elsewhere
        self.state.update(
            num_prompts=0 if overlay is None else len(overlay.prompts),
            has_object=overlay is not None and overlay.has_object,
            is_editing=overlay is not None and overlay.label > 0,
            is_busy=self.worker.is_busy,
            elsewhere=elsewhere and messages.describe_elsewhere(elsewhere),
            **changes,
        )

    def _show_message(self, message: str, *, is_error: bool = False, **changes: Any) -> None:
        self._update(message=message, is_error=is_error, **changes)

    def _count_pixels(self) -> None:
        """Let the number of pixels follow what was painted."""
        if self.overlay is not None and self.overlay.has_object:
            preview = self.overlay.preview
            self._show_message(messages.describe_object(preview.num_pixels, preview.step))

    def _show_level(self) -> None:
        if self.overlay is not None:
            self._update(level=self.overlay.level(self.state.pinned_level))
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Have the tiles of the view encoded in spare time."""
        overlay, level = self.overlay, self.state.level
        if overlay is None or level is None or not self.state.reads_ahead or self.canvas.is_3d:
            return
        if self._display_watch.is_pending:
            return
        try:
            plane = overlay.view.plane()
        except PromptError:
            self.worker.read_ahead(None)
            return
        self.worker.read_ahead(commands.ReadAhead(overlay.view.box0(), level, plane))
