"""The viewer's end of the inference thread: commands go in, signals come out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from psygnal import Signal

from napari_hrsam.plugin.session import commands
from napari_hrsam.plugin.session.inference_thread import InferenceThread
from napari_hrsam.plugin.session.loading import ModelLoader, load_named_model
from napari_hrsam.plugin.session.progress import Progress

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.inference import InferenceSession

logger = logging.getLogger(__name__)

Then = Callable[[Any], None]


class Worker:
    """Runs commands on the inference thread, in order, and knows which answer is the newest.

    No command is dropped, except that prompts of a cancelled object that have not been looked at
    yet are passed over. All signals are emitted by `deliver` and `wait`, on the viewer's thread;
    of a session that has ended, only edits and errors are.

    Parameters
    ----------
    load_model
        Makes a model; see `ModelLoader`.

    Attributes
    ----------
    answered
        Emitted with the `Answer` to a step; whether it is the newest, the only one to be shown
        (but every edit counts); and whether it follows a step that failed, and has the session's
        unchanged state.
    failed
        Emitted with a command, its error, and whether it was the newest step.
    progress
        Emitted with a command, what is done of it, and what there is to do.
    told
        Emitted with what the user is to know although no command asked for it.
    sent
        Emitted when there is more work for the inference thread.
    delivered
        Emitted once after several answers, when none is left.
    """

    answered: ClassVar[Signal] = Signal(object, bool, bool)
    failed: ClassVar[Signal] = Signal(object, object, bool)
    progress: ClassVar[Signal] = Signal(object, int, int)
    told: ClassVar[Signal] = Signal(str)
    sent: ClassVar[Signal] = Signal()
    delivered: ClassVar[Signal] = Signal()

    def __init__(self, load_model: ModelLoader = load_named_model) -> None:
        self._load_model = load_model
        self._session: InferenceSession | None = None
        self._hurry = threading.Event()
        self._thread = InferenceThread()
        self._generation = 0
        # Each gives up what belongs to it: a session, an object's prompts, a way to be shown.
        self._opening, self._object, self._shown = Progress(), Progress(), Progress()
        self._loading = Progress()
        self._commit: Progress | None = None
        self._proposing = Progress()

    @property
    def is_busy(self) -> bool:
        """Whether anything has not been answered yet."""
        return self._thread.num_pending > 0

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._thread.is_closed

    def send(self, command: commands.Command, then: Then | None = None) -> None:
        """Have a command carried out; returns at once.

        Parameters
        ----------
        command
            Steps are answered by `answered`.
        then
            Called, on the viewer's thread, with the result of any other command that succeeded
            and still counts.
        """
        progress = self._progress_of(command)
        if isinstance(command, commands.Step):
            self._generation += not isinstance(command, commands.Describe)
            receive = partial(self._receive_step, command, self._opening, self._generation)
        else:
            receive = partial(self._receive, command, self._opening, progress, then)
        self._thread.submit(partial(self._apply, command, progress), receive)
        # A look under the mouse, many times a second, is no work that a panel shows.
        if not isinstance(command, commands.Peek | commands.Rank):
            self.sent.emit()

    def read_ahead(self, command: commands.ReadAhead | None) -> None:
        """Encode tiles while nothing else is asked for; None: nothing."""
        work = None if command is None else partial(self._apply, command, Progress())
        self._thread.use_spare_time(work)

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called by `deliver`; callable from any thread."""
        self._thread.call(function)

    def cancel_loading(self) -> bool:
        """Give up the loading of a model; False if it is done and its answer is on the way."""
        return self._loading.cancel()

    def cancel_commit(self) -> bool:
        """Give up the newest commit if it is not made yet; its object is the current one again."""
        return self._commit is not None and self._commit.cancel()

    def cancel_proposing(self) -> bool:
        """Look for no more objects; False if they are found and on the way."""
        return self._proposing.cancel()

    def close(self) -> None:
        """End the thread after the commits asked for; returns at once, nothing is emitted any more.

        The current object is left for the next session on the same labels; these are closed.
        Nothing else is finished; see `InferenceSession`.
        """
        self._hurry.set()
        for scope in (self._opening, self._loading, self._object, self._shown, self._proposing):
            scope.cancel()
        self._thread.close(self._end)

    def join(self, timeout_s: float = 60.0) -> bool:
        """Wait after `close` until the commits are made; False if they are not in time."""
        return self._thread.join(timeout_s)

    def set_notify(self, notify: Callable[[], None] | None) -> None:
        """Set what is called, on the inference thread, when `deliver` has something to do."""
        self._thread.set_notify(notify)

    def deliver(self) -> None:
        """Emit what there is; called on the viewer's thread."""
        self._thread.deliver()
        self.delivered.emit()

    def wait(self, timeout_s: float) -> bool:
        """Deliver until nothing is pending; False if it takes longer than ``timeout_s`` seconds."""
        is_answered = self._thread.wait(timeout_s)
        self.delivered.emit()
        return is_answered

    def _apply(self, command: commands.Command, progress: Progress) -> Any:
        """Carry out a command; on the inference thread."""
        if self._session is None:
            # Here, as it takes long to import: the window is not to wait for that.
            from napari_hrsam.plugin.session.inference import InferenceSession

            self._session = InferenceSession(self._load_model, self._hurry, self._tell)
        return self._session.apply(command, progress)

    def _tell(self, message: str) -> None:
        """Have something told that no command asked for; from the inference thread."""
        self._thread.call(partial(self.told.emit, message))

    def _end(self) -> None:
        if self._session is not None:
            self._session.apply(commands.Close(), Progress())

    def _progress_of(self, command: commands.Command) -> Progress:
        """Return what reports and cancels a command; cancel what the command puts an end to."""
        progress = Progress()
        if isinstance(command, commands.Prompt):
            return self._object
        match command:
            case commands.Cancel():
                self._object.cancel()
                self._object = progress
            case commands.ContinueOn():
                # Prompts from now on belong to the object there.
                self._object = progress
            case commands.Commit() | commands.Propagate() | commands.Interpolate():
                # Prompts from now on belong to the next object.
                self._object = Progress()
                self._commit = progress = self._reporting(command)
            case commands.Show():
                self._shown.cancel()
                self._shown = progress
            case commands.Open():
                self._opening, self._object = Progress(), Progress()
                self._loading = progress = self._reporting(command)
            case commands.UseModel():
                self._loading = progress = self._reporting(command)
            case commands.Propose():
                self._proposing = progress = self._reporting(command)
            case commands.Close():
                for scope in (self._opening, self._loading, self._object, self._proposing):
                    scope.cancel()
                self.read_ahead(None)
        return progress

    def _reporting(self, command: commands.Command) -> Progress:
        def emit(done: int, total: int) -> None:
            # Of what was given up nothing more is reported.
            if not progress.is_cancelled:
                self.progress.emit(command, done, total)

        progress = Progress(lambda done, total: self.call(partial(emit, done, total)))
        return progress

    def _receive(
        self,
        command: commands.Command,
        opening: Progress,
        progress: Progress,
        then: Then | None,
        future: Future[Any],
    ) -> None:
        if isinstance(command, commands.Open) and opening.is_cancelled:
            return
        error = future.exception()
        if error is not None and isinstance(command, commands.UseModel) and progress.is_cancelled:
            logger.info("the cancelled loading ended with an error", exc_info=error)
        elif error is not None:
            self.failed.emit(command, error, False)
        elif isinstance(command, commands.UseModel) and (
            future.result() is None or opening is not self._opening
        ):
            logger.debug("a model that was loaded for an earlier session")
        elif then is not None:
            then(future.result())

    def _receive_step(
        self, command: commands.Step, opening: Progress, generation: int, future: Future[Any]
    ) -> None:
        error = future.exception()
        is_newest = generation == self._generation
        is_describing = isinstance(command, commands.Describe)
        if error is None:
            is_shown = is_newest and not opening.is_cancelled
            self.answered.emit(future.result(), is_shown, is_describing)
            return
        self.failed.emit(command, error, is_newest)
        if not is_describing and not opening.is_cancelled:
            self.send(commands.Describe())
