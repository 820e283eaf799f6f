"""The part of the panel that finds all objects at once, and has them reviewed."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QHBoxLayout, QLabel, QSlider, QWidget

from napari_hrsam.plugin.panel.parts import (
    Links,
    Section,
    WrappedLabel,
    button,
    fill_combo,
    narrow,
    row,
)
from napari_hrsam.plugin.session.everything import FINEST
from napari_hrsam.plugin.session.messages import describe_level
from napari_hrsam.plugin.session.review import Order
from napari_hrsam.plugin.session.state import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from qtpy.QtGui import QWheelEvent

    from napari_hrsam.plugin.session.controller import SegmentController

VIEW, BOX, SHAPES, WHOLE = "view", "box", "shapes", "whole"
WHERE = (
    ("The view", VIEW),
    ("A box that I draw", BOX),
    ("The selected shapes", SHAPES),
    ("The whole level ...", WHOLE),
)
ORDERS = (
    ("Like the accepted ones", Order.LIKENESS),
    ("Score", Order.SCORE),
    ("Size", Order.SIZE),
    ("Place in the image", Order.PLACE),
)
AS_SHOWN = "as shown"
STEPS = 100
VALUE_WIDTH_PX = 74


class EverythingSection(Section):
    """Where to look, at which level; then the review.

    Parameters
    ----------
    controller
        Of the panel.
    open_form
        Opens the form for a whole level.
    focus
        Gives the keyboard to the canvas.

    Attributes
    ----------
    links
        To be closed before the panel goes.
    """

    def __init__(
        self,
        controller: SegmentController,
        open_form: Callable[[int], None],
        focus: Callable[[], None],
    ) -> None:
        super().__init__("Everything", is_open=False)
        self._controller, self._everything = controller, controller.everything
        self._open_form, self._focus = open_form, focus
        self._areas_px = (1.0, 1.0)
        self._was_reviewing = False
        self._build_search()
        self._build_review()
        self.links = Links(
            (self._everything.changed, self._show), (controller.state.changed, self._show)
        )
        self._show()

    # ------------------------------------------------------------------ building

    def _build_search(self) -> None:
        guard = self._controller.state.guard
        self.where_box, self.level_box = narrow(QComboBox()), narrow(QComboBox())
        self.where_box.setToolTip("In which part of the image all objects are looked for")
        fill_combo(self.where_box, WHERE, VIEW)
        self.level_box.setToolTip(
            "At which zoom: objects are found best where they are 20 to 150 pixels long; larger "
            "ones are found at a coarser level"
        )
        self.find_button = button(
            "Find objects", "Look for all objects there; then accept or reject each", self._find
        )
        self.resume_button = button(
            "Go on with the review",
            "Take up the review that was left, with its decisions",
            partial(guard, self._everything.resume),
        )
        self.form.addRow("Where", self.where_box)
        self.form.addRow("Level", self.level_box)
        self.form.addRow(self.find_button)
        self.form.addRow(self.resume_button)

    def _build_review(self) -> None:
        everything, guard = self._everything, self._controller.state.guard
        self.review_box = QWidget()
        form = QFormLayout(self.review_box)
        form.setContentsMargins(0, 4, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.count_label = WrappedLabel()
        self.order_box = narrow(QComboBox())
        self.order_box.setToolTip("Which proposals come first")
        fill_combo(self.order_box, ORDERS, Order.LIKENESS)
        self.order_box.activated.connect(
            lambda _: guard(everything.sort_by, self.order_box.currentData())
        )
        self.score_slider = _Slider("Show proposals with at least this score", self._limit)
        self.small_slider = _Slider("Show proposals of at least this area", self._limit)
        self.large_slider = _Slider("Show proposals of at most this area", self._limit, STEPS)
        self.above_slider = _Slider(
            "The score or likeness from which all are accepted at once", self._set_threshold
        )
        form.addRow(self.count_label)
        form.addRow("Sort by", self.order_box)
        form.addRow("Score", self.score_slider)
        form.addRow("Smallest", self.small_slider)
        form.addRow("Largest", self.large_slider)
        buttons = (
            (
                "Previous [{previous_proposal}]",
                "Go to the one before",
                partial(everything.step, -1),
            ),
            ("Next [{next_proposal}]", "Go to the next one", everything.step),
            ("Accept [{accept}]", "Accept the proposal in the ring", everything.accept),
            ("Reject [{reject}]", "Reject the proposal in the ring", everything.reject),
            ("Undo [{undo}]", "Undo the last decision", everything.undo),
            ("Redo [{redo}]", "Make it again", everything.redo),
            (
                "Commit [{commit}]",
                "Commit the accepted ones as one step to undo, and end the review",
                everything.finish,
            ),
            ("Leave [{cancel}]", "End the review and commit nothing", everything.leave),
        )
        made = [button(text, tip, partial(guard, action)) for text, tip, action in buttons]
        (
            self.previous_button,
            self.next_button,
            self.accept_button,
            self.reject_button,
            self.undo_button,
            self.redo_button,
            self.commit_button,
            self.leave_button,
        ) = made
        self.above_button = button(
            "Accept all above [{accept_above}]",
            "Accept all that are left with at least this score or likeness; [{higher}] and "
            "[{lower}] move the threshold",
            partial(guard, everything.accept_above),
        )
        form.addRow(row(*made[:2]))
        form.addRow(row(*made[2:4]))
        form.addRow("Above", self.above_slider)
        form.addRow(self.above_button)
        form.addRow(row(*made[4:6]))
        form.addRow(row(*made[6:]))
        self.form.addRow(self.review_box)

    # ------------------------------------------------------------------ showing

    def _show(self) -> None:
        state, everything = self._controller.state, self._everything
        review = everything.review
        is_free = state.phase is Phase.READY and not state.has_object
        is_free = is_free and not state.is_proposing and review is None
        for widget in (self.where_box, self.level_box, self.find_button):
            widget.setEnabled(is_free)
        self.resume_button.setVisible(everything.can_resume)
        self.resume_button.setEnabled(is_free)
        self._fill_levels()
        if review is not None and not self._was_reviewing:
            self._begin()
        self._was_reviewing = review is not None
        self.review_box.setVisible(review is not None)
        if review is None:
            return
        num_left = int(review.is_left.sum())
        accepted, rejected = len(review.accepted), len(review.rejected)
        hidden = len(review) - num_left - accepted - rejected
        counts = [f"{num_left:,} left", f"{accepted:,} accepted", f"{rejected:,} rejected"]
        counts += [f"{hidden:,} hidden"] if hidden else []
        self.count_label.setText(" · ".join(counts))
        fill_combo(self.order_box, ORDERS, review.order)
        limits = review.limits
        self.score_slider.show_value(round(STEPS * limits.min_score), f"{limits.min_score:.2f}")
        for slider in (self.small_slider, self.large_slider):
            slider.show_value(slider.value, f"{self._area(slider.value):,.0f} px")
        num_above = len(review.above(everything.threshold))
        text = f"{everything.threshold:.2f}: {num_above:,}"
        self.above_slider.show_value(round(STEPS * everything.threshold), text)
        self.undo_button.setEnabled(review.can_undo)
        self.redo_button.setEnabled(review.can_redo)
        for one in (self.accept_button, self.reject_button):
            one.setEnabled(review.current is not None)
        self.above_button.setEnabled(num_above > 0)

    def _begin(self) -> None:
        """Show the review; the keyboard goes to the canvas."""
        review = self._everything.review
        assert review is not None
        areas = review.proposals.areas_px
        self._areas_px = float(areas.min()), float(areas.max())
        limits = review.limits
        self.small_slider.show_value(0 if limits.min_px == 0 else self._place(limits.min_px), "")
        is_open = math.isinf(limits.max_px)
        self.large_slider.show_value(STEPS if is_open else self._place(limits.max_px), "")
        self.set_open(True)
        self._focus()

    def _fill_levels(self) -> None:
        levels = self._controller.state.levels
        items: list[tuple[str, Any]] = [("As the view shows it", AS_SHOWN)]
        if levels is not None:
            items += [(describe_level(one), str(one)) for one in range(FINEST, levels[1] + 1)]
        fill_combo(self.level_box, items, self.level_box.currentData())

    def _area(self, place: int) -> float:
        """Return the area at a place of a slider; the places are ratios apart."""
        low, high = self._areas_px
        return low * math.exp(math.log(high / low) * place / STEPS)

    def _place(self, area_px: float) -> int:
        low, high = self._areas_px
        if high <= low:
            return 0
        return round(STEPS * math.log(max(area_px, low) / low) / math.log(high / low))

    # ------------------------------------------------------------------ doing

    @property
    def level(self) -> int | None:
        """The level that is chosen; None: that of the view."""
        chosen = self.level_box.currentData()
        return None if chosen in (None, AS_SHOWN) else int(chosen)

    def _find(self) -> None:
        guard, everything, level = self._controller.state.guard, self._everything, self.level
        where = self.where_box.currentData()
        if where == BOX:
            guard(everything.await_box, level)
        elif where == SHAPES:
            guard(everything.propose_in_layer, None, level)
        elif where == WHOLE:
            shown = max(FINEST, self._controller.state.level or 0)
            self._open_form(shown if level is None else level)
        else:
            guard(everything.propose, None, level)

    def _limit(self) -> None:
        """Show proposals as the sliders say; at their ends these hide nothing."""
        small, large = self.small_slider.value, self.large_slider.value
        self._controller.state.guard(
            self._everything.set_limits,
            self.score_slider.value / STEPS,
            # What is drawn in whole cells is never between two places of the slider.
            math.floor(self._area(small)) if small > 0 else 0.0,
            math.ceil(self._area(large)) if large < STEPS else math.inf,
        )

    def _set_threshold(self) -> None:
        self._everything.set_threshold(self.above_slider.value / STEPS)


class _Slider(QWidget):
    """A slider with what it says beside it; the wheel scrolls the panel."""

    def __init__(self, tooltip: str, moved: Callable[[], None], place: int = 0) -> None:
        super().__init__()
        self.slider, self.label = _Quiet(Qt.Orientation.Horizontal), QLabel()
        self.slider.setRange(0, STEPS)
        self.slider.setValue(place)
        # Reached by Tab; a drag of the mouse leaves the keyboard to the canvas.
        self.slider.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.slider.setToolTip(tooltip)
        self.slider.setMinimumWidth(1)
        self.label.setFixedWidth(VALUE_WIDTH_PX)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.slider, 1)
        layout.addWidget(self.label)
        self.slider.valueChanged.connect(lambda _: moved())

    @property
    def value(self) -> int:
        """Where it is, 0 to STEPS."""
        return int(self.slider.value())

    def show_value(self, place: int, text: str) -> None:
        """Show where it is, as set elsewhere."""
        self.slider.blockSignals(True)
        self.slider.setValue(place)
        self.slider.blockSignals(False)
        self.label.setText(text)


class _Quiet(QSlider):
    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802  Qt's name
        """Leave the wheel to the panel."""
        event.ignore()
