"""What napari opens as "Segment by clicking": shown at once, filled as soon as it can be."""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget

if TYPE_CHECKING:
    import napari.viewer

    from napari_hrsam.plugin.panel.widget import SegmentWidget
    from napari_hrsam.plugin.session.controller import SegmentController

PANEL_MODULE = "napari_hrsam.plugin.panel.widget"
LOOK_MS = 10
WIDTH_PX = 320
"""About the panel's own width, so that the canvas keeps its size when the panel comes."""


class OpeningPanel(QWidget):
    """Holds the panel, whose code is imported on another thread, so that the window goes on.

    Parameters
    ----------
    napari_viewer
        The viewer that the panel belongs to.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self._panel: SegmentWidget | None = None
        self._waiting = QLabel("Opening …")
        self._waiting.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._waiting.setMinimumWidth(WIDTH_PX)
        # As the panel: napari puts empty space under what does not want the dock's whole height.
        self._waiting.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.addWidget(self._waiting)
        self._importing = threading.Thread(target=_import_panel, daemon=True)
        self._importing.start()
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._look)
        self._timer.start(LOOK_MS)

    @property
    def is_filled(self) -> bool:
        """Whether the panel is there."""
        return self._panel is not None

    @property
    def panel(self) -> SegmentWidget:
        """The panel; whoever cannot wait for it has it built now."""
        if self._panel is None:
            self._timer.stop()
            self._importing.join()
            from napari_hrsam.plugin.panel.widget import SegmentWidget

            self._panel = SegmentWidget(self._viewer)
            self._waiting.hide()
            self._column.replaceWidget(self._waiting, self._panel)
            self._waiting.deleteLater()
        return self._panel

    @property
    def controller(self) -> SegmentController:
        """Does by methods what mouse and keys do; see `napari_hrsam.segment_in`."""
        return self.panel.controller

    def _look(self) -> None:
        if not self._importing.is_alive():
            _ = self.panel


def _import_panel() -> None:
    try:
        importlib.import_module(PANEL_MODULE)
    except Exception:  # noqa: BLE001  the import on the window's thread tells of it
        return
