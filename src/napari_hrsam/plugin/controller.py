"""Joins the layers of a viewer to a session: everything the panel does, without Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from napari_hrsam.errors import PromptError
from napari_hrsam.plugin.coordinates import box_between
from napari_hrsam.plugin.loading import ModelLoader, load_named_model
from napari_hrsam.plugin.mouse import ClickTool
from napari_hrsam.plugin.session_port import SessionPort
from napari_hrsam.plugin.state import HINT_CLICK, HINT_START, Phase

if TYPE_CHECKING:
    import napari.components

    from napari_hrsam.plugin.session_display import SessionDisplay
    from napari_hrsam.plugin.session_layers import SessionLayers


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
        display = self._ready()
        plane = self._plane_for_prompt(display)
        prompts = display.prompts.with_click(point_yx, positive).inside(display.image.shape_yx)
        level = display.next_level(self._pinned_level)
        display.ask(prompts, plane)
        self._link.click(prompts.points_yx[-1], positive, level, plane)

    def click_world(self, world: Sequence[float], positive: bool = True) -> None:
        """Add a click at a world position of the viewer; see `click`."""
        display = self._ready()
        position = display.view.position(world)
        if not display.view.holds(position.point_yx):
            raise PromptError(
                f"this place is outside the image '{display.image.layer.name}': click inside it, "
                "or choose another image in the panel"
            )
        self.click(position.point_yx, positive)

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
        display = self._ready()
        plane = self._plane_for_prompt(display)
        prompts = display.prompts.with_box(box_yxyx).inside(display.image.shape_yx)
        assert prompts.box is not None
        level = display.next_level(self._pinned_level)
        display.ask(prompts, plane)
        self._link.box(prompts.box, level, plane)

    def drag_box(self, first: Sequence[float], second: Sequence[float], is_done: bool) -> None:
        """Show a box between two world positions while it is drawn, and set it when done."""
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
        if not len(display.prompts):
            self._update(message=f"There is nothing to commit. {HINT_CLICK}", is_error=False)
            return
        display.forget_object()
        self._link.commit(display.layers.preview.take_strokes())

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
        display.forget_object()
        display.layers.preview.clear()
        self._link.cancel()

    def undo(self) -> None:
        """Take back the last brush stroke, else the last prompt, else the last commit."""
        layers = self._ready().layers
        if self._is_painting_target(layers):
            layers.target.undo()
        elif not layers.preview.undo_stroke():
            self._link.undo()

    def redo(self) -> None:
        """Repeat what was taken back last."""
        layers = self._ready().layers
        if self._is_painting_target(layers):
            layers.target.redo()
        elif not layers.preview.redo_stroke():
            self._link.redo()

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

    def _plane_for_prompt(self, display: SessionDisplay) -> tuple[int, ...]:
        plane = display.view.plane()
        if len(display.prompts) and plane != display.plane:
            raise PromptError(
                f"expected a prompt on the object's plane {display.plane}, got {plane}; commit or "
                "cancel the object before you go to another plane"
            )
        return plane

    def _is_painting_target(self, layers: SessionLayers) -> bool:
        is_active = bool(self._viewer.layers.selection.active == layers.target)
        is_painting = is_active and str(layers.target.mode) != "pan_zoom"
        return is_painting and layers.objects.is_paintable
