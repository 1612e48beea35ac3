"""The models of ``deep_image_compositing.models`` as LightningModules, to train and to measure."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "Fuser",
    "Harmonizer",
    "Refiner",
    "Segmenter",
    "Stage",
    "fusion",
    "harmonization",
    "refinement",
    "segmentation",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for: Lightning takes seconds, and ``making`` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.islower():
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.base"), name)
