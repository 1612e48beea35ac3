"""The paper's refinement network: two stages of local mask corrections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deep_image_compositing import weights as weight_files
from deep_image_compositing.functional.boxes import subject_boxes
from deep_image_compositing.functional.exactness import exactness
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.models.base import RefinerModel
from deep_image_compositing.networks.pyramid import PyramidNetwork
from deep_image_compositing.options import check_positive, check_range

# Network options without a weights file.
DEFAULTS: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "sizes": (320, 640), "width": 32}
OUTSIDE = 0.05  # input mask value up to which a pixel is certainly background
BELIEF = 3.0  # logit of an input mask value of 1, before the network's correction


class Cascade(RefinerModel):
    """The cascade without its network, shared by the torch and ONNX versions."""

    network: nn.Module  # ``image, mask → correction`` of the mask's logits, at any size

    def _set_options(
        self,
        sizes: Sequence[int],
        confidence: float,
        trust: float,
        margin: float,
        zoom: float,
        keep_good: bool,
    ) -> None:
        """Check and store the options that do not concern the network."""
        check_range("the number of sizes", len(sizes), 1, 10)
        check_range("each of sizes", tuple(sizes), 32, 8192)
        check_positive(confidence=confidence, trust=trust)
        check_range("margin", margin, 0, 100)
        check_range("zoom", zoom, 1, math.inf)
        self.sizes = tuple(sizes)
        self.confidence = confidence
        self.trust = trust
        self.margin = margin
        self.zoom = zoom
        self.keep_good = keep_good

    def logits(self, image: Tensor, mask: Tensor) -> Tensor:
        """Alpha logits (B, 1, H, W) of one stage at the image's own size."""
        return BELIEF * (2 * mask - 1) + self.network(image, mask)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        if self.training:
            return self._refine(image, mask)
        good = mask.new_zeros(len(mask), 1, 1, 1)
        if self.keep_good:
            good = exactness(image, mask)
            if bool((good == 1).all()):
                return mask
        alpha = torch.zeros_like(mask)
        for item, box in enumerate(subject_boxes(mask, OUTSIDE, self.margin)):
            crop = (slice(item, item + 1), slice(None), *box)
            alpha[crop] = self._refine(image[crop], mask[crop])
        return torch.lerp(alpha, mask, good)

    def _refine(self, image: Tensor, mask: Tensor) -> Tensor:
        """Alpha after all stages, each of which runs on the full ``image``."""
        height, width = image.shape[-2:]
        alpha = mask
        for size in self.sizes:
            scale = min(self.zoom, size / max(height, width))
            stage = (max(1, round(height * scale)), max(1, round(width * scale)))
            small = resize(image, stage).clamp(0, 1)
            previous = resize(alpha, stage).clamp(0, 1)
            logits = self.logits(small, previous)
            if not self.training:
                logits = logits + (self.trust - 1) * BELIEF * (2 * previous - 1)
            alpha = (self.confidence * logits).sigmoid()
        return resize(alpha, (height, width)).clamp(0, 1)


class CascadeModel(Cascade):
    """Sharpens a rough mask at one size, and the result again at the next.

    All stages share one network, which is trained on local crops and predicts a correction to the
    logits of the previous mask. ``backbone``, ``sizes`` and ``width`` default to the values in the
    ``weights`` file. At inference, masks that are exact alphas already are returned unchanged.

    Args:
        backbone: timm model name, used up to stride 16; ``tf_efficientnet_lite0`` without a file.
        pretrained: backbone weights: None, ``pretrained``, or a local checkpoint file.
        sizes: long side in pixels of the subject and its margin in each stage at inference;
            the paper's (320, 640) without a file.
        width: decoder channels; 32 without a file.
        freeze_stride: backbone features up to this stride are not trained.
        confidence: factor on the logits at inference. Trained by cross-entropy on few photographs,
            the network is underconfident inside subjects, and a fuser would treat the remaining
            gray as transparent. 1 leaves the logits unchanged.
        trust: factor on the logits of each stage's input mask at inference. Above 1, uncertainty
            inside a subject causes fewer holes; 1 is as trained.
        margin: context around the subject at inference, as a fraction of its longer side;
            everything beyond is background.
        zoom: maximum magnification of small subjects.
        keep_good: leave exact alphas unchanged; see ``functional.exactness``.
        weights: trained weights: a shipped name (``default``), a file, or None.
    """

    shipped: ClassVar[dict[str, str]] = {"default": "cascade.safetensors"}

    def __init__(
        self,
        backbone: str | None = None,
        pretrained: str | None = None,
        sizes: tuple[int, ...] | None = None,
        width: int | None = None,
        freeze_stride: int = 0,
        confidence: float = 2.0,
        trust: float = 1.6,
        margin: float = 0.4,
        zoom: float = 1.5,
        keep_good: bool = True,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        options = weight_files.describe(self, weights, DEFAULTS, locals(), free=("sizes",))
        check_range("width", options["width"], 1, 4096)
        self._set_options(options["sizes"], confidence, trust, margin, zoom, keep_good)
        self.network = PyramidNetwork(
            options["backbone"],
            None if weights else pretrained,
            options["width"],
            extra_channels=1,
            max_stride=16,
            min_stride=2,
            freeze_stride=freeze_stride,
        )
        head: nn.Conv2d = self.network.head[-1]  # type: ignore[assignment]
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        self.network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.load_weights(weights)
