"""The learned harmonizer: a small network predicts one smooth colour transform for the subject."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from deep_image_compositing import weights as weight_files
from deep_image_compositing.functional.color_transfer import weighted_mean
from deep_image_compositing.functional.resize import resize, spread
from deep_image_compositing.models.base import WHOLE, HarmonizerModel, Recoloring, freeze_batch_norms
from deep_image_compositing.models.harmonization.classical import is_partial
from deep_image_compositing.networks.color_map import MONOMIALS, ColorMapNetwork, squares
from deep_image_compositing.options import check_range

# Of the network, where neither a weights file nor the caller says otherwise.
DEFAULTS: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "size": 256, "width": 128}
# Change of the subject, root of the mean square, that is still none, and that is made whole.
LEAST, SURE = 2 / 255, 8 / 255


class ColorMapModel(HarmonizerModel):
    """Moves colours by a polynomial of red, green and blue, and by gains that vary slowly.

    The network sees composite and mask squeezed to ``size`` x ``size`` pixels; what it finds is
    applied at any size. An item that is all subject, has none, or would hardly change, keeps its
    colours. What describes the network is by default as in the file of ``weights``.

    Args:
        strength: how far to go, in [0, 1].
        backbone: timm model name; ``tf_efficientnet_lite0`` where no file says otherwise.
        pretrained: weights of the backbone: None, ``pretrained``, or a local checkpoint file.
        size: side in pixels at which the network runs; 256 likewise.
        width: channels behind the backbone; 128 likewise.
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
        """Frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_norms:
            freeze_batch_norms(self.network.encoder)
        return self

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        side = (self.size, self.size)
        small, inside = (resize(picture, side).clamp(0, 1) for picture in (composite, mask))
        polynomial, grid = self.network(small, inside)
        if not self.training:
            change = (apply_color_map(small, polynomial, grid, WHOLE) - small).square()
            size = weighted_mean(change, inside).mean(1, keepdim=True).sqrt()
            sure = ((size - LEAST) / (SURE - LEAST)).clamp(0, 1)
            polynomial, grid = sure[..., 0] * polynomial, sure * grid
        partly = is_partial(mask)

        def recolor(colors: Tensor, place: tuple[float, float, float, float]) -> Tensor:
            return torch.where(partly, apply_color_map(colors, polynomial, grid, place), colors)

        return recolor


def apply_color_map(
    colors: Tensor, polynomial: Tensor, grid: Tensor, place: tuple[float, float, float, float]
) -> Tensor:
    """``colors`` (B, 3, h, w), sRGB, at a ``place`` of the picture, as the network has it.

    ``polynomial`` (B, 3, 10) is what is added: coefficients of 1, r, g, b and ``squares``; ``grid``
    (B, 6, gh, gw) holds factors less one, and offsets. ``place`` is top, left, bottom and right as
    shares of the picture.
    """
    polynomial, grid = polynomial.to(colors.dtype), grid.to(colors.dtype)
    constant, linear, rest = polynomial.split((1, 3, MONOMIALS - 4), 2)
    added = torch.baddbmm(constant, linear, colors.flatten(2)) + rest @ squares(colors).flatten(2)
    moved = colors + added.view_as(colors)
    factor, offset = spread(grid, (colors.shape[-2], colors.shape[-1]), place).chunk(2, 1)
    return torch.addcmul(moved + offset, moved, factor).clamp(0, 1)
