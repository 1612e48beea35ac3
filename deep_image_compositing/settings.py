"""Options of composites and their validation; imports no torch, so commands fail fast."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deep_image_compositing.errors import UsageError, choices

MAX_PLACED_PIXELS = 250_000_000
"""Largest size in pixels of a subject's photograph when it is placed in a frame."""

LEAST_SIDE = 32
"""Smallest ``work_side`` and ``max_side`` in pixels."""


def check_sides(work_side: int, max_side: int | None = None) -> None:
    """Raise ``UsageError`` for a side shorter than ``LEAST_SIDE``."""
    for name, side in (("work_side", work_side), ("max_side", max_side)):
        if side is not None and side < LEAST_SIDE:
            raise UsageError(
                f"--{name.replace('_', '-')} ({name}=) must be at least {LEAST_SIDE} pixels, got "
                f"{side}"
            )


def check_strength(strength: object) -> None:
    """Raise ``UsageError`` unless a harmonizer's strength is a number in [0, 1]."""
    number = strength if isinstance(strength, (int, float)) else -1
    if isinstance(strength, bool) or not 0 <= number <= 1:
        raise UsageError(f"the strength of a harmonizer lies in [0, 1], got {strength!r}")


def check_placement(
    frame: str, scale: float, position: tuple[float, float] | str
) -> tuple[float, float]:
    """Validate placement arguments of ``Compositor.__call__``; returns the position as (x, y).

    Raises ``UsageError`` for an argument that is invalid or would have no effect.
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
    """Parse a position, a pair of numbers or text such as ``0.5,1``, to (x, y) in [0, 1].

    Raises ``UsageError`` for anything else.
    """
    try:
        parts = position.split(",") if isinstance(position, str) else position
        x, y = (float(part) for part in parts)
    except (TypeError, ValueError):
        raise UsageError(f"position must be two numbers, such as 0.5,1, got {position!r}") from None
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UsageError(f"position must be two numbers from 0 to 1, x and y, got {x:g},{y:g}")
    return x, y


def placed_size(size: tuple[int, int], frame: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of a photograph of ``size`` when placed in ``frame`` at ``scale``.

    Raises ``UsageError`` if the scale is not positive or the result exceeds ``MAX_PLACED_PIXELS``.
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
    """Raise ``UsageError`` for an invalid device name; does not check that the device exists."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", device):
        raise UsageError(f"there is no device {device!r}; use auto, cpu, cuda, cuda:N or mps")


def one_device(device: str, devices: int, accelerator: str) -> str:
    """Combine three options into one device, or kind of device; ``UsageError`` if they conflict."""
    check_device(device)
    if devices < 1 and devices != -1:
        raise UsageError(f"devices must be at least 1, or -1 for all GPUs, got {devices}")
    kind = "cuda" if accelerator == "gpu" else accelerator
    if "auto" not in (device, kind) and device.partition(":")[0] != kind:
        raise UsageError(
            f"the device {device} and the accelerator {accelerator} exclude each other"
        )
    if devices != 1 and ":" in device:
        raise UsageError(f"the device {device} is one, but {devices} devices are requested")
    return kind if device == "auto" else device


SHADOWS: dict[str, tuple[str, ...]] = {
    "contact": ("strength", "softness"),
    "cast": ("strength", "softness", "direction", "length"),
}
"""Options of each kind of shadow."""

DIRECTIONS = {"right": 35.0, "behind": 90.0, "left": 145.0, "front": 270.0}
"""Names of shadow directions, in degrees; ``right`` and ``left`` are slightly backwards."""

LONGEST = 4.0
"""Largest length of a cast shadow, in heights of its subject."""


@dataclass(frozen=True)
class Shadow:
    """Options of a shadow; where one is None, the background or a default determines it.

    Raises ``UsageError`` for an unknown kind, an option that the kind does not take, or an invalid
    value.

    Attributes:
        kind: a key of ``SHADOWS``.
        strength: fraction of light, in [0, 1], that it removes where it is darkest.
        softness: of the light, from 0, direct sun, to 1, an overcast sky.
        direction: where it falls, in degrees on the ground: 0 right, 90 behind, 180 left, 270 in
            front; or a key of ``DIRECTIONS``, which is converted to degrees.
        length: in heights of the subject.
    """

    kind: str
    strength: float | None = None
    softness: float | None = None
    direction: float | None = None
    length: float | None = None

    def __post_init__(self) -> None:
        options = {name: value for name, value in vars(self).items() if value is not None}
        kind = options.pop("kind", None)
        _check_shadow(kind, options)
        for name, value in options.items():
            object.__setattr__(self, name, _shadow_value(name, value))

    @classmethod
    def of(cls, value: Shadow | str | tuple[str, Mapping[str, Any]] | None) -> Shadow | None:
        """Convert a kind, or a pair of a kind and options; None and shadows are returned as is.

        Raises ``UsageError`` as the constructor does.
        """
        if value is None or isinstance(value, Shadow):
            return value
        try:
            kind, pairs = (value, {}) if isinstance(value, str) else value
            kind, options = str(kind), dict(pairs)
        except (TypeError, ValueError):
            raise UsageError(
                f"shadow must be {' or '.join(map(repr, SHADOWS))}, or a pair of one and its "
                f"options, got {value!r}"
            ) from None
        _check_shadow(kind, options)
        return cls(kind, **options)


def _check_shadow(kind: Any, options: Iterable[str]) -> None:
    if kind not in SHADOWS:
        raise UsageError(f"there is no shadow {kind!r}; use {' or '.join(SHADOWS)}")
    for name in options:
        if name not in SHADOWS[kind]:
            hint = choices(name, SHADOWS[kind])
            raise UsageError(f"the shadow {kind!r} takes no option {name!r}; {hint}")


def _shadow_value(name: str, value: Any) -> float:
    """Validate and convert an option of a shadow."""
    if name == "direction" and isinstance(value, str) and value in DIRECTIONS:
        return DIRECTIONS[value]
    names = f", or {', '.join(DIRECTIONS)}" if name == "direction" else ""
    low, high = {"direction": (-360.0, 360.0), "length": (0.05, LONGEST)}.get(name, (0.0, 1.0))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        raise UsageError(
            f"the shadow's {name} is a number from {low:g} to {high:g}{names}; got {value!r}"
        )
    return float(value) % 360 if name == "direction" else float(value)
