"""What was decoded lately, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

LIMIT = 512 * 2**20
"""Bytes of decoded pictures that one process keeps."""


class Recent(Generic[Value]):
    """Keeps what was made lately; forgets what was used longest ago when it grows too large.

    Small photographs stay decoded by the thousand and large ones by the dozen, where a count would
    be too small for the former or exhaust the memory with the latter.

    Args:
        measure: bytes that a value takes.
        limit: bytes of all values together. A value larger than that is not kept at all.
    """

    def __init__(self, measure: Callable[[Value], int], limit: int = LIMIT) -> None:
        self._measure = measure
        self._limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self.held = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of ``key``, made anew where it is not held; what ``make`` raises is raised."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        size = self._measure(value)
        if size > self._limit:
            return value
        self._values[key] = value
        self.held += size
        while self.held > self._limit:
            self.held -= self._measure(self._values.popitem(last=False)[1])
        return value

    def __len__(self) -> int:
        return len(self._values)
