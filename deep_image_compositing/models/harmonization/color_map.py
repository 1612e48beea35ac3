"""Learned harmonization: a small network predicts a smooth colour transform for the subject."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from deep_image_compositing import weights as weight_files
from deep_image_compositing.functional.color_transfer import weighted_mean
from deep_image_compositing.functional.resize import resize, spread
from deep_image_compositing.models.base import WHOLE, HarmonizerModel, Recoloring, freeze_norm_stats
from deep_image_compositing.models.harmonization.classical import is_partial
from deep_image_compositing.networks.color_map import MONOMIALS, ColorMapNetwork, squares
from deep_image_compositing.options import check_range

# Network options without a weights file.
DEFAULTS: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "size": 256, "width": 128}
# RMS changes of the subject's colours up to which none is applied, and from which it is in full.
LEAST, SURE = 2 / 255, 8 / 255


class ColorMapModel(HarmonizerModel):
    """Transforms colours by a polynomial in red, green and blue and slowly varying gains.

    The network sees composite and mask at ``size`` x ``size`` pixels; its transform applies at any
    size. Items that are all subject or all scene, or would hardly change, stay unchanged.
    ``backbone``, ``size`` and ``width`` default to the values in the ``weights`` file.

    Args:
        strength: blend factor in [0, 1].
        backbone: timm model name; ``tf_efficientnet_lite0`` without a file.
        pretrained: backbone weights: None, ``pretrained``, or a local checkpoint file.
        size: side in pixels at which the network runs; 256 without a file.
        width: channels after the backbone; 128 without a file.
        freeze_norms: batch norms of the backbone keep their statistics in training.
        weights: trained weights: a shipped name (``default``), a file, or None.
    """

    shipped: ClassVar[dict[str, str]] = {"default": "color_map.safetensors"}

    def __init__(
        self,
        strength: float = 1.0,
        backbone: str | None = None,
        pretrained: str | None = None,
        size: int | None = None,
        width: int | None = None,
        freeze_norms: bool = True,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(strength=strength, **kwargs)
        self.save_hyperparameters()
        options = weight_files.describe(self, weights, DEFAULTS, locals(), free=("size",))
        self.size = int(options["size"])
        check_range("size", self.size, 32, 2048)
        check_range("width", options["width"], 8, 1024)
        self.freeze_norms = freeze_norms
        self.network = ColorMapNetwork(
            options["backbone"], None if weights else pretrained, options["width"]
        )
        self.network.to(memory_format=torch.channels_last)
        self.load_weights(weights)

    def train(self, mode: bool = True) -> ColorMapModel:
        """As in torch; frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_norms:
            freeze_norm_stats(self.network.encoder)
        return self

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        side = (self.size, self.size)
        small, small_mask = (resize(x, side).clamp(0, 1) for x in (composite, mask))
        polynomial, grid = self.network(small, small_mask)
        if not self.training:
            change = (apply_color_map(small, polynomial, grid, WHOLE) - small).square()
            rms = weighted_mean(change, small_mask).mean(1, keepdim=True).sqrt()
            factor = ((rms - LEAST) / (SURE - LEAST)).clamp(0, 1)
            polynomial, grid = factor[..., 0] * polynomial, factor * grid
        partial = is_partial(mask)

        def recolor(colors: Tensor, place: tuple[float, float, float, float]) -> Tensor:
            return torch.where(partial, apply_color_map(colors, polynomial, grid, place), colors)

        return recolor


def apply_color_map(
    colors: Tensor, polynomial: Tensor, grid: Tensor, place: tuple[float, float, float, float]
) -> Tensor:
    """Apply the network's transform to ``colors`` (B, 3, h, w), sRGB in [0, 1].

    ``polynomial`` (B, 3, 10) has coefficients of 1, r, g, b and ``squares``, added to the identity;
    ``grid`` (B, 6, gh, gw) has gains minus one, then offsets. ``place`` locates ``colors`` in the
    image: top, left, bottom and right as fractions of its size.
    """
    polynomial, grid = polynomial.to(colors.dtype), grid.to(colors.dtype)
    constant, linear, quadratic = polynomial.split((1, 3, MONOMIALS - 4), 2)
    change = torch.baddbmm(constant, linear, colors.flatten(2))
    change = change + quadratic @ squares(colors).flatten(2)
    mapped = colors + change.view_as(colors)
    gain, offset = spread(grid, (colors.shape[-2], colors.shape[-1]), place).chunk(2, 1)
    return torch.addcmul(mapped + offset, mapped, gain).clamp(0, 1)
