"""Mouse and keys: one table of what they do, from which all help is made, and the keys as set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from napari_hrsam.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key of ours.

    Attributes
    ----------
    action
        Its name in the preferences.
    key
        The key that it has unless the user chose another one.
    title
        What it does, in a word or two.
    effect
        What it does; ``{edit}`` stands for the key of another action.
    """

    action: str
    key: str
    title: str
    effect: str


KEYS = (
    KeyRow("commit", "C", "Commit", "commits the object"),
    KeyRow("cancel", "Escape", "Cancel", "cancels the object"),
    KeyRow("undo", "Ctrl+Z", "Undo", "undoes brush strokes and prompts, then commits and changes"),
    KeyRow("redo", "Ctrl+Shift+Z", "Redo", "repeats what was undone"),
    KeyRow("polarity", "T", "Add or take away", "swaps adding and taking away"),
    KeyRow("box", "B", "Box", "drags draw a box; once more: they move the view again"),
    KeyRow(
        "scribble", "S", "Scribble", "drags draw a scribble; with the right button it takes away"
    ),
    KeyRow("lasso", "L", "Lasso", "drags draw an outline around the object"),
    KeyRow("next_mask", "N", "Other mask", "shows another mask that the clicks may mean"),
    KeyRow(
        "preview", "H", "Preview", "shows under the mouse what a click would give, or no longer"
    ),
    KeyRow(
        "edit",
        "E",
        "Change",
        "takes up the committed object under the mouse; {commit} puts it back under its id",
    ),
    KeyRow("delete", "Delete", "Delete", "deletes the committed object under the mouse"),
    KeyRow(
        "merge", "M", "Merge", "merges the one under the mouse into the one taken up with {edit}"
    ),
    KeyRow("cut", "K", "Cut", "drags cut a committed object in two"),
    KeyRow(
        "next_plane",
        "Shift+Right",
        "Next plane",
        "continues the object on the next plane of a stack",
    ),
    KeyRow("previous_plane", "Shift+Left", "Previous plane", "continues it on the previous plane"),
    KeyRow(
        "next_proposal", "Right", "Next proposal", "while proposals are reviewed: goes to the next"
    ),
    KeyRow("previous_proposal", "Left", "Previous proposal", "goes to the one before"),
    KeyRow("accept", "A", "Accept", "accepts the proposal; {commit} commits all accepted ones"),
    KeyRow("reject", "X", "Reject", "rejects the proposal; {undo} undoes a decision"),
    KeyRow(
        "accept_above",
        "Shift+A",
        "Accept above",
        "accepts all proposals that are at or above the threshold",
    ),
    KeyRow("higher", "Up", "Higher threshold", "raises that threshold"),
    KeyRow("lower", "Down", "Lower threshold", "lowers it"),
    KeyRow("show_keys", "F1", "Show the keys", "shows this table"),
)

CLASS_KEYS = tuple(f"Alt+{digit}" for digit in range(1, 10))

MOUSE = (
    ("Left click", "adds to the object"),
    ("Right click", "takes away from it; so do Ctrl and Shift + click"),
    ("Drag, wheel", "move and zoom the view, as always"),
    ("Shift+drag", "draws a box around the object"),
)
FIXED = (
    (
        "Alt+1 to Alt+9",
        "give a class: to the current object, else the selected rows, else the one under the mouse",
    ),
    ("P, 1, Z", "brush, eraser, back to clicking (with the [current] layer selected)"),
)
"""What is on keys that cannot be changed."""

DEFAULT_KEYS: Mapping[str, str] = {row.action: row.key for row in KEYS}

NEVER_ARRIVE = {"Tab": "moves the keyboard's focus", "Shift+Tab": "moves the keyboard's focus"}

