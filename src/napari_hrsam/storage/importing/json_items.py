"""A JSON file read value by value, in little memory whatever its size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from napari_hrsam.errors import LabelsError

MAX_FILE_BYTES = 4 * 2**30
"""Size of the largest file that is read."""

MAX_VALUE_CHARS = 32 * 2**20
"""Length of the longest value that is read at once: about two million corners of one object."""

_CHUNK_CHARS = 2**20
_SPACE = " \t\n\r"


def items(path: Path) -> Iterator[tuple[str, Any]]:
    """Go through the values of a JSON file; arrays in the outermost object item by item.

    Parameters
    ----------
    path : Path
        The file.

    Yields
    ------
    str, value
        The member's name in the outermost object (empty where that is an array), and its value, or
        one item of it if it is an array.

    Raises
    ------
    LabelsError
        If the file cannot be read, is no JSON, or is larger, or has a value that is longer or
        deeper, than is read.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise LabelsError(f"expected a file of objects, got {path}, which is none; choose one")
        if size > MAX_FILE_BYTES:
            raise LabelsError(
                f"expected a file of at most {MAX_FILE_BYTES:,} bytes, got {size:,} at {path}; "
                "split it"
            )
        with path.open(encoding="utf-8-sig") as file:
            yield from _Text(path, file).items()
    except UnicodeDecodeError as error:
        raise LabelsError(
            f"expected JSON in UTF-8 at {path}, got: {error}; export it again"
        ) from error
    except OSError as error:
        raise LabelsError(
            f"expected a file that can be read at {path}, got: {error}; check its rights"
        ) from error


class _Text:
    """The part of a text that is looked at."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._before, self._is_end = "", 0, 0, False
        self._decoder = json.JSONDecoder()

    def items(self) -> Iterator[tuple[str, Any]]:
        """Go through the outermost object or array, to the end of the file."""
        if self._next() == "[":
            yield from self._array("")
        else:
            self._take("{")
            while self._next() != "}":
                key = self._value()
                if not isinstance(key, str):
                    raise self._no_json(f"the name of a member expected, got {key!r:.40}")
                self._take(":")
                if self._next() == "[":
                    yield from self._array(key)
                else:
                    yield key, self._value()
                if self._next() != "}":
                    self._take(",")
            self._take("}")
        if self._next():
            raise self._no_json("more text after its end")

    def _array(self, key: str) -> Iterator[tuple[str, Any]]:
        self._take("[")
        while self._next() != "]":
            yield key, self._value()
            if self._next() != "]":
                self._take(",")
        self._take("]")

    def _next(self) -> str:
        """Return the next sign that is no space; nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or self._is_end:
                return self._text[self._at : self._at + 1]
            self._more()

    def _take(self, sign: str) -> None:
        found = self._next()
        if found != sign:
            raise self._no_json(f"{sign!r} expected, got {found or 'its end'!r}")
        self._at += 1

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise self._no_json("lists inside lists, too deep to be read") from error
            except ValueError as error:
                # It may go on behind the part that was read.
                if self._is_end:
                    raise self._no_json(str(error)) from error
            else:
                # So may a number that ends with it, or before "." or "e+" at its end.
                if end + 2 < len(self._text) or self._is_end:
                    self._at = end
                    return value
            self._more()

    def _more(self) -> None:
        """Read on, each time twice as much, and let go of what was passed."""
        left = self._text[self._at :]
        if len(left) > MAX_VALUE_CHARS:
            raise self._no_json(f"no end of a value after {MAX_VALUE_CHARS:,} characters")
        more = self._file.read(max(_CHUNK_CHARS, len(left)))
        self._before += self._at
        self._text, self._at, self._is_end = left + more, 0, not more

    def _no_json(self, found: str) -> LabelsError:
        return LabelsError(
            f"expected JSON at {self._path}, but at character {self._before + self._at:,}: "
            f"{found}; the file is damaged or something else: export it again"
        )
