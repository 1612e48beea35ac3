"""Between arrays and tensors of any kind and 8-bit pixels: checks, and the one rounding."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deep_image_compositing.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-3
"""How far outside [0, 1] a float may lie; the value of ``conventions.TOLERANCE``."""


def to_tensor(pixels: NDArray[Any]) -> Tensor:
    """A picture as a float32 tensor (C, H, W) in [0, 1], a copy.

    ``pixels`` are uint8 (H, W, C) or (H, W), or float (H, W) in [0, 1], as ``read_mask`` gives;
    anything else is a ``UsageError``.
    """
    import torch

    is_float = pixels.dtype.kind == "f" and pixels.ndim == 2
    if not is_float and not (pixels.dtype == np.uint8 and pixels.ndim in (2, 3)):
        found = f"{pixels.dtype} {pixels.shape}"
        raise UsageError(f"expected uint8 (H, W, C) or (H, W), or float (H, W), got {found}")
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    full = np.float32(1 if is_float else 255)
    return torch.from_numpy(np.divide(planes, full, dtype=np.float32, order="C"))


def to_uint8(image: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """A float picture as 8-bit pixels, rounded half up; the inverse of ``to_tensor``.

    ``image`` is a tensor (any device) or array (C, H, W) with 1, 3 or 4 channels, or (H, W), in
    [0, 1]; anything else is a ``UsageError``. Returns (H, W, C), or (H, W) for one channel.
    """
    pixels = quantize(float_planes(as_array(image, "image"), "image"))
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor; without importing torch for those who have none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(image: Any, name: str) -> NDArray[Any]:
    """An array or tensor as an array, which may share its memory."""
    if is_tensor(image):
        image = image.detach()
        half = image.is_floating_point() and image.element_size() < 4  # numpy has no bfloat16
        return np.asarray((image.float() if half else image).cpu().numpy())
    if not isinstance(image, np.ndarray):
        raise UsageError(f"{name} must be an array or a tensor, not {type(image).__name__}")
    return image


def float_planes(image: NDArray[Any], name: str) -> NDArray[Any]:
    """``image`` as float (C, H, W), when it is a picture with values in [0, 1]."""
    hint = "; pass one picture of the batch" if image.ndim == 4 else ""
    if image.dtype.kind != "f":
        hint = " in [0, 1] (divide 8-bit values by 255); 8-bit arrays are uint8 (H, W, 3) or (H, W)"
    planes = image[None] if image.ndim == 2 else image
    if image.dtype.kind != "f" or planes.ndim != 3 or planes.shape[0] not in (1, 3, 4):
        raise UsageError(
            f"{name} is {image.dtype} {image.shape}; expected float (3, H, W), (1, H, W), "
            f"(4, H, W) or (H, W){hint}"
        )
    _check_filled(image, name)
    low, high = float(image.min()), float(image.max())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also catches NaN
        raise UsageError(f"{name} must lie in [0, 1] and be finite; it spans {low:g} to {high:g}")
    return planes.astype(np.float32) if planes.dtype.itemsize < 4 else planes


def _check_filled(image: NDArray[Any], name: str) -> None:
    if 0 in image.shape:
        raise UsageError(f"{name} is empty: its shape is {image.shape}")


def pixels_of(image: Any, name: str) -> NDArray[np.uint8]:
    """A picture in any form that ``write_image`` takes as checked uint8 (H, W, C)."""
    array, planes = as_array(image, name), is_tensor(image)
    if array.dtype != np.uint8:
        return quantize(float_planes(array, name))
    _check_filled(array, name)
    shape = array.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0 if planes else 2] not in (1, 3, 4)):
        form = "(C, H, W)" if planes else "(H, W, C)"
        raise UsageError(f"{name} is uint8 {shape}; expected (H, W), or {form} with C of 1, 3 or 4")
    if len(shape) == 2:
        return array[..., None]
    return array.transpose(1, 2, 0) if planes else array


def quantize(planes: NDArray[Any]) -> NDArray[np.uint8]:
    """Checked float planes (C, H, W) as uint8 (H, W, C), rounded half up."""
    pixels = np.empty((*planes.shape[1:], planes.shape[0]), dtype=np.uint8)
    for channel, plane in enumerate(planes):
        # Truncates; what is outside [0, 1] by the tolerance still lands on 0 and 255.
        pixels[..., channel] = plane * 255 + 0.5
    return pixels


def split_alpha(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Pixels (H, W, C) as gray or colour, and their alpha (H, W) unless opaque everywhere."""
    if pixels.shape[2] != 4:
        return pixels, None
    alpha = pixels[..., 3]
    return pixels[..., :3], None if alpha.min() == 255 else alpha


def join_alpha(image: Any, opacity: Any) -> NDArray[np.uint8]:
    """A picture as uint8 (H, W, C), with its alpha, if it has one, as the last channel."""
    pixels = pixels_of(image, "image")
    if opacity is None:
        return pixels
    alpha = pixels_of(opacity, "alpha")
    if pixels.shape[2] == 4:
        raise UsageError("image has four channels, so it holds an alpha already; give one of both")
    if alpha.shape[2] != 1 or alpha.shape[:2] != pixels.shape[:2]:
        raise UsageError(
            f"alpha must have one channel and the size of the image, {pixels.shape[1]} x "
            f"{pixels.shape[0]} pixels; it has {alpha.shape[2]} and {alpha.shape[1]} x "
            f"{alpha.shape[0]}"
        )
    return np.concatenate([pixels, alpha], axis=2)
