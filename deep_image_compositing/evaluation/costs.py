"""What one call costs: seconds, and the most memory while it runs; the bench calls this."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from pathlib import Path

import torch

MEGABYTE = 1e6


class Cost:
    """Seconds and peak memory of the block that it is the context of.

    Attributes:
        seconds: wall-clock time, until the device has done all that it was given.
        peak_memory: megabytes (10⁶ bytes) at the worst moment, above what was held before: of
            the GPU's memory on CUDA, else of the process's resident memory; None where the system
            does not tell (other than Linux).
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device if device.type == "cuda" else None
        self.seconds = float("nan")
        self.peak_memory: float | None = None

    def __enter__(self) -> Cost:
        gc.collect(1)  # all of it would take longer than many a method
        self._before: int | None = None
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)
            torch.cuda.reset_peak_memory_stats(self.cuda)
            self._before = torch.cuda.memory_allocated(self.cuda)
        else:
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:  # what glibc keeps of freed memory would hide what a call needs
                trim(0)
            with contextlib.suppress(OSError):  # not on Linux
                Path("/proc/self/clear_refs").write_text("5")  # count the peak from now on
                self._before = _resident("VmRSS")
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)
        self.seconds = time.perf_counter() - self._start
        if self._before is not None:
            peak = torch.cuda.max_memory_allocated(self.cuda) if self.cuda else _resident("VmHWM")
            self.peak_memory = max(0, peak - self._before) / MEGABYTE


def _resident(field: str) -> int:
    """Bytes of resident memory: ``VmRSS`` now, ``VmHWM`` at the worst."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
