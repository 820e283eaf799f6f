"""The part of the panel where layers become the colours that the model sees."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QWidget

from napari_hrsam.plugin.panel.parts import fill_combo, narrow

if TYPE_CHECKING:
    from napari.layers import Image

COLOURS = ("red", "green", "blue")
AS_SHOWN, NOTHING = "as on screen", "nothing"
TOOLTIP = (
    "The layer that the model sees as {colour}, between its contrast limits. While all three say "
    f"'{AS_SHOWN}', the model sees what you see: the image and the visible layers on its pixel "
    "grid that it is blended with, in their colours"
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
        self._image: Image | None = None
        self.boxes: dict[str, QComboBox] = {}
        for colour in COLOURS:
            box = narrow(QComboBox())
            box.setToolTip(TOOLTIP.format(colour=colour))
            box.activated.connect(partial(self._pick, box))
            self.boxes[colour] = box
            layout.addRow(colour, box)

    @property
    def chosen(self) -> dict[str, Image]:
        """The layers by colour; empty for what is on screen."""
        chosen = {colour: box.currentData() for colour, box in self.boxes.items()}
        return {colour: layer for colour, layer in chosen.items() if layer is not None}

    def set_layers(self, layers: list[Image], image: Image | None) -> None:
        """Offer layers, of which one is the image; a choice that is still among them stays."""
        self._image = image
        kept = {box: box.currentData() for box in self.boxes.values()}
        none = NOTHING if any(layer in layers for layer in kept.values()) else AS_SHOWN
        for box, layer in kept.items():
            fill_combo(box, [(none, None), *((one.name, one) for one in layers)], layer)

    def forget(self) -> None:
        """Choose none."""
        for box in self.boxes.values():
            box.setCurrentIndex(0)
        self._name_none()

    def _pick(self, box: QComboBox, _place: int) -> None:
        chosen = self.chosen
        if len(chosen) == 1 and box.currentData() not in (None, self._image):
            # The first choice, of another layer: the image itself stays in the picture.
            free = next(other for other in self.boxes.values() if other is not box)
            layers = [free.itemData(place) for place in range(free.count())]
            free.setCurrentIndex(layers.index(self._image))
        self._name_none()
        self.picked.emit()

    def _name_none(self) -> None:
        """Say what no layer means: what is on screen, or nothing beside the others."""
        for box in self.boxes.values():
            box.setItemText(0, NOTHING if self.chosen else AS_SHOWN)
