"""What the user set under File > Preferences > HRSAM, and a panel that follows it.

Of what both the panel and the preferences show there is one value: what is changed in the one is
changed in the other, and remembered. Model and device are what a panel begins with; its own lists
choose others for it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_warning
from qtpy.QtCore import QTimer
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QMenu

from napari_hrsam.errors import ConfigError
from napari_hrsam.plugin.canvas.key_table import DEFAULT_KEYS, KeyMap, parse_key, read_keys
from napari_hrsam.plugin.canvas.keys import TAKEN_FROM_NAPARI
from napari_hrsam.plugin.panel.parts import Links
from napari_hrsam.plugin.panel.window import main_window
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, DEFAULT_MODEL

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

    from napari_hrsam.plugin.session.controller import SegmentController

PLUGIN = "napari-hrsam"
TYPING_MS = 600
"""How long the preferences are left alone before they are taken over: keys and colours are typed
there letter by letter."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "start": {"model": DEFAULT_MODEL, "device": AUTO_DEVICE},
    "drawing": {"look_ahead": True, "preview": False},
    "embeddings": {"folder": "", "max_gb": 0.0},
    "colors": {"current_object": "#00d9ff", "by_class": False},
    "keys": DEFAULT_KEYS,
}
"""By configuration and property of the manifest, which says the same."""

SHARED = {
    ("drawing", "look_ahead"): "reads_ahead",
    ("drawing", "preview"): "peeks",
    ("colors", "by_class"): "colors_by_class",
}
"""What the panel shows too, and its name in the state."""


class Preferences:
    """The preferences; the defaults where napari keeps none."""

    def __init__(self) -> None:
        self._settings = _find_settings()

    def get(self, group: str, name: str) -> Any:
        """Return a preference."""
        if self._settings is None:
            return DEFAULTS[group][name]
        return getattr(getattr(self._settings, group), name)

    def put(self, group: str, name: str, value: Any) -> None:
        """Change a preference; napari writes it to its file."""
        if self._settings is not None:
            setattr(getattr(self._settings, group), name, value)

    def group(self, group: str) -> dict[str, Any]:
        """Return the preferences of a group, by name."""
        return {name: self.get(group, name) for name in DEFAULTS[group]}

    @property
    def signals(self) -> list[Any]:
        """What is emitted when preferences change, one signal per group."""
        if self._settings is None:
            return []
        return [getattr(self._settings, group).events for group in DEFAULTS]

    def keys(self, taken: Mapping[str, str]) -> tuple[KeyMap, tuple[str, ...]]:
        """Return the keys, and what is wrong with those that were refused; see `read_keys`."""
        return read_keys(self.group("keys"), taken)


def keys_of_napari(panel: QWidget | None) -> dict[str, str]:
    """Return keys that napari uses to what they do there, but for those that are ours anyway.

    Parameters
    ----------
    panel
        A widget in the window whose menus have keys, too.
    """
    from napari.settings import get_settings

    found: dict[str, str] = {}
    for action, keys in get_settings().shortcuts.shortcuts.items():
        what = action.removeprefix("napari:").replace("_", " ")
        found |= dict.fromkeys(map(str, keys), f"is napari's key for '{what}'")
    for menu in [] if panel is None else main_window(panel).findChildren(QMenu):
        for action in menu.actions():
            name = action.text().replace("&", "")
            # Keys that cannot be chosen need no name.
            with suppress(ConfigError):
                found[parse_key(action.shortcut().toString())] = f"is napari's key for '{name}'"
    return {key: what for key, what in found.items() if key not in TAKEN_FROM_NAPARI}


class PreferencesLink:
    """Keeps a panel and the preferences alike.

    Parameters
    ----------
    panel
        In whose window the keys are used.
    controller
        Of the panel.
    begin_with
        Called with model and device that a panel begins with.
    """

    def __init__(
        self,
        panel: QWidget,
        controller: SegmentController,
        begin_with: Callable[[str, str], None],
    ) -> None:
        self._panel, self._controller, self._begin_with = panel, controller, begin_with
        self._preferences = Preferences()
        self._taken: dict[str, dict[str, Any]] = {}
        self._told: tuple[str, ...] = ()
        self._timer = QTimer(panel)
        self._timer.setSingleShot(True)
        self._timer.setInterval(TYPING_MS)
        self._timer.timeout.connect(self.take)
        self._shown = self._shown_now()
        self._links = Links(
            (controller.state.changed, self._on_state),
            *((signal, self._on_change) for signal in self._preferences.signals),
        )
        self.take()

    def close(self) -> None:
        """Follow nothing any more."""
        self._links.close()

    def take(self) -> None:
        """Take over what has changed in the preferences."""
        self._timer.stop()
        for group in DEFAULTS:
            values = self._preferences.group(group)
            if values != self._taken.get(group):
                self._taken[group] = values
                getattr(self, f"_take_{group}")(values)

    def _on_change(self, _event: Any) -> None:
        self._timer.start()

    def _shown_now(self) -> dict[tuple[str, str], Any]:
        return {place: getattr(self._controller.state, name) for place, name in SHARED.items()}

    def _on_state(self) -> None:
        before, self._shown = self._shown, self._shown_now()
        for place, value in self._shown.items():
            if value != before[place] and value != self._preferences.get(*place):
                self._preferences.put(*place, value)

    # ------------------------------------------------------------------ one group each

    def _take_start(self, values: Mapping[str, Any]) -> None:
        self._begin_with(values["model"].strip() or DEFAULT_MODEL, values["device"])

    def _take_drawing(self, values: Mapping[str, Any]) -> None:
        self._controller.settings.set_reads_ahead(values["look_ahead"])
        self._controller.settings.set_peeks(values["preview"])

    def _take_embeddings(self, values: Mapping[str, Any]) -> None:
        self._controller.settings.keep_embeddings(values["folder"].strip(), values["max_gb"])

    def _take_colors(self, values: Mapping[str, Any]) -> None:
        color = QColor(values["current_object"].strip())
        if color.isValid():
            self._controller.settings.set_object_color(
                (color.redF(), color.greenF(), color.blueF())
            )
        else:
            show_warning(
                "Expected a colour such as #00d9ff or orange for the current object in File > "
                f"Preferences > HRSAM, got {values['current_object']!r:.40}; it stays as it is."
            )
        self._controller.settings.set_colors_by_class(values["by_class"])

    def _take_keys(self, _values: Mapping[str, Any]) -> None:
        keys, problems = self._preferences.keys(keys_of_napari(self._panel))
        self._controller.set_keys(keys)
        news = [problem for problem in problems if problem not in self._told]
        self._told = problems
        if news:
            show_warning("\n".join(news))


def _find_settings() -> Any:
    """Return what napari keeps for us: None without the plugin's manifest, or before napari 0.9."""
    try:
        from napari.settings import get_plugin_settings

        return get_plugin_settings(PLUGIN)
    except (ImportError, KeyError):
        return None
