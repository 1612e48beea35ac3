"""The paper's refinement network: local corrections of a mask, in two stages."""

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

# Of the network, where neither a weights file nor the caller says otherwise.
DEFAULTS: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "sizes": (320, 640), "width": 32}
OUTSIDE = 0.05  # belief in the given mask up to which a pixel is surely not the subject's
BELIEF = 3.0  # logit of a pixel that the given mask is sure of, before the network has its say


class Cascade(RefinerModel):
    """What is done around a refinement network, whatever runs it; see ``CascadeModel``."""

    network: nn.Module  # ``image, mask → correction`` of the mask's logits, at any size

    def _settle(
        self,
        sizes: Sequence[int],
        confidence: float,
        trust: float,
        margin: float,
        zoom: float,
        keep_good: bool,
    ) -> None:
        """Check and keep the options that are not the network's."""
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
        """One stage at the picture's own size: alpha (B, 1, H, W) before its sigmoid."""
        return BELIEF * (2 * mask - 1) + self.network(image, mask)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        if self.training:
            return self._refined(image, mask)
        good = mask.new_zeros(len(mask), 1, 1, 1)
        if self.keep_good:
            good = exactness(image, mask)
            if bool((good == 1).all()):
                return mask
        alpha = torch.zeros_like(mask)
        for item, box in enumerate(subject_boxes(mask, OUTSIDE, self.margin)):
            part = (slice(item, item + 1), slice(None), *box)
            alpha[part] = self._refined(image[part], mask[part])
        return torch.lerp(alpha, mask, good)

    def _refined(self, image: Tensor, mask: Tensor) -> Tensor:
        """Alpha after all stages, each of which sees all of ``image``."""
        height, width = image.shape[-2:]
        alpha = mask
        for size in self.sizes:
            scale = min(self.zoom, size / max(height, width))
            stage = (max(1, round(height * scale)), max(1, round(width * scale)))
            small = resize(image, stage).clamp(0, 1)
            given = resize(alpha, stage).clamp(0, 1)
            logits = self.logits(small, given)
            if not self.training:
                logits = logits + (self.trust - 1) * BELIEF * (2 * given - 1)
            alpha = (self.confidence * logits).sigmoid()
        return resize(alpha, (height, width)).clamp(0, 1)


class CascadeModel(Cascade):
    """Sharpens a rough mask at one size, and the result again at the next.

    One network serves all stages. It is trained on local crops and answers with a correction to the
    belief of the mask of the stage before. What describes it is by default as in the file of
    ``weights``. A mask that proves to be an exact alpha is not refined at all.

    Args:
        backbone: timm model name, of which only features up to stride 16 are used;
            ``tf_efficientnet_lite0`` where no file says otherwise.
        pretrained: weights of the backbone: None, ``pretrained``, or a local checkpoint file.
        sizes: long side in pixels to which each stage brings the subject and its margin at test,
            in order, magnified by at most ``zoom``; the paper's (320, 640) likewise.
        width: channels of the decoder; 32 likewise.
        freeze_stride: backbone features up to this stride are not trained.
        confidence: factor of the logits at test. Cross-entropy on few photographs leaves the
            network less sure of a subject's inside than it is right; what stays gray there, a
            fuser would take for glass. 1 leaves the logits as they are.
        trust: factor of the given mask's belief at test. Above 1, doubt inside a subject makes
            fewer holes in it; 1 is as trained.
        margin: what a stage sees around the subject at test, as a share of its longer side;
            what is farther away is taken for background.
        zoom: how far a stage may magnify a small subject.
        keep_good: leave masks that are exact alphas as they are; see ``functional.exactness``.
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
        trust: float = 1.33,
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
        self._settle(options["sizes"], confidence, trust, margin, zoom, keep_good)
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
