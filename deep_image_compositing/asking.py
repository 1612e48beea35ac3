"""Asking a stage, whatever it is, and what counts as an answer; the compositor asks by these."""

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
def ask(slot: str, stage: Callable[..., Any], *tensors: Any) -> Any:
    """What a stage makes of the tensors; ``CompositingError`` where memory runs out."""
    try:
        return stage(*tensors)
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "DefaultCPUAllocator" not in str(error):  # which has no class of its own
            raise
        (height, width), device = tensors[0].shape[-2:], tensors[0].device
        raise CompositingError(
            f"the {slot} ran out of memory on {device} at {width} x {height} pixels; use a smaller "
            "--work-side (work_side=) or --max-side (max_side=)"
            + ("" if device.type == "cpu" else ", or --device cpu")
        ) from error


def ask_picture(slot: str, name: str, stage: Callable[..., Any], *tensors: Any) -> Tensor:
    """The answer, float32 in [0, 1], when it keeps the convention of ``name``; else an error."""
    return _checked(slot, name, ask(slot, stage, *tensors), tensors[0])


def ask_layers(stage: Callable[..., Any], image: Tensor, *others: Any) -> Layers | None:
    """A fuser's layers, float32 in [0, 1], when they keep the conventions; None without."""
    parts = ask("fuser", stage, image, *others)
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


def own_method(stage: Callable[..., Any], name: str) -> Callable[..., Any] | None:
    """The stage's own method ``name``; not what a module merely calls so, and not the base's."""
    found = getattr(stage, name, None)
    inherited = getattr(type(stage), name, None) in _BASE_METHODS
    return found if ismethod(found) and not inherited else None


def _checked(slot: str, name: str, answer: Any, image: Tensor) -> Tensor:
    try:
        check(**{"image": image, name: answer})
    except UsageError as error:
        raise CompositingError(f"the {slot}'s answer is wrong: {error}") from error
    return answer.float().clamp(0, 1)
