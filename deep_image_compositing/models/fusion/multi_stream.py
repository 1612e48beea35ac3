"""Learned fusers: the paper's multi-stream fusion network and its single-stream ablation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from deep_image_compositing import weights as weight_files
from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import dilate, erode
from deep_image_compositing.functional.exactness import exactness
from deep_image_compositing.functional.foreground import blur_fusion_foreground, multilevel_layers
from deep_image_compositing.functional.matting import closed_form
from deep_image_compositing.models.base import FuserModel, Layers
from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.multi_stream import MultiStreamNetwork
from deep_image_compositing.options import check_choice, check_range

PUBLISHED: dict[str, Any] = {
    "head": "layers",
    "widths": (16, 24, 40, 64, 80),
    "radius": 10,
    "start": "closed_form",
    "backbone": None,
    "shuffle": 1,
    "finer_widths": None,
}  # network options without a weights file
FINE_RADIUS = 8  # half width in pixels of the band repainted beyond the working size
KEEP_SOLVED = -3.0  # initial bias of the gate: about 5 % input alpha, 95 % solved alpha


def band_trimap(alpha: Tensor, radius: int) -> Tensor:
    """Trimap (B, 1, H, W): unknown within ``radius`` pixels of any alpha that is not 0 or 1.

    As segmenters never quite reach them, below 0.05 counts as 0 and above 0.95 as 1.
    """
    ones = (erode(alpha, radius) > 0.95).to(alpha.dtype)
    zeros = (dilate(alpha, radius) < 0.05).to(alpha.dtype)
    return 0.5 * (1 + ones - zeros)


class MultiStreamModel(FuserModel):
    """Fuses both photographs with a learned network.

    With the ``layers`` head, the input alpha only locates the rim. In a band around it the network
    corrects the closed-form alpha and the subject's colour estimated from it; outside the band
    every pixel is bit-identical to one of the photographs. The ``rgb`` head paints the composite
    directly, as published. Network options default to the values in the ``weights`` file, or
    without one to the published network with the ``layers`` head.

    Args:
        head: ``layers`` or ``rgb``.
        widths: channels of each scale, finest first.
        radius: half width in pixels of the repainted band around the rim (``layers``).
        start: initial alpha and colour of the ``layers`` head: ``closed_form``, or ``given`` for
            the input alpha and the photograph.
        backbone: timm model whose features, up to the stride of the coarsest scale, support the
            foreground stream (``layers``). None for none, as published.
        pretrained: backbone weights: None, ``pretrained``, or a local checkpoint file.
        shuffle: stride of the finest scale; 2 and 4 are faster, 1 is as published.
        finer_widths: channels of a second, small network that corrects the layers in full-size
            tiles of photographs larger than the working size (``layers``); finest scale first, at
            half resolution. None for no such network.
        keep_exact: at inference, keep exact alphas such as studio mattes; see
            ``functional.exactness`` (``layers``).
        two_sizes: fraction of each training batch used to train the small network, on the first
            one's layers at half size; at 0 it is frozen.
        weights: trained weights: a shipped name (``default``), a file, or None.
    """

    shipped: ClassVar[dict[str, str]] = {"default": "multi_stream.safetensors"}
    published: ClassVar[dict[str, Any]] = PUBLISHED
    streams: ClassVar[int] = 2
    tile_context: int | None = 16

    def __init__(
        self,
        head: Literal["layers", "rgb"] | None = None,
        widths: tuple[int, ...] | None = None,
        radius: int | None = None,
        start: Literal["closed_form", "given"] | None = None,
        backbone: str | None = None,
        pretrained: str | None = None,
        shuffle: int | None = None,
        finer_widths: tuple[int, ...] | None = None,
        keep_exact: bool = True,
        two_sizes: float = 0.0,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        options = weight_files.describe(
            self, weights, self.published, locals(), free=("radius", "start")
        )
        head, shuffle, widths = options["head"], int(options["shuffle"]), tuple(options["widths"])
        backbone, finer_widths = options["backbone"], options["finer_widths"]
        self._check(options)
        if not 0 <= two_sizes <= 1 or (two_sizes and not (finer_widths and head == "layers")):
            raise UsageError(
                f"two_sizes is a share in [0, 1], 0 without finer_widths, got {two_sizes}"
            )
        self.keep_exact = keep_exact
        self.two_sizes = two_sizes
        self.head = head
        self.radius = int(options["radius"])
        self.start = options["start"]
        self.finer: MultiStreamNetwork | None = None
        if head == "rgb":
            self.tile_context = None  # paints every pixel
            channels = (4, 4, 3) if self.streams == 2 else (7, 0, 3)
            self.network = MultiStreamNetwork(*channels, widths, shuffle=shuffle)
        else:
            channels = (11, 4, 5) if self.streams == 2 else (14, 0, 5)
            features = None
            if backbone:
                stride = shuffle * 2 ** (len(widths) - 1)
                features = Backbone(backbone, None if weights else pretrained, 2, stride)
            self.network = MultiStreamNetwork(*channels, widths, features, shuffle)
            with torch.no_grad():
                self.network.head.bias[: shuffle**2] = KEEP_SOLVED  # type: ignore[index]
        if finer_widths and head == "layers":
            # One stream: photograph, alpha, colours of both layers, new background.
            self.finer = MultiStreamNetwork(13, 0, 4, tuple(finer_widths), None, 2)
            self.finer.to(memory_format=torch.channels_last)
            # DDP waits for gradients of all parameters that require them.
            self.finer.requires_grad_(two_sizes > 0)
        self.network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.load_weights(weights)

    @staticmethod
    def _check(options: dict[str, Any]) -> None:
        check_choice("head", options["head"], ("layers", "rgb"))
        check_choice("start", options["start"], ("closed_form", "given"))
        check_choice("shuffle", options["shuffle"], (1, 2, 4))
        check_range("radius", int(options["radius"]), 1, 1000)
        finer = options["finer_widths"] or (1,)
        for name, widths in (("widths", options["widths"]), ("finer_widths", finer)):
            check_range(f"the number of {name}", len(widths), 1, 10)
            check_range(f"each of {name}", tuple(widths), 1, 4096)

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        if self.head == "rgb":
            streams = self._streams([foreground, alpha], background, alpha)
            return self.network(*streams).float().sigmoid().to(foreground.dtype)
        return super().forward(foreground, background, alpha)

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers | None:
        if self.head == "rgb":
            return None
        with torch.no_grad():
            trimap, solved, color, old = self._initial_layers(foreground, alpha)
        inputs = [foreground, alpha, solved, color, old]
        change = self.network(*self._streams(inputs, background, solved))
        change = change.to(solved.dtype)
        gate = change[:, :1].sigmoid()
        corrected = solved + gate * (alpha - solved) + 0.5 * change[:, 1:2]
        if self.keep_exact and not self.training:
            alpha = alpha.to(corrected.dtype)
            corrected = torch.lerp(corrected, alpha, exactness(foreground, alpha))
        corrected = torch.where(trimap == 0.5, corrected.clamp(0, 1), trimap.to(corrected.dtype))
        if self.start == "closed_form":
            # Colours have to be estimated anew for the corrected alpha.
            with torch.no_grad():
                colors = multilevel_layers(foreground.float(), corrected.float())
            color, old = (x.to(corrected.dtype) for x in colors)
        return self._repaint(foreground, corrected, color, old, change[:, 2:])

    def finer_layers(self, foreground: Tensor, background: Tensor, coarse: Layers) -> Layers | None:
        """Correct ``coarse`` near the rim with the small network."""
        if self.finer is None or coarse.old_background is None:
            return None
        alpha, color, old = coarse.alpha, coarse.foreground_color, coarse.old_background
        trimap = band_trimap(alpha, FINE_RADIUS)
        inputs = torch.cat([foreground, alpha, color, old, background], 1)
        dtype = self.finer.head.weight.dtype
        inputs = inputs.to(dtype).contiguous(memory_format=torch.channels_last)
        change = self.finer(inputs).to(alpha.dtype)
        corrected = (alpha + 0.5 * change[:, :1]).clamp(0, 1)
        corrected = torch.where(trimap == 0.5, corrected, trimap.to(corrected.dtype))
        return self._repaint(foreground, corrected, color, old, change[:, 1:])

    @staticmethod
    def _repaint(
        photograph: Tensor, alpha: Tensor, color: Tensor, old: Tensor, change: Tensor
    ) -> Layers:
        """Layers with the network's ``change`` applied to the subject's colour."""
        repainted = (color + 0.5 * change).clamp(0, 1)
        # Where alpha is 1, the photograph is the subject's true colour.
        return Layers(alpha, torch.where(alpha == 1, photograph, repainted), old)

    def _initial_layers(
        self, photograph: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Trimap, initial alpha, and initial colours of the subject and the old background."""
        photograph, alpha = photograph.float(), alpha.float()
        trimap = band_trimap(alpha, self.radius)
        if self.start == "given":
            return trimap, alpha, photograph, photograph
        solved = closed_form(photograph, trimap, alpha)
        color, old = blur_fusion_foreground(photograph, solved)
        return trimap, solved, color, old

    def _streams(self, inputs: list[Tensor], background: Tensor, alpha: Tensor) -> list[Tensor]:
        """Network inputs, one per stream, in the network's dtype and memory layout."""
        streams = [torch.cat(inputs, 1), torch.cat([background, alpha], 1)]
        if self.streams == 1:
            streams = [torch.cat([*inputs, background], 1)]
        dtype = self.network.head.weight.dtype
        return [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in streams]


class SingleStreamModel(MultiStreamModel):
    """Concatenates both photographs into one encoder; everything else is as in multi_stream.

    The default widths give 0.1 % more parameters than multi_stream has.
    """

    shipped: ClassVar[dict[str, str]] = {"default": "single_stream.safetensors"}
    published: ClassVar[dict[str, Any]] = {**PUBLISHED, "widths": (24, 32, 54, 86, 106)}
    streams: ClassVar[int] = 1
