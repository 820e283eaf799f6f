"""The part of the panel that says at which level new objects are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QHBoxLayout, QSpinBox, QWidget

from napari_hrsam.plugin.panel.parts import narrow
from napari_hrsam.plugin.session.messages import describe_level
from napari_hrsam.plugin.session.state import Phase

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.controller import SegmentController
    from napari_hrsam.plugin.session.state import ControllerState

AS_SEEN, IN_FULL = "as fine as seen", "at full resolution"


class LevelBox(QWidget):
    """Level, outline and reading ahead.

    Parameters
    ----------
    controller
        What is set.
    """

    def __init__(self, controller: SegmentController) -> None:
        super().__init__()
        self._controller = controller
        self.pin_box = QCheckBox("keep")
        self.pin_box.setToolTip("Look at new objects at this level at every zoom")
        self.pin_box.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.spin_box = QSpinBox()
        self.spin_box.setToolTip(
            "The level at which objects are looked at: 0 is full size, each further level is half "
            "as large; the zoom chooses it unless it is kept"
        )
        self.spin_box.setKeyboardTracking(False)
        self.outline_box = narrow(QComboBox())
        self.outline_box.addItems([AS_SEEN, IN_FULL])
        self.outline_box.setToolTip(
            "Outlines of objects larger than a tile are drawn anew when they are committed: as "
            "fine as the object was seen at its first click, or at full resolution, which takes "
            "longer"
        )
        self.ahead_box = QCheckBox("Look ahead while idle")
        self.ahead_box.setToolTip(
            "Prepare what is on screen while nothing is asked for, so that clicks are answered at "
            "once"
        )
        self.peek_box = QCheckBox("Preview under the mouse [{preview}]")
        self.peek_box.setToolTip(
            "Show what a click would give while the mouse moves, where that is prepared already"
        )
        self.peek_box.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.ahead_box.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.input_box = QCheckBox("Show what the model sees")
        self.input_box.setToolTip(
            "Show the tile of the object as the model gets it: its place, level, channels and "
            "contrast"
        )
        self.input_box.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        level = QWidget()
        row = QHBoxLayout(level)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.spin_box, 1)
        row.addWidget(self.pin_box)
        form.addRow("Level", level)
        form.addRow("Outlines", self.outline_box)
        form.addRow(self.ahead_box)
        form.addRow(self.peek_box)
        form.addRow(self.input_box)
        self.pin_box.toggled.connect(self._pin)
        self.spin_box.valueChanged.connect(self._pin)
        self.outline_box.activated.connect(self._set_outlines)
        self.ahead_box.toggled.connect(controller.settings.set_reads_ahead)
        self.peek_box.toggled.connect(controller.settings.set_peeks)
        self.input_box.toggled.connect(controller.settings.show_model_input)

    def show_state(self, state: ControllerState) -> None:
        """Show the level in use and the settings."""
        is_ready = state.phase is Phase.READY
        boxes = (
            self.pin_box,
            self.spin_box,
            self.outline_box,
            self.ahead_box,
            self.input_box,
            self.peek_box,
        )
        for widget in boxes:
            widget.blockSignals(True)
        self.pin_box.setEnabled(is_ready)
        self.pin_box.setChecked(state.is_level_pinned)
        self.spin_box.setEnabled(is_ready and state.is_level_pinned)
        if state.levels is not None and state.level is not None:
            self.spin_box.setRange(*state.levels)
            # Of a level that is kept, the number is the user's.
            if not state.is_level_pinned:
                self.spin_box.setValue(state.level)
            _, size = describe_level(self.spin_box.value()).split(" · ")
            self.spin_box.setSuffix(f" · {size}")
        self.outline_box.setCurrentText(IN_FULL if state.outlines_fully else AS_SEEN)
        self.ahead_box.setChecked(state.reads_ahead)
        self.peek_box.setChecked(state.peeks)
        self.input_box.setChecked(state.shows_input)
        for widget in boxes:
            widget.blockSignals(False)

    def _pin(self) -> None:
        is_pinned = self.pin_box.isChecked()
        self._controller.settings.pin_level(self.spin_box.value() if is_pinned else None)

    def _set_outlines(self) -> None:
        self._controller.settings.set_outlines_fully(self.outline_box.currentText() == IN_FULL)
