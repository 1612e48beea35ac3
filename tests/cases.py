"""Types of hostile cases, shared by ``tests.hostile`` and ``tests.fuzz``."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

Read = Callable[[], object]
Reader = Callable[[random.Random, Path], Read]
"""Makes a case, with files in an empty folder if needed, and returns a function that reads it."""


class Accepted(Exception):
    """Input was accepted that must be rejected."""
