"""What may be asked of a composite, checked by the compositor, and before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
    number = strength if isinstance(strength, (int, float)) else -1
    if isinstance(strength, bool) or not 0 <= number <= 1:
        raise UsageError(f"the strength of a harmonizer lies in [0, 1], got {strength!r}")


def check_placement(
    frame: str, scale: float, position: tuple[float, float] | str
) -> tuple[float, float]:
    """(x, y) of a placement as ``Compositor.__call__`` takes it.

    ``UsageError`` for a frame, scale or position that cannot be, or would have no effect.
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

    ``UsageError`` for a scale that is not positive, or enlarges beyond ``MAX_PLACED_PIXELS``.
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
    """The one kind of device, or the one device, that the three mean; else ``UsageError``."""
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


SHADOWS: dict[str, tuple[str, ...]] = {
    "contact": ("strength", "softness"),
    "cast": ("strength", "softness", "direction", "length"),
}
"""Kinds of shadows, and the options that each takes."""

DIRECTIONS = {"right": 35.0, "behind": 90.0, "left": 145.0, "front": 270.0}
"""Words for the direction of a shadow, in degrees; beside the subject it falls a little back."""

LONGEST = 4.0
"""Length of a shadow at most, in heights of its subject."""


@dataclass(frozen=True)
class Shadow:
    """What kind of shadow is wanted; None where the background or a default decides.

    ``UsageError`` for another kind, an option that it does not take, or a value that cannot be.

    Attributes:
        kind: a key of ``SHADOWS``.
        strength: share of the light, in [0, 1], that it takes away where it is darkest.
        softness: in [0, 1]; of the light, 0 a bare sun and 1 a gray sky.
        direction: where it is cast, in degrees on the ground: 0 right, 90 behind, 180 left, 270 in
            front; a key of ``DIRECTIONS`` becomes them.
        length: how long it is cast, in heights of the subject.
    """

    kind: str
    strength: float | None = None
    softness: float | None = None
    direction: float | None = None
    length: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        kind = given.pop("kind", None)
        _check_shadow(kind, given)
        for name, value in given.items():
            object.__setattr__(self, name, _shadow_value(name, value))

    @classmethod
    def of(cls, given: Shadow | str | tuple[str, Mapping[str, Any]] | None) -> Shadow | None:
        """The shadow that is meant: a kind, or a pair of a kind and its options; None stays.

        ``UsageError`` for another kind, an option that it does not take, or a value that cannot be.
        """
        if given is None or isinstance(given, Shadow):
            return given
        try:
            kind, pairs = (given, {}) if isinstance(given, str) else given
            kind, options = str(kind), dict(pairs)
        except (TypeError, ValueError):
            raise UsageError(
                f"shadow must be {' or '.join(map(repr, SHADOWS))}, or a pair of one and its "
                f"options, got {given!r}"
            ) from None
        _check_shadow(kind, options)
        return cls(kind, **options)


def _check_shadow(kind: Any, options: Iterable[str]) -> None:
    if kind not in SHADOWS:
        raise UsageError(f"there is no shadow {kind!r}; use {' or '.join(SHADOWS)}")
    for name in options:
        if name not in SHADOWS[kind]:
            raise UsageError(
                f"the shadow {kind!r} takes no option {name!r}; it takes: "
                f"{', '.join(SHADOWS[kind])}"
            )


def _shadow_value(name: str, value: Any) -> float:
    """A checked option of a shadow."""
    if name == "direction" and isinstance(value, str) and value in DIRECTIONS:
        return DIRECTIONS[value]
    words = f", or {', '.join(DIRECTIONS)}" if name == "direction" else ""
    low, high = {"direction": (-360.0, 360.0), "length": (0.05, LONGEST)}.get(name, (0.0, 1.0))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        raise UsageError(
            f"the shadow's {name} is a number from {low:g} to {high:g}{words}; got {value!r}"
        )
    return float(value) % 360 if name == "direction" else float(value)
