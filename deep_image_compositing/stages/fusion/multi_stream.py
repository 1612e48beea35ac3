"""The learned fusers: the paper's multi-stream fusion network and its single-stream ablation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import dilate, erode, over
from deep_image_compositing.functional.foreground import (
    blur_fusion_foreground,
    multilevel_layers,
)
from deep_image_compositing.functional.matting import closed_form
from deep_image_compositing.losses import laplacian_loss
from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.multi_stream import MultiStreamNetwork
from deep_image_compositing.registry import register
from deep_image_compositing.stages.base import Batch, Fuser, Layers, Step

KEEP_SOLVED = -3.0
"""Bias of the gate at the start of training: about 5 % given alpha, 95 % solved alpha."""


def band_trimap(alpha: Tensor, radius: int) -> Tensor:
    """Trimap (B, 1, H, W): unknown within ``radius`` pixels of any alpha that is not 0 or 1.

    Alphas below 1/20 count as 0 and above 19/20 as 1, as segmenters never quite reach either.
    """
    ones = (erode(alpha, radius) > 0.95).to(alpha.dtype)
    zeros = (dilate(alpha, radius) < 0.05).to(alpha.dtype)
    return 0.5 * (1 + ones - zeros)


@register(
    "fuser",
    "multi_stream",
    description="multi-stream fusion network (MLF): two encoders, one decoder for every scale",
    source="Zhang et al., WACV 2021, section 3.3",
)
class MultiStreamFuser(Fuser):
    """Fuses both photographs with a learned network.

    With the ``layers`` head, the given alpha only marks the rim: in a band around it, alpha starts
    from the closed-form solution, which the network corrects; under the corrected alpha the
    subject's colour is estimated from coarse to fine, and the network corrects that too. Outside
    the band every pixel is the photographs' own, bit for bit. The ``rgb`` head paints the
    composite directly, as published.

    Args:
        head: ``layers`` or ``rgb``.
        widths: channels of each scale, finest first.
        radius: half width in pixels of the band around the rim that is repainted (``layers``).
        start: what the ``layers`` head starts from: ``closed_form``, or ``given`` for the alpha
            and the photograph as they came.
        backbone: timm model whose features help the foreground stream (``layers``); only those up
            to the stride of the coarsest scale are used. None for none, as published.
        pretrained: weights of the backbone: None, ``pretrained``, or a local checkpoint file.
        shuffle: stride of the finest scale; 2 or 4 are faster, 1 is as published.
        weights: trained weights: a shipped name (``default``), a file, or None.
        **kwargs: as for :class:`~deep_image_compositing.stages.base.Fuser`.
    """

    shipped: ClassVar[dict[str, str]] = {"default": "multi_stream.safetensors"}
    streams: ClassVar[int] = 2

    def __init__(
        self,
        head: Literal["layers", "rgb"] = "layers",
        widths: tuple[int, ...] = (16, 24, 40, 64, 80),
        radius: int = 10,
        start: Literal["closed_form", "given"] = "closed_form",
        backbone: str | None = None,
        pretrained: str | None = None,
        shuffle: int = 1,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if head not in ("layers", "rgb"):
            raise UsageError(f"head must be 'layers' or 'rgb', got {head!r}")
        if start not in ("closed_form", "given"):
            raise UsageError(f"start must be 'closed_form' or 'given', got {start!r}")
        if radius < 1 or len(widths) < 1:
            raise UsageError(
                f"radius and the number of widths must be at least 1, got {radius}, {widths}"
            )
        if shuffle not in (1, 2, 4):
            raise UsageError(f"shuffle must be 1, 2 or 4, got {shuffle}")
        self.save_hyperparameters()
        self.head = head
        self.radius = radius
        self.start = start
        layers = head == "layers"
        foreground, background = (11, 4) if layers else (4, 4)
        if self.streams == 1:
            foreground, background = foreground + 3, 0
        outputs = 5 if layers else 3
        features = None
        if backbone and layers:
            stride = shuffle * 2 ** (len(widths) - 1)
            features = Backbone(backbone, None if weights else pretrained, 2, stride)
        self.network = MultiStreamNetwork(
            foreground, background, outputs, tuple(widths), features, shuffle
        )
        if layers:
            with torch.no_grad():
                self.network.head.bias[: shuffle**2] = KEEP_SOLVED  # type: ignore[index]
        self.network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.load_weights(weights)

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        """Composite (B, 3, H, W) in [0, 1]."""
        if self.head == "rgb":
            streams = self._streams([foreground, alpha], background, alpha)
            return self.network(*streams).float().sigmoid().to(foreground.dtype)
        return super().forward(foreground, background, alpha)

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers | None:
        """Corrected alpha and colour; None with the ``rgb`` head."""
        if self.head == "rgb":
            return None
        with torch.no_grad():
            trimap, solved, color, old = self._begin(foreground, alpha)
        given = [foreground, alpha, solved, color, old]
        change = self.network(*self._streams(given, background, solved))
        change = change.to(solved.dtype)
        gate = change[:, :1].sigmoid()
        corrected = solved + gate * (alpha - solved) + 0.5 * change[:, 1:2]
        repainted = color + 0.5 * change[:, 2:]
        corrected = torch.where(trimap == 0.5, corrected.clamp(0, 1), trimap.to(corrected.dtype))
        if self.start == "closed_form":
            # From the corrected alpha, not the first one: their colours differ as they do.
            with torch.no_grad():
                color, _ = multilevel_layers(foreground.float(), corrected.float())
            color = color.to(corrected.dtype)
        # Where alpha is 1, what the camera saw is the subject's colour: nothing to repaint.
        color = torch.where(corrected == 1, foreground, repainted.clamp(0, 1))
        return Layers(corrected, color)

    def loss(self, batch: Batch) -> Step:
        """The paper's loss; for ``layers``, averaged over the band, with alpha and colour terms."""
        if self.head == "rgb":
            return super().loss(batch)
        layers = self.layers(batch["foreground"], batch["background"], batch["mask"])
        assert layers is not None
        output = over(layers.foreground_color, layers.alpha, batch["background"])
        alpha = batch["alpha"]
        # Outside the band nothing can change, so means over the picture would only dilute.
        share = (band_trimap(batch["mask"], self.radius) == 0.5).float().mean().clamp_min(0.05)
        terms = {k: v / share for k, v in self.composite_loss(output, batch["composite"]).items()}
        terms["alpha"] = F.l1_loss(layers.alpha, alpha) / share
        terms["alpha_laplacian"] = 0.2 * laplacian_loss(layers.alpha, alpha) / share
        color = (layers.foreground_color - batch["foreground_color"]).abs() * alpha
        terms["color"] = 0.5 * color.mean() / share
        pictures = {
            "photograph": batch["foreground"],
            "mask": batch["mask"],
            "background": batch["background"],
            "alpha": alpha,
            "output alpha": layers.alpha,
            "target": batch["composite"],
            "output": output,
        }
        return Step(torch.stack(list(terms.values())).sum(), terms, pictures)

    def _begin(self, photograph: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Trimap, first alpha, first subject colour and the old background's colour."""
        photograph, alpha = photograph.float(), alpha.float()
        trimap = band_trimap(alpha, self.radius)
        if self.start == "given":
            return trimap, alpha, photograph, photograph
        solved = closed_form(photograph, trimap, alpha)
        color, old = blur_fusion_foreground(photograph, solved)
        return trimap, solved, color, old

    def _streams(self, given: list[Tensor], background: Tensor, alpha: Tensor) -> list[Tensor]:
        """The inputs of the network's streams, in its precision and memory layout."""
        joined = [torch.cat(given, 1), torch.cat([background, alpha], 1)]
        if self.streams == 1:
            joined = [torch.cat([*given, background], 1)]
        dtype = self.network.head.weight.dtype
        return [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in joined]


@register(
    "fuser",
    "single_stream",
    description="the same network with one encoder for both pictures (the paper's ablation)",
    source="Zhang et al., WACV 2021, section 4.4",
)
class SingleStreamFuser(MultiStreamFuser):
    """Both photographs concatenated into one encoder; everything else as in multi_stream."""

    shipped: ClassVar[dict[str, str]] = {}
    streams: ClassVar[int] = 1
