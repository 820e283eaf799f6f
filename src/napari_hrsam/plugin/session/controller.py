"""Joins the layers of a viewer to a session: everything the panel does, without Qt.

It owns canvas, worker, overlay and state, which know nothing of each other, nor of it: here they
meet for prompts and commits, and for a session's begin and end. What else is asked of them is done
by parts of its own, which share a `SessionContext`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from napari_hrsam.errors import HRSAMError, PromptError, SessionError
from napari_hrsam.plugin.canvas.canvas import Canvas
from napari_hrsam.plugin.canvas.layer_watch import LayerWatch
from napari_hrsam.plugin.overlay.overlay import GivenUp, Overlay
from napari_hrsam.plugin.session import commands, messages
from napari_hrsam.plugin.session.class_actions import ClassActions
from napari_hrsam.plugin.session.class_colors import ClassColors
from napari_hrsam.plugin.session.context import SessionContext
from napari_hrsam.plugin.session.drags import Drags
from napari_hrsam.plugin.session.everything import Everything
from napari_hrsam.plugin.session.image_input import ChannelLayers
from napari_hrsam.plugin.session.key_actions import key_actions
from napari_hrsam.plugin.session.loading import (
    AUTO_DEVICE,
    DEFAULT_MODEL,
    ModelLoader,
    ModelRequest,
    load_named_model,
)
from napari_hrsam.plugin.session.model_actions import ModelActions
from napari_hrsam.plugin.session.object_actions import ObjectActions
from napari_hrsam.plugin.session.objects_list import CommittedObjects
from napari_hrsam.plugin.session.peeks import Peeks
from napari_hrsam.plugin.session.plane_actions import PlaneActions
from napari_hrsam.plugin.session.replay import commands_of
from napari_hrsam.plugin.session.settings import Settings
from napari_hrsam.plugin.session.setup import Setup
from napari_hrsam.plugin.session.state import ControllerState, Phase
from napari_hrsam.plugin.session.targets import MemoryTarget, Target
from napari_hrsam.plugin.session.worker import Worker
from napari_hrsam.prompts import Prompts

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Image

    from napari_hrsam.plugin.canvas.key_table import KeyMap
    from napari_hrsam.storage.labels.unfinished import Unfinished

_DONE = object()


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
    objects
        What is done to committed objects; ``objects.list`` has them.
    classes
        Classes of objects.
    planes
        What is done over several planes of a stack.
    models
        The model in use, and its replacement.
    everything
        All objects of a part of the image: proposed and reviewed.
    settings
        How objects are looked at, drawn and shown.
    drags
        What is drawn with the mouse.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        *,
        load_model: ModelLoader = load_named_model,
    ) -> None:
        self.state = state = ControllerState()
        self.worker = Worker(load_model)
        self.canvas = Canvas(
            viewer,
            on_click=partial(state.guard, self.click_world),
            on_drag=lambda drag: state.guard(self.drags.take, drag),
            is_subtracting=lambda: state.is_subtracting,
            drag_tool=lambda: state.drag_tool,
        )
        self._context = context = SessionContext(viewer, state, self.worker, self.canvas)
        listed = CommittedObjects(self.worker)
        self.classes = ClassActions(context, listed)
        self.objects = ObjectActions(context, listed, self.classes)
        self.planes = PlaneActions(context)
        self.models = ModelActions(context)
        self._peeks = Peeks(context)
        self.settings = Settings(context, self._peeks, ClassColors(context, listed))
        self.everything = Everything(context, self._follow_keys)
        self.drags = Drags(
            context,
            box=self._take_box,
            scribble=self.scribble,
            lasso=self.lasso,
            cut=self.objects.cut,
        )
        self.canvas.set_actions(key_actions(self))
        self._ending: Overlay | None = None
        self._layer_watch = LayerWatch(viewer, self._on_layer_lost)
        self.worker.answered.connect(self._on_answer)
        self.worker.failed.connect(self._on_failure)
        self.worker.progress.connect(self._on_progress)
        self.worker.sent.connect(context.update)
        self.worker.delivered.connect(self._on_delivered)

    @property
    def overlay(self) -> Overlay | None:
        """The layers of the running session, or None."""
        return self._context.overlay

    @property
    def image_layer(self) -> Image | None:
        """The layer being annotated, or None while there is no session."""
        return None if self._context.setup is None else self._context.setup.image.layer

    @property
    def target_in_use(self) -> Target | None:
        """Where the objects of the running session go, or None."""
        if self.overlay is None or self._context.setup is None:
            return None
        target = self._context.setup.target
        return self.overlay.target if isinstance(target, MemoryTarget) else target

    def set_keys(self, keys: KeyMap) -> None:
        """Let other keys do what ours do, from now on."""
        self.state.update(keys=keys)
        self._follow_keys()
        self._context.show_tool()

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
        layers = self._context.viewer.layers
        self._context.setup = setup = Setup.choose(layers, image_layer, channels, target)
        self._layer_watch.start(setup.image.layers)
        self._context.display_watch.start()
        request = ModelRequest(model=model, device=device)
        self._context.show_message(f"Loading {request.label} ...", phase=Phase.LOADING)
        self.canvas.listen()
        self.worker.send(commands.WarmUp())
        opening = commands.Open(setup.image.image, setup.place(layers), request)
        self.worker.send(opening, self._on_opened)

    def stop(self, message: str = messages.HINT_START) -> None:
        """End the session; committed objects stay, the current one is given up.

        Commits that were asked for are still made; the session's own layers go after them.
        """
        self._end(message)

    def close(self) -> None:
        """Let go of the viewer and end the inference thread; for the end of panel or viewer.

        Returns at once; the thread ends after the commits that were asked for, and lets others
        write the labels; ``worker.join`` waits for that. The current object is drawn again when the
        labels are next opened. Layers are left as they are.
        """
        if self.worker.is_closed:
            return
        self.objects.list.cancel()
        self.everything.close()
        self.worker.close()
        self.canvas.close()
        if self.overlay is not None:
            self.overlay.disconnect()
        self._layer_watch.close()
        self._context.display_watch.stop()

    def wait(self, timeout_s: float = 60.0) -> None:
        """Have all requests answered, on the image as it is shown now; for scripts and tests.

        Raises
        ------
        SessionError
            If it takes longer than `timeout_s` seconds.
        HRSAMError or any other error
            The first one reported since the last call.
        """
        if self._context.display_watch.is_pending:
            self._context.follow_display()
        if not self.worker.wait(timeout_s):
            raise SessionError(
                f"expected all requests answered within {timeout_s:g} s, but the inference thread "
                "is still busy; wait longer, or cancel"
            )
        self.state.raise_reported()

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
        overlay, plane = self._context.ready_for_prompt()
        prompts = overlay.prompts.with_click(point_yx, positive)
        level = self._ask(overlay, prompts, plane)
        self.worker.send(commands.Click(prompts.points_yx[-1], positive, level, plane))

    def click_world(self, world: Sequence[float], positive: bool = True) -> None:
        """Add a click of the mouse at a world position of the viewer; see `click`.

        The first click of an object that lies on a committed one is not taken, but names that; a
        second one there is.
        """
        if self._context.is_loading():
            return
        overlay = self._context.ready()
        position = overlay.view.position(world)
        if self.state.is_reviewing:
            self.everything.pick(position.point_yx)
            return
        self._context.require_no_proposals()
        if not overlay.view.holds(position.point_yx):
            raise PromptError(
                f"this place is outside the image '{overlay.image.layer.name}': click inside it, "
                "or choose another image in the panel"
            )
        label = 0
        if not overlay.has_object:
            label = overlay.objects.label_at(position.point_yx, position.plane)
        if label and label != self._context.described_label:
            self._context.described_label = label
            key = self.objects.list.key_of(label, position.plane)
            if key is not None:
                self.objects.list.picked.emit(key)
            self._context.show_message(
                messages.describe_committed(label, overlay.objects, self.state.keys)
            )
            return
        self._context.described_label = 0
        self.click(position.point_yx, positive)
        cover = overlay.view.covering(world)
        self._context.update(covered_by="" if cover is None else cover.name)

    def box(self, box_yxyx: Sequence[float]) -> None:
        """Set the box of the current object, on the plane that is shown.

        Parameters
        ----------
        box_yxyx : (y0, x0, y1, x1) float
            Half open, level-0 pixels; cut at the image's border.

        Raises
        ------
        PromptError, SessionError
            As of `click`; also if the box is empty.
        """
        overlay, plane = self._context.ready_for_prompt()
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
        PromptError, SessionError
            As of `click`.
        """
        overlay, plane = self._context.ready_for_prompt()
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
        PromptError, SessionError
            As of `click`; also if it encloses nothing.
        """
        overlay, plane = self._context.ready_for_prompt()
        level = self._ask(overlay, overlay.prompts.with_lasso(points_yx), plane)
        points = tuple((float(y), float(x)) for y, x in points_yx)
        self.worker.send(commands.DrawLasso(points, level, plane))

    def next_candidate(self) -> None:
        """Show the next of the masks that the prompts of the current object may mean.

        Raises
        ------
        SessionError
            If no session is ready, or there is no object with a prompt.
        """
        overlay = self._context.ready()
        if not len(overlay.prompts):
            raise SessionError(
                "expected an object with a click or a box to show other masks of, got none; click "
                "on one first"
            )
        self.worker.send(commands.NextCandidate())

    def commit(self) -> None:
        """Write the current object, as painted over by hand, to the target.

        While proposals are reviewed, the accepted ones are committed instead. The outline of an
        object larger than a tile is refined first, which takes a while; `cancel` gives it up
        meanwhile.
        """
        overlay = self._context.ready()
        if self.state.is_reviewing:
            self.everything.finish()
            return
        self._context.begin_anew()
        if not overlay.has_object:
            self._context.show_message(f"There is nothing to commit. {messages.HINT_CLICK}")
            return
        if elsewhere := overlay.elsewhere:
            overlay.view.show_plane(overlay.plane)
            self._context.show_message(
                f"This is the object, on {elsewhere}. "
                + self.state.keys.spell("{commit} commits it, {cancel} cancels it.")
            )
            return
        if not self.worker.is_busy and not overlay.preview.num_pixels:
            self._context.show_message(
                "There is nothing to commit yet: no pixel is marked. Click on the object."
            )
            return
        object_class = self.classes.for_commit(overlay)
        overlay.forget_object()
        self.worker.send(commands.Commit(overlay.preview.take_strokes(), object_class))

    def cancel(self) -> None:
        """Give up the current object, or what is under way: a commit, a model's loading, a review.

        Earlier commits stay. A commit that is given up leaves its object as the current one.
        """
        if self.state.phase is Phase.LOADING:
            # A session that is not there yet has no model to go on with.
            if self._context.setup is not None and self.overlay is None:
                self.stop(f"Loading was cancelled. {messages.HINT_START}")
            else:
                self.models.cancel()
            return
        overlay = self._context.ready()
        if self.everything.give_up():
            return
        if not overlay.has_object and self.state.progress and self.worker.cancel_commit():
            self._context.show_message("Stopping ...")
            return
        self._context.begin_anew()
        overlay.give_up_object(overlay.next_level(self.state.pinned_level))
        self.worker.send(commands.Cancel())

    def undo(self) -> None:
        """Undo the last brush stroke, else the last prompt, cancel or commit.

        While proposals are reviewed: the last decision.
        """
        overlay = self._context.ready()
        if self.state.is_reviewing:
            self.everything.undo()
            return
        self._context.require_no_proposals()
        if overlay.is_painting_target:
            overlay.target.undo()
        elif overlay.preview.undo_stroke():
            self._count_pixels()
        elif overlay.given_up is not None:
            self._restore(overlay, overlay.given_up)
        elif self.everything.was_just_left and not overlay.has_object:
            self.everything.resume()
        else:
            self.worker.send(commands.Undo())

    def redo(self) -> None:
        """Redo what was undone last; while proposals are reviewed, a decision."""
        overlay = self._context.ready()
        if self.state.is_reviewing:
            self.everything.redo()
            return
        self._context.require_no_proposals()
        if overlay.is_painting_target:
            overlay.target.redo()
        elif overlay.preview.redo_stroke():
            self._count_pixels()
        else:
            self.worker.send(commands.Redo())

    def _on_opened(self, opened: commands.Opened) -> None:
        setup = self._context.setup
        assert setup is not None

        def report(error: HRSAMError) -> None:
            # It was found on whatever thread draws.
            self.worker.call(partial(self.state.report, error))

        try:
            objects = setup.objects_layer(self._context.viewer, opened, report)
        except HRSAMError as error:
            self.stop()
            self.state.report(error)
            return
        overlay = Overlay(self._context.viewer, setup.image, objects, opened.tile_px)
        self._layer_watch.add([objects.layer])
        self._add_next_layer(opened, overlay, overlay.add_layers())

    def _add_next_layer(
        self, opened: commands.Opened, overlay: Overlay, left: Iterator[None]
    ) -> None:
        """Add a layer in the next turn of the window's event loop."""

        def add(_: None) -> None:
            if self._context.setup is None or self._context.setup.image is not overlay.image:
                # It was stopped meanwhile.
                overlay.remove(keeps_target=False)
                return
            known = len(overlay.own)
            is_more = next(left, _DONE) is not _DONE
            self._layer_watch.add(overlay.own[known:])
            if is_more:
                self._add_next_layer(opened, overlay, left)
            else:
                self._take_prompts(opened, overlay, self._context.setup)

        self.worker.send(commands.NextTurn(), add)

    def _take_prompts(self, opened: commands.Opened, overlay: Overlay, setup: Setup) -> None:
        self._context.overlay = overlay
        overlay.preview.layer.events.paint.connect(self._on_paint)
        overlay.preview.set_color(self.state.object_color)
        self.canvas.start(overlay.all)
        self._context.update(
            phase=Phase.READY,
            model=opened.model,
            device=opened.device,
            can_undo=opened.can_undo,
            can_redo=opened.can_redo,
            levels=overlay.levels,
            is_stack=any(size > 1 for size in overlay.image.image.plane_shape),
            labels_folder=opened.folder,
            is_beside_image=setup.is_beside_image,
            message=f"{messages.describe_opened(opened, setup.image)}{self._context.hint}",
        )
        self._context.show_tool()
        self._context.show_level()
        if self.state.shows_input:
            self.worker.send(commands.ShowInput(True))
        self.worker.send(commands.ListObjects(), partial(self.objects.begin, opened))
        # It may have been changed while the model was loaded.
        self._context.follow_display()
        if opened.unfinished is not None:
            self._draw_again(overlay, opened.unfinished)

    def _on_answer(self, answer: commands.Answer, is_newest: bool, follows_error: bool) -> None:
        overlay = self.overlay
        # A commit may be made after its session was stopped.
        shown = overlay or self._ending
        edits = (*answer.earlier_edits, *([] if answer.edit is None else [answer.edit]))
        for edit in edits:
            if shown is not None and edit.box.area:
                shown.objects.edited(edit)
        if edits:
            self.planes.newest_edit = None if answer.is_undone else edits[-1]
        if overlay is not None:
            self.objects.list.answered(answer)
            self.everything.answered(answer)
        if overlay is None or not is_newest:
            self._context.update(progress=None)
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
            message = messages.describe_step(answer, overlay.view.plane_name, self.state.keys)
            if is_given_up and answer.prediction is None:
                message = messages.describe_given_up(self.state.keys)
            changes |= {"message": message, "is_error": False}
        self._context.update(
            progress=None,
            can_undo=answer.can_undo or is_given_up,
            can_redo=answer.can_redo,
            num_committed=answer.num_committed,
            level=overlay.level(self.state.pinned_level),
            **changes,
        )
        self._context.look_ahead()

    def _on_failure(self, command: commands.Command, error: BaseException, is_newest: bool) -> None:
        match command:
            case commands.Open():
                self.stop()
            case commands.Peek():
                self._peeks.failed()
            case commands.UseModel():
                # The model before it is still in use.
                self.models.go_on("")
            case commands.Commit() | commands.ContinueOn() | commands.Propagate() if (
                is_newest and self.overlay is not None
            ):
                self.overlay.preview.put_strokes(command.strokes)
                if not isinstance(command, commands.Commit):
                    self.overlay.view.show_plane(command.from_plane)
        self.everything.failed(command)
        if isinstance(command, commands.Step):
            self._context.update(progress=None)
        self.state.report(error)

    def _on_progress(self, command: commands.Command, done: int, total: int) -> None:
        is_done = done >= total
        if isinstance(command, commands.Propose):
            self.everything.progressed(done, total)
        elif isinstance(command, commands.Propagate | commands.Interpolate | commands.DrawEach):
            is_each = isinstance(command, commands.DrawEach)
            describe = messages.describe_drawing if is_each else messages.describe_planes
            self._context.show_message(describe(done, total), progress=(done, total))
        elif not isinstance(command, commands.Commit):
            self.state.update(progress=None if is_done else (done, total))
            # Whoever clicked meanwhile has to read that it did not count.
            if self.state.message != messages.STILL_LOADING:
                self.state.update(message=messages.describe_progress(done, total))
        elif self.overlay is not None and not is_done:
            self._context.show_message(
                messages.describe_outline(done, total), progress=(done, total)
            )

    def _on_delivered(self) -> None:
        if self.overlay is not None:
            self.overlay.objects.refresh()
        self.state.update(is_busy=self.worker.is_busy)

    def _on_paint(self) -> None:
        # napari reports some strokes before they are in the pixels.
        self.worker.call(self._count_pixels)

    def _on_layer_lost(self, what: str) -> None:
        message = f"The session ended: {what}. {messages.HINT_START}"
        self._end(message, error=SessionError(message))

    def _ask(self, overlay: Overlay, prompts: Prompts, plane: tuple[int, ...]) -> int:
        """Show prompts before they are answered; return the level of a new object."""
        prompts = prompts.inside(overlay.image.shape_yx)
        level = overlay.next_level(self.state.pinned_level)
        overlay.ask(prompts, plane)
        self._context.show_message(messages.LOOKING)
        return level

    def _restore(self, overlay: Overlay, object_: GivenUp) -> None:
        """Draw an object that was cancelled once more."""
        overlay.view.show_plane(object_.plane)
        if object_.label:
            overlay.take_up(object_.label, object_.plane)
        overlay.ask(object_.prompts, object_.plane)
        overlay.preview.put_strokes(object_.strokes)
        for command in commands_of(object_):
            self.worker.send(command)

    def _draw_again(self, overlay: Overlay, left: Unfinished) -> None:
        """Draw the object that was not committed when the last session ended."""
        self._restore(
            overlay,
            GivenUp(
                prompts=left.prompts,
                label=left.label,
                taken_prompts=left.begun_with,
                plane=left.plane,
                level=left.level,
                strokes=None,
                carried=left.carried,
            ),
        )

        def tell(_: None) -> None:
            if self.overlay is overlay and overlay.has_object:
                self._context.show_message(messages.describe_unfinished(left, self.state.model))

        self.worker.send(commands.NextTurn(), tell)

    def _end(
        self,
        message: str,
        *,
        next_target: Target | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.canvas.stop()
        self.worker.cancel_loading()
        self.planes.newest_edit = None
        self.everything.end()
        setup, overlay = self._context.setup, self.overlay
        self._context.setup = self._context.overlay = None
        self._peeks.end()
        self._layer_watch.stop()
        self._context.display_watch.stop()
        self.objects.list.end()
        if setup is not None:
            if overlay is not None:
                overlay.disconnect()
                self._ending = overlay
            keeps_target = overlay is not None and next_target == overlay.target
            finish = partial(self._finish_end, overlay, keeps_target, error)
            # What ended by mishap is taken up again.
            self.worker.send(commands.Close(gives_up=error is None), finish)
        self.state.reset(message)
        self._context.update()

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

    def _take_box(self, box: Sequence[float]) -> None:
        if not self.everything.take_box(box):
            self.box(box)

    def _follow_keys(self) -> None:
        """Bind the keys of what is under way; layers may have come."""
        self.canvas.set_actions(key_actions(self))
        if self.overlay is not None and self.canvas.has_layers:
            self.canvas.set_layers(self.overlay.all)

    def _count_pixels(self) -> None:
        """Let the number of pixels follow what was painted."""
        if self.overlay is not None and self.overlay.has_object:
            preview = self.overlay.preview
            self._context.show_message(
                messages.describe_object(preview.num_pixels, preview.step, self.state.keys)
            )
