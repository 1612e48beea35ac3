"""Learned segmentation: any timm backbone, pyramid pooling and a light decoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from deep_image_compositing import weights as weight_files
from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.boxes import subject_boxes
from deep_image_compositing.functional.compose import dilate, reconstruct
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.models.base import SegmenterModel, freeze_norm_stats
from deep_image_compositing.networks.pyramid import PyramidNetwork
from deep_image_compositing.options import check_choice, check_range

STRAYS_AT = 160  # long side in pixels at which stray components of a mask are searched
FOUND = 0.3  # probability above which pixels define the box of the next look
# Network options without a weights file.
DEFAULTS: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "size": 320, "width": 64}


class PyramidModel(SegmenterModel):
    """Segments the salient subject at a fixed small size and resizes the mask back.

    The full image is resized to ``size`` x ``size`` pixels. At inference, further looks run the
    network on a crop around the subject found so far, and the logits are averaged. ``backbone``,
    ``size`` and ``width`` default to the values in the ``weights`` file.

    Args:
        backbone: timm model name; ``tf_efficientnet_lite0`` without a file.
        pretrained: backbone weights: None, ``pretrained``, or a local checkpoint file.
        size: side in pixels at which the network runs; 320 without a file.
        width: decoder channels; 64 without a file.
        looks: 1 for the full image only, in half the time; 2 adds a mirrored crop; 3 adds another
            crop, not mirrored.
        margin: margin of the crops around the subject, as a fraction of its longer side.
        sure: probability in [0, 1) that a connected component of the mask must reach somewhere;
            others are dropped, provided at least one reaches it. 0 keeps all.
        freeze_stride: backbone features up to this stride are not trained.
        freeze_norms: batch norms keep their statistics in training; recommended for fine-tuning
            with small batches.
        weights: trained weights: a shipped name (``default``), a file, or None.
    """

    shipped: ClassVar[dict[str, str]] = {"default": "pyramid.safetensors"}

    def __init__(
        self,
        backbone: str | None = None,
        pretrained: str | None = None,
        size: int | None = None,
        width: int | None = None,
        looks: int = 2,
        margin: float = 0.05,
        sure: float = 0.9,
        freeze_stride: int = 0,
        freeze_norms: bool = False,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        options = weight_files.describe(self, weights, DEFAULTS, locals(), free=("size",))
        size = int(options["size"])
        check_range("size", size, 32, 8192)
        check_range("width", options["width"], 1, 4096)
        check_choice("looks", looks, (1, 2, 3))
        check_range("margin", margin, 0, 100)
        if not 0 <= sure < 1:
            raise UsageError(f"sure is a probability in [0, 1), got {sure}")
        self.size = size
        self.sure = sure
        self.freeze_norms = freeze_norms
        self.looks = looks
        self.margin = margin
        self.network = PyramidNetwork(
            options["backbone"],
            None if weights else pretrained,
            options["width"],
            freeze_stride=freeze_stride,
        )
        self.network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.load_weights(weights)

    def train(self, mode: bool = True) -> PyramidModel:
        """As in torch; frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_norms:
            freeze_norm_stats(self)
        return self

    def logits(self, image: Tensor) -> Tensor:
        """Mask logits (B, 1, H, W) at the image's own size, as in training on small crops."""
        return self.network(image)

    def forward(self, image: Tensor) -> Tensor:
        shape = (image.shape[-2], image.shape[-1])
        logits = resize(self._look(image), shape)
        if not self.training:
            for look in range(1, self.looks):
                logits = self._look_closer(image, logits, look, mirrored=look == 1)
        mask = logits.sigmoid()
        return drop_strays(mask, self.sure) if self.sure else mask

    def _look(self, *images: Tensor) -> Tensor:
        """Logits (B, 1, size, size) of image batches, which are resized and concatenated."""
        side = (self.size, self.size)
        return self.logits(torch.cat([resize(image, side).clamp(0, 1) for image in images]))

    def _look_closer(self, image: Tensor, logits: Tensor, looks: int, mirrored: bool) -> Tensor:
        """Average ``logits``, the mean of ``looks``, with one more look at the subject's crop."""
        boxes = subject_boxes(logits.sigmoid(), FOUND, self.margin)
        crops = [item[None, :, *box] for item, box in zip(image, boxes, strict=True)]
        outputs = self._look(*(crop.flip(-1) if mirrored else crop for crop in crops))
        averaged = logits.clone()
        for item, (box, output) in enumerate(zip(boxes, outputs.split(1), strict=True)):
            crop = (slice(item, item + 1), slice(None), *box)
            shape = (logits[crop].shape[-2], logits[crop].shape[-1])
            closer = resize(output.flip(-1) if mirrored else output, shape)
            averaged[crop] = (looks * logits[crop] + closer) / (looks + 1)
        return averaged


def drop_strays(mask: Tensor, sure: float, doubt: float = 0.1) -> Tensor:
    """Clear the components of a mask (B, 1, H, W) in [0, 1] that never exceed ``sure``.

    Components are connected pixels above ``doubt``. If no pixel exceeds ``sure``, all stay.
    """
    height, width = mask.shape[-2:]
    size = fit_long_side(height, width, STRAYS_AT)
    small = resize(mask, size)
    seeds, region = small > sure, small > doubt
    components = reconstruct(seeds, region)
    has_seed = seeds.flatten(1).any(1)[:, None, None, None]
    stray = dilate(region & ~components, 2) & ~dilate(components, 1) & has_seed
    if not stray.any():
        return mask
    return mask * (1 - resize(stray.to(mask.dtype), (height, width)).clamp(0, 1))
