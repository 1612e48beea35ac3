"""Deep image compositing: put the subject of one photograph into another.

Public names are imported on first access, so that importing the package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deep_image_compositing.composite import Composite
    from deep_image_compositing.compositor import Compositor
    from deep_image_compositing.errors import CompositingError, UsageError
    from deep_image_compositing.images import read_image, read_mask, write_image
    from deep_image_compositing.registry import create, list_stages, register
    from deep_image_compositing.removal import remove
    from deep_image_compositing.stages.base import Fuser, Harmonizer, Refiner, Segmenter

__version__ = "0.1.0"

_NAMES = {
    "composite": ("Composite",),
    "compositor": ("Compositor",),
    "errors": ("CompositingError", "UsageError"),
    "images": ("read_image", "read_mask", "write_image"),
    "registry": ("create", "list_stages", "register"),
    "removal": ("remove",),
    "stages.base": ("Fuser", "Harmonizer", "Refiner", "Segmenter"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "Composite", "CompositingError", "Compositor", "Fuser", "Harmonizer", "Refiner", "Segmenter",
    "UsageError", "create", "list_stages", "read_image", "read_mask", "register", "remove",
    "write_image",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
