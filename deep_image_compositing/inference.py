"""Run stages for the compositor and validate what they return."""

from __future__ import annotations

from collections.abc import Callable
from inspect import ismethod
from typing import Any

import torch
from torch import Tensor, nn

from deep_image_compositing.conventions import check
from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.models.base import FuserModel, HarmonizerModel, Layers

_BASE_METHODS = (FuserModel.layers, FuserModel.finer_layers, HarmonizerModel.recoloring)


@torch.inference_mode()
def run_stage(slot: str, stage: Callable[..., Any], *tensors: Any) -> Any:
    """Run a stage in inference mode; raises ``CompositingError`` when memory runs out."""
    try:
        return stage(*tensors)
    except (MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        # The CPU allocator raises a plain RuntimeError.
        if not out_of_memory and "DefaultCPUAllocator" not in str(error):
            raise
        (height, width), device = tensors[0].shape[-2:], tensors[0].device
        raise CompositingError(
            f"the {slot} ran out of memory on {device} at {width} x {height} pixels; use a smaller "
            "--work-side (work_side=) or --max-side (max_side=)"
            + ("" if device.type == "cpu" else ", or --device cpu")
        ) from error


def run_checked(slot: str, name: str, stage: Callable[..., Any], *tensors: Any) -> Tensor:
    """Run a stage whose output follows the convention ``name``; float32 in [0, 1].

    Raises ``CompositingError`` for any other output.
    """
    return _checked(slot, name, run_stage(slot, stage, *tensors), tensors[0])


def run_layers(layers: Callable[..., Any], image: Tensor, *others: Any) -> Layers | None:
    """Run a fuser's ``layers`` or ``finer_layers``, validated as in ``run_checked``."""
    parts = run_stage("fuser", layers, image, *others)
    if parts is None:
        return None
    old = getattr(parts, "old_background", None)
    return Layers(
        _checked("fuser", "alpha", parts.alpha, image),
        _checked("fuser", "foreground_color", parts.foreground_color, image),
        None if old is None else old.float().clamp(0, 1),
    )


def is_learned(stage: Callable[..., Any]) -> bool:
    """Whether a stage has parameters."""
    return isinstance(stage, nn.Module) and next(stage.parameters(), None) is not None


def find_override(stage: Callable[..., Any], name: str) -> Callable[..., Any] | None:
    """The stage's method ``name``; None for the base class's default or a submodule."""
    method = getattr(stage, name, None)
    inherited = getattr(type(stage), name, None) in _BASE_METHODS
    return method if ismethod(method) and not inherited else None


def _checked(slot: str, name: str, output: Any, image: Tensor) -> Tensor:
    try:
        check(**{"image": image, name: output})
    except UsageError as error:
        raise CompositingError(f"the {slot}'s output is invalid: {error}") from error
    return output.float().clamp(0, 1)
