"""The table of keys: what can be chosen, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_model.types import KeyBinding
from hypothesis import given
from hypothesis import strategies as st

from napari_hrsam.errors import ConfigError
from napari_hrsam.plugin.canvas.key_table import DEFAULT_KEYS, KEYS, KeyMap, parse_key, read_keys

README = Path(__file__).parents[3] / "README.md"
NAPARI = {"G": "is napari's key for 'grid'", "Ctrl+O": "is napari's key for 'Open File(s)...'"}
SOME_KEYS = ("", "a", "Q", "G", "Ctrl+O", "nonsense", "Alt+3", *DEFAULT_KEYS.values())


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("c", "C"),
        (" Control-Shift-z ", "Ctrl+Shift+Z"),
        ("shift+ctrl+Z", "Ctrl+Shift+Z"),
        ("Esc", "Escape"),
        ("ctrl+del", "Ctrl+Delete"),
        ("shift-right", "Shift+Right"),
        ("f2", "F2"),
        ("-", "-"),
        ("Ctrl+-", "Ctrl+-"),
        ("Alt-,", "Alt+,"),
    ],
)
def test_a_key_is_read_as_people_write_it(written: str, key: str) -> None:
    assert parse_key(written) == key
    assert str(KeyBinding.from_str(key)) == key, "napari reads the same"


@pytest.mark.parametrize(
    "written",
    ["", "CC", "Ctrl", "Ctrl+", "C+D", "Hyper+C", "Ctrl+K Ctrl+S", "?", "Shift+/", "Shift+1", "é"],
)
def test_what_is_no_key_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="expected a key such as"):
        parse_key(written)


def test_defaults_are_keys_of_their_own() -> None:
    assert [parse_key(row.key) for row in KEYS] == list(DEFAULT_KEYS.values())
    assert len(set(DEFAULT_KEYS.values())) == len(DEFAULT_KEYS)
    assert read_keys({}, {}) == (KeyMap(), ())


def test_two_actions_may_swap_their_keys() -> None:
    keys, problems = read_keys({"commit": "e", "edit": "c"}, {})
    assert (keys["commit"], keys["edit"], problems) == ("E", "C", ())


@pytest.mark.parametrize(
    ("chosen", "stays", "told"),
    [
        ({"box": "g"}, {"box": "B"}, ["'Box' stays B: G is napari's key for 'grid'"]),
        ({"box": "N"}, {"box": "B"}, ["'Box' stays B: N is the key for 'Other mask'"]),
        ({"box": "Alt+2"}, {"box": "B"}, ["Alt+2 gives a class"]),
        ({"box": "Tab"}, {"box": "B"}, ["Tab moves the keyboard's focus"]),
        ({"box": "foo"}, {"box": "B"}, ["'Box' stays B: expected a key such as K"]),
        (
            # Refused, the one wants its default back, which the other took.
            {"next_mask": "G", "box": "N"},
            {"next_mask": "N", "box": "B"},
            ["'Other mask' stays N", "'Box' stays B: N is the key for 'Other mask'"],
        ),
        (
            {"box": "Q", "lasso": "Q"},
            {"box": "Q", "lasso": "L"},
            ["'Lasso' stays L: Q is the key for 'Box'"],
        ),
    ],
)
def test_a_key_that_cannot_be_used_is_named_with_what_has_it(
    chosen: dict[str, str], stays: dict[str, str], told: list[str]
) -> None:
    keys, problems = read_keys(chosen, NAPARI)
    assert {action: keys[action] for action in stays} == stays
    assert len(problems) == len(told)
    for problem, text in zip(problems, told, strict=True):
        assert text in problem


@given(st.fixed_dictionaries({action: st.sampled_from(SOME_KEYS) for action in DEFAULT_KEYS}))
def test_whatever_is_chosen_every_action_has_one_key_and_none_of_napari(
    chosen: dict[str, str],
) -> None:
    keys, problems = read_keys(chosen, NAPARI)
    used = [keys[action] for action in DEFAULT_KEYS]
    assert len(set(used)) == len(used)
    assert not set(used) & set(NAPARI)
    kept = [a for a, text in chosen.items() if text.strip() and keys[a] == DEFAULT_KEYS[a]]
    assert len(problems) <= len(kept), "who is told so has the default"


def test_texts_name_the_keys_that_are_set() -> None:
    keys, _ = read_keys({"edit": "Ctrl+Del", "commit": "q"}, {})
    assert keys.spell("[{edit}] {commit} {other}") == "[Ctrl+Del] Q {other}"
    assert (
        "M",
        "merges the one under the mouse into the one taken up with Ctrl+Del",
    ) in keys.rows()
    assert dict(keys.rows())["Q"] == "commits the object"


def test_the_table_of_the_readme_is_this_one() -> None:
    """`python scripts/readme_keys.py` writes it."""
    text = README.read_text(encoding="utf-8")
    table = text.partition("<!-- keys:begin -->\n")[2].partition("<!-- keys:end -->")[0]
    told = [tuple(line.strip("| ").split(" | ")) for line in table.splitlines()[2:]]
    assert told == KeyMap().rows()
