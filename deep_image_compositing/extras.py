"""Import optional packages on demand."""

from __future__ import annotations

import importlib
import os
from typing import Any

from deep_image_compositing.errors import MissingExtraError

_EXTRAS = {
    "cv2": ("opencv-python-headless", "opencv"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "onnxscript": ("onnxscript", "export"),
    "pymatting": ("pymatting", "matting"),
    "python_multipart": ("python-multipart", "serve"),
    "scipy": ("scipy", "matting"),
    "starlette": ("starlette", "study"),
    "uvicorn": ("uvicorn", "study"),
}
"""Module name to (PyPI package, the extra of this library that installs it)."""


def import_extra(module: str, feature: str, extra: str | None = None) -> Any:
    """Import an optional module whose top-level package is listed in ``_EXTRAS``.

    Args:
        module: module to import, such as ``scipy.ndimage``.
        feature: what needs it, for the error message, such as ``the refiner 'knn'``.
        extra: the extra to suggest instead of the usual one.

    Raises:
        MissingExtraError: the package is not installed.
    """
    if module == "pymatting":
        import torch

        # Otherwise numba uses every core, and makes torch do so as well from then on.
        os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
    try:
        return importlib.import_module(module)
    except ImportError:
        package, default_extra = _EXTRAS[module.partition(".")[0]]
        raise MissingExtraError(feature, package, extra or default_extra) from None
