"""Joins the layers of a viewer to a session: everything the panel does, without Qt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from psygnal import Signal

from napari_hrsam.errors import HRSAMError, ImageError, SessionError
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
from napari_hrsam.plugin.mouse import ClickTool
from napari_hrsam.plugin.session_jobs import AUTO_DEVICE, load_named_model
from napari_hrsam.plugin.session_layers import SessionLayers, new_target_array
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

    from napari_hrsam.plugin.session_jobs import Answer, HandEdits, ModelLoader, Opened

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "hrsam-tiny"


class SegmentController:
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
        Makes a model from its name and device.

    Attributes
    ----------
    changed
        Emitted without arguments after each change of `state`.
    failed
        Emitted once per error, with its message.
    devices_found
        Emitted with a tuple of device names after `find_devices`.
    """

    changed: ClassVar[Signal] = Signal()
    failed: ClassVar[Signal] = Signal(str)
    devices_found: ClassVar[Signal] = Signal(tuple)

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        *,
        load_model: ModelLoader = load_named_model,
    ) -> None:
        self._viewer = viewer
        self._link = SessionLink(load_model, self)
        self._state = ControllerState()
        self._image: Image | None = None
        self._input: ImageInput | None = None
        self._target: tuple[Labels | None, np.ndarray] | None = None
        self._layers: SessionLayers | None = None
        self._tile_px = 0
        self._prompts = Prompts()
        self._unraised: BaseException | None = None
        tool = ClickTool(
            viewer,
            on_click=partial(self.guard, self.click_world),
            on_box=partial(self.guard, self.drag_box),
            is_subtracting=lambda: self._state.is_subtracting,
            draws_boxes=lambda: self._state.draws_boxes,
        )
        actions: dict[str, Callable[[], None]] = {
            "C": partial(self.guard, self.commit),
            "Escape": partial(self.guard, self.cancel),
            "Control-Z": partial(self.guard, self.undo),
            "Control-Shift-Z": partial(self.guard, self.redo),
            "T": lambda: self.set_subtracting(not self._state.is_subtracting),
            "B": lambda: self.set_draws_boxes(not self._state.draws_boxes),
        }
        self._tools = CanvasTools(viewer, tool, actions, self._on_ndisplay)
        viewer.layers.events.removed.connect(self._on_layer_removed)
        viewer.scene.camera.events.zoom.connect(self._on_zoom)

    # ------------------------------------------------------------------ what there is

    @property
    def state(self) -> ControllerState:
        """What a panel shows now."""
        return self._state

    @property
    def image_layer(self) -> Image | None:
        """The layer being annotated, or None while stopped."""
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
        self.stop()
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
        image_layer.events.data.connect(self._on_image_replaced)
        self._update(
            phase=Phase.LOADING, model=model, message=f"Loading {model} ...", is_error=False
        )
        self._link.open(image_input, labels, (model, device))

    def stop(self, message: str = HINT_START) -> None:
        """End the session; committed objects stay, the current one is given up.

        Commits that were asked for are still made; the session's own layers go after them.
        """
        self._tools.stop()
        image, layers = self._image, self._layers
        self._image, self._input, self._target, self._layers = None, None, None, None
        self._prompts = Prompts()
        if image is not None:
            image.events.data.disconnect(self._on_image_replaced)
            if layers is not None:
                layers.disconnect()
            keeps_target = self._link.num_commits > 0
            self._link.end(partial(_remove_layers, layers, keeps_target))
        self._state = ControllerState(
            model=self._state.model, device=self._state.device, message=message
        )
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
        if self._image is not None:
            self._image.events.data.disconnect(self._on_image_replaced)
        self._viewer.layers.events.removed.disconnect(self._on_layer_removed)
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
        self._ready()
        self.click(self._to_image(world), positive)

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
        if self._state.phase is Phase.LOADING:
            self.stop(f"Loading was cancelled. {HINT_START}")
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

    # ------------------------------------------------------------------ the inference thread

    def find_devices(self) -> None:
        """Look in the background for devices; `devices_found` tells them."""

        def receive(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                self.devices_found.emit(future.result())
            else:
                self._report(error)

        self._link.find_devices(receive)

    def set_notify(self, notify: Callable[[], None] | None) -> None:
        """Set what is called, on the inference thread, when `deliver` has something to do."""
        self._link.engine.set_notify(notify)

    def deliver(self) -> None:
        """Show finished work; called on the viewer's thread."""
        self._link.engine.deliver()

    def wait(self, timeout_s: float = 60.0) -> None:
        """Have all requests answered; for scripts and tests.

        Raises
        ------
        SessionError
            If it takes longer than `timeout_s` seconds.
        HRSAMError or any other error
            The first one reported since the last call.
        """
        if not self._link.engine.wait(timeout_s):
            raise SessionError(
                f"expected all requests answered within {timeout_s:g} s, but the inference thread "
                "is still busy; wait longer, or cancel"
            )
        error, self._unraised = self._unraised, None
        if error is not None:
            raise error

    def guard(self, action: Callable[..., None], *arguments: Any) -> None:
        """Run an action of the user; an expected error is reported instead of raised."""
        try:
            action(*arguments)
        except HRSAMError as error:
            self._report(error)

    def opened(self, opened: Opened) -> None:
        """Show that the session is ready."""
        assert self._image is not None
        assert self._target is not None
        self._tile_px = opened.tile_px
        self._layers = SessionLayers(self._viewer, self._image, *self._target)
        self._state = replace(self._state, phase=Phase.READY, device=opened.device)
        self._update(level=self.view_level(), message=HINT_CLICK)
        self._tools.start(self._layers.all)
        if self._tools.is_3d:
            self._update(message=HINT_3D)

    def open_failed(self, error: BaseException) -> None:
        """Show why there is no session."""
        self.stop()
        self._report(error)

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
            self._state = replace(
                self._state,
                encode_ms=1000 * prediction.seconds["encode_s"],
                decode_ms=1000 * prediction.seconds["decode_s"],
            )
        self._show_prompts()
        if not follows_error:
            self._state = replace(self._state, message=describe_step(answer), is_error=False)
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
        self._report(error)

    def busy_changed(self) -> None:
        """Show whether there is work going on."""
        self._update()

    # ------------------------------------------------------------------ inside

    def _ready(self) -> tuple[ImageInput, SessionLayers]:
        if self._input is None or self._layers is None:
            raise SessionError(
                f"expected a started session, but it is {self._state.phase}; press Start and wait "
                "for the model"
            )
        return self._input, self._layers

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
            self._layers.points.show(self._prompts.points_yx, self._prompts.labels)
            self._layers.box.show(self._prompts.box, self._pixels_per_screen_pixel())

    def _update(self, **changes: Any) -> None:
        self._state = replace(
            self._state, num_prompts=len(self._prompts), is_busy=self._link.is_busy, **changes
        )
        self.changed.emit()

    def _report(self, error: BaseException) -> None:
        message = str(error)
        if not isinstance(error, HRSAMError):
            message = (
                f"unexpected {type(error).__name__}: {error}; the traceback is in the log. Press "
                "Stop, then Start, to begin again"
            )
        logger.error("%s", message, exc_info=error)
        self._unraised = self._unraised or error
        self._update(message=message[:1].upper() + message[1:], is_error=True)
        self.failed.emit(self._state.message)

    def _on_zoom(self) -> None:
        if self._layers is None:
            return
        self._layers.box.rescale(self._pixels_per_screen_pixel())
        if not len(self._prompts):
            self._update(level=self.view_level())

    def _on_ndisplay(self) -> None:
        if self._layers is not None:
            self._update(message=HINT_3D if self._tools.is_3d else HINT_CLICK, is_error=False)

    def _on_layer_removed(self, event: Any) -> None:
        needed = [] if self._layers is None else self._layers.all
        if self._image is None or (event.value != self._image and event.value not in needed):
            return
        self.stop()
        message = f"the session ended: its layer '{event.value.name}' was removed. {HINT_START}"
        self._report(SessionError(message))

    def _on_image_replaced(self) -> None:
        assert self._image is not None
        message = f"the session ended: the data of '{self._image.name}' was replaced. {HINT_START}"
        self.stop()
        self._report(ImageError(message))


def _remove_layers(layers: SessionLayers | None, keeps_target: bool) -> None:
    if layers is not None:
        layers.refresh_target()
        layers.remove(keeps_target=keeps_target)
