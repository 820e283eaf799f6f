"""Jobs: prepared in the viewer's thread, where layers may be read, and done in any other."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeAlias, TypeVar

from napari_hrsam.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

Progress: TypeAlias = Callable[[int, int], None]
Job: TypeAlias = Callable[[Progress], T]
"""Does the work; tells its progress what is done and what there is in all."""


def at_once(prepare: Callable[P, Job[T]]) -> Callable[P, T]:
    """Make the function that prepares a job and does it, for scripts."""

    @wraps(prepare)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        return prepare(*arguments, **options)(lambda _done, _total: None)

    return run


def whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them; nothing for an empty text.

    Raises
    ------
    ConfigError
        If they are none; the message says `what` was expected.
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise ConfigError(f"expected {what}, got {text!r}; correct it, or leave it empty") from None


def box_of(text: str) -> tuple[int, int, int, int] | None:
    """Read a box y0, x0, y1, x1; None for an empty text.

    Raises
    ------
    ConfigError
        If it is none.
    """
    form = "a box y0, x0, y1, x1 in pixels of full size, upper left corner first"
    numbers = whole_numbers(text, form)
    if not numbers:
        return None
    if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise ConfigError(f"expected {form}, got {text!r}; correct it, or leave it empty")
    y0, x0, y1, x1 = numbers
    return y0, x0, y1, x1
