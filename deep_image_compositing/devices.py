"""Device selection for the compositor, the benchmark and the command line."""

from __future__ import annotations

import logging

import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.settings import check_device

_log = logging.getLogger("deep_image_compositing")


def choose_device(device: str | torch.device) -> torch.device:
    """Resolve a device name; ``auto`` selects a GPU if one is available, else the CPU.

    Raises ``UsageError`` if an explicitly named device is not available; there is no fallback.
    """
    text, details = str(device), ""
    if text == "auto":
        if torch.cuda.is_available():
            text = f"cuda:{torch.cuda.current_device()}"
            details = f" ({torch.cuda.get_device_name(text)})"
        elif torch.backends.mps.is_available():
            text = "mps"
        else:
            text, details = "cpu", " (no GPU that torch can use)"
        _log.info("running on %s%s", text, details)
        return torch.device(text)
    check_device(text)
    selected = torch.device(text)
    if selected.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (selected.index or 0) >= count:
            raise UsageError(
                f"there is no device {text!r}: torch sees {count} CUDA devices; use 'cpu'"
            )
    elif selected.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"there is no device {text!r} on this machine; use 'cpu'")
    return torch.device("cpu") if selected.type == "cpu" else selected
