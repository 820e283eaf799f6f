"""All objects of a part of the image: looked for, reviewed, accepted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from napari.layers import Shapes
from psygnal import Signal

from napari_hrsam.errors import ConfigError, PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.canvas.layer_prompts import prompts_of_layer
from napari_hrsam.plugin.canvas.mouse import DragTool
from napari_hrsam.plugin.overlay import proposals as shown_as
from napari_hrsam.plugin.session import commands, messages
from napari_hrsam.plugin.session.review import ACCEPTED, REJECTED, Limits, Order, Review

if TYPE_CHECKING:
    from napari.layers import Layer
    from numpy.typing import NDArray

    from napari_hrsam.engine.everything.proposals import Proposals
    from napari_hrsam.plugin.overlay.overlay import Overlay
    from napari_hrsam.plugin.session.context import SessionContext

FINEST = -1
"""The finest level at which objects are looked for."""

THRESHOLD_STEP = 0.05


class Everything:
    """Proposes objects, and has them reviewed; at the end the accepted ones are one step to undo.

    Parameters
    ----------
    context
        What the controller works on.
    follow_keys
        Called when other keys are to be bound: a review begins or ends.

    Attributes
    ----------
    review
        Decisions on the proposals; None while none are reviewed.
    threshold
        Score or likeness, 0..1, from which `accept_above` accepts.
    changed
        Emitted without arguments when anything of a review changes.
    """

    changed: ClassVar[Signal] = Signal()

    def __init__(self, context: SessionContext, follow_keys: Callable[[], None]) -> None:
        self._context, self._follow_keys = context, follow_keys
        self.review: Review | None = None
        self.threshold = 0.8
        self._proposed: commands.Proposed | None = None
        self._left: tuple[Review, commands.Proposed] | None = None
        self._finishing: tuple[Review, commands.Proposed] | None = None
        self._examples: tuple[Proposals, tuple[int, ...]] | None = None
        self._awaits_box = self._is_newest = False
        self._level: int | None = None
        self._began_s = 0.0
        self._is_ranking = self._is_outdated = False
        context.viewer.layers.events.removed.connect(self._on_removed)

    @property
    def can_resume(self) -> bool:
        """Whether there is a review that was left."""
        return self._left is not None

    @property
    def was_just_left(self) -> bool:
        """Whether nothing was committed since."""
        return self._left is not None and self._is_newest

    @property
    def awaits_box(self) -> bool:
        """Whether the next box that is drawn says where to look."""
        return self._awaits_box

    # ------------------------------------------------------------------ looking for objects

    def propose(self, box: Sequence[float] | Box | None = None, level: int | None = None) -> None:
        """Look for all objects in a part of the plane that is shown; then they are reviewed.

        Proposals that committed objects cover by more than half are left out. `cancel` of the
        controller ends it. A review that was left is forgotten when another one begins.

        Parameters
        ----------
        box : (y0, x0, y1, x1), optional
            In level-0 pixels, cut at the image's border; by default what is on screen.
        level : int, optional
            At which to look, -1 or more: one at which objects are 20 to 150 pixels long is best. By
            default that of the view.

        Raises
        ------
        PromptError
            If the box is empty or the view shows none of the image.
        SessionError
            If no session is ready, an object is being drawn, or proposals are reviewed already.
        """
        overlay, plane = self._context.ready_for_prompt()
        overlay.require_no_object("looking for all")
        where = overlay.view.box0() if box is None else _whole_box(box)
        where = where.clip(overlay.image.shape_yx)
        if not where.area:
            raise PromptError(
                "expected a part of the image, got none of it; move the view to the image, or give "
                "a box inside it"
            )
        if level is None:
            level = max(FINEST, overlay.next_level(self._context.state.pinned_level))
        self._context.begin_anew()
        self._stop_awaiting()
        self._began_s = time.monotonic()
        self._context.worker.read_ahead(None)
        self._context.show_message(messages.describe_search(0, 0, 0.0), is_proposing=True)
        command = commands.Propose(where, level, plane)
        self._context.worker.send(command, lambda found: self._begin(overlay, command, found))

    def await_box(self, level: int | None = None) -> None:
        """Let the next box that is drawn with the mouse say where to look; see `propose`."""
        overlay, _ = self._context.ready_for_prompt()
        overlay.require_no_object("looking for all")
        self._awaits_box, self._level = True, level
        cancel = self._context.state.keys.text("cancel")
        self._context.show_message(
            f"Drag a box around what is to be looked at; {cancel} gives that up.",
            drag_tool=DragTool.BOX,
        )
        self.changed.emit()

    def take_box(self, box: Sequence[float]) -> bool:
        """Take a box that was drawn, if it says where to look."""
        if not self._awaits_box:
            return False
        self._stop_awaiting()
        self.propose(box, self._level)
        return True

    def propose_in_layer(self, layer: Layer | None = None, level: int | None = None) -> None:
        """Look for all objects in the smallest box around the shapes of a layer; see `propose`.

        Parameters
        ----------
        layer : Shapes layer, optional
            With rectangles, ellipses or outlines on the plane that is shown; by default the
            selected one.
        level
            As in `propose`.

        Raises
        ------
        PromptError, SessionError
            As `propose`; also if there is no such shape.
        """
        overlay = self._context.ready()
        viewer = self._context.viewer
        layer = viewer.layers.selection.active if layer is None else layer
        boxes = []
        if isinstance(layer, Shapes) and layer not in overlay.own:
            boxes = [one.box for one in prompts_of_layer(viewer, layer, overlay.view) if one.box]
        if not boxes:
            raise PromptError(
                "no shape to look in: select a Shapes layer of yours with a rectangle, an ellipse "
                "or an outline in the list of layers"
            )
        corners = np.array(boxes)
        low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
        self.propose((*low.tolist(), *high.tolist()), level)

    def progressed(self, done: int, total: int) -> None:
        """Say how far the search is."""
        if self._context.state.is_proposing:
            took_s = time.monotonic() - self._began_s
            left_s = took_s / done * (total - done) if done else 0.0
            message = messages.describe_search(done, total, left_s)
            self._context.show_message(message, progress=(done, total))

    def failed(self, command: commands.Command) -> None:
        """Take note of an error."""
        match command:
            case commands.Propose():
                self._context.update(progress=None, is_proposing=False)
            case commands.Rank():
                self._is_ranking = False
            case commands.Accept() if self._finishing is not None:
                # The decisions are still there.
                (review, proposed), self._finishing = self._finishing, None
                if self._context.overlay is not None:
                    self._show(self._context.overlay, review, proposed)

    # ------------------------------------------------------------------ reviewing

    def step(self, num: int = 1) -> None:
        """Go on by some proposals, or back; the view follows.

        Raises
        ------
        SessionError
            Here and below: if no proposals are reviewed.
        """
        self._reviewing().step(num)
        self._follow()

    def accept(self) -> None:
        """Accept the current proposal, and go on to the next one."""
        self._decide(ACCEPTED)

    def reject(self) -> None:
        """Reject the current proposal, and go on to the next one."""
        self._decide(REJECTED)

    def accept_above(self, value: float | None = None) -> None:
        """Accept all that are left, inside the limits, with at least this score or likeness.

        Parameters
        ----------
        value : float, optional
            0..1; by default the threshold.
        """
        review = self._reviewing()
        above = review.above(self.threshold if value is None else value)
        if review.decide_all(above, ACCEPTED):
            self._rank()
        self._follow(messages.describe_accepted(len(above), self._context.state.keys))

    def set_threshold(self, value: float) -> None:
        """Set from which score or likeness `accept_above` accepts."""
        self.threshold = min(max(round(value, 4), 0.0), 1.0)
        self.changed.emit()

    def raise_threshold(self, num_steps: int = 1) -> None:
        """Raise the threshold by steps of 0.05, or lower it."""
        steps = round(self.threshold / THRESHOLD_STEP) + num_steps
        self.set_threshold(steps * THRESHOLD_STEP)

    def set_limits(
        self, min_score: float = 0.0, min_px: float = 0.0, max_px: float = float("inf")
    ) -> None:
        """Show proposals with a least score, and a least and a largest area in level-0 pixels."""
        review = self._reviewing()
        before = review.current
        review.set_limits(Limits(min_score=min_score, min_px=min_px, max_px=max_px))
        if review.current != before:
            self._follow()
        else:
            self._redraw()

    def sort_by(self, order: Order | str) -> None:
        """Sort by "likeness" to the accepted ones, "score", "size" or "place"."""
        if order not in list(Order):
            raise ConfigError(f"expected one of {', '.join(Order)}, got {order!r}")
        self._reviewing().order = Order(order)
        self._follow()

    def pick(self, point_yx: tuple[float, float]) -> None:
        """Look at the proposal at a place of the image."""
        review, overlay = self._reviewing(), self._context.ready()
        number = 0 if overlay.proposals is None else overlay.proposals.number_at(point_yx)
        if number:
            review.go_to(number - 1)
            self._follow()

    def undo(self) -> None:
        """Undo the last decision, and go back to it."""
        self._undone_or_redone(self._reviewing().undo(), "undo")

    def redo(self) -> None:
        """Make the decision again that was undone last."""
        self._undone_or_redone(self._reviewing().redo(), "redo")

    def finish(self) -> None:
        """Commit the accepted proposals as one step to undo, and end the review."""
        review, proposed = self._reviewing(), self._proposed
        assert proposed is not None
        self._hide()
        accepted = review.accepted
        if not accepted:
            self._remember(review)
            self._context.show_message(f"Nothing was accepted. {messages.HINT_CLICK}")
            self._context.look_ahead()
            return
        self._finishing = review, proposed
        self._context.show_message(f"Committing {len(accepted):,} objects ...")
        self._context.worker.send(commands.Accept(review.proposals.take(accepted)))

    def leave(self) -> None:
        """End the review and commit nothing; `resume` goes on with it."""
        review, proposed = self._reviewing(), self._proposed
        assert proposed is not None
        self._hide()
        self._left, self._is_newest = (review, proposed), True
        num = len(review.accepted) + len(review.rejected)
        self._context.show_message(
            messages.describe_left(num, self._context.state.keys), can_undo=True
        )
        self._context.look_ahead()

    def resume(self) -> None:
        """Go on with the review that was left last.

        Raises
        ------
        SessionError
            If there is none, or an object is being drawn.
        """
        overlay, _ = self._context.ready_for_prompt()
        overlay.require_no_object("going on with the review")
        if self._left is None:
            raise SessionError("expected a review that was left, got none; propose objects first")
        self._show(overlay, *self._left)

    # ------------------------------------------------------------------ for the controller

    def give_up(self) -> bool:
        """Stop what is under way: a box to be drawn, a search, a review. False if nothing is."""
        if self._awaits_box:
            self._stop_awaiting()
            self._context.show_message(messages.HINT_CLICK)
        elif self._context.state.is_proposing:
            if self._context.worker.cancel_proposing():
                self._context.show_message("Stopping ...")
        elif self.review is not None:
            self.leave()
        else:
            return False
        return True

    def answered(self, answer: commands.Answer) -> None:
        """Take note of what was committed: Ctrl+Z is no longer about a review that was left."""
        if answer.edit is None and not answer.earlier_edits:
            return
        if self._finishing is not None and answer.edit is not None and answer.edit.kind == "accept":
            self._remember(self._finishing[0])
            self._finishing = None
        self._is_newest = False

    def end(self) -> None:
        """End with the session: what was accepted is committed."""
        if self.review is not None and (accepted := self.review.accepted):
            self._context.worker.send(commands.Accept(self.review.proposals.take(accepted)))
        self.review = self._proposed = self._left = self._finishing = self._examples = None
        self._awaits_box = self._is_ranking = self._is_outdated = False
        self._follow_keys()
        self.changed.emit()

    def close(self) -> None:
        """Let go of the viewer."""
        self._context.viewer.layers.events.removed.disconnect(self._on_removed)
        self.end()

    # ------------------------------------------------------------------ beginning and ending

    def _begin(
        self, overlay: Overlay, command: commands.Propose, found: commands.Proposed | None
    ) -> None:
        if overlay is not self._context.overlay:
            return
        self._context.update(is_proposing=False, progress=None)
        if found is None:
            self._context.show_message(f"Stopped: nothing is proposed. {messages.HINT_CLICK}")
        elif not len(found.proposals):
            self._context.show_message(messages.describe_none(found, command.level))
        else:
            self._show(overlay, Review(found.proposals), found)
            return
        self._context.look_ahead()

    def _show(self, overlay: Overlay, review: Review, proposed: commands.Proposed) -> None:
        self.review, self._proposed, self._left = review, proposed, None
        overlay.add_proposals(proposed)
        self._context.update(is_reviewing=True, is_subtracting=False)
        self._follow_keys()
        self._rank()
        self._follow(messages.describe_proposed(proposed, self._context.state.keys))

    def _hide(self) -> None:
        self.review = self._proposed = None
        self._is_outdated = False
        overlay = self._context.overlay
        if overlay is not None:
            overlay.remove_proposals()
        self._context.update(is_reviewing=False)
        self._follow_keys()
        self.changed.emit()

    def _on_removed(self, event: Any) -> None:
        overlay = self._context.overlay
        shown = None if overlay is None else overlay.proposals
        if shown is not None and event.value is shown.layer and self.review is not None:
            # By the user: no decision is lost.
            self.leave()

    def _stop_awaiting(self) -> None:
        if self._awaits_box:
            self._awaits_box = False
            self._context.update(drag_tool=DragTool.PAN)
            self.changed.emit()

    # ------------------------------------------------------------------ deciding and showing

    def _reviewing(self) -> Review:
        if self.review is None:
            raise SessionError("expected proposals that are reviewed, got none; propose objects")
        return self.review

    def _decide(self, decision: int) -> None:
        if self._reviewing().decide(decision):
            self._rank()
        self._follow()

    def _undone_or_redone(self, is_done: bool, what: str) -> None:
        if is_done:
            self._rank()
            self._follow()
        else:
            self._context.show_message(f"There is no decision to {what}.")

    def _follow(self, message: str = "") -> None:
        """Move the view to the current proposal, and say what it is."""
        review, overlay = self._reviewing(), self._context.ready()
        if review.current is not None:
            overlay.view.show_plane(review.proposals.plane)
            overlay.view.follow_box(_box_of(review.proposals, review.current))
        told = messages.describe_proposal(review, self._context.state.keys)
        self._context.show_message(f"{message} {told}".strip())
        self._redraw()

    def _redraw(self) -> None:
        review, overlay = self._reviewing(), self._context.ready()
        states = np.full(len(review), shown_as.HIDDEN, np.uint8)
        states[review.is_left] = shown_as.LEFT
        states[review.decisions == ACCEPTED] = shown_as.ACCEPTED
        states[review.decisions == REJECTED] = shown_as.REJECTED
        current = None
        if review.current is not None:
            current = review.current, _box_of(review.proposals, review.current)
        if overlay.proposals is not None:
            overlay.proposals.show(states, current, overlay.view.screen_px())
        self.changed.emit()

    def _remember(self, review: Review) -> None:
        """Keep what was decided, for the order of later proposals."""
        accepted, rejected = review.accepted, review.rejected
        decided = review.proposals.take([*accepted, *rejected])
        kinds = (*(ACCEPTED for _ in accepted), *(REJECTED for _ in rejected))
        if self._examples is not None:
            earlier, earlier_kinds = self._examples
            # Those of another model or level cannot be compared: the newer ones count.
            with suppress(ConfigError):
                decided, kinds = earlier.followed_by(decided), (*earlier_kinds, *kinds)
        if kinds:
            self._examples = decided, kinds

    def _rank(self) -> None:
        """Have the order renewed; one question at a time."""
        review = self.review
        if review is None:
            return
        if self._is_ranking:
            self._is_outdated = True
            return
        proposals, accepted, rejected = review.proposals, review.accepted, review.rejected
        if self._examples is not None:
            earlier, kinds = self._examples
            with suppress(ConfigError):
                proposals = proposals.followed_by(earlier)
                for place, kind in enumerate(kinds, len(review)):
                    (accepted if kind == ACCEPTED else rejected).append(place)
        if not accepted:
            review.likeness = None
            return
        self._is_ranking, self._is_outdated = True, False

        def take(likeness: NDArray[np.float32] | None) -> None:
            self._is_ranking = False
            if likeness is not None and review is self.review:
                review.likeness = likeness[: len(review)]
                self.changed.emit()
            if self._is_outdated or review is not self.review:
                self._rank()

        self._context.worker.send(commands.Rank(proposals, tuple(accepted), tuple(rejected)), take)


def _box_of(proposals: Proposals, index: int) -> Box:
    return Box(*proposals.boxes[index].tolist())


def _whole_box(box: Sequence[float] | Box) -> Box:
    """Return the smallest box of whole pixels around one."""
    if isinstance(box, Box):
        return box
    if len(box) != 4 or not np.isfinite(box).all():
        raise PromptError(f"expected a box (y0, x0, y1, x1) of numbers, got {box!r}")
    y0, x0 = np.floor(box[:2]).astype(int).tolist()
    y1, x1 = np.ceil(box[2:]).astype(int).tolist()
    if y0 >= y1 or x0 >= x1:
        raise PromptError(f"expected a box with y0 < y1 and x0 < x1, got {tuple(box)!r}")
    return Box(y0, x0, y1, x1)
