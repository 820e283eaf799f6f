"""Values seen lately, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LRU(Generic[K, V]):
    """A mapping that drops what was not used for the longest time when it takes too much memory.

    The newest value always stays. One thread at a time: callers that share one hold a lock.

    Parameters
    ----------
    max_bytes : int
        Memory for the values, as ``size_of`` counts it.
    size_of : callable of (value) -> int
        Bytes that a value takes.
    max_items : int, optional
        Values at most; by default any number.

    Attributes
    ----------
    num_bytes : int
        Memory that the values take now.
    """

    def __init__(
        self, max_bytes: int, size_of: Callable[[V], int], max_items: int | None = None
    ) -> None:
        self._max_bytes, self._size_of, self._max_items = max_bytes, size_of, max_items
        self._values: OrderedDict[K, V] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        """Whether there is a value; this does not count as a use."""
        return key in self._values

    def __getitem__(self, key: K) -> V:
        """Use a value; `KeyError` if there is none."""
        self._values.move_to_end(key)
        return self._values[key]

    def get(self, key: K) -> V | None:
        """Use a value if there is one."""
        return self[key] if key in self._values else None

    def __setitem__(self, key: K, value: V) -> None:
        """Keep a value; others make room for it."""
        self.drop(key)
        self._values[key] = value
        self.num_bytes += self._size_of(value)
        while len(self._values) > 1 and self._is_too_much:
            self.num_bytes -= self._size_of(self._values.popitem(last=False)[1])

    def drop(self, key: K) -> None:
        """Forget a value, if there is one."""
        if key in self._values:
            self.num_bytes -= self._size_of(self._values.pop(key))

    def clear(self) -> None:
        """Forget all values."""
        self._values.clear()
        self.num_bytes = 0

    @property
    def _is_too_much(self) -> bool:
        return self.num_bytes > self._max_bytes or (
            self._max_items is not None and len(self._values) > self._max_items
        )
