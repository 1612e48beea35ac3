"""How much memory a process occupies, and whether that grows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def resident(process: int | str = "self") -> int:
    """Bytes of memory that a process occupies; 0 for one that has ended, or but on Linux."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Growth(NamedTuple):
    """Slope of a straight line through memory over samples, in bytes, and its standard error."""

    slope: float
    error: float


def fit_growth(samples: NDArray[Any], memory: NDArray[Any], blocks: int = 20) -> Growth:
    """Fit the line through the means of blocks.

    Memory grows in steps that last, so neighbouring readings are no independent ones; means of
    long blocks nearly are, which is what the standard error takes for granted.
    """
    parts = np.array_split(np.arange(len(samples)), min(blocks, len(samples)))
    x = np.array([samples[part].mean() for part in parts])
    y = np.array([memory[part].mean() for part in parts])
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    return Growth(slope, float(np.sqrt(rest @ rest / max(1, len(x) - 2) / (x @ x))))
