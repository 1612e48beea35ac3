"""Random changes of subjects' colours, for harmonizers to undo.

As in ``data.synthesis``, pictures are (B, 3, H, W) and masks (B, 1, H, W), floats in [0, 1], and
all that is random is drawn from a generator on their device.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from kornia.color import linear_rgb_to_rgb, rgb_to_grayscale, rgb_to_linear_rgb
from torch import Generator, Tensor

from deep_image_compositing.data.synthesis import chance, uniform
from deep_image_compositing.functional.color_transfer import ColorStatistics, transfer_color

UNTOUCHED = 0.15
"""Share of subjects that keep their colours, for a harmonizer to learn to leave alone."""


class Some(Protocol):
    """Normal numbers (B, channels, 1, 1), 0 but for a ``share`` of the batch."""

    def __call__(self, share: float, channels: int = 1) -> Tensor: ...


def recolor(
    image: Tensor, mask: Tensor, generator: Generator, strength: float = 1.0, **options: float
) -> Tensor:
    """Composites: ``image`` with other colours where ``mask`` is not 0; see ``move_colors``."""
    return torch.lerp(image, move_colors(image, mask, generator, strength, **options), mask)


def move_colors(
    image: Tensor,
    mask: Tensor,
    generator: Generator,
    strength: float = 1.0,
    untouched: float = UNTOUCHED,
) -> Tensor:
    """Photographs as they would be if all of them had the new colours of their subjects.

    Each subject is moved by a random part of: exposure, white balance and a gradient of light, in
    linear light; the colour statistics of the next photograph of the batch; gamma, contrast,
    saturation, a mixture of channels and tone curves, in sRGB. How strongly is drawn as well: a
    ``strength`` of 1 spans from faint to strong. The share ``untouched`` is not changed. Colours
    are measured by the ``mask``, or alpha.
    """
    b = len(image)
    amount = strength * uniform(b, 0.25, 1.4, generator) * (1 - chance(b, untouched, generator))

    def some(share: float, channels: int = 1) -> Tensor:
        """Normal numbers (B, channels, 1, 1) times the amount, 0 but for a share of the batch."""
        shape = (b, channels, 1, 1)
        normal = torch.randn(shape, generator=generator, device=generator.device)
        return amount * chance(b, share, generator) * normal.clamp(-2.5, 2.5)

    moved = _light(image, some, generator)
    moved = _transferred(moved, image, mask, amount, generator)
    moved = moved.clamp(0, 1) ** torch.exp(0.4 * some(0.5))
    middle = moved.mean((1, 2, 3), keepdim=True)
    moved = middle + (moved - middle) * torch.exp(0.35 * some(0.5))
    gray = rgb_to_grayscale(moved.clamp(0, 1))
    moved = gray + (moved - gray) * torch.exp(0.6 * some(0.6))
    mixture = 0.1 * some(0.3, 9).view(b, 3, 3)
    mixture = mixture - mixture.mean(2, keepdim=True)  # gray stays gray
    moved = moved + torch.einsum("bij,bjhw->bihw", mixture, moved)
    moved = _curved(moved.clamp(0, 1), some)
    return torch.where(amount > 0, moved, image)


def _light(image: Tensor, some: Some, generator: Generator) -> Tensor:
    """Another exposure, white balance, and brightness from one side to the other."""
    b, _, h, w = image.shape
    warm, tint = some(0.65), some(0.5)
    stops = 1.2 * some(0.65)
    angle = uniform(b, 0, 2 * math.pi, generator)
    across = torch.linspace(-1, 1, w, device=image.device).view(1, 1, 1, w)
    down = torch.linspace(-1, 1, h, device=image.device).view(1, 1, h, 1)
    slope = 0.8 * some(0.2) * (angle.cos() * across + angle.sin() * down)
    balance = torch.cat([0.5 * warm + 0.12 * tint, -0.2 * tint, -0.6 * warm + 0.12 * tint], 1)
    linear = rgb_to_linear_rgb(image) * torch.exp2(stops + balance + slope)
    return linear_rgb_to_rgb(linear.clamp(0, 1)).clamp(0, 1)


def _transferred(
    moved: Tensor, image: Tensor, mask: Tensor, amount: Tensor, generator: Generator
) -> Tensor:
    """Two in five moved towards the colours of the batch's next photograph."""
    b = len(image)
    share = amount * chance(b, 0.4, generator) * uniform(b, 0.3, 1, generator)
    source = ColorStatistics.of(moved, mask.clamp_min(1e-3))
    other = image.roll(1, 0)
    target = ColorStatistics.of(other, torch.ones_like(mask))
    return torch.lerp(moved, transfer_color(moved, source, target), share)


def _curved(moved: Tensor, some: Some) -> Tensor:
    """Smooth random tone curves, one for all channels and a weaker one for each."""
    for wave in (1, 2, 3):
        height = (0.08 * some(0.4) + 0.04 * some(0.3, 3)) / wave
        moved = moved + height * torch.sin(wave * math.pi * moved)
    return moved.clamp(0, 1)
