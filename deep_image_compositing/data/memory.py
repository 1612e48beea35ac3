"""What was decoded lately: the pictures of plain folders that a loader process keeps in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from PIL import Image

Value = TypeVar("Value")

LIMIT = 512 * 2**20
"""Bytes of decoded pictures that one process keeps."""


class Recent:
    """Keeps what was made lately; forgets what was used longest ago when it grows too large.

    Small photographs stay decoded by the thousand and large ones by the dozen, where a count would
    be too small for the former or exhaust the memory with the latter. Not for several threads.

    Args:
        limit: bytes of all values together. A value larger than that is not kept at all.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.held = 0

    def get(
        self, key: Hashable, make: Callable[[], Value], measure: Callable[[Value], int]
    ) -> Value:
        """The value of ``key``, made anew where it is not held; what ``make`` raises is raised.

        Args:
            key: of one kind of value; other kinds have other keys.
            make: makes the value.
            measure: bytes that the value takes.
        """
        if key in self._values:
            self._values.move_to_end(key)
            held: Value = self._values[key][0]
            return held
        value = make()
        size = measure(value)
        if size > self._limit:
            return value
        self._values[key] = value, size
        self.held += size
        while self.held > self._limit:
            self.held -= self._values.popitem(last=False)[1][1]
        return value

    def __len__(self) -> int:
        return len(self._values)


def picture_bytes(*pictures: Image.Image) -> int:
    """Bytes of 8-bit pictures together: Pillow keeps colours in four bytes a pixel."""
    return sum(p.width * p.height * (1 if len(p.getbands()) == 1 else 4) for p in pictures)


DECODED = Recent()
"""What this process keeps of plain folders."""
