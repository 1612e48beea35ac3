"""Optional packages: imported where a feature needs them, named where they are missing."""

from __future__ import annotations

import importlib
import os
from typing import Any

from deep_image_compositing.errors import MissingExtraError

_EXTRAS = {
    "cv2": ("opencv-python-headless", "opencv"),
    "onnxscript": ("onnxscript", "export"),
    "pymatting": ("pymatting", "matting"),
    "python_multipart": ("python-multipart", "serve"),
    "scipy": ("scipy", "matting"),
    "starlette": ("starlette", "study"),
    "uvicorn": ("uvicorn", "study"),
}
"""Module: its package, and the extra of this library that installs it."""


def import_extra(module: str, feature: str, extra: str | None = None) -> Any:
    """Import an optional ``module``, of a package in the table, for ``feature``.

    Messages say that ``feature``, such as ``the refiner 'knn'``, needs it, and that ``extra`` or
    the one of the table brings it: ``MissingExtraError`` where it is not installed.
    """
    if module == "pymatting":
        import torch

        # Its compiler else takes every core, and has torch do so too from then on.
        os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
    try:
        return importlib.import_module(module)
    except ImportError:
        package, usual = _EXTRAS[module.partition(".")[0]]
        raise MissingExtraError(feature, package, extra or usual) from None
