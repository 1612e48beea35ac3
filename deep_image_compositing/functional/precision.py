"""Conversions of precision: half to single, single to double, floating point to 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Convert half precision to float32; return any other dtype unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def double(x: Tensor) -> Tensor:
    """Convert to float64, on the CPU if ``x`` is on an MPS device, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def to_bytes(image: Tensor) -> Tensor:
    """Quantise floats in [0, 1] to uint8, rounding half up as ``write_image`` does; uint8 stays."""
    if image.dtype == torch.uint8:
        return image
    return image.detach().float().mul(255).add_(0.5).clamp_(0, 255).byte()
