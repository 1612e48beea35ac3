"""What a hostile case is, for those that make them and those that watch them being read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

Read = Callable[[], object]
Reader = Callable[[random.Random, Path], Read]
"""Makes a case, in an empty folder where it needs one; what it returns reads it."""


class Accepted(Exception):
    """What has to be refused was read."""
