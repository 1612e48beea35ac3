"""The tensors of this library, stated once, and the checks that hold callers to them.

====================  =============  =====================================================
name                  shape          range and meaning
====================  =============  =====================================================
``image``,            (B, 3, H, W)   float in [0, 1], RGB, sRGB-encoded; a ``foreground`` is
``foreground``,                      the *photograph* that holds the subject, old background
``background``,                      and all
``composite``
``mask``              (B, 1, H, W)   float in [0, 1], belief that the pixel is subject
``alpha``             (B, 1, H, W)   float in [0, 1], opacity; never rescaled per image
``trimap``            (B, 1, H, W)   float in {0, 0.5, 1}
``foreground_color``  (B, 3, H, W)   float in [0, 1], straight (not premultiplied) colour of
                                     the subject, defined where alpha > 0
====================  =============  =====================================================

Any B, H and W of at least 1 is valid; a network pads inside and crops back.

Slot base classes wrap ``forward`` in ``checked``, so a wrong tensor is named at the door. A GPU has
to be waited for to know that values lie in [0, 1]: training checks the first batch of each epoch
alone, and ``set_checks``, or ``DEEP_IMAGE_COMPOSITING_CHECKS=0`` in the environment, turns the
checks off.
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
"""Channels of every named tensor; the names that ``check`` accepts."""

TOLERANCE = 1e-3
"""How far outside [0, 1] a value may lie (resampling and half precision overshoot a little)."""

_checks_on = os.environ.get("DEEP_IMAGE_COMPOSITING_CHECKS", "1") != "0"
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
_F = TypeVar("_F", bound=Callable[..., Any])


def set_checks(on: bool) -> bool:
    """Turn the checks at stage doors on or off for this process; returns the previous setting."""
    global _checks_on
    previous, _checks_on = _checks_on, bool(on)
    return previous


def check(**tensors: Tensor) -> None:
    """Raise ``UsageError`` unless every tensor keeps the convention of its name in ``CHANNELS``.

    All must agree in B, H and W; values may lie outside [0, 1] by ``TOLERANCE``.
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
    spans = [torch.stack(torch.aminmax(x.detach())).float() for x in tensors.values()]
    together = len({span.device for span in spans}) == 1  # then a GPU is waited for once
    values = torch.stack(spans).tolist() if together else [span.tolist() for span in spans]
    for name, (low, high) in zip(tensors, values, strict=True):
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also catches NaN
            raise UsageError(f"{name} must lie in [0, 1] and be finite; it spans {low} to {high}")


def check_batch(batch: Mapping[str, Any]) -> None:
    """``check`` what a training batch holds under the names of ``CHANNELS``, when on."""
    if _checks_on:
        check(**{name: batch[name] for name in CHANNELS if name in batch})


def checked(forward: _F) -> _F:
    """Wrap a method so that its arguments named in ``CHANNELS`` are checked when on."""
    parameters = list(inspect.signature(forward).parameters)[1:]  # without self

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _checks_on and not torch.compiler.is_compiling() and not _is_tracing():
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            check(**{k: v for k, v in given.items() if k in CHANNELS and v is not None})
        return forward(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]
