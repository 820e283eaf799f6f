"""The cheat sheet: all of mouse and keys, as the keys are set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import (
    QApplication,
    QDialog,
    QFormLayout,
    QLabel,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_hrsam.plugin.panel.parts import WrappedLabel
from napari_hrsam.plugin.panel.preferences import Preferences

if TYPE_CHECKING:
    from napari_hrsam.plugin.canvas.key_table import KeyMap

SIZE_PX = (660, 680)


class KeySheet(QDialog):
    """A window beside which one goes on working; Esc or the key that opened it closes it.

    Parameters
    ----------
    parent
        The window that it belongs to.
    """

    def __init__(self, parent: QWidget | None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Mouse and keys")
        self.resize(*SIZE_PX)
        self._area = QScrollArea()
        self._area.setWidgetResizable(True)
        layout = QVBoxLayout(self)
        layout.addWidget(self._area)
        layout.addWidget(WrappedLabel("Other keys: File > Preferences > HRSAM."))
        self._closing = QShortcut(self)
        self._closing.activated.connect(self.close)

    def show_keys(self, keys: KeyMap) -> None:
        """Write down the keys as they are set."""
        body = QWidget()
        form = QFormLayout(body)
        form.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
        form.setHorizontalSpacing(24)
        for key, effect in keys.rows():
            form.addRow(QLabel(f"<b>{key}</b>"), WrappedLabel(effect))
        self._area.setWidget(body)
        self._closing.setKey(QKeySequence(keys["show_keys"]))


def show_keys() -> KeySheet:
    """Open the cheat sheet over the window that is in use, from napari's menu."""
    sheet = KeySheet(QApplication.activeWindow())
    sheet.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    keys, _ = Preferences().keys({})
    sheet.show_keys(keys)
    sheet.show()
    return sheet
