"""Joins the layers of a viewer to a session: everything the panel does, without Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari_hrsam.errors import LabelsError, PromptError
from napari_hrsam.plugin.canvas.coordinates import box_between
from napari_hrsam.plugin.canvas.mouse import ClickTool
from napari_hrsam.plugin.overlay.objects import MemoryObjects
from napari_hrsam.plugin.session.loading import ModelLoader, load_named_model
from napari_hrsam.plugin.session.session_port import SessionPort
from napari_hrsam.plugin.session.state import HINT_CLICK, HINT_START, LOOKING, STILL_LOADING, Phase
from napari_hrsam.storage.image_files import write_labels

if TYPE_CHECKING:
    import napari.components
    import numpy as np
    from numpy.typing import NDArray

    from napari_hrsam.plugin.overlay.overlay import GivenUp, SessionDisplay
    from napari_hrsam.plugin.overlay.session_layers import SessionLayers


class SegmentController(SessionPort):
    """Segment objects of an image layer by clicks.

    All methods are called on the viewer's thread and return at once; the model and the session
    live on one inference thread, which takes requests in order. No prompt is dropped; of the
    answers only the newest is shown. A script calls `wait` to have its requests answered; a panel
    gives `set_notify` a function that makes `deliver` run on the viewer's thread.

    Parameters
    ----------
    viewer
        A napari viewer, or a `napari.components.ViewerModel` without a window.
    load_model
        Makes a model; see `ModelLoader`.

    Attributes
    ----------
    changed, failed, devices_found
        See `StateBoard` and `EnginePort`.
    actions
        What our keys do.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        *,
        load_model: ModelLoader = load_named_model,
    ) -> None:
        tool = ClickTool(
            viewer,
            on_click=partial(self.guard, self.click_world),
            on_box=partial(self.guard, self.drag_box),
            is_subtracting=lambda: self.state.is_subtracting,
            draws_boxes=lambda: self.state.draws_boxes,
        )
        actions: dict[str, Callable[[], None]] = {
            "C": partial(self.guard, self.commit),
            "Escape": partial(self.guard, self.cancel),
            "Control-Z": partial(self.guard, self.undo),
            "Control-Shift-Z": partial(self.guard, self.redo),
            "T": lambda: self.set_subtracting(not self.state.is_subtracting),
            "B": lambda: self.set_draws_boxes(not self.state.draws_boxes),
        }
        self._told_label = 0
        self.actions = actions
        super().__init__(viewer, load_model, tool, actions)

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
        display = self._ready_as_shown()
        plane = self._plane_for_prompt(display)
        prompts = display.prompts.with_click(point_yx, positive).inside(display.image.shape_yx)
        level = display.next_level(self._pinned_level)
        display.ask(prompts, plane)
        self._update(message=LOOKING, is_error=False)
        self._link.click(prompts.points_yx[-1], positive, level, plane)

    def click_world(self, world: Sequence[float], positive: bool = True) -> None:
        """Add a click of the mouse at a world position of the viewer; see `click`.

        The first click of an object that lies on a committed one is not taken, but tells of it; a
        second one there is.
        """
        if self._is_loading():
            return
        display = self._ready()
        position = display.view.position(world)
        if not display.view.holds(position.point_yx):
            raise PromptError(
                f"this place is outside the image '{display.image.layer.name}': click inside it, "
                "or choose another image in the panel"
            )
        label = 0
        if not len(display.prompts):
            label = display.layers.objects.label_at(position.point_yx, position.plane)
        if label and label != self._told_label:
            self._told_label = label
            self._update(message=self._describe_committed(label), is_error=False)
            return
        self._told_label = 0
        self.click(position.point_yx, positive)
        cover = display.view.covering(world)
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
        display = self._ready_as_shown()
        plane = self._plane_for_prompt(display)
        prompts = display.prompts.with_box(box_yxyx).inside(display.image.shape_yx)
        assert prompts.box is not None
        level = display.next_level(self._pinned_level)
        display.ask(prompts, plane)
        self._update(message=LOOKING, is_error=False)
        self._link.box(prompts.box, level, plane)

    def drag_box(self, first: Sequence[float], second: Sequence[float], is_done: bool) -> None:
        """Show a box between two world positions while it is drawn, and set it when done."""
        if self._is_loading():
            return
        display = self._ready()
        start, end = display.view.position(first), display.view.position(second)
        drawn = box_between(start.point_yx, end.point_yx)
        if is_done:
            display.show_prompts()
            self.box(drawn)
        else:
            display.show_drag(drawn, end.plane)

    def commit(self) -> None:
        """Write the current object, as painted over by hand, to the target.

        The outline of an object larger than a tile is refined first, which takes a while; `cancel`
        gives it up meanwhile.
        """
        display = self._ready()
        self._begin_anew()
        if not len(display.prompts):
            self._update(message=f"There is nothing to commit. {HINT_CLICK}", is_error=False)
            return
        if display.is_elsewhere():
            display.view.show_plane(display.plane)
            name = display.view.plane_name(display.plane)
            message = f"This is the object, on {name}. C commits it, Esc cancels it."
            self._update(message=message, is_error=False)
            return
        preview = display.layers.preview
        if not self._link.is_busy and not preview.num_pixels:
            message = "There is nothing to commit yet: no pixel is marked. Click on the object."
            self._update(message=message, is_error=False)
            return
        display.forget_object()
        self._link.commit(preview.take_strokes())

    def cancel(self) -> None:
        """Give up the current object, or the commit under way, or the loading of a model.

        Earlier commits stay. A commit that is given up leaves its object as the current one.
        """
        if self.state.phase is Phase.LOADING:
            # A session that is not there yet has no model to go on with.
            if self._input is not None and self._display is None:
                self.stop(f"Loading was cancelled. {HINT_START}")
            else:
                self._cancel_loading()
            return
        display = self._ready()
        if not len(display.prompts) and self.state.progress and self._link.cancel_commit():
            self._update(message="Giving up the commit ...", is_error=False)
            return
        self._begin_anew()
        display.give_up_object(display.next_level(self._pinned_level))
        self._link.cancel()

    def undo(self) -> None:
        """Take back the last brush stroke, else the last prompt, cancel or commit."""
        display = self._ready()
        layers = display.layers
        if self._is_painting_target(layers):
            layers.target.undo()
        elif layers.preview.undo_stroke():
            self._count_pixels()
        elif display.given_up is not None:
            self._bring_back(display, display.given_up)
        else:
            self._link.undo()

    def redo(self) -> None:
        """Repeat what was taken back last."""
        layers = self._ready().layers
        if self._is_painting_target(layers):
            layers.target.redo()
        elif layers.preview.redo_stroke():
            self._count_pixels()
        else:
            self._link.redo()

    def path_beside_image(self) -> Path | None:
        """Return a new file for the objects beside the image's own; None if it has none."""
        layer = self.image_layer
        source = None if layer is None else layer.source.path
        if not source or "://" in str(source):
            return None
        image, number = Path(source), 1
        stem = image.name.split(".")[0]
        path = image.with_name(f"{stem}-objects.tif")
        while path.exists():
            number += 1
            path = image.with_name(f"{stem}-objects-{number}.tif")
        return path

    def save_objects(self, path: Path) -> None:
        """Write the objects, after the commits asked for, as a label TIFF with all planes.

        Objects on disk that are too large for one file are told as an error in the panel.

        Raises
        ------
        SessionError
            If no session is ready.
        """
        objects = self._ready().layers.objects
        array = objects.layer.data if isinstance(objects, MemoryObjects) else None

        def receive(future: Future[None]) -> None:
            error = future.exception()
            if error is None:
                self._update(message=f"The objects were saved as {path}.", is_error=False)
            else:
                self.report(error)

        self._link.save(array, partial(_write, path), receive)

    # ------------------------------------------------------------------ how it works

    def set_subtracting(self, is_subtracting: bool) -> None:
        """Let a plain click take away (and a right click add), or the other way round."""
        self._update(is_subtracting=is_subtracting)

    def set_draws_boxes(self, draws_boxes: bool) -> None:
        """Let a plain left drag draw a box, or pan."""
        self._update(draws_boxes=draws_boxes)

    def view_level(self) -> int:
        """Choose the level for the present zoom."""
        display = self._ready()
        return display.view.level(display.tile_px)

    def pin_level(self, level: int | None) -> None:
        """Look at new objects at one level at every zoom, or let the zoom tell (None).

        Parameters
        ----------
        level
            -2 (full size enlarged four times) to the coarsest level of the image; the nearest that
            there is will be taken. The current object keeps its own.
        """
        self._pinned_level = level
        self._update(is_level_pinned=level is not None)
        self._show_level()

    def set_outlines_fully(self, is_full: bool) -> None:
        """Refine outlines of objects larger than a tile at full resolution when they are committed.

        Otherwise they are refined at the level of the object's first prompt, as it was seen.
        """
        self._update(outlines_fully=is_full)
        self._link.set_outline(0 if is_full else None)

    def set_reads_ahead(self, reads_ahead: bool) -> None:
        """Encode tiles of the view while nothing else is asked for, or do not."""
        self._update(reads_ahead=reads_ahead)
        if reads_ahead:
            self._look_ahead()
        else:
            self._link.rest()

    # ------------------------------------------------------------------ inside

    def _is_loading(self) -> bool:
        """Whether a model is being loaded; then it is told that the mouse does nothing yet."""
        is_loading = self.state.phase is Phase.LOADING
        if is_loading:
            self._update(message=STILL_LOADING, is_error=False)
        return is_loading

    def _ready_as_shown(self) -> SessionDisplay:
        """Be ready for a prompt, which is for the image as it is on screen at this moment."""
        display = self._ready()
        if self._shown.is_pending:
            self._follow_display()
        return display

    def _plane_for_prompt(self, display: SessionDisplay) -> tuple[int, ...]:
        plane = display.view.plane()
        if len(display.prompts) and plane != display.plane:
            there, here = map(display.view.plane_name, (display.plane, plane))
            raise PromptError(
                f"the object is on {there}, and this is {here}: press C to go back to it, or Esc "
                "to cancel it and begin another one here"
            )
        return plane

    def _begin_anew(self) -> None:
        """Go back to clicks that add."""
        self._mouse.give_back()
        self._told_label = 0
        self._update(is_subtracting=False, covered_by="")

    def _bring_back(self, display: SessionDisplay, object_: GivenUp) -> None:
        """Draw an object that was cancelled once more."""
        display.view.show_plane(object_.plane)
        display.ask(object_.prompts, object_.plane)
        display.layers.preview.put_strokes(object_.strokes)
        if object_.prompts.box is not None:
            self._link.box(object_.prompts.box, object_.level, object_.plane)
        for point, label in zip(object_.prompts.points_yx, object_.prompts.labels, strict=True):
            self._link.click(point, label, object_.level, object_.plane)

    def _describe_committed(self, label: int) -> str:
        assert self.layers is not None
        objects = self.layers.objects
        edit = f"select the layer '{objects.layer.name}' and paint (P) or erase (E)"
        how = f"To change it, {edit}. " if objects.is_paintable else ""
        return f"This is object {label}, committed already. {how}Click again for a new one over it."

    def _is_painting_target(self, layers: SessionLayers) -> bool:
        is_active = bool(self._viewer.layers.selection.active == layers.target)
        is_painting = is_active and str(layers.target.mode) != "pan_zoom"
        return is_painting and layers.objects.is_paintable


def _write(path: Path, labels: NDArray[np.integer]) -> None:
    try:
        write_labels(path, labels)
    except OSError as error:
        raise LabelsError(
            f"expected a folder that can be written to, got an error at {path}: {error}; save the "
            "layer elsewhere (File > Save)"
        ) from error
