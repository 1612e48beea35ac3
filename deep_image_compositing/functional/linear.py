"""Conversion between sRGB-encoded values and linear light (IEC 61966-2-1)."""

from __future__ import annotations

import torch
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # weights of linear red, green and blue


def to_linear(color: Tensor) -> Tensor:
    """Linear light from sRGB-encoded values in [0, 1]."""
    return torch.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055).pow(2.4))


def from_linear(light: Tensor) -> Tensor:
    """Inverse of ``to_linear``."""
    bright = 1.055 * light.clamp_min(0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, bright)
