"""Validation of arrays and tensors, and their conversion to and from 8-bit pixels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deep_image_compositing.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-3
"""How far outside [0, 1] a float may lie; equals ``conventions.TOLERANCE``, which needs torch."""


def to_tensor(pixels: NDArray[Any]) -> Tensor:
    """Copy an image into a float32 tensor (C, H, W) in [0, 1].

    ``pixels`` is uint8 (H, W, C) or (H, W), or float (H, W) in [0, 1] as returned by ``read_mask``;
    anything else raises ``UsageError``.
    """
    import torch

    is_float = pixels.dtype.kind == "f" and pixels.ndim == 2
    if not is_float and not (pixels.dtype == np.uint8 and pixels.ndim in (2, 3)):
        actual = f"{pixels.dtype} {pixels.shape}"
        raise UsageError(f"expected uint8 (H, W, C) or (H, W), or float (H, W), got {actual}")
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    scale = np.float32(1 if is_float else 255)
    return torch.from_numpy(np.divide(planes, scale, dtype=np.float32, order="C"))


def to_uint8(image: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """Convert a float image to 8-bit pixels, rounding half up; the inverse of ``to_tensor``.

    ``image`` is a tensor (any device) or array (C, H, W) with 1, 3 or 4 channels, or (H, W), in
    [0, 1]; anything else raises ``UsageError``. Returns (H, W, C), or (H, W) for one channel.
    """
    pixels = quantize(float_planes(as_array(image, "image"), "image"))
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(image: Any, name: str) -> NDArray[Any]:
    """Convert to a NumPy array, which may share memory with ``image``."""
    if is_tensor(image):
        image = image.detach()
        half = image.is_floating_point() and image.element_size() < 4  # numpy has no bfloat16
        return np.asarray((image.float() if half else image).cpu().numpy())
    if not isinstance(image, np.ndarray):
        raise UsageError(f"{name} must be an array or a tensor, not {type(image).__name__}")
    return image


def float_planes(image: NDArray[Any], name: str) -> NDArray[Any]:
    """Validate a float image with values in [0, 1] and return it as (C, H, W)."""
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
    """Convert anything that ``write_image`` accepts to uint8 (H, W, C)."""
    array, planar = as_array(image, name), is_tensor(image)
    if array.dtype != np.uint8:
        return quantize(float_planes(array, name))
    _check_filled(array, name)
    shape = array.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0 if planar else 2] not in (1, 3, 4)):
        form = "(C, H, W)" if planar else "(H, W, C)"
        raise UsageError(f"{name} is uint8 {shape}; expected (H, W), or {form} with C of 1, 3 or 4")
    if len(shape) == 2:
        return array[..., None]
    return array.transpose(1, 2, 0) if planar else array


def quantize(planes: NDArray[Any]) -> NDArray[np.uint8]:
    """Round validated float planes (C, H, W) half up to uint8 (H, W, C)."""
    pixels = np.empty((*planes.shape[1:], planes.shape[0]), dtype=np.uint8)
    for channel, plane in enumerate(planes):
        # Assignment truncates; values outside [0, 1] by the tolerance still become 0 or 255.
        pixels[..., channel] = plane * 255 + 0.5
    return pixels


def split_alpha(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Separate pixels (H, W, C) into gray or colour and alpha (H, W), None where fully opaque."""
    if pixels.shape[2] != 4:
        return pixels, None
    alpha = pixels[..., 3]
    return pixels[..., :3], None if alpha.min() == 255 else alpha


def join_alpha(image: Any, opacity: Any) -> NDArray[np.uint8]:
    """Convert an image to uint8 (H, W, C), with its opacity, if any, as the last channel."""
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
