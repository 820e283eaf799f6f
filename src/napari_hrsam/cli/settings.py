"""Options of the command line made from settings dataclasses, and dataclasses from options."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

_FOR_FLAGS = (int, float, str)


def add_settings(
    parser: argparse.ArgumentParser,
    settings: type,
    title: str,
    *,
    leave_out: frozenset[str] = frozenset(),
    prefix: str = "",
) -> None:
    """Add a group with an option for every number, name, switch and pair of a dataclass.

    The help is what the docstring says of the field. Options that are not given are None, so that
    the dataclass decides on the default. Tables are left out: they are given in a file.

    Parameters
    ----------
    parser : ArgumentParser
    settings : type
        A dataclass with a numpy docstring.
    title : str
        Of the group.
    leave_out : frozenset of str
        Fields that get no option.
    prefix : str
        Before the names of options.
    """
    group = parser.add_argument_group(title)
    hints, texts = get_type_hints(settings), _descriptions(settings)
    for field in fields(settings):
        kind = hints[field.name]
        if field.name in leave_out or not _is_simple(kind):
            continue
        options: dict[str, Any] = {"help": texts[field.name], "dest": prefix + field.name}
        flag = "--" + (prefix + field.name).replace("_", "-")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, **options)
        elif get_origin(kind) is tuple:
            item, *more = get_args(kind)
            size: int | str = len(more) + 1 if more != [...] else "+"
            group.add_argument(flag, type=item, nargs=size, metavar=_metavar(item), **options)
        else:
            is_choice = get_origin(kind) is Literal
            # Which names are allowed the dataclass checks, also for what a file says.
            metavar = "|".join(get_args(kind)) if is_choice else _metavar(kind)
            group.add_argument(flag, type=str if is_choice else kind, metavar=metavar, **options)


def given(args: argparse.Namespace, settings: type, *, prefix: str = "") -> dict[str, Any]:
    """Collect the options of `add_settings` that were given, by field."""
    found = {}
    for field in fields(settings):
        value = getattr(args, prefix + field.name, None)
        if value is not None:
            found[field.name] = value
    return found


def from_saved(settings: type, saved: Mapping[str, Any]) -> Any:
    """Rebuild a dataclass from JSON: lists become tuples, mappings the dataclasses in it.

    Raises
    ------
    TypeError
        If there is a field that it does not have.
    ConfigError
        If a value is out of range.
    """
    hints = get_type_hints(settings)
    return settings(**{name: _rebuilt(hints.get(name), value) for name, value in saved.items()})


def _rebuilt(kind: Any, value: Any) -> Any:
    if isinstance(value, Mapping) and is_dataclass(kind):
        return from_saved(kind, value)  # type: ignore[arg-type]
    if isinstance(value, (list, tuple)) and get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return tuple(_rebuilt(item, each) for each in value)
    return value


def _is_simple(kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return get_args(kind)[0] in _FOR_FLAGS
    return kind in (*_FOR_FLAGS, bool) or get_origin(kind) is Literal


def _metavar(kind: type) -> str:
    return {int: "N", float: "X", str: "NAME"}[kind]


def _descriptions(settings: type) -> dict[str, str]:
    """Read what the section "Attributes" of a numpy docstring says of each field."""
    section = (inspect.getdoc(settings) or "").partition("Attributes\n----------\n")[2]
    found = {}
    for block in re.split(r"\n(?=\S)", section):
        head, _, text = block.partition("\n")
        names, _, kind = head.partition(" : ")
        # A % would be a format for argparse.
        words = " ".join(text.split()).replace("%", "%%").replace("`", "")
        for name in names.split(", "):
            found[name.strip()] = words or kind
    return found
