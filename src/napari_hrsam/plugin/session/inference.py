"""The inference thread's end of a session: every command is carried out here."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_hrsam.errors import EmbeddingsError, HRSAMError, LabelsError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.overlay.levels import LabelView
from napari_hrsam.plugin.overlay.strokes import Strokes, apply_strokes
from napari_hrsam.plugin.overlay.warm_up import compile_class_colors, compile_layers
from napari_hrsam.plugin.session import commands
from napari_hrsam.plugin.session.loading import (
    AUTO_DEVICE,
    ModelLoader,
    ModelRequest,
)
from napari_hrsam.plugin.session.progress import Cancelled, Progress
from napari_hrsam.storage.images.pictures import write_labels
from napari_hrsam.storage.label_image import LabelWriter, open_or_create_labels
from napari_hrsam.storage.labels.edits import Edit
from napari_hrsam.storage.labels.kept import KeptLabels
from napari_hrsam.storage.labels.places import KeptArray, LabelFile, OwnPlace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_hrsam.engine.prediction import Prediction
    from napari_hrsam.engine.session import Session
    from napari_hrsam.storage.embeddings.store import EmbeddingStore
    from napari_hrsam.storage.images.layers import LayerImage
    from napari_hrsam.storage.labels.unfinished import Unfinished

logger = logging.getLogger(__name__)

MAX_SAVED_PX = 2**28
"""Pixels of labels on disk that are saved as one TIFF: 1 GiB of uint32."""


class InferenceSession:
    """The session, its model and its labels; made and used on the inference thread.

    Parameters
    ----------
    load_model
        Makes a model; see `ModelLoader`.
    hurry
        Set to end soon: only commits are made from then on. What is not needed for them is left at
        its next step, and so is the finer outline of an object that is being committed.
    tell
        Called with what the user is to know although no command asked for it.
    """

    def __init__(
        self, load_model: ModelLoader, hurry: threading.Event, tell: Callable[[str], None]
    ) -> None:
        self._load_model = load_model
        self._tell = tell
        self._model_key: tuple[str, str, float] | None = None
        self._model: Any = None
        self._session: Session | None = None
        self._store: LabelWriter | None = None
        self._labels: dict[str, Any] = {}
        self._outline_level: int | None = None
        self._embeddings = commands.KeepEmbeddings("", 0)
        self._num_committed = 0
        self._candidates: tuple[Prediction, ...] = ()
        self._untold_edits: list[Edit] = []
        self._is_warm = self._shows_input = False
        self._prompt: Progress | None = None
        self._unfinished: Unfinished | None = None
        self._hurry = hurry

    def apply(self, command: commands.Command, progress: Progress) -> Any:
        """Carry out a command.

        Parameters
        ----------
        command
            What to do.
        progress
            Reports how far it is, and cancels it.

        Returns
        -------
        Answer, Opened, Proposed, tuple of device names, array, bool or None
            As the command says; None of a loading or a search that was given up.
        """
        result: Any = None
        match command:
            case commands.Commit():
                result = self._commit(command, progress)
            case commands.Show():
                result = self._show(command.image, progress)
            case commands.ContinueOn():
                result = self._continue_on(command, progress)
            case commands.Propagate():
                result = self._propagate(command, progress)
            case commands.Interpolate() | commands.DrawEach():
                result = self._draw_several(command, progress)
            case commands.Open():
                result = self._open(command, progress)
            case commands.UseModel():
                result = self._use_model(command.request, progress)
            case _ if isinstance(command, commands.Prompt):
                result = self._add_prompt(command, progress)
            case _ if isinstance(command, commands.ObjectEdit):
                result = self._edit_object(command)
            case _ if isinstance(command, commands.Step):
                result = self._take_step(command)
            case _ if isinstance(command, commands.Question):
                result = self._reply(command, progress)
            case _:
                self._set(command)
        return result

    def _take_step(self, command: commands.Step) -> commands.Answer:
        session, more = self._current, {}  # type: Session, dict[str, Any]
        step: object = None
        match command:
            case commands.NextCandidate():
                return self._next_candidate()
            case commands.ChangeProperties():
                step = session.change_properties(command.make)
            case commands.Accept():
                step = command.proposals.accept(session.labels)
                self._num_committed += _num_new(step)
            case commands.TakeUp():
                session.edit(command.label, command.plane)
            case commands.ShowInput():
                self._shows_input = command.is_shown
            case commands.Cancel():
                session.cancel()
            case commands.Undo():
                step, more = session.undo(), {"is_undone": True}
                self._num_committed -= _num_new(step)
                if isinstance(step, Edit) and step.box.area:
                    more["newest"] = session.labels.newest_of(step.label, step.plane)
            case commands.Redo():
                step = session.redo()
                self._num_committed += _num_new(step)
        return self._answer(step, **more)

    def _reply(self, command: commands.Question, progress: Progress) -> Any:
        session, has_time = self._session, not self._hurry.is_set()
        match command:
            case commands.FindDevices():
                # Whoever closes the window meanwhile does not wait for torch.
                return _find_devices() if has_time else ()
            case commands.ListObjects():
                return None if session is None else session.labels.object_list()
            case commands.Peek():
                return self._peek(command)
            case commands.Propose():
                return self._propose(command, progress)
            case commands.Rank():
                return _rank(command) if has_time else None
            case commands.ReadAhead():
                if session is None or not has_time:
                    return False
                return session.read_ahead(command.box0, command.level, command.plane)

    def _set(self, command: commands.Command) -> None:
        match command:
            case commands.WarmUp():
                self._warm_up()
            case commands.WarmColors():
                compile_class_colors(command.dtype)
            case commands.KeepEmbeddings():
                self._embeddings = command
            case commands.SetOutline():
                self._outline_level = command.level
                if self._session is not None:
                    self._session.outline_level = command.level
            case commands.Save():
                _write(
                    command.path, self._read_labels() if command.array is None else command.array
                )
            case commands.Close():
                if command.gives_up:
                    self._keep_unfinished(None)
                self._close()

    # ------------------------------------------------------------------ steps

    def _add_prompt(self, prompt: commands.Prompt, progress: Progress) -> commands.Answer:
        session, plane = self._current, prompt.plane
        # The level counts for the first prompt of an object.
        level = prompt.level if session.prediction is None else None
        try:
            with self._until_cancelled(progress):
                match prompt:
                    case commands.Click():
                        session.click(prompt.point_yx, prompt.positive, level, plane)
                    case commands.SetBox():
                        session.box(prompt.box_yxyx, level, plane)
                    case commands.AddScribble():
                        session.scribble(prompt.points_yx, prompt.positive, level, plane)
                    case commands.DrawLasso():
                        session.lasso(prompt.points_yx, level, plane)
        except Cancelled:
            logger.debug("a prompt was passed over: its object was given up")
        return self._answer()

    def _edit_object(self, command: commands.ObjectEdit) -> commands.Answer:
        session, plane = self._current, command.plane
        session.cancel()
        edits: tuple[Edit | None, ...]
        match command:
            case commands.Delete():
                edits = (session.delete(command.label, plane),)
            case commands.Merge():
                edits = (session.merge(command.labels, plane),)
            case commands.Split():
                edits = session.split(command.label, command.line_yx, plane)
            case commands.FillHoles():
                edits = (session.fill_holes(command.label, plane),)
            case commands.Smooth():
                edits = (session.smooth(command.label, plane=plane),)
        done = [edit for edit in edits if edit is not None]
        self._num_committed += sum(map(_num_new, done))
        if not done:
            return self._answer(changed_by=type(command).__name__)
        self._untold_edits += done[:-1]
        return self._answer(done[-1], changed_by=type(command).__name__)

    def _peek(self, command: commands.Peek) -> Prediction | None:
        session = self._session
        if session is None or session.prediction is not None or self._hurry.is_set():
            return None
        try:
            prediction = session.peek(command.point_yx, command.level, command.plane)
        except (HRSAMError, Cancelled) as error:
            logger.debug("nothing to show under the mouse: %s", error)
            return None
        if prediction is not None:
            # Computed here, so that the viewer need not wait for it.
            _ = prediction.level_mask
        return prediction

    def _next_candidate(self) -> commands.Answer:
        session = self._current
        shown = [one is session.prediction for one in self._candidates]
        if not any(shown):
            # The likeliest is what is shown already.
            self._candidates, shown = session.candidates(), [True]
        number = (shown.index(True) + 1) % len(self._candidates)
        session.choose(self._candidates[number])
        return self._answer(candidate=(number + 1, len(self._candidates)))

    def _show(self, image: LayerImage, progress: Progress) -> commands.Answer:
        try:
            with self._until_cancelled(progress):
                self._session = self._current.with_image(image.open())
        except Cancelled:
            logger.debug("not looked at again: shown otherwise once more")
        return self._answer(is_shown_anew=True)

    def _continue_on(self, command: commands.ContinueOn, progress: Progress) -> commands.Answer:
        # Whoever gives it up meanwhile has the object before committed all the same.
        self._prompt = progress
        try:
            self._current.continue_on(
                command.plane,
                command.label,
                command.from_plane,
                mask=self._painted(command.strokes),
                on_commit=self._note,
            )
        except Cancelled:
            logger.debug("not continued: it was given up")
        finally:
            self._prompt = None
        return self._answer()

    def _unless_hurried(self, progress: Progress) -> Callable[[int, int], None]:
        """Return what tells of progress, and ends the work where the session is to end."""

        def go_on(done: int, total: int) -> None:
            if self._hurry.is_set():
                raise Cancelled
            progress(done, total)

        return go_on

    def _draw_several(
        self, command: commands.Interpolate | commands.DrawEach, progress: Progress
    ) -> commands.Answer:
        try:
            if isinstance(command, commands.Interpolate):
                return self._interpolate(command, progress)
            drawn = self._current.draw_each(
                command.several,
                command.level,
                command.plane,
                object_class=command.object_class,
                progress=self._unless_hurried(progress),
                on_commit=self._note,
            )
        except Cancelled:
            return self._answer(is_halted=True)
        finally:
            progress.finish()
        return self._answer(drawn=drawn)

    def _propose(self, command: commands.Propose, progress: Progress) -> commands.Proposed | None:
        from napari_hrsam.engine.everything.proposals import propose

        session = self._current
        try:
            found = propose(
                session.image,
                command.box0,
                command.level,
                plane=command.plane,
                model=self._model,
                progress=self._unless_hurried(progress),
            )
        except Cancelled:
            return None
        free = found.not_covered(session.labels)
        numbers, box, step = free.preview()
        if not progress.finish():
            return None
        return commands.Proposed(
            proposals=free,
            num_covered=len(found) - len(free),
            numbers=numbers,
            box=box,
            step=step,
        )

    def _propagate(self, command: commands.Propagate, progress: Progress) -> commands.Answer:
        try:
            report = self._current.propagate(
                command.num_planes,
                command.label,
                command.from_plane,
                axis=command.axis,
                mask=self._painted(command.strokes),
                progress=self._unless_hurried(progress),
                on_commit=self._note,
            )
        except Cancelled:
            return self._answer(is_halted=True)
        finally:
            progress.finish()
        return self._answer(planes=report)

    def _interpolate(self, command: commands.Interpolate, progress: Progress) -> commands.Answer:
        session, report = self._current, None
        for first, last in session.gaps(command.label, command.plane, axis=command.axis):
            part = session.interpolate(
                command.label,
                first,
                last,
                progress=self._unless_hurried(progress),
                on_commit=self._note,
            )
            if report is not None:
                part = replace(
                    part, planes=report.planes + part.planes, edits=report.edits + part.edits
                )
            report = part
        if report is None:
            raise LabelsError(
                f"expected object {command.label} on another plane with some between, along the "
                "same axis, got none; go there, continue it, and commit it"
            )
        return self._answer(planes=report)

    def _note(self, edit: Edit) -> None:
        """Remember a commit of several, for the next answer."""
        self._untold_edits.append(edit)
        self._num_committed += _num_new(edit)

    def _painted(self, strokes: Strokes | None) -> NDArray[np.bool_] | None:
        """Return the current object as painted over; None if it is as predicted."""
        prediction = self._current.prediction
        if prediction is None or strokes is None:
            return None
        return apply_strokes(
            prediction.level_mask, prediction.box, strokes, prediction.level_downsample
        )

    def _commit(self, command: commands.Commit, progress: Progress) -> commands.Answer:
        strokes = command.strokes
        mask = self._painted(strokes)
        try:
            edit = self._write_object(mask, command.object_class, progress)
        except Cancelled:
            return self._answer(is_cancelled=True, strokes=strokes)
        finally:
            progress.finish()
        self._num_committed += _num_new(edit)
        return self._answer(edit)

    def _write_object(
        self, mask: NDArray[np.bool_] | None, object_class: str | None, progress: Progress
    ) -> Edit:
        try:
            return self._current.commit(
                mask=mask, object_class=object_class, progress=self._unless_hurried(progress)
            )
        except Cancelled:
            if progress.is_cancelled:
                raise
        # No time for the outline: the object is kept as it was seen.
        prediction = self._current.prediction
        assert prediction is not None
        self._current.outline_level = prediction.multiscale.level
        return self._current.commit(mask=mask, object_class=object_class)

    @property
    def _current(self) -> Session:
        if self._session is None:
            raise SessionError("expected a started session, got none; press Start")
        return self._session

    @contextmanager
    def _until_cancelled(self, progress: Progress) -> Iterator[None]:
        """Leave what is done here, by `Cancelled`, once it is given up."""
        self._prompt = progress
        try:
            self._require_wanted()
            yield
        finally:
            self._prompt = None

    def _require_wanted(self) -> None:
        if self._prompt is not None and self._prompt.is_cancelled:
            raise Cancelled

    def _answer(self, step: Any = None, **more: Any) -> commands.Answer:
        session = self._current
        prediction, carried = session.prediction, session.carried
        edits, self._untold_edits = self._untold_edits, []
        edit = step if isinstance(step, Edit) else None
        self._read_again([*edits, *([] if edit is None else [edit])])
        if prediction is not None:
            # Computed here, so that the viewer need not wait for it.
            _ = prediction.level_mask
        self._keep_unfinished(session.unfinished)
        return commands.Answer(
            prediction=prediction,
            prompts=session.prompts,
            can_undo=session.can_undo,
            can_redo=session.can_redo,
            num_committed=self._num_committed,
            taken=session.taken,
            carried=None if carried is None else (carried.label, carried.plane),
            begun_with=session.begun_with,
            earlier_edits=tuple(edits),
            model_input=session.model_input() if self._shows_input and prediction else None,
            edit=edit,
            **more,
        )

    def _keep_unfinished(self, unfinished: Unfinished | None) -> None:
        """Write down the current object, so that it is drawn again after a crash."""
        if self._store is None or unfinished == self._unfinished:
            return
        try:
            self._store.keep_unfinished(unfinished)
        except LabelsError as error:
            # A commit will say so too; the object can be drawn all the same.
            logger.warning("the object being drawn is in memory only: %s", error)
        self._unfinished = unfinished

    def _left_unfinished(self) -> dict[str, Any]:
        """Return the object of the last session, if what it was made of is still there."""
        store = self._store
        if store is None:
            return {}
        try:
            self._unfinished = left = store.unfinished
            if left is None:
                return {}
            label, plane = left.carried or (left.label, left.plane)
            if label:
                store.find(label, plane if store.plane_shape else ())
        except LabelsError as error:
            return {"why_lost": str(error)}
        if len(left.plane) != len(self._current.image.plane_shape):
            return {"why_lost": f"it lies on plane {left.plane}, which this image has not"}
        return {"unfinished": left}

    def _read_again(self, edits: list[Edit]) -> None:
        """Read for the viewer what was changed on disk."""
        opened = self._labels.get("labels")
        for edit in edits:
            if opened is not None and edit.box.area:
                opened.view.edited(edit.box, edit.plane)

    # ------------------------------------------------------------------ sessions and models

    def _open(self, command: commands.Open, loading: Progress) -> commands.Opened | None:
        self._close()
        if self._hurry.is_set():
            return None
        opened = None
        try:
            opened = self._begin(command, loading)
        finally:
            if opened is None:
                self._close()
        return opened

    def _begin(self, command: commands.Open, loading: Progress) -> commands.Opened | None:
        from napari_hrsam.engine.remote_encoder import configured_server
        from napari_hrsam.engine.session import Session

        pixels, place = command.image.open(), command.place
        if isinstance(place, OwnPlace):
            place = place.of(command.image)
        labels: Any = place
        if isinstance(place, KeptArray):
            labels = self._open_kept(place, command.image)
        if isinstance(place, LabelFile):
            # Before the model: that it is open elsewhere is reported at once.
            self._store = labels = open_or_create_labels(place.path, place.name, pixels)
            # Here, as it reads the coarsest level: the window is not to wait for the disk.
            view = LabelView(labels.levels, num_plane_axes=len(command.image.plane_shape))
            self._labels["labels"] = commands.OpenedLabels(
                file=place, levels=labels.levels, view=view
            )
        if not self._load(command.request, loading):
            return None
        self._session = Session(
            self._model,
            pixels,
            labels,
            embeddings=_open_embeddings(self._embeddings),
            remote=configured_server(self._tell),
            before_look=self._require_wanted,
        )
        self._session.outline_level = self._outline_level
        self._num_committed = 0
        return self._opened(command.request, **self._left_unfinished())

    def _open_kept(self, place: KeptArray, image: LayerImage) -> KeptLabels | np.ndarray:
        """Return labels of which a copy is made, or the array alone if that cannot be."""
        file = place.file(image)
        try:
            self._store = open_or_create_labels(file.path, file.name, image.shape_yx)
            kept = KeptLabels(place.array, self._store, takes_up=place.is_new)
        except LabelsError as error:
            logger.warning("objects are kept in memory only: %s", error)
            self._labels["why_no_copy"] = str(error)
            return place.array
        self._labels["copy"] = file
        return kept

    def _use_model(self, request: ModelRequest, loading: Progress) -> commands.Opened | None:
        # An object that is being drawn belongs to the model that drew it.
        if self._session is not None and self._session.prediction is not None:
            raise SessionError(
                "expected no object being drawn; commit or cancel it before you change the model"
            )
        if not self._load(request, loading):
            return None
        if self._session is not None:
            self._session = self._session.with_model(self._model)
            self._session.outline_level = self._outline_level
        return self._opened(request)

    def _load(self, request: ModelRequest, loading: Progress) -> bool:
        """Whether the model is there; the one before it stays until then."""
        if loading.is_cancelled or self._hurry.is_set():
            return False
        key = request.key
        if self._model_key == key:
            return loading.finish()
        try:
            model = self._load_model(
                request.model, request.device, download=request.download, progress=loading
            )
        except Cancelled:
            logger.info("loading of %s was cancelled", request.model)
            return False
        if not loading.finish():
            return False
        self._model, self._model_key = model, key
        return True

    def _opened(self, request: ModelRequest, **more: Any) -> commands.Opened:
        return commands.Opened(
            model=request.model,
            device=str(self._model.device),
            tile_px=int(self._model.config.tile_px),
            can_undo=self._session is not None and self._session.can_undo,
            can_redo=self._session is not None and self._session.can_redo,
            **self._labels,
            **more,
        )

    def _close(self) -> None:
        session, store = self._session, self._store
        self._session = self._store = self._unfinished = None
        self._labels = {}
        if session is not None:
            session.close()
        if store is not None:
            store.close()

    def _warm_up(self) -> None:
        if self._is_warm:
            return
        for _ in compile_layers():
            if self._hurry.is_set():
                return
        self._is_warm = True

    def _read_labels(self) -> NDArray[Any]:
        """Read all labels on disk, (..., height, width)."""
        store = self._store
        assert store is not None
        shape = (*store.plane_shape, *store.shape_yx)
        if math.prod(shape) > MAX_SAVED_PX:
            raise LabelsError(
                f"expected labels of at most {MAX_SAVED_PX:,} pixels for one TIFF, got shape "
                f"{shape}; choose 'a folder ...' for the objects, or export them with napari-hrsam "
                f"labels export {store.folder}"
            )
        labels = np.zeros(shape, store.dtype)
        box = Box.of_shape(store.shape_yx)
        for plane in np.ndindex(store.plane_shape):
            labels[plane] = store.read(box, plane=plane)
        return labels


def _num_new(step: object) -> int:
    """Return how many objects a step drew: changed and deleted ones do not count."""
    if not isinstance(step, Edit):
        return 0
    return sum(part.kind == "draw" for part in step.parts())


def _rank(command: commands.Rank) -> NDArray[np.float32]:
    from napari_hrsam.engine.everything.ranking import rank

    return rank(command.proposals, command.accepted, command.rejected)


def _find_devices() -> tuple[str, ...]:
    import torch

    return (AUTO_DEVICE, "cpu", "cuda") if torch.cuda.is_available() else (AUTO_DEVICE, "cpu")


def _open_embeddings(where: commands.KeepEmbeddings) -> EmbeddingStore | None:
    """Open the user's store of embeddings; without one everything works, more slowly."""
    from napari_hrsam.storage.embeddings.store import EmbeddingStore

    try:
        return EmbeddingStore(where.folder or None, max_bytes=where.max_bytes or None)
    except EmbeddingsError as error:
        logger.warning("embeddings are kept in memory only: %s", error)
        return None


def _write(path: Path, labels: NDArray[np.integer]) -> None:
    try:
        write_labels(path, labels)
    except OSError as error:
        raise LabelsError(
            f"expected a folder that can be written to, got an error at {path}: {error}; save the "
            "layer elsewhere (File > Save)"
        ) from error
