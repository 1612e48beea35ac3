"""Random colour changes of subjects, which harmonizers learn to undo.

As in ``data.synthesis``, pictures are (B, 3, H, W) and masks (B, 1, H, W), floats in [0, 1], and
all randomness comes from a generator on their device.
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
"""Share of subjects whose colours are not changed, so that harmonizers learn to leave them."""


class Sampler(Protocol):
    """Draws normal numbers (B, channels, 1, 1): nonzero for a random ``share`` of the batch."""

    def __call__(self, share: float, channels: int = 1) -> Tensor: ...


def recolor(
    image: Tensor, mask: Tensor, generator: Generator, strength: float = 1.0, **options: float
) -> Tensor:
    """Change the colours of ``image`` under ``mask``; see ``move_colors`` for the options."""
    return torch.lerp(image, move_colors(image, mask, generator, strength, **options), mask)


def move_colors(
    image: Tensor,
    mask: Tensor,
    generator: Generator,
    strength: float = 1.0,
    untouched: float = UNTOUCHED,
) -> Tensor:
    """Change the colours of whole photographs as ``recolor`` changes their subjects.

    A random selection of these is applied: exposure, white balance and a gradient of light, in
    linear light; a colour transfer from another photograph of the batch; gamma, contrast,
    saturation, channel mixing and tone curves, in sRGB. The amount is random too: at ``strength``
    1 it ranges from faint to strong. The share ``untouched`` is left unchanged. The transfer
    measures the subject's colours under ``mask``, which may be an alpha.
    """
    b = len(image)
    amount = strength * uniform(b, 0.25, 1.4, generator) * (1 - chance(b, untouched, generator))

    def sample(share: float, channels: int = 1) -> Tensor:
        shape = (b, channels, 1, 1)
        normal = torch.randn(shape, generator=generator, device=generator.device)
        return amount * chance(b, share, generator) * normal.clamp(-2.5, 2.5)

    result = _relight(image, sample, generator)
    result = _transfer_colors(result, image, mask, amount, generator)
    result = result.clamp(0, 1) ** torch.exp(0.4 * sample(0.5))
    mean = result.mean((1, 2, 3), keepdim=True)
    result = mean + (result - mean) * torch.exp(0.35 * sample(0.5))
    gray = rgb_to_grayscale(result.clamp(0, 1))
    result = gray + (result - gray) * torch.exp(0.6 * sample(0.6))
    mixing = 0.1 * sample(0.3, 9).view(b, 3, 3)
    mixing = mixing - mixing.mean(2, keepdim=True)  # gray stays gray
    result = result + torch.einsum("bij,bjhw->bihw", mixing, result)
    result = _apply_curves(result.clamp(0, 1), sample)
    return torch.where(amount > 0, result, image)


def _relight(image: Tensor, sample: Sampler, generator: Generator) -> Tensor:
    """Change exposure and white balance, and add a gradient of light."""
    b, _, h, w = image.shape
    warm, tint = sample(0.65), sample(0.5)
    stops = 1.2 * sample(0.65)
    angle = uniform(b, 0, 2 * math.pi, generator)
    x = torch.linspace(-1, 1, w, device=image.device).view(1, 1, 1, w)
    y = torch.linspace(-1, 1, h, device=image.device).view(1, 1, h, 1)
    gradient = 0.8 * sample(0.2) * (angle.cos() * x + angle.sin() * y)
    balance = torch.cat([0.5 * warm + 0.12 * tint, -0.2 * tint, -0.6 * warm + 0.12 * tint], 1)
    linear = rgb_to_linear_rgb(image) * torch.exp2(stops + balance + gradient)
    return linear_rgb_to_rgb(linear.clamp(0, 1)).clamp(0, 1)


def _transfer_colors(
    picture: Tensor, image: Tensor, mask: Tensor, amount: Tensor, generator: Generator
) -> Tensor:
    """Move 40 % of the pictures towards the colours of another photograph of the batch."""
    b = len(image)
    weight = amount * chance(b, 0.4, generator) * uniform(b, 0.3, 1, generator)
    source = ColorStatistics.of(picture, mask.clamp_min(1e-3))
    target = ColorStatistics.of(image.roll(1, 0), torch.ones_like(mask))
    return torch.lerp(picture, transfer_color(picture, source, target), weight)


def _apply_curves(picture: Tensor, sample: Sampler) -> Tensor:
    """Apply smooth random tone curves: one for all channels, and a weaker one for each."""
    for frequency in (1, 2, 3):
        height = (0.08 * sample(0.4) + 0.04 * sample(0.3, 3)) / frequency
        picture = picture + height * torch.sin(frequency * math.pi * picture)
    return picture.clamp(0, 1)
