"""Methods that a part of an object carries out."""

from __future__ import annotations

import inspect

from napari_hrsam.engine.parts import carried_out
from napari_hrsam.engine.session import Session


class Part:
    def add(self, number: int, *, times: int = 1) -> int:
        """Add a number."""
        return 10 + number * times


class Whole:
    def __init__(self) -> None:
        self._part = Part()

    add = carried_out("_part", Part.add)


def test_the_part_of_that_very_object_is_asked_and_answers() -> None:
    assert Whole().add(2, times=3) == 16


def test_signature_and_docstring_are_those_of_the_part() -> None:
    assert inspect.getdoc(Whole.add) == "Add a number."
    assert str(inspect.signature(Whole.add)) == str(inspect.signature(Part.add))
    for name in ("merge", "continue_on", "embed", "commit"):
        assert "self" in inspect.signature(getattr(Session, name)).parameters
        assert inspect.getdoc(getattr(Session, name))
