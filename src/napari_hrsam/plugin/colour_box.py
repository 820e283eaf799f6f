"""The part of the panel where layers become the colours that the model sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QWidget

from napari_hrsam.plugin.panel_parts import fill_combo, narrow

if TYPE_CHECKING:
    from napari.layers import Image

COLOURS = ("red", "green", "blue")
NONE = "–"
TOOLTIP = (
    "The layer that the model sees as {colour}. Leave all three at – to show it the chosen image "
    "alone"
)


class ColourBox(QWidget):
    """Three lists of the layers on one pixel grid, for red, green and blue.

    Attributes
    ----------
    picked
        Emitted when the user chose another layer.
    """

    picked = Signal()

    def __init__(self) -> None:
        super().__init__()
        layout = QFormLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setVerticalSpacing(2)
        layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.boxes: dict[str, QComboBox] = {}
        for colour in COLOURS:
            box = narrow(QComboBox())
            box.setToolTip(TOOLTIP.format(colour=colour))
            box.activated.connect(self._pick)
            self.boxes[colour] = box
            layout.addRow(colour, box)

    @property
    def chosen(self) -> dict[str, Image]:
        """The layers by colour; empty for the image alone."""
        chosen = {colour: box.currentData() for colour, box in self.boxes.items()}
        return {colour: layer for colour, layer in chosen.items() if layer is not None}

    def set_layers(self, layers: list[Image]) -> None:
        """Offer layers; a choice that is still among them stays."""
        for box in self.boxes.values():
            kept = box.currentData()
            fill_combo(box, [(NONE, None), *((layer.name, layer) for layer in layers)], kept)

    def forget(self) -> None:
        """Choose none."""
        for box in self.boxes.values():
            box.setCurrentIndex(0)

    def _pick(self) -> None:
        self.picked.emit()
