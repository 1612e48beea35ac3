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
    text, about = str(device), ""
    if text == "auto":
        if torch.cuda.is_available():
            text = f"cuda:{torch.cuda.current_device()}"
            about = f" ({torch.cuda.get_device_name(text)})"
        elif torch.backends.mps.is_available():
            text = "mps"
        else:
            text, about = "cpu", " (no GPU that torch can use)"
        _log.info("running on %s%s", text, about)
        return torch.device(text)
    check_device(text)
    chosen = torch.device(text)
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise UsageError(
                f"there is no device {text!r}: torch sees {count} CUDA devices; use 'cpu'"
            )
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"there is no device {text!r} on this machine; use 'cpu'")
    return torch.device("cpu") if chosen.type == "cpu" else chosen
