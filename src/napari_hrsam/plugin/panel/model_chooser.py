"""Which models can be chosen and what happens then; knows neither Qt nor torch."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from napari_hrsam.modeling.registry import ModelInfo
from napari_hrsam.plugin.session.loading import DEFAULT_MODEL
from napari_hrsam.plugin.session.messages import file_size

CHOOSE_FILE = "choose a file"
CHOOSE_FILE_TEXT = "Choose a file..."
FILE_KINDS = ("*.safetensors", "*.pth", "*.pt")


class Picked(StrEnum):
    """What choosing an entry asks for."""

    USE = "use it"
    ASK = "ask before the download"
    FILE = "choose a file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An entry of the list: what it says, its tooltip in rich text, and what is behind it."""

    text: str
    tooltip: str
    key: str


class ModelChooser:
    """The models to choose from, the chosen one, and the one that is on its way.

    Parameters
    ----------
    known
        The named models, in the order of the list.

    Attributes
    ----------
    chosen
        Name or path of the model that a session begins with.
    """

    def __init__(self, known: Sequence[ModelInfo]) -> None:
        self._known = list(known)
        self._files: list[str] = []
        self._pending: str | None = None
        self.chosen = DEFAULT_MODEL

    @property
    def shown(self) -> str:
        """The model that the list shows: the one on its way, else the chosen one."""
        return self._pending or self.chosen

    def refresh(self, known: Sequence[ModelInfo]) -> None:
        """Replace the named models, such as after a download."""
        self._known = list(known)

    def pick(self, key: str) -> Picked:
        """Say what choosing an entry asks for."""
        if key == CHOOSE_FILE:
            return Picked.FILE
        return Picked.ASK if self._is_download(key) else Picked.USE

    def is_named(self, key: str) -> bool:
        """Whether this is the name of a model, not a file."""
        return self._find(key) is not None

    def begin(self, key: str) -> None:
        """Show a model as the one on its way."""
        self._pending = key

    def settle(self, in_use: str) -> None:
        """End the wait: the model on its way is the chosen one if it is in use, else it is not.

        A file that could be used stays in the list.
        """
        if self._pending is not None and self._pending == in_use:
            self.chosen = in_use
            if not self.is_named(in_use) and in_use not in self._files:
                self._files.append(in_use)
        self._pending = None

    def rows(self) -> list[Row | None]:
        """Entries of the list from top to bottom; None is a separator."""
        files = self._files
        if not self.is_named(self.shown) and self.shown not in files:
            files = [*files, self.shown]
        here = [
            Row(text=model.name, tooltip=_tooltip(model), key=model.name)
            for model in self._known
            if model.weights
        ]
        away = [
            Row(
                text=f"{model.name} (download {file_size(model.download_bytes)})",
                tooltip=_tooltip(model),
                key=model.name,
            )
            for model in self._known
            if self._is_download(model.name)
        ]
        labels = [Path(path).name for path in files]
        opened = [
            Row(
                text=label if labels.count(label) == 1 else f"{label} ({Path(path).parent.name})",
                tooltip=_rich(path),
                key=path,
            )
            for path, label in zip(files, labels, strict=True)
        ]
        choose = Row(text=CHOOSE_FILE_TEXT, tooltip=self._file_tooltip(), key=CHOOSE_FILE)
        groups: list[list[Row]] = [[*here, *opened], away, [choose]]
        rows: list[Row | None] = []
        for group in groups:
            rows += [None, *group] if rows and group else group
        return rows

    def question(self, key: str) -> str:
        """Ask, in rich text, whether a model is to be downloaded."""
        model = self._find(key)
        assert model is not None
        size = file_size(model.download_bytes).replace(" ", "\N{NO-BREAK SPACE}")
        return (
            f"Download <b>{html.escape(model.name)}</b>, {size}, from "
            f"{html.escape(model.site)}?<br>Licence of the weights: {html.escape(model.licence)}. "
            "They are kept on this computer."
        )

    def _find(self, key: str) -> ModelInfo | None:
        return next((model for model in self._known if model.name == key), None)

    def _is_download(self, key: str) -> bool:
        model = self._find(key)
        return model is not None and not model.weights and model.download_bytes > 0

    def _file_tooltip(self) -> str:
        lines = ["A weight file: .safetensors, .pth or .pt"]
        away = [m.name for m in self._known if not m.weights and not m.download_bytes]
        if away:
            lines.append(
                f"Also the way to {', '.join(away)}: get their weights from their authors "
                "(<i>napari-hrsam models</i> says where)"
            )
        return _rich_lines(lines)


def _tooltip(model: ModelInfo) -> str:
    lines = [f"<b>{html.escape(model.name)}</b>", html.escape(model.description)]
    if model.licence:
        lines.append(f"Licence of the weights: {html.escape(model.licence)}")
    if model.trained_on:
        lines.append(f"Trained on: {html.escape(model.trained_on)}")
    if model.download_bytes and not model.weights:
        lines.append(f"From {html.escape(model.site)}; you are asked first")
    return _rich_lines(lines)


def _rich(text: str) -> str:
    return _rich_lines([html.escape(text)])


def _rich_lines(lines: Sequence[str]) -> str:
    # Qt wraps the lines of a tooltip only in rich text.
    return f"<qt>{'<br>'.join(lines)}</qt>"
