"""A session on layers of a viewer: how it begins, what its answers change, how it ends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from napari_hrsam.errors import HRSAMError, PromptError, SessionError
from napari_hrsam.plugin.canvas.display_watch import DisplayWatch
from napari_hrsam.plugin.canvas.mouse import ToolWatch, tool_with_mouse
from napari_hrsam.plugin.canvas.tools import CanvasTools
from napari_hrsam.plugin.overlay.objects import MemoryObjects, ObjectsLayer, StoredObjects
from napari_hrsam.plugin.overlay.overlay import SessionDisplay
from napari_hrsam.plugin.overlay.session_layers import LossWatch, SessionLayers
from napari_hrsam.plugin.panel.model_chooser import DEFAULT_MODEL
from napari_hrsam.plugin.session.image_input import (
    ChannelLayers,
    ImageInput,
    default_image_layer,
    read_image_layers,
)
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, ModelLoader, ModelRequest
from napari_hrsam.plugin.session.model_port import ModelPort
from napari_hrsam.plugin.session.state import (
    GIVEN_UP,
    HINT_3D,
    HINT_CLICK,
    HINT_START,
    LOOKING_AGAIN,
    ControllerState,
    Phase,
    describe_object,
    describe_outline,
    describe_step,
)
from napari_hrsam.plugin.session.targets import (
    MemoryTarget,
    Target,
    default_target,
    kept_array,
    resolve_target,
)
from napari_hrsam.plugin.session.worker import SessionLink
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.label_places import LabelFile, ome_zarr_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import napari.components
    from napari.layers import Image

    from napari_hrsam.plugin.canvas.keys import Action
    from napari_hrsam.plugin.canvas.mouse import ClickTool
    from napari_hrsam.plugin.overlay.strokes import Strokes
    from napari_hrsam.plugin.session.inference import Answer, LabelsPlace, Opened
    from napari_hrsam.storage.label_places import OwnPlace


MAX_CHANNELS = 8
"""An image of planes with no more columns than this is probably one of channels."""


class SessionPort(ModelPort):
    """Begins and ends sessions, and shows what becomes of their steps.

    Parameters
    ----------
    viewer
        A napari viewer, or a `napari.components.ViewerModel` without a window.
    load_model
        Makes a model; see `ModelLoader`.
    tool
        Listens to the mouse while a session can use it.
    actions
        Key to action, bound while a session can use them.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        load_model: ModelLoader,
        tool: ClickTool,
        actions: Mapping[str, Action],
    ) -> None:
        super().__init__(SessionLink(load_model, self))
        self._viewer = viewer
        self._input: ImageInput | None = None
        self._target: MemoryTarget | LabelFile | OwnPlace | None = None
        self._display: SessionDisplay | None = None
        self._ending: SessionLayers | None = None
        self._pinned_level: int | None = None
        self._watch = LossWatch(viewer, self._on_loss)
        self._shown = DisplayWatch(viewer, self._on_display, self._on_quiet)
        self._tools = CanvasTools(viewer, tool, actions, self._on_ndisplay)
        viewer.scene.camera.events.zoom.connect(self._on_zoom)
        viewer.scene.camera.events.center.connect(self._look_ahead)
        viewer.dims.events.point.connect(self._on_plane)
        self._mouse = ToolWatch(viewer, self._on_tool)

    # ------------------------------------------------------------------ what there is

    @property
    def image_layer(self) -> Image | None:
        """The layer being annotated, or None while there is no session."""
        return None if self._input is None else self._input.layer

    @property
    def layers(self) -> SessionLayers | None:
        """Objects, preview, clicks and box of the running session, or None."""
        return None if self._display is None else self._display.layers

    @property
    def channels(self) -> ChannelLayers:
        """The layers that the model sees as colours; empty for what is on screen."""
        return {} if self._input is None else self._input.channels

    @property
    def tile_px(self) -> int:
        """Side of the model's tile in pixels of the level looked at; 0 without a session."""
        return 0 if self._display is None else self._display.tile_px

    @property
    def target_in_use(self) -> Target | None:
        """Where the objects of the running session go, or None."""
        if self._display is None:
            return None
        if isinstance(self._target, MemoryTarget):
            return self._display.layers.target
        return self._target

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
        self._end(HINT_START, next_target=target)
        if image_layer is None:
            active = self._viewer.layers.selection.active
            image_layer = default_image_layer(self._viewer.layers, active)
        image = read_image_layers(image_layer, channels, self._viewer.layers)
        if target is None:
            target = default_target(image.layer, image.image)
        resolved = resolve_target(target, image.layer, image.image)
        self._input, self._target = image, resolved
        self._watch.start(image.layers)
        self._shown.start()
        request = ModelRequest(model=model, device=device)
        self._update(phase=Phase.LOADING, message=f"Loading {request.label} ...", is_error=False)
        self._tools.listen()
        place: LabelsPlace
        if isinstance(resolved, MemoryTarget):
            place = kept_array(resolved, image.layer, self._viewer.layers)
        else:
            place = resolved
        self._link.open(image.image, place, request)

    def warm_up(self) -> None:
        """Have ready, in the background, what the first session would else wait for."""
        self._link.warm_up()

    def stop(self, message: str = HINT_START) -> None:
        """End the session; committed objects stay, the current one is given up.

        Commits that were asked for are still made; the session's own layers go after them.
        """
        self._end(message)

    def _end(
        self,
        message: str,
        *,
        next_target: Target | None = None,
        error: BaseException | None = None,
    ) -> None:
        self._tools.stop()
        self._link.cancel_loading()
        image, layers = self._input, self.layers
        self._input, self._target, self._display = None, None, None
        self._watch.stop()
        self._shown.stop()
        if image is not None:
            if layers is not None:
                layers.disconnect()
                self._ending = layers
            keeps_target = layers is not None and next_target == layers.target
            self._link.end(partial(self._finish_end, layers, keeps_target, error))
        self.state = ControllerState(
            model=self.state.model,
            device=self.state.device,
            is_level_pinned=self.state.is_level_pinned,
            outlines_fully=self.state.outlines_fully,
            reads_ahead=self.state.reads_ahead,
            message=message,
        )
        self.changed.emit()
        self._update()

    def close(self) -> None:
        """Let go of the viewer and end the inference thread; for the end of panel or viewer.

        Returns at once; the thread ends after the commits that were asked for, and lets others
        write the labels. Layers are left as they are.
        """
        if self._link.engine.is_closed:
            return
        self._link.close()
        self._tools.close()
        if self.layers is not None:
            self.layers.disconnect()
        self._watch.close()
        self._shown.stop()
        self._viewer.scene.camera.events.zoom.disconnect(self._on_zoom)
        self._viewer.scene.camera.events.center.disconnect(self._look_ahead)
        self._viewer.dims.events.point.disconnect(self._on_plane)
        self._mouse.close()

    def join(self, timeout_s: float = 60.0) -> bool:
        """Wait after `close` until the commits that were asked for are made.

        Parameters
        ----------
        timeout_s
            Seconds to wait at most.

        Returns
        -------
        bool
            Whether the inference thread has ended.
        """
        return self._link.engine.join(timeout_s)

    @property
    def takes_keys(self) -> bool:
        """Whether our keys act now."""
        return self._tools.is_on

    def set_paused(self, is_paused: bool) -> None:
        """Give mouse and keys back to napari for a while, e.g. while the panel is hidden."""
        self._tools.set_paused(is_paused)

    # ------------------------------------------------------------------ answers

    def opened(self, opened: Opened) -> None:
        """Show that the session is ready."""
        assert self._input is not None
        try:
            objects = self._objects_layer(opened)
        except HRSAMError as error:
            self.open_failed(error)
            return
        file = opened.copy if opened.labels is None else opened.labels.file
        folder = "" if file is None else str(file.folder)
        self._display = SessionDisplay(self._viewer, self._input, objects, opened.tile_px)
        self._watch.add(self._display.layers.all)
        self._display.layers.preview.layer.events.paint.connect(self._on_paint)
        self._tools.start(self._display.layers.all)
        where = f"Objects are kept in {folder}. " if folder else ""
        where = f"{where}{self._warn_of_axes()}{self._warn_of_channels()}"
        if opened.why_no_copy:
            where = f"Objects are kept in memory only: {opened.why_no_copy}. "
        self._update(
            phase=Phase.READY,
            model=opened.model,
            device=opened.device,
            can_undo=opened.can_undo,
            can_redo=opened.can_redo,
            levels=self._display.levels,
            labels_folder=folder,
            is_beside_image=self._is_beside_image(),
            message=f"{where}{self._hint()}",
        )
        self._on_tool()
        self._show_level()
        # It may have been changed while the model was loaded.
        self._follow_display()

    def _is_beside_image(self) -> bool:
        assert self._input is not None
        target = self._target
        return isinstance(target, LabelFile) and target.path == ome_zarr_of(self._input.layer)

    def _warn_of_channels(self) -> str:
        """Say so where the image's own layer is none of the chosen colours."""
        assert self._input is not None
        layer = self._input.layer
        if layer in self._input.seen or not self._input.channels:
            return ""
        return f"The model does not see '{layer.name}' itself, but the layers chosen as colours. "

    def _warn_of_axes(self) -> str:
        """Say so where channels at the end are taken for columns."""
        assert self._input is not None
        width = self._input.shape_yx[1]
        if width > MAX_CHANNELS or not self._input.image.plane_shape:
            return ""
        name = self._input.layer.name
        return (
            f"The last axis of '{name}', of {width}, counts as columns. If it holds channels, add "
            f"the image with channel_axis=-1, or move that axis to the front. "
        )

    def _objects_layer(self, opened: Opened) -> ObjectsLayer:
        assert self._input is not None
        if opened.labels is None:
            assert isinstance(self._target, MemoryTarget)
            return MemoryObjects(self._viewer, self._input.layer, self._target, opened.copy)

        def report(error: HRSAMError) -> None:
            # It was found on whatever thread draws.
            self._link.engine.tell(partial(self.report, error))

        return StoredObjects(self._viewer, self._input.layer, opened.labels, report)

    def open_failed(self, error: BaseException) -> None:
        """Show why there is no session."""
        self.stop()
        self.report(error)

    def outlined(self, done: int, total: int) -> None:
        """Show how far the outline of an object being committed is."""
        if self._display is not None and done < total:
            message = describe_outline(done, total)
            self._update(progress=(done, total), message=message, is_error=False)

    def answered(self, answer: Answer, *, is_newest: bool, follows_error: bool) -> None:
        """Show an answer."""
        display = self._display
        # A commit may be made after its session was stopped.
        layers = self._ending if display is None else display.layers
        if layers is not None and answer.edit is not None:
            layers.objects.edited(answer.edit)
        self._update(progress=None)
        if display is None or not is_newest:
            return
        display.show_answer(answer)
        if answer.prediction is not None:
            seconds = answer.prediction.seconds
            self._update(encode_ms=1000 * seconds["encode_s"], decode_ms=1000 * seconds["decode_s"])
        is_given_up = display.given_up is not None
        if not follows_error:
            message = describe_step(answer, display.view.plane_name)
            if is_given_up and answer.prediction is None:
                message = GIVEN_UP
            self._update(message=message, is_error=False)
        self._update(
            can_undo=answer.can_undo or is_given_up,
            can_redo=answer.can_redo,
            num_committed=answer.num_committed,
        )
        self._show_level()

    def step_failed(self, error: BaseException, strokes: Strokes | None) -> None:
        """Show what went wrong, and keep strokes that could not be committed."""
        if self._display is not None:
            self._display.layers.preview.put_strokes(strokes)
        self._update(progress=None)
        self.report(error)

    def submitted(self) -> None:
        """Show that there is work going on."""
        self._update()

    # ------------------------------------------------------------------ inside

    def _ready(self) -> SessionDisplay:
        if self._display is None:
            raise SessionError(
                f"expected a started session, but it is {self.state.phase}; press Start and wait "
                "for the model"
            )
        return self._display

    def _on_display(self) -> None:
        """Encode nothing ahead that is shown otherwise now."""
        self._link.rest()

    def _on_quiet(self) -> None:
        # It is told on a thread of its own.
        self._link.engine.tell(self._settle_display)

    def wait(self, timeout_s: float = 60.0) -> None:
        """Have all requests answered, on the image as it is shown now; see `EnginePort.wait`."""
        if self._shown.is_pending:
            self._follow_display()
        super().wait(timeout_s)

    def _settle_display(self) -> None:
        if self._shown.is_quiet:
            self._follow_display()

    def _follow_display(self) -> None:
        """Let the model see the image as it is shown now, if that has changed."""
        self._shown.settle()
        display, image = self._display, self._input
        if display is None or image is None:
            return
        try:
            now = read_image_layers(image.layer, image.channels, self._viewer.layers)
        except HRSAMError as error:
            self._update(message=f"The model sees the image as before: {error}.", is_error=True)
            return
        self._input = now
        display.show_image(now)
        if now.image.is_same_picture(image.image):
            self._look_ahead()
            return
        if len(display.prompts):
            self._update(message=LOOKING_AGAIN, is_error=False)
        self._link.show(now.image)

    def _hold(self) -> None:
        if self._display is not None and len(self._display.prompts):
            raise SessionError(
                "expected no object being drawn; commit or cancel it before you change the model"
            )
        self._tools.stop()
        if self._display is not None:
            self._tools.listen()

    def _go_on(self, message: str, tile_px: int | None = None) -> None:
        display, phase = self._display, Phase.STOPPED
        if display is not None:
            display.tile_px = display.tile_px if tile_px is None else tile_px
            self._tools.start(display.layers.all)
            phase = Phase.READY
            self._update(levels=display.levels)
        message = f"{message} {self._hint()}".strip()
        self._update(message=message, is_error=False, progress=None, phase=phase)
        self._show_level()

    def _hint(self) -> str:
        if self._display is None:
            return HINT_START
        return HINT_3D if self._tools.is_3d else HINT_CLICK

    def _update(self, **changes: Any) -> None:
        prompts = Prompts() if self._display is None else self._display.prompts
        self.update(
            num_prompts=len(prompts),
            is_busy=self._link.is_busy,
            elsewhere=self._elsewhere(),
            **changes,
        )

    def _elsewhere(self) -> str:
        display = self._display
        if display is None or not display.is_elsewhere():
            return ""
        name = display.view.plane_name(display.plane)
        return f"The object is on {name}. C goes back to it, Esc cancels it."

    def _on_plane(self) -> None:
        self._update()
        self._look_ahead()

    def _on_tool(self) -> None:
        tool = tool_with_mouse(self._viewer)
        back = f"{tool}; Esc or C goes back to clicking."
        self._update(tool=back if tool and self._display is not None else "")

    def _on_paint(self) -> None:
        # napari tells of some strokes before they are in the pixels.
        self._link.engine.tell(self._count_pixels)

    def _count_pixels(self) -> None:
        """Let the number of pixels follow what was painted."""
        if self._display is not None and len(self._display.prompts):
            preview = self._display.layers.preview
            message = describe_object(preview.num_pixels, preview.step)
            self._update(message=message, is_error=False)

    def _show_level(self) -> None:
        if self._display is not None:
            self._update(level=self._display.level(self._pinned_level))
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Have the tiles of the view encoded in spare time."""
        display, level = self._display, self.state.level
        if display is None or level is None or not self.state.reads_ahead or self._tools.is_3d:
            return
        if self._shown.is_pending:
            return
        try:
            plane = display.view.plane()
        except PromptError:
            self._link.rest()
            return
        self._link.read_ahead(display.seen(), level, plane)

    def _delivered(self) -> None:
        if self._display is not None:
            self._display.layers.objects.refresh()

    def _on_zoom(self) -> None:
        if self._display is not None:
            self._display.layers.rescale(self._display.view.screen_px())
            self._show_level()

    def _on_ndisplay(self) -> None:
        if self._display is not None:
            self._update(message=self._hint(), is_error=False)

    def _on_loss(self, what: str) -> None:
        message = f"The session ended: {what}. {HINT_START}"
        self._end(message, error=SessionError(message))

    def _finish_end(
        self, layers: SessionLayers | None, keeps_target: bool, error: BaseException | None
    ) -> None:
        self._ending = None
        if layers is not None:
            layers.objects.refresh()
            layers.remove(keeps_target=keeps_target)
        # A window that closes removes its layers too, and hides the panel: that is no error.
        if error is not None and not self._tools.is_paused:
            self.report(error)
