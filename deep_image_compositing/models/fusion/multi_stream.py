"""The learned fusers: the paper's multi-stream fusion network and its single-stream ablation."""

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
}  # of the networks, where neither a weights file nor the caller says otherwise
FINE_RADIUS = 8  # half width in pixels of the band that is repainted at sizes beyond the first one
KEEP_SOLVED = -3.0  # bias of the gate at first: about 5 % given alpha, 95 % solved alpha


def band_trimap(alpha: Tensor, radius: int) -> Tensor:
    """Trimap (B, 1, H, W): unknown within ``radius`` pixels of any alpha that is not 0 or 1.

    Segmenters never quite reach either: below 1/20 is 0, above 19/20 is 1.
    """
    ones = (erode(alpha, radius) > 0.95).to(alpha.dtype)
    zeros = (dilate(alpha, radius) < 0.05).to(alpha.dtype)
    return 0.5 * (1 + ones - zeros)


class MultiStreamModel(FuserModel):
    """Fuses both photographs with a learned network.

    With the ``layers`` head, the given alpha only marks the rim: in a band around it the network
    corrects the closed-form alpha, and the subject's colour as estimated under that. Outside the
    band every pixel is the photographs' own, bit for bit. The ``rgb`` head paints the composite
    directly, as published. What describes the networks is by default as in the file of ``weights``,
    or without one as published but for the head.

    Args:
        head: ``layers`` or ``rgb``.
        widths: channels of each scale, finest first.
        radius: half width in pixels of the band around the rim that is repainted (``layers``).
        start: what the ``layers`` head starts from: ``closed_form``, or ``given`` for the alpha
            and the photograph as they came.
        backbone: timm model whose features help the foreground stream (``layers``), up to the
            stride of the coarsest scale. None for none, as published.
        pretrained: weights of the backbone: None, ``pretrained``, or a local checkpoint file.
        shuffle: stride of the finest scale; 2 or 4 are faster, 1 is as published.
        finer_widths: channels of a second, small network that corrects what the first one found,
            in tiles at the full size of photographs beyond the working size (``layers``); finest
            scale first, which has half the size. None for no such corrections.
        keep_exact: leave exact alphas, such as mattes from a studio, as they are when not training;
            see ``functional.exactness`` (``layers``).
        two_sizes: share of each training batch that teaches the small network, on what the first
            one finds at half the size; at 0 it stays as it is.
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
            self.tile_context = None  # it paints every pixel
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
            # Photograph, alpha, both colours beside the new background: one stream is enough.
            self.finer = MultiStreamNetwork(13, 0, 4, tuple(finer_widths), None, 2)
            self.finer.to(memory_format=torch.channels_last)
            # What takes no part in the loss must not wait for gradients, least of all on many GPUs.
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
            trimap, solved, color, old = self._begin(foreground, alpha)
        given = [foreground, alpha, solved, color, old]
        change = self.network(*self._streams(given, background, solved))
        change = change.to(solved.dtype)
        gate = change[:, :1].sigmoid()
        corrected = solved + gate * (alpha - solved) + 0.5 * change[:, 1:2]
        if self.keep_exact and not self.training:
            given_alpha = alpha.to(corrected.dtype)
            corrected = torch.lerp(corrected, given_alpha, exactness(foreground, given_alpha))
        corrected = torch.where(trimap == 0.5, corrected.clamp(0, 1), trimap.to(corrected.dtype))
        if self.start == "closed_form":
            # From the corrected alpha, not the first one: their colours differ as they do.
            with torch.no_grad():
                pair = multilevel_layers(foreground.float(), corrected.float())
            color, old = (part.to(corrected.dtype) for part in pair)
        return self._painted(foreground, corrected, color, old, change[:, 2:])

    def finer_layers(self, foreground: Tensor, background: Tensor, coarse: Layers) -> Layers | None:
        """The small network's corrections to what the first one found, close to the rim."""
        if self.finer is None or coarse.old_background is None:
            return None
        alpha, color, old = coarse.alpha, coarse.foreground_color, coarse.old_background
        trimap = band_trimap(alpha, FINE_RADIUS)
        seen = torch.cat([foreground, alpha, color, old, background], 1)
        dtype = self.finer.head.weight.dtype
        seen = seen.to(dtype).contiguous(memory_format=torch.channels_last)
        change = self.finer(seen).to(alpha.dtype)
        corrected = (alpha + 0.5 * change[:, :1]).clamp(0, 1)
        corrected = torch.where(trimap == 0.5, corrected, trimap.to(corrected.dtype))
        return self._painted(foreground, corrected, color, old, change[:, 1:])

    @staticmethod
    def _painted(
        photograph: Tensor, alpha: Tensor, color: Tensor, old: Tensor, change: Tensor
    ) -> Layers:
        """Layers whose colour is ``color`` and the network's change of it."""
        repainted = (color + 0.5 * change).clamp(0, 1)
        # Where alpha is 1, what the camera saw is the subject's colour: nothing to repaint.
        return Layers(alpha, torch.where(alpha == 1, photograph, repainted), old)

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


class SingleStreamModel(MultiStreamModel):
    """Both photographs concatenated into one encoder; everything else as in multi_stream.

    The default widths make 0.1 % more parameters than multi_stream has.
    """

    shipped: ClassVar[dict[str, str]] = {"default": "single_stream.safetensors"}
    published: ClassVar[dict[str, Any]] = {**PUBLISHED, "widths": (24, 32, 54, 86, 106)}
    streams: ClassVar[int] = 1
