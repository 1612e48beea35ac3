"""Which device a stage runs on; the compositor, the benchmark and the command line call this."""

from __future__ import annotations

import logging

import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.settings import check_device

_log = logging.getLogger("deep_image_compositing")


def choose_device(device: str | torch.device) -> torch.device:
    """The device that ``device`` means; ``auto`` is a GPU if there is one, else the CPU.

    Raises ``UsageError`` for an explicit device that is not there; it never falls back.
    """
    text = str(device)
    if text == "auto":
        if torch.cuda.is_available():
            chosen = torch.device("cuda", torch.cuda.current_device())
            _log.info("running on %s (%s)", chosen, torch.cuda.get_device_name(chosen))
        elif torch.backends.mps.is_available():
            chosen = torch.device("mps")
            _log.info("running on mps")
        else:
            chosen = torch.device("cpu")
            _log.info("running on cpu (no GPU that torch can use)")
        return chosen
    check_device(text)
    chosen = torch.device(text)
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) < count:
            return chosen
        raise UsageError(f"there is no device {text!r}: torch sees {count} CUDA devices; use 'cpu'")
    if torch.backends.mps.is_available():
        return chosen
    raise UsageError(f"there is no device {text!r} on this machine; use 'cpu'")
