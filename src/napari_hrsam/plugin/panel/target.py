"""The part of the panel where the user says where objects are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QInputDialog

from napari_hrsam.errors import HRSAMError
from napari_hrsam.plugin.panel.parts import fill_combo, narrow
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.plugin.session.targets import (
    NewLayer,
    Target,
    can_be_target,
    default_target,
    fits_in_memory,
)
from napari_hrsam.storage.labels.names import label_names
from napari_hrsam.storage.labels.places import (
    DEFAULT_NAME,
    LabelFile,
    OwnPlace,
    labels_in,
    ome_zarr_of,
)

if TYPE_CHECKING:
    from napari.layers import Image, Labels

    from napari_hrsam.storage.images.layers import LayerImage

NEW_LAYER = "new layer"
OWN_PLACE = "on disk, in the user folder"
OTHER_NAME = "a new name ..."
OTHER_FOLDER = "a folder ..."
TOOLTIP = (
    "Where committed objects are kept: a Labels layer in memory, or a label image on disk, beside "
    "the image or in a folder"
)
_ASKS = (OTHER_NAME, OTHER_FOLDER)


class TargetBox(QComboBox):
    """The list of places for objects; what it holds depends on the image.

    Attributes
    ----------
    picked
        Emitted when the user chose another place.
    """

    picked = Signal()

    def __init__(self) -> None:
        super().__init__()
        narrow(self)
        self.setToolTip(TOOLTIP)
        self._image: Image | None = None
        self._default: Target | None = None
        self._beside: Path | None = None
        self._can_be_layer = True
        self._held: LayerImage | None = None
        self._added: list[LabelFile] = []
        self._names: tuple[str, ...] = ()
        self._layers: list[tuple[str, Any]] = []
        self._choice: Target | None = None
        self.activated.connect(self._pick)

    @property
    def chosen(self) -> Target | None:
        """The chosen place; None to have it chosen by the kind of image."""
        chosen: Target | None = self._choice or self._fitting()
        return chosen

    def set_image(self, image: Image | None) -> None:
        """Offer what an image can have; looks at its files."""
        if image is None or image != self._image:
            self._choice, self._added = None, []
        self._image = image
        self._default, self._beside, self._can_be_layer = None, None, True
        self._held = None
        if image is not None:
            try:
                held = read_image_layers(image).image
            except HRSAMError:
                # Start says what is wrong with it.
                held = None
            self._held = held
            if held is not None:
                self._default = default_target(image, held)
                self._beside = ome_zarr_of(image)
                self._can_be_layer = fits_in_memory(held)
        self._names = () if self._beside is None else label_names(self._beside)
        self._fill()

    def set_layers(self, layers: list[tuple[str, Labels]]) -> None:
        """Offer Labels layers, by name."""
        self._layers = list(layers)
        self._fill()

    def choose(self, target: Target | None) -> None:
        """Choose a place; one on disk that is not offered yet is added."""
        if isinstance(target, LabelFile) and target not in self._files():
            self._added.append(target)
        self._choice = target
        self._fill()

    def _fitting(self) -> Labels | None:
        """Return the topmost Labels layer that can take the objects, if the image is flat."""
        image, held = self._image, self._held
        if image is None or held is None or not self._can_be_layer:
            return None
        fitting = [layer for _, layer in self._layers if can_be_target(layer, image, held)]
        return fitting[-1] if fitting else None

    def _files(self) -> list[LabelFile]:
        beside = []
        if self._beside is not None:
            names = dict.fromkeys([DEFAULT_NAME, *self._names])
            beside = [LabelFile(self._beside, name) for name in names]
        return [*beside, *(file for file in self._added if file not in beside)]

    def _fill(self) -> None:
        items: list[tuple[str, Any]] = [(NEW_LAYER, NewLayer())] if self._can_be_layer else []
        items.extend(self._layers)
        for file in self._files():
            where = "beside the image" if file.path == self._beside else f"in {file.path.name}"
            items.append((f"{file.name} ({where})", file))
        if self._image is not None:
            items.append((OWN_PLACE, OwnPlace(self._image.name)))
        if self._beside is not None:
            items.append((OTHER_NAME, OTHER_NAME))
        items.append((OTHER_FOLDER, OTHER_FOLDER))
        fill_combo(self, items, self.chosen or self._default)

    def _pick(self) -> None:
        data = self.currentData()
        if isinstance(data, str):
            data = self._ask_name() if data == OTHER_NAME else self._ask_folder()
        if data is None:
            self._fill()
            return
        self.choose(data)
        self.picked.emit()

    def _ask_name(self) -> LabelFile | None:
        name, is_agreed = QInputDialog.getText(self, "New label image", "Name, such as cells:")
        if not is_agreed or not name.strip() or self._beside is None:
            return None
        return LabelFile(self._beside, name.strip())

    def _ask_folder(self) -> LabelFile | None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for the objects")
        if not folder or self._image is None:
            return None
        return labels_in(Path(folder), self._image.name)
