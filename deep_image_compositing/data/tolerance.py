"""How much that cannot be read is passed over before it is an error."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from deep_image_compositing.errors import CompositingError, DataError, ImageError

UNREADABLE = (DataError, ImageError, OSError)
"""What reading a damaged sample or shard may raise. Never a mistake in a call or in a program."""

_log = logging.getLogger("deep_image_compositing")
_GRACE = 100


class TooManyError(CompositingError):
    """More could not be read than is tolerated: not to be passed over, so not ``UNREADABLE``."""


@dataclass
class Tolerance:
    """Counts what cannot be read, and ends what meets too much of it.

    What is drawn at random meets more than its share now and then, so three standard deviations
    more are let pass: at 0.01, four among the first hundred.
    """

    what: str  # is counted, in the plural, for messages
    share: float = 0.01  # that may be bad, reckoned of at least 100
    seen: int = 0
    bad: int = 0
    _in_a_row: int = 0

    def passed(self) -> None:
        """Count a good one."""
        self.seen += 1
        self._in_a_row = 0

    def failed(self, reason: object) -> None:
        """Count a bad one, and say so; ``TooManyError`` when there are too many now."""
        self.seen += 1
        self.bad += 1
        self._in_a_row += 1
        said = str(reason) or type(reason).__name__
        expected = self.share * max(self.seen, _GRACE)
        if self.bad > expected + 3 * math.sqrt(expected) or self._in_a_row > _GRACE:
            raise TooManyError(
                f"{self.bad} of {self.seen} {self.what} could not be read, more than the "
                f"tolerated share of {self.share:g}; the last one: {said}"
            )
        _log.warning("passed over (%d of %d %s): %s", self.bad, self.seen, self.what, said)
