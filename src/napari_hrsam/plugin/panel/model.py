"""The part of the panel where a model is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QFrame, QVBoxLayout

from napari_hrsam.modeling.registry import ModelInfo, list_models
from napari_hrsam.plugin.panel.model_chooser import FILE_KINDS, ModelChooser, Picked
from napari_hrsam.plugin.panel.parts import WrappedLabel, button, narrow, row

TOOLTIP = "The network that draws the masks"
TOOLTIP_DOWNLOAD = "Fetch the weights, check them and load the model"
TOOLTIP_LOADING = "A model is being loaded: wait for it, or press Cancel below"
TOOLTIP_LOCKED = "Commit or cancel the object to change the model"


class DownloadQuestion(QFrame):
    """Asks, inside the panel, whether a model is to be downloaded; hidden until it has to.

    Attributes
    ----------
    agreed
        Emitted with the name of the model.
    """

    agreed = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._model = ""
        self.label = WrappedLabel()
        self.label.setTextFormat(Qt.TextFormat.RichText)
        self.agree_button = button("Download", TOOLTIP_DOWNLOAD, self._agree)
        self.decline_button = button("Cancel", "Stay with the present model", self.hide)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 2, 0, 6)
        layout.addWidget(self.label)
        layout.addWidget(row(self.agree_button, self.decline_button))
        self.hide()

    def ask(self, model: str, text: str) -> None:
        """Show a question, in rich text, about a model."""
        self._model = model
        self.label.setText(text)
        self.show()

    def _agree(self) -> None:
        self.hide()
        self.agreed.emit(self._model)


class ModelBox(QComboBox):
    """The list of models.

    Parameters
    ----------
    find_models
        Finds the named models.

    Attributes
    ----------
    picked
        Emitted with a name or path, and whether its download was agreed to.
    question
        The question before a download, for the panel to place.
    """

    picked = Signal(str, bool)

    def __init__(self, *, find_models: Callable[[], list[ModelInfo]] = list_models) -> None:
        super().__init__()
        narrow(self)
        self._find_models = find_models
        self.chooser = ModelChooser(find_models())
        self.question = DownloadQuestion()
        self.question.agreed.connect(self._agreed)
        self._is_waiting = False
        self._folder = ""
        self.activated.connect(self._activate)
        self._fill()
        self.set_state(is_loading=False, is_open=True, in_use="")

    def set_state(self, *, is_loading: bool, is_open: bool, in_use: str) -> None:
        """Follow the controller.

        Parameters
        ----------
        is_loading
            Whether a model is being loaded.
        is_open
            Whether a model can be chosen now: no loading, and no object being drawn.
        in_use
            Name or path of the loaded model, empty before the first one.
        """
        if self._is_waiting and not is_loading:
            self.chooser.settle(in_use)
            self.chooser.refresh(self._find_models())
            self._fill()
        self._is_waiting = is_loading
        why_locked = TOOLTIP_LOADING if is_loading else TOOLTIP_LOCKED
        self.setEnabled(is_open)
        self.setToolTip(TOOLTIP if is_open else why_locked)
        self.question.agree_button.setEnabled(is_open)
        self.question.agree_button.setToolTip(TOOLTIP_DOWNLOAD if is_open else why_locked)

    def showPopup(self) -> None:  # noqa: N802  Qt's name
        """Open the list, with models that came meanwhile, such as one that was fine-tuned."""
        self.chooser.refresh(self._find_models())
        self._fill()
        super().showPopup()

    def expect(self, key: str) -> None:
        """Show a model as the one that is being loaded."""
        self.chooser.begin(key)
        self._fill()

    def keep(self, key: str) -> None:
        """Choose a model without loading it; the next session begins with it."""
        self.chooser.chosen = key
        self._fill()

    def _fill(self) -> None:
        self.clear()
        for entry in self.chooser.rows():
            if entry is None:
                self.insertSeparator(self.count())
                continue
            self.addItem(entry.text, entry.key)
            self.setItemData(self.count() - 1, entry.tooltip, Qt.ItemDataRole.ToolTipRole)
        self._show_chosen()

    def _show_chosen(self) -> None:
        self.setCurrentIndex(self.findData(self.chooser.shown))

    def _activate(self, index: int) -> None:
        key = self.itemData(index)
        # The list goes on showing the model in use until another one is on its way.
        self._show_chosen()
        self.question.hide()
        match self.chooser.pick(key):
            case Picked.USE if key != self.chooser.chosen:
                self.picked.emit(key, False)
            case Picked.ASK:
                self.question.ask(key, self.chooser.question(key))
            case Picked.FILE:
                self._choose_file()

    def _agreed(self, model: str) -> None:
        self.picked.emit(model, True)

    def _choose_file(self) -> None:
        dialog = QFileDialog(self, "Choose a weight file", self._folder)
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        dialog.setNameFilters([f"Weights ({' '.join(FILE_KINDS)})", "All files (*)"])
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self._file_chosen)
        # Not exec: that would hold up what the inference thread delivers.
        dialog.open()

    def _file_chosen(self, path: str) -> None:
        self._folder = str(Path(path).parent)
        self.picked.emit(path, False)
