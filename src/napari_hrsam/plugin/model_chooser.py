"""Which models can be chosen and what happens then; knows neither Qt nor torch."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from safetensors import SafetensorError, safe_open

from napari_hrsam.modeling.download import RegistryEntry, load_registry, weight_folders
from napari_hrsam.modeling.models import MODELS, ModelConfig, find_config
from napari_hrsam.plugin.state import file_size

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "hrsam-tiny"
CHOOSE_FILE = "choose a file"
CHOOSE_FILE_TEXT = "Choose a file..."
FILE_KINDS = ("*.safetensors", "*.pth", "*.pt")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """A named model as the chooser shows it.

    Attributes
    ----------
    name, description, licence, trained_on
        For the list and its tooltips.
    is_here
        Whether its weights are on this machine.
    download_bytes
        Size of the weights to fetch; 0 if they cannot be fetched.
    site
        Host that they are fetched from.
    """

    name: str
    description: str
    licence: str
    trained_on: str = ""
    is_here: bool = False
    download_bytes: int = 0
    site: str = ""


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


def find_known_models() -> list[KnownModel]:
    """Find the named models and whether their weights are here, from the disk alone."""
    registry = load_registry()
    folders = weight_folders()
    return [_known(config, registry, folders) for config in MODELS.values()]


def _known(
    config: ModelConfig, registry: Mapping[str, RegistryEntry], folders: Sequence[Path]
) -> KnownModel:
    entry = registry.get(config.download or config.name)
    fetched = entry if entry is not None and entry.url else None
    path = _find_weights(config, registry, folders)
    return KnownModel(
        name=config.name,
        description=config.description,
        licence=config.licence or (entry.licence if entry else ""),
        trained_on=_trained_on(path) or (entry.trained_on if entry else ""),
        is_here=path is not None,
        download_bytes=fetched.num_bytes if fetched else 0,
        site=urlsplit(fetched.url).hostname or "" if fetched else "",
    )


def _find_weights(
    config: ModelConfig, registry: Mapping[str, RegistryEntry], folders: Sequence[Path]
) -> Path | None:
    """As `list_models` does, which needs torch: the last file needed, None if one is missing."""
    base_name = config.name.removesuffix("+focus").removesuffix("+ba")
    base = find_config(base_name)
    whole, own, under = f"{config.name}.safetensors", config.weights, f"{base_name}.safetensors"
    entries = [registry.get(each.download or each.name) for each in (config, base)]
    fetched = [entry.file for entry in entries if entry is not None and entry.url]
    path = _first([whole, own, *fetched, under], folders)
    if config.focus is not None and path is not None and path.name != whole:
        return _first([config.focus_weights], folders)
    return path


def _first(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    paths = [folder / name for folder in folders for name in names if name]
    return next((path for path in paths if path.is_file()), None)


def _trained_on(path: Path | None) -> str:
    if path is None or path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(path, framework="numpy") as tensors:
            return str((tensors.metadata() or {}).get("trained_on", ""))
    except (SafetensorError, OSError) as error:
        # Choosing the model will tell what is wrong with its file.
        logger.info("%s cannot be read: %s", path, error)
        return ""


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

    def __init__(self, known: Sequence[KnownModel]) -> None:
        self._known = list(known)
        self._files: list[str] = []
        self._pending: str | None = None
        self.chosen = DEFAULT_MODEL

    @property
    def shown(self) -> str:
        """The model that the list shows: the one on its way, else the chosen one."""
        return self._pending or self.chosen

    def refresh(self, known: Sequence[KnownModel]) -> None:
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
            if model.is_here
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

    def _find(self, key: str) -> KnownModel | None:
        return next((model for model in self._known if model.name == key), None)

    def _is_download(self, key: str) -> bool:
        model = self._find(key)
        return model is not None and not model.is_here and model.download_bytes > 0

    def _file_tooltip(self) -> str:
        lines = ["A weight file: .safetensors, .pth or .pt"]
        away = [m.name for m in self._known if not m.is_here and not m.download_bytes]
        if away:
            lines.append(
                f"Also the way to {', '.join(away)}: get their weights from their authors "
                "(<i>napari-hrsam models</i> says where)"
            )
        return _rich_lines(lines)


def _tooltip(model: KnownModel) -> str:
    lines = [f"<b>{html.escape(model.name)}</b>", html.escape(model.description)]
    if model.licence:
        lines.append(f"Licence of the weights: {html.escape(model.licence)}")
    if model.trained_on:
        lines.append(f"Trained on: {html.escape(model.trained_on)}")
    if model.download_bytes and not model.is_here:
        lines.append(f"From {html.escape(model.site)}; you are asked first")
    return _rich_lines(lines)


def _rich(text: str) -> str:
    return _rich_lines([html.escape(text)])


def _rich_lines(lines: Sequence[str]) -> str:
    # Qt wraps the lines of a tooltip only in rich text.
    return f"<qt>{'<br>'.join(lines)}</qt>"
