"""The part of the panel that continues objects over the planes of a stack."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QFormLayout, QSpinBox, QWidget

from napari_hrsam.plugin.panel.parts import button, row
from napari_hrsam.plugin.session.state import Phase

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.controller import SegmentController
    from napari_hrsam.plugin.session.state import ControllerState

MAX_PLANES = 9999
WHICH = (
    "the current one, which is committed first; else the committed one under the mouse, or the last"
)


class PlanesBox(QWidget):
    """Continue an object on the next plane, or over several; hidden for flat images.

    Parameters
    ----------
    controller
        What is asked.
    """

    def __init__(self, controller: SegmentController) -> None:
        super().__init__()
        self._controller = controller
        guard = controller.state.guard
        self.back_button, self.next_button = (
            button(
                text,
                f"Continue an object on the {where} plane, to be corrected there: {WHICH}",
                partial(guard, controller.planes.continue_on, step),
            )
            for text, where, step in (
                ("Plane before [Shift+Left]", "previous", -1),
                ("Next plane [Shift+Right]", "next", 1),
            )
        )
        self.far_back_button, self.far_button = (
            button(
                text,
                "Continue an object over as many planes and commit it on each, while the model is "
                f"sure of it: {WHICH}",
                partial(self._propagate, step),
            )
            for text, step in (("Propagate back", -1), ("Propagate", 1))
        )
        self.here_button = button(
            "Continue here",
            "Continue the object that was committed last, on another plane, on the one that is "
            "shown",
            partial(guard, controller.planes.continue_here),
        )
        self.between_button = button(
            "Fill between",
            "Draw the committed object of this plane on the planes between it and the nearest "
            "others on which it is drawn: the one under the mouse, or the last",
            partial(guard, controller.planes.interpolate),
        )
        self.spin_box = QSpinBox()
        self.spin_box.setRange(1, MAX_PLANES)
        self.spin_box.setValue(10)
        self.spin_box.setSuffix(" planes")
        self.spin_box.setKeyboardTracking(False)
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow(row(self.back_button, self.next_button))
        form.addRow(row(self.here_button, self.between_button))
        form.addRow(row(self.far_back_button, self.far_button))
        form.addRow(self.spin_box)

    def show_state(self, state: ControllerState) -> None:
        """Show what can be done now."""
        self.setVisible(state.is_stack)
        self.setEnabled(state.phase is Phase.READY)

    def _propagate(self, step: int) -> None:
        number = step * self.spin_box.value()
        self._controller.state.guard(self._controller.planes.propagate, number)
