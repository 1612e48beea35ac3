"""What may be asked of a composite, checked without importing anything heavy.

The compositor checks by these functions, and the command line does so before it imports torch.
"""

from __future__ import annotations

import re

from deep_image_compositing.errors import UsageError

MAX_PLACED_PIXELS = 250_000_000
"""Pixels to which a subject's photograph may be enlarged when it is placed."""

LEAST_SIDE = 32
"""Pixels that the long side of a composite, or the side at which stages work, has at least."""


def check_sides(work_side: int, max_side: int | None = None) -> None:
    """Raise ``UsageError`` for a side that is too short to work with."""
    for name, side in (("work_side", work_side), ("max_side", max_side)):
        if side is not None and side < LEAST_SIDE:
            raise UsageError(
                f"--{name.replace('_', '-')} ({name}=) must be at least {LEAST_SIDE} pixels, got "
                f"{side}"
            )


def check_strength(strength: object) -> None:
    """Raise ``UsageError`` unless the strength of a harmonizer is a number in [0, 1]."""
    if not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
        raise UsageError(f"the strength of a harmonizer lies in [0, 1], got {strength}")


def check_placement(
    frame: str, scale: float, position: tuple[float, float] | str
) -> tuple[float, float]:
    """(x, y) of a placement as ``Compositor.__call__`` takes it.

    Raises ``UsageError`` for another frame, a scale that is not positive, or a scale or position
    that would have no effect.
    """
    if frame not in ("foreground", "background"):
        raise UsageError(f"frame must be 'foreground' or 'background', got {frame!r}")
    _check_scale(scale)
    place = parse_position(position)
    if frame == "foreground" and (scale != 1.0 or place != (0.5, 0.5)):
        raise UsageError(
            "scale and position take effect only with --frame background (frame='background')"
        )
    return place


def parse_position(position: tuple[float, float] | str) -> tuple[float, float]:
    """(x, y) in [0, 1] of a pair of numbers, or of text such as ``0.5,1``; else ``UsageError``."""
    try:
        parts = position.split(",") if isinstance(position, str) else position
        x, y = (float(part) for part in parts)
    except (TypeError, ValueError):
        raise UsageError(f"position must be two numbers, such as 0.5,1, got {position!r}") from None
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UsageError(f"position must be two numbers from 0 to 1, x and y, got {x:g},{y:g}")
    return x, y


def placed_size(size: tuple[int, int], frame: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) to which a photograph of ``size`` is scaled to be placed in ``frame``.

    Raises ``UsageError`` for a scale that is not positive, or enlarges beyond
    ``MAX_PLACED_PIXELS``.
    """
    _check_scale(scale)
    factor = scale * min(frame[0] / size[0], frame[1] / size[1])
    height, width = (max(1, round(side * factor)) for side in size)
    if height * width > MAX_PLACED_PIXELS:
        raise UsageError(
            f"scale {scale:g} would enlarge the subject's photograph to {width} x {height} "
            f"pixels; the limit is {MAX_PLACED_PIXELS // 1_000_000} million, use a smaller scale"
        )
    return height, width


def _check_scale(scale: float) -> None:
    if not 0 < scale < float("inf"):
        raise UsageError(f"scale must be a number above 0, got {scale:g}")


def check_device(device: str) -> None:
    """Raise ``UsageError`` for what is no device anywhere; torch knows which are there."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", device):
        raise UsageError(f"there is no device {device!r}; use auto, cpu, cuda, cuda:N or mps")


def one_device(device: str, devices: int, accelerator: str) -> str:
    """The one kind of device, or the one device, that the three arguments mean.

    Raises ``UsageError`` for none such, a number that cannot be, or arguments that exclude each
    other.
    """
    check_device(device)
    if devices < 1 and devices != -1:
        raise UsageError(f"devices must be at least 1, or -1 for all GPUs, got {devices}")
    kind = "cuda" if accelerator == "gpu" else accelerator
    if "auto" not in (device, kind) and device.partition(":")[0] != kind:
        raise UsageError(
            f"the device {device} and the accelerator {accelerator} exclude each other"
        )
    if devices != 1 and ":" in device:
        raise UsageError(f"the device {device} is one, but {devices} devices are wanted")
    return kind if device == "auto" else device
