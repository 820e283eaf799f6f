"""Joins the layers of a viewer to a session: everything the panel does, without Qt.

Longer than other files: it is the one place where the order of layers, tools and the inference
thread matters, and the public face of all of them for scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.canvas_tools import CanvasTools
from napari_hrsam.plugin.coordinates import (
    box_between,
    layer_position,
    pixels_per_screen_pixel,
    view_level,
)
from napari_hrsam.plugin.image_input import (
    ImageInput,
    check_target_layer,
    default_image_layer,
    read_image_layer,
    target_array,
)
from napari_hrsam.plugin.loading import (
    AUTO_DEVICE,
    ModelLoader,
    ModelRequest,
    load_named_model,
)
from napari_hrsam.plugin.model_chooser import DEFAULT_MODEL
from napari_hrsam.plugin.model_port import ModelPort
from napari_hrsam.plugin.mouse import ClickTool
from napari_hrsam.plugin.session_layers import LossWatch, SessionLayers, new_target_array
from napari_hrsam.plugin.session_link import SessionLink
from napari_hrsam.plugin.state import (
    HINT_3D,
    HINT_CLICK,
    HINT_START,
    ControllerState,
    Phase,
    describe_step,
)
from napari_hrsam.prompts import Prompts

if TYPE_CHECKING:
    import napari.components
    import numpy as np
    from napari.layers import Image, Labels

    from napari_hrsam.plugin.session_jobs import Answer, HandEdits, Opened


class SegmentController(ModelPort):
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
        super().__init__(SessionLink(load_model, self))
        self._viewer = viewer
        self._image: Image | None = None
        self._input: ImageInput | None = None
        self._target: tuple[Labels | None, np.ndarray] | None = None
        self._layers: SessionLayers | None = None
        self._tile_px = 0
        self._prompts = Prompts()
        self._watch = LossWatch(viewer, self._on_loss)
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
        self._tools = CanvasTools(viewer, tool, actions, self._on_ndisplay)
        viewer.scene.camera.events.zoom.connect(self._on_zoom)

    # ------------------------------------------------------------------ what there is

    @property
    def image_layer(self) -> Image | None:
        """The layer being annotated, or None while there is no session."""
        return self._image

    @property
    def layers(self) -> SessionLayers | None:
        """Target, preview, clicks and box of the running session, or None."""
        return self._layers

    # ------------------------------------------------------------------ begin and end

    def start(
        self,
        image_layer: Image | None = None,
        model: str = DEFAULT_MODEL,
        *,
        target: Labels | None = None,
        device: str = AUTO_DEVICE,
    ) -> None:
        """Open a session; the model is loaded in the background.

        Parameters
        ----------
        image_layer
            What to annotate; by default the active image layer, else the first visible one.
        model
            A name of `napari_hrsam.list_models`, or a checkpoint's path.
        target
            Labels layer to commit to; by default a new one.
        device
            "auto", "cpu" or "cuda".

        Raises
        ------
        ImageError
            If there is no usable image layer.
        LabelsError
            If `target` cannot take the image's objects.
        """
        self._end(HINT_START, next_target=target)
        if image_layer is None:
            active = self._viewer.layers.selection.active
            image_layer = default_image_layer(self._viewer.layers, active)
        image_input = read_image_layer(image_layer)
        assert image_layer is not None
        if target is None:
            labels = new_target_array(image_input.shape_yx)
        else:
            check_target_layer(target, image_layer, image_input.shape_yx)
            labels = target_array(target)
        self._image, self._input, self._target = image_layer, image_input, (target, labels)
        self._watch.start(image_layer)
        request = ModelRequest(model=model, device=device)
        self._update(phase=Phase.LOADING, message=f"Loading {request.label} ...", is_error=False)
        self._link.open(image_input, labels, request)

    def stop(self, message: str = HINT_START) -> None:
        """End the session; committed objects stay, the current one is given up.

        Commits that were asked for are still made; the session's own layers go after them.
        """
        self._end(message)

    def _end(
        self,
        message: str,
        *,
        next_target: Labels | None = None,
        error: BaseException | None = None,
    ) -> None:
        self._tools.stop()
        self._link.cancel_loading()
        image, layers = self._image, self._layers
        self._image, self._input, self._target, self._layers = None, None, None, None
        self._prompts = Prompts()
        self._watch.stop()
        if image is not None:
            if layers is not None:
                layers.disconnect()
            keeps_target = layers is not None and next_target == layers.target
            self._link.end(partial(self._finish_end, layers, keeps_target, error))
        self.state = ControllerState(
            model=self.state.model, device=self.state.device, message=message
        )
        self.changed.emit()
        self._update()

    def close(self) -> None:
        """Let go of the viewer and end the inference thread; for the end of panel or viewer.

        Returns at once; the thread ends after what it is doing. Layers are left as they are.
        """
        if self._link.engine.is_closed:
            return
        self._link.close()
        self._tools.close()
        if self._layers is not None:
            self._layers.disconnect()
        self._watch.close()
        self._viewer.scene.camera.events.zoom.disconnect(self._on_zoom)

    def set_paused(self, is_paused: bool) -> None:
        """Give mouse and keys back to napari for a while, e.g. while the panel is hidden."""
        self._tools.set_paused(is_paused)

    # ------------------------------------------------------------------ prompts and steps

    def click(self, point_yx: Sequence[float], positive: bool = True) -> None:
        """Add a click to the current object.

        Parameters
        ----------
        point_yx : (y, x) float
            Level-0 pixels of the image, pixel centres at integers.
        positive
            Whether the point belongs to the object.

        Raises
        ------
        PromptError
            If the point lies outside the image.
        SessionError
            If no session is ready.
        """
        image_input, _ = self._ready()
        prompts = self._prompts.with_click(point_yx, positive).inside(image_input.shape_yx)
        level = self.view_level()
        self._prompts = prompts
        self._show_prompts()
        self._link.click(prompts.points_yx[-1], positive, level)

    def click_world(self, world: Sequence[float], positive: bool = True) -> None:
        """Add a click at a world position of the viewer; see `click`."""
        image_input, _ = self._ready()
        point = self._to_image(world)
        if not Box.of_shape(image_input.shape_yx).contains((point[0], point[1])):
            assert self._image is not None
            raise PromptError(
                f"this place is outside the image '{self._image.name}': click inside it, or choose "
                "another image in the panel"
            )
        self.click(point, positive)

    def box(self, box_yxyx: Sequence[float]) -> None:
        """Set the box of the current object.

        Parameters
        ----------
        box_yxyx : (y0, x0, y1, x1) float
            Half open, level-0 pixels; cut at the image's border.

        Raises
        ------
        PromptError
            If the box is empty or lies outside the image.
        SessionError
            If no session is ready.
        """
        image_input, _ = self._ready()
        prompts = self._prompts.with_box(box_yxyx).inside(image_input.shape_yx)
        assert prompts.box is not None
        level = self.view_level()
        self._prompts = prompts
        self._show_prompts()
        self._link.box(prompts.box, level)

    def drag_box(self, first: Sequence[float], second: Sequence[float], is_done: bool) -> None:
        """Show a box between two world positions while it is drawn, and set it when done."""
        _, layers = self._ready()
        drawn = box_between(self._to_image(first), self._to_image(second))
        if is_done:
            self._show_prompts()
            self.box(drawn)
        else:
            layers.box.show(drawn, self._pixels_per_screen_pixel())

    def commit(self) -> None:
        """Write the current object, as painted over by hand, to the target layer."""
        _, layers = self._ready()
        if not len(self._prompts):
            self._update(message=f"There is nothing to commit. {HINT_CLICK}", is_error=False)
            return
        self._prompts = Prompts()
        self._show_prompts()
        self._link.commit(layers.preview.take_hand_edits())

    def cancel(self) -> None:
        """Give up the current object, or the loading of a model. Earlier commits stay."""
        if self.state.phase is Phase.LOADING:
            # A session that is not there yet has no model to go on with.
            if self._image is not None and self._layers is None:
                self.stop(f"Loading was cancelled. {HINT_START}")
            else:
                self._cancel_loading()
            return
        _, layers = self._ready()
        self._prompts = Prompts()
        self._show_prompts()
        layers.preview.clear()
        self._link.cancel()

    def undo(self) -> None:
        """Take back the last brush stroke, else the last prompt, else the last commit."""
        _, layers = self._ready()
        if self._is_painting_target(layers):
            layers.target.undo()
        elif not layers.preview.undo_stroke():
            self._link.undo()

    def redo(self) -> None:
        """Repeat what was taken back last."""
        _, layers = self._ready()
        if self._is_painting_target(layers):
            layers.target.redo()
        elif not layers.preview.redo_stroke():
            self._link.redo()

    def set_subtracting(self, is_subtracting: bool) -> None:
        """Let a plain click take away (and a right click add), or the other way round."""
        self._update(is_subtracting=is_subtracting)

    def set_draws_boxes(self, draws_boxes: bool) -> None:
        """Let a plain left drag draw a box, or pan."""
        self._update(draws_boxes=draws_boxes)

    def view_level(self) -> int:
        """Choose the level for the present view; a new object is looked at there."""
        image_input, _ = self._ready()
        assert self._image is not None
        return view_level(self._viewer, self._image, image_input.shape_yx, self._tile_px)

    # ------------------------------------------------------------------ answers

    def opened(self, opened: Opened) -> None:
        """Show that the session is ready."""
        assert self._image is not None
        assert self._target is not None
        self._tile_px = opened.tile_px
        self._layers = SessionLayers(self._viewer, self._image, *self._target)
        self._watch.add(self._layers.all)
        self._tools.start(self._layers.all)
        self._update(
            phase=Phase.READY,
            model=opened.model,
            device=opened.device,
            level=self.view_level(),
            message=self._hint(),
        )

    def open_failed(self, error: BaseException) -> None:
        """Show why there is no session."""
        self.stop()
        self.report(error)

    def answered(self, answer: Answer, *, is_newest: bool, follows_error: bool) -> None:
        """Show an answer."""
        layers = self._layers
        if layers is None:
            return
        if answer.edit is not None:
            layers.refresh_target()
        if not is_newest:
            return
        self._prompts = answer.prompts
        prediction = answer.prediction
        if prediction is None:
            layers.preview.clear()
        else:
            layers.preview.show(prediction.mask, prediction.box)
            self._update(
                encode_ms=1000 * prediction.seconds["encode_s"],
                decode_ms=1000 * prediction.seconds["decode_s"],
            )
        self._show_prompts()
        if not follows_error:
            self._update(message=describe_step(answer), is_error=False)
        self._update(
            can_undo=answer.can_undo,
            can_redo=answer.can_redo,
            num_committed=answer.num_committed,
            level=self.view_level() if prediction is None else prediction.level,
        )

    def step_failed(self, error: BaseException, hand_edits: HandEdits | None) -> None:
        """Show what went wrong, and keep strokes that could not be committed."""
        if self._layers is not None:
            self._layers.preview.put_hand_edits(hand_edits)
        self.report(error)

    def submitted(self) -> None:
        """Show that there is work going on."""
        self._update()

    # ------------------------------------------------------------------ inside

    def _ready(self) -> tuple[ImageInput, SessionLayers]:
        if self._input is None or self._layers is None:
            raise SessionError(
                f"expected a started session, but it is {self.state.phase}; press Start and wait "
                "for the model"
            )
        return self._input, self._layers

    def _hold(self) -> None:
        if len(self._prompts):
            raise SessionError(
                "expected no object being drawn; commit or cancel it before you change the model"
            )
        self._tools.stop()

    def _go_on(self, message: str, tile_px: int | None = None) -> None:
        if tile_px is not None:
            self._tile_px = tile_px
        changes: dict[str, Any] = {"phase": Phase.STOPPED}
        if self._layers is not None:
            self._tools.start(self._layers.all)
            changes = {"phase": Phase.READY, "level": self.view_level()}
        message = f"{message} {self._hint()}".strip()
        self._update(message=message, is_error=False, progress=None, **changes)

    def _hint(self) -> str:
        if self._layers is None:
            return HINT_START
        return HINT_3D if self._tools.is_3d else HINT_CLICK

    def _to_image(self, world: Sequence[float]) -> Any:
        assert self._image is not None
        return layer_position(self._viewer, self._image, world)

    def _pixels_per_screen_pixel(self) -> float:
        assert self._image is not None
        return pixels_per_screen_pixel(self._viewer, self._image)

    def _is_painting_target(self, layers: SessionLayers) -> bool:
        is_active = bool(self._viewer.layers.selection.active == layers.target)
        return is_active and str(layers.target.mode) != "pan_zoom"

    def _show_prompts(self) -> None:
        if self._layers is not None:
            screen_px = self._pixels_per_screen_pixel()
            self._layers.points.show(self._prompts.points_yx, self._prompts.labels, screen_px)
            self._layers.box.show(self._prompts.box, screen_px)

    def _update(self, **changes: Any) -> None:
        self.update(num_prompts=len(self._prompts), is_busy=self._link.is_busy, **changes)

    def _on_zoom(self) -> None:
        if self._layers is None:
            return
        self._layers.rescale(self._pixels_per_screen_pixel())
        if not len(self._prompts):
            self._update(level=self.view_level())

    def _on_ndisplay(self) -> None:
        if self._layers is not None:
            self._update(message=self._hint(), is_error=False)

    def _on_loss(self, what: str) -> None:
        message = f"The session ended: {what}. {HINT_START}"
        self._end(message, error=SessionError(message))

    def _finish_end(
        self, layers: SessionLayers | None, keeps_target: bool, error: BaseException | None
    ) -> None:
        if layers is not None:
            layers.refresh_target()
            layers.remove(keeps_target=keeps_target)
        # A window that closes removes its layers too, and hides the panel: that is no error.
        if error is not None and not self._tools.is_paused:
            self.report(error)
