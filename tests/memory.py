"""Memory use of a process, and its growth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def resident(process: int | str = "self") -> int:
    """Resident memory of a process in bytes; 0 if it has ended, or on systems other than Linux."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Growth(NamedTuple):
    """Slope of memory over samples, in bytes per sample, and its standard error."""

    slope: float
    error: float


def fit_growth(samples: NDArray[Any], memory: NDArray[Any], blocks: int = 20) -> Growth:
    """Fit a line to the means of blocks.

    Memory grows in lasting steps, so neighbouring readings are correlated; the means of long
    blocks are nearly independent, as the standard error requires.
    """
    parts = np.array_split(np.arange(len(samples)), min(blocks, len(samples)))
    x = np.array([samples[part].mean() for part in parts])
    y = np.array([memory[part].mean() for part in parts])
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    residuals = y - y.mean() - slope * x
    return Growth(slope, float(np.sqrt(residuals @ residuals / max(1, len(x) - 2) / (x @ x))))