_MODIFIERS = {"control": "Ctrl", "ctrl": "Ctrl", "shift": "Shift", "alt": "Alt", "meta": "Meta"}
_ORDER = ("Ctrl", "Shift", "Alt", "Meta")
_NAMED = {
    name.casefold(): name
    for name in (
        *("Escape", "Delete", "Enter", "Backspace", "Space", "Tab", "Insert", "Home", "End"),
        *("PageUp", "PageDown", "Left", "Right", "Up", "Down"),
        *(f"F{number}" for number in range(1, 13)),
    )
} | {"esc": "Escape", "del": "Delete", "return": "Enter"}
_SIGNS = "`,./;'[]=\\-"
_SHORT = {"Escape": "Esc", "Delete": "Del"}


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Which key each action has.

    Parameters
    ----------
    keys
        Action to key, as `parse_key` returns it.
    """

    keys: Mapping[str, str] = field(default_factory=lambda: DEFAULT_KEYS)

    def __getitem__(self, action: str) -> str:
        """Return the key of an action, as napari and Qt read it."""
        return self.keys[action]

    def text(self, action: str) -> str:
        """Return the key of an action as people write it."""
        *modifiers, key = self.keys[action].rsplit("+", 1)
        return "+".join((*modifiers, _SHORT.get(key, key)))

    def spell(self, text: str) -> str:
        """Put keys in the place of actions in braces: ``{commit}``; other braces stay."""
        return re.sub(r"\{(\w+)\}", lambda f: self.text(f[1]) if f[1] in self.keys else f[0], text)

    def rows(self) -> list[tuple[str, str]]:
        """Return all of the mouse and the keys, and what each does."""
        ours = [(self.text(row.action), self.spell(row.effect)) for row in KEYS]
        return [*MOUSE, *ours, *FIXED]


def parse_key(text: str) -> str:
    """Read a key as a person writes it: "c", "Ctrl+Z", "shift-right", "Esc".

    Returns
    -------
    str
        As napari writes it: ``"Ctrl+Shift+Z"``.

    Raises
    ------
    ConfigError
        If it is none.
    """
    *before, last = re.split(r"(?<=[^+-])[+-]", text.strip())
    modifiers = {_MODIFIERS.get(one.strip().casefold(), "") for one in before}
    name = last.strip().casefold()
    is_sign = len(name) == 1 and name in _SIGNS
    is_plain = len(name) == 1 and name.isascii() and name.isalnum()
    key = _NAMED.get(name) or (name.upper() if is_plain or is_sign else "")
    # What Shift makes of a digit or a sign is another one on each keyboard.
    is_shifted = "Shift" in modifiers and (is_sign or name.isdigit())
    if not key or "" in modifiers or is_shifted:
        raise ConfigError(
            f"expected a key such as K, F2, Shift+G or Ctrl+Alt+D, got {text!r:.40}: a letter, a "
            "digit, a sign, an arrow or a named key, with Ctrl, Shift, Alt or Meta before it"
        )
    return "+".join([*(one for one in _ORDER if one in modifiers), key])


def read_keys(
    chosen: Mapping[str, str], taken: Mapping[str, str]
) -> tuple[KeyMap, tuple[str, ...]]:
    """Check the keys that a user chose; one that cannot be used leaves its action the default.

    Parameters
    ----------
    chosen
        Action to key as written; what is missing or empty has its default.
    taken
        Keys of others to what they do there: not to be chosen.

    Returns
    -------
    KeyMap
        What is used.
    tuple of str
        What was refused, one sentence each.
    """
    wanted, problems = dict(DEFAULT_KEYS), []
    titles = {row.action: row.title for row in KEYS}

    def refuse(action: str, why: str) -> None:
        wanted[action] = default = DEFAULT_KEYS[action]
        problems.append(f"The key for '{titles[action]}' stays {default}: {why}.")

    others = {**taken, **NEVER_ARRIVE, **dict.fromkeys(CLASS_KEYS, "gives a class")}
    for action in DEFAULT_KEYS:
        text = chosen.get(action, "")
        if not text.strip():
            continue
        try:
            key = wanted[action] = parse_key(text)
        except ConfigError as error:
            refuse(action, str(error))
            continue
        if key != DEFAULT_KEYS[action] and key in others:
            refuse(action, f"{key} {others[key]}; choose another key")
    # The default of one that was refused may be what another one was changed to.
    while clash := next((key for key, num in Counter(wanted.values()).items() if num > 1), None):
        sharing = [action for action, key in wanted.items() if key == clash]
        changed = [action for action in sharing if DEFAULT_KEYS[action] != clash]
        # Of two that were changed to the same key the first keeps it.
        is_free = len(changed) == len(sharing)
        for action in changed[is_free:]:
            keeper = next(one for one in sharing if one != action and one not in changed[is_free:])
            refuse(action, f"{clash} is the key for '{titles[keeper]}'; choose another one")
    return KeyMap(wanted), tuple(problems)
