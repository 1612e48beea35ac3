"""The learned segmenter: any timm backbone, pyramid pooling, light decoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from deep_image_compositing import weights as weight_files
from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.boxes import subject_boxes
from deep_image_compositing.functional.compose import dilate, reconstruct
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.models.base import SegmenterModel, stop_norms
from deep_image_compositing.networks.pyramid import PyramidNetwork
from deep_image_compositing.options import check_choice, check_range

STRAYS_AT = 160  # long side in pixels at which stray patches of a mask are looked for
FOUND = 0.3  # belief at which a look has found something, for the next look to take in
# Of the network, where neither a weights file nor the caller says otherwise.
DEFAULTS: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "size": 320, "width": 64}


class PyramidModel(SegmenterModel):
    """Segments the salient subject at a fixed small size and resizes the mask back.

    The whole picture is squeezed to ``size`` x ``size`` pixels. When not training, what the first
    look has found is looked at again, closer and in a mirror, and the answers are averaged. What
    describes the network is by default as in the file of ``weights``.

    Args:
        backbone: timm model name; ``tf_efficientnet_lite0`` where no file says otherwise.
        pretrained: weights of the backbone: None, ``pretrained``, or a local checkpoint file.
        size: side in pixels at which the network runs; 320 likewise.
        width: channels of the decoder; 64 likewise.
        looks: 1 for the whole picture alone, in half of the time; 2 for the closer look in a
            mirror; 3 for one more around what both have found, not mirrored.
        margin: what closer looks take in around the subject, as a share of its longer side.
        sure: belief in [0, 1) that a patch of the mask has to reach somewhere; patches that do
            not are dropped where another does. 0 keeps them all.
        freeze_stride: backbone features up to this stride are not trained.
        freeze_norms: batch norms keep their statistics in training, as is best where trained
            weights go on in small batches.
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
            raise UsageError(f"sure is a belief in [0, 1), got {sure}")
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
        """Frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_norms:
            stop_norms(self)
        return self

    def logits(self, image: Tensor) -> Tensor:
        """The mask before its sigmoid, at the picture's own size: training crops are small."""
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
        """Logits (B, 1, size, size) of pictures (or batches of them) squeezed to that size."""
        side = (self.size, self.size)
        return self.logits(torch.cat([resize(image, side).clamp(0, 1) for image in images]))

    def _look_closer(self, image: Tensor, logits: Tensor, looks: int, mirrored: bool) -> Tensor:
        """Average ``logits``, of so many looks, with one more around what they have found."""
        boxes = subject_boxes(logits.sigmoid(), FOUND, self.margin)
        parts = [item[None, :, *box] for item, box in zip(image, boxes, strict=True)]
        answers = self._look(*(part.flip(-1) if mirrored else part for part in parts))
        joined = logits.clone()
        for item, (box, answer) in enumerate(zip(boxes, answers.split(1), strict=True)):
            part = (slice(item, item + 1), slice(None), *box)
            shape = (logits[part].shape[-2], logits[part].shape[-1])
            closer = resize(answer.flip(-1) if mirrored else answer, shape)
            joined[part] = (looks * logits[part] + closer) / (looks + 1)
        return joined


def drop_strays(mask: Tensor, sure: float, doubt: float = 0.1) -> Tensor:
    """Empty the patches of a mask (B, 1, H, W) in [0, 1] that are sure nowhere.

    A patch is what exceeds ``doubt`` and hangs together. Without any pixel above ``sure`` all stay.
    """
    height, width = mask.shape[-2:]
    size = fit_long_side(height, width, STRAYS_AT)
    small = resize(mask, size)
    seeds, region = small > sure, small > doubt
    kept = reconstruct(seeds, region)
    sure_somewhere = seeds.flatten(1).any(1)[:, None, None, None]
    stray = dilate(region & ~kept, 2) & ~dilate(kept, 1) & sure_somewhere
    if not stray.any():
        return mask
    return mask * (1 - resize(stray.to(mask.dtype), (height, width)).clamp(0, 1))
