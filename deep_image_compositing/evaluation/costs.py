"""What one call costs: seconds, and the most memory while it runs; the bench calls this."""

from __future__ import annotations

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
        self.device = device
        self.seconds = float("nan")
        self.peak_memory: float | None = None

    def __enter__(self) -> Cost:
        gc.collect(1)  # all of it would take longer than many a method
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before: int | None = torch.cuda.memory_allocated(self.device)
        else:
            _trim_heap()
            self._before = _resident() if _reset_peak() else None
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        if self._before is None:
            return
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else _resident("VmHWM")
        if peak is not None:
            self.peak_memory = max(0, peak - self._before) / MEGABYTE


def _trim_heap() -> None:
    """Let the C library give freed memory back: what it keeps would hide what a call needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's
        trim(0)


def _reset_peak() -> bool:
    """Let the system count the peak of resident memory from now on; whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str = "VmRSS") -> int | None:
    """Bytes of resident memory, or with ``VmHWM`` their peak; None where nobody knows."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0]) * 1024 if sizes else None
