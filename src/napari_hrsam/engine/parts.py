"""Methods that a part of an object carries out."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def carried_out(
    part: str, method: Callable[Concatenate[Any, P], R]
) -> Callable[Concatenate[Any, P], R]:
    """Make a method that a part of the object carries out, with its signature and docstring.

    Parameters
    ----------
    part : str
        Name of the attribute that holds the part.
    method : callable
        Method of the part's class.
    """

    @wraps(method)
    def call(whole: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(getattr(whole, part), *args, **kwargs)

    return call
