"""Tensor conventions used throughout the library, and functions that check them.

====================  =============  =====================================================
name                  shape          range and meaning
====================  =============  =====================================================
``image``,            (B, 3, H, W)   float in [0, 1], RGB, sRGB-encoded; ``foreground`` is the
``foreground``,                      whole *photograph* of the subject, including its old
``background``,                      background
``composite``
``mask``              (B, 1, H, W)   float in [0, 1], probability that the pixel is subject
``alpha``             (B, 1, H, W)   float in [0, 1], opacity; never rescaled per image
``trimap``            (B, 1, H, W)   float in {0, 0.5, 1}
``foreground_color``  (B, 3, H, W)   float in [0, 1], straight (not premultiplied) colour of
                                     the subject, defined where alpha > 0
====================  =============  =====================================================

B, H and W are at least 1; networks pad internally and crop their output.

Slot base classes wrap ``forward`` in ``checked``. Checking the range of values synchronizes with
the GPU, so training checks only the first batch of each epoch. ``set_checks(False)``, or
``DEEP_IMAGE_COMPOSITING_CHECKS=0`` in the environment, turns the checks off.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError

CHANNELS: dict[str, int] = dict.fromkeys(
    ("image", "foreground", "background", "composite", "foreground_color"), 3
) | dict.fromkeys(("mask", "alpha", "trimap"), 1)
"""Number of channels by tensor name; ``check`` accepts these names."""

TOLERANCE = 1e-3
"""How far values may exceed [0, 1]; resampling and half precision overshoot slightly."""

_checks_on = os.environ.get("DEEP_IMAGE_COMPOSITING_CHECKS", "1") != "0"
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
_F = TypeVar("_F", bound=Callable[..., Any])


def set_checks(on: bool) -> bool:
    """Turn input checks on or off for this process; returns the previous setting."""
    global _checks_on
    previous, _checks_on = _checks_on, bool(on)
    return previous


def check(**tensors: Tensor) -> None:
    """Raise ``UsageError`` unless each tensor follows the convention of its name.

    All tensors must have the same B, H and W; values may exceed [0, 1] by ``TOLERANCE``.
    """
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors.items():
        channels = CHANNELS[name]
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} must be a torch tensor, not {type(tensor).__name__}")
        if tensor.ndim != 4 or tensor.shape[1] != channels:
            raise UsageError(
                f"{name} must have shape (B, {channels}, H, W), got {tuple(tensor.shape)}"
            )
        if 0 in tensor.shape:
            raise UsageError(f"{name} is empty: its shape is {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise UsageError(
                f"{name} must be floating point in [0, 1], got {tensor.dtype}; "
                "divide 8-bit values by 255"
            )
        if first is None:
            first = (name, tensor)
        elif tensor.shape[0] != first[1].shape[0] or tensor.shape[2:] != first[1].shape[2:]:
            raise UsageError(
                f"{name} {tuple(tensor.shape)} and {first[0]} {tuple(first[1].shape)} "
                "must agree in batch, height and width"
            )
    ranges = [torch.stack(torch.aminmax(x.detach())).float() for x in tensors.values()]
    one_device = len({x.device for x in ranges}) == 1  # then a single synchronization is enough
    values = torch.stack(ranges).tolist() if one_device else [x.tolist() for x in ranges]
    for name, (low, high) in zip(tensors, values, strict=True):
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also catches NaN
            raise UsageError(f"{name} must lie in [0, 1] and be finite; it spans {low} to {high}")


def check_batch(batch: Mapping[str, Any]) -> None:
    """Check the tensors of a training batch that are named in ``CHANNELS``, if checks are on."""
    if _checks_on:
        check(**{name: batch[name] for name in CHANNELS if name in batch})


def checked(forward: _F) -> _F:
    """Decorate a method to check its arguments named in ``CHANNELS``, if checks are on."""
    parameters = list(inspect.signature(forward).parameters)[1:]  # without self

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _checks_on and not torch.compiler.is_compiling() and not _is_tracing():
            arguments = {**dict(zip(parameters, args, strict=False)), **kwargs}
            check(**{k: v for k, v in arguments.items() if k in CHANNELS and v is not None})
        return forward(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]
