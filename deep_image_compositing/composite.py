"""``Composite``: a finished composite, its intermediate results, and saving them to files."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.files import take
from deep_image_compositing.fullsize import Colors, as_floats
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.foreground import box_filter, multilevel_layers
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.functional.sheets import contact_sheet
from deep_image_compositing.images import write_images
from deep_image_compositing.placement import resample
from deep_image_compositing.settings import Shadow
from deep_image_compositing.shadows import Shade, find_shade, lay_shade, over_shadow, shadow_levels

OUTPUTS = ("path", "alpha", "cutout", "steps", "blurred", "shadow", "shadowed")
"""Outputs of ``Composite.save``, in the order of its arguments."""

BLUR_SIDE = 384
"""Long side in pixels at which the background is blurred."""

BLUR = 0.02
"""Radius of each of the three box blurs, as a fraction of the long side."""


@dataclass(frozen=True, eq=False, repr=False)
class Composite:
    """A composite and all intermediate results, at the frame's size, on the CPU.

    Pictures are stored as uint8; the properties return float tensors in [0, 1].

    Attributes:
        composite_pixels: (3, H, W) uint8.
        foreground_pixels: (3, H, W) uint8, the subject's photograph as placed in the frame.
        background_pixels: (3, H, W) uint8, the new background as placed in the frame.
        repainted: where the subject's colours differ from the photograph's.
        cutout_levels: (1, H, W), the alpha of the fuser's layers if it has any, else the refiner's;
            uint8, or float in [0, 1] if stages saw the whole frame.
        mask_levels: (1, h, w), the segmenter's or the user's mask, at its original size.
        alpha_levels: (1, H, W), the refiner's alpha.
        shade: fraction of light that the subject's shadow removes; None without a shadow.
        floor: row of the frame at which the subject is cut off at the bottom; None if it is not.
        name: name of the subject's photograph.
        device: device on which the stages ran.
        sources: input files, which ``save`` does not overwrite.
        seconds: time spent in ``segmentation``, ``refinement``, ``fusion``, ``harmonization`` and
            ``shadow``.
        tiles: number of cells of the frame that were processed in tiles, and the number of all
            cells; (0, 0) if the stages saw the whole frame.
    """

    composite_pixels: Tensor
    foreground_pixels: Tensor
    background_pixels: Tensor
    repainted: Colors
    cutout_levels: Tensor
    mask_levels: Tensor
    alpha_levels: Tensor
    shade: Shade | None = None
    floor: int | None = None
    name: str = ""
    device: str = "cpu"
    sources: frozenset[str] = frozenset()
    seconds: Mapping[str, float] = field(default_factory=dict)
    tiles: tuple[int, int] = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frame in pixels."""
        return self.composite_pixels.shape[-2], self.composite_pixels.shape[-1]

    @property
    def mask(self) -> Tensor:
        """The segmenter's or the user's mask, (1, H, W) float in [0, 1]."""
        return resize(as_floats(self.mask_levels)[None], self.size)[0].clamp(0, 1)

    @property
    def alpha(self) -> Tensor:
        """The refiner's alpha, (1, H, W) float in [0, 1]."""
        return as_floats(self.alpha_levels)

    @property
    def cutout_alpha(self) -> Tensor:
        """The alpha of the fuser's layers, else ``alpha``; (1, H, W) float in [0, 1]."""
        return as_floats(self.cutout_levels)

    @property
    def cutout_pixels(self) -> Tensor:
        """Straight colour of the subject, (3, H, W) uint8; 0 where its alpha rounds to 0."""
        return self.picture("cutout")[0]

    @property
    def composite(self) -> Tensor:
        """The composite, (3, H, W) float in [0, 1]."""
        return self.composite_pixels / 255

    @property
    def foreground(self) -> Tensor:
        """The subject's photograph as placed, its border replicated; (3, H, W) float in [0, 1]."""
        return self.foreground_pixels / 255

    @property
    def background(self) -> Tensor:
        """The new background as placed, (3, H, W) float in [0, 1]."""
        return self.background_pixels / 255

    @property
    def cutout(self) -> Tensor:
        """The subject alone, (4, H, W) float in [0, 1]: straight colour and alpha.

        Free of the old background's colour if the fuser returns layers. Colour is 0 where alpha
        is, so that saved files do not contain the old background.
        """
        return torch.cat([self.cutout_pixels / 255, self.cutout_alpha])

    @property
    def blurred(self) -> Tensor:
        """The subject over its own background, blurred; (3, H, W) float in [0, 1].

        The subject's colours do not bleed into the blur.
        """
        return self.picture("blurred")[0]

    def _blurred(self, cutout: Tensor) -> Tensor:
        size = fit_long_side(*self.size, BLUR_SIDE)
        small = resize(self.foreground[None], size).clamp(0, 1)
        alpha = self.cutout_alpha
        behind = multilevel_layers(small, resize(alpha[None], size).clamp(0, 1))[1]
        for _ in range(3):  # three box blurs approximate a Gaussian
            behind = box_filter(behind, round(BLUR * BLUR_SIDE))
        out = resize(behind, self.size)[0]
        for plane, color in zip(out, cutout, strict=True):  # by channel, to save memory
            plane.copy_(over(color / 255, alpha[0], plane))
        return out

    @property
    def shadow(self) -> Tensor:
        """The shadow as a layer, (4, H, W) float in [0, 1]: black and its opacity.

        Blended over ``background`` in sRGB values, as image editors do, and under ``cutout``, it
        yields the composite as closely as one opacity for three channels allows.
        """
        levels = shadow_levels(self.background_pixels, self._required_shade())
        return torch.cat([torch.zeros(3, *self.size), levels / 255])

    def with_shadow(self, shadow: Shadow | str | tuple[str, Mapping[str, Any]]) -> Composite:
        """A copy of this composite with a shadow, which is given as for ``Compositor``.

        Raises ``UsageError`` for an invalid shadow, or if the composite already has one.
        """
        options = Shadow.of(shadow)
        if self.shade is not None:
            raise UsageError("this composite has a shadow already; add it to one without")
        if options is None:
            return self
        background, alpha = self.background_pixels, self.cutout_levels
        shade = find_shade(alpha, background, options, self.floor, self.name)
        pixels = self.composite_pixels.clone(memory_format=torch.preserve_format)
        lay_shade(pixels, background, alpha, shade)
        return replace(self, composite_pixels=pixels, shade=shade)

    def _required_shade(self) -> Shade:
        if self.shade is None:
            raise UsageError("there is no shadow to save; ask for one with --shadow (shadow=)")
        return self.shade

    def __repr__(self) -> str:
        return f"Composite({self.name!r}, height={self.size[0]}, width={self.size[1]})"

    def steps(self, cell: int = 384) -> Tensor:
        """A labelled contact sheet of every step, (3, H, W) float in [0, 1].

        Args:
            cell: side in pixels of the square in which each step is shown.
        """
        return self._sheet(self.repainted.apply_to(self.foreground_pixels), cell)

    def _sheet(self, color: Tensor, cell: int) -> Tensor:
        """The contact sheet of ``steps``; ``color`` (3, H, W), uint8, is the subject's.

        Around the subject it is the photograph, lest resizing darken the rim.
        """
        size = fit_long_side(*self.size, cell)

        def small(levels: Tensor) -> Tensor:
            return as_floats(resample(levels, size, "bicubic" if len(levels) == 3 else "bilinear"))

        color, alpha = small(color)[None], small(self.cutout_levels)[None]
        pictures = {
            "foreground": small(self.foreground_pixels),
            "background": small(self.background_pixels),
            "mask": small(self.mask_levels),
            "alpha": small(self.alpha_levels),
            "cut-out": over(color, alpha, _checker(size))[0],
            "composite": small(self.composite_pixels),
        }
        if self.shade is not None:
            pictures["shadow"] = 1 - self.shade.resized(size[0] / self.size[0]).full(size)
        return contact_sheet({name: picture[None] for name, picture in pictures.items()}, cell)

    def picture(self, output: str) -> tuple[Tensor, Tensor | None]:
        """Picture and alpha of one of ``OUTPUTS``, as ``write_image`` takes them."""
        return self.pictures([output])[output]

    def pictures(self, outputs: Collection[str]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """``picture`` for each of several outputs, sharing the cost of the subject's colours."""
        pictures: dict[str, tuple[Tensor, Tensor | None]] = {
            "path": (self.composite_pixels, None),
            "alpha": (self.alpha_levels, None),
        }
        if "shadow" in outputs:
            levels = shadow_levels(self.background_pixels, self._required_shade())
            pictures["shadow"] = torch.zeros(3, *self.size, dtype=torch.uint8), levels
        if not pictures.keys() >= set(outputs):
            color = self.repainted.apply_to(self.foreground_pixels)
            if "steps" in outputs:
                pictures["steps"] = self._sheet(color, 384), None
            cutout = color.mul_(to_bytes(self.cutout_levels) > 0)
            pictures["cutout"] = cutout, self.cutout_levels
            if "blurred" in outputs:
                pictures["blurred"] = self._blurred(cutout), None
            if "shadowed" in outputs:
                levels = shadow_levels(self.background_pixels, self._required_shade(), white=True)
                pictures["shadowed"] = over_shadow(cutout, self.cutout_levels, levels)
        return {output: pictures[output] for output in outputs}

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        alpha: str | os.PathLike[str] | None = None,
        cutout: str | os.PathLike[str] | None = None,
        steps: str | os.PathLike[str] | None = None,
        blurred: str | os.PathLike[str] | None = None,
        shadow: str | os.PathLike[str] | None = None,
        shadowed: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write any of the outputs to files: either all of them or, on an error, none.

        Args:
            path: the composite; the suffix determines the format, see ``write_image``.
            alpha: the alpha, as a gray picture.
            cutout: the cut-out, in a format with an alpha channel.
            steps: the contact sheet of ``steps``.
            blurred: the subject over its own background, blurred.
            shadow: the layer ``shadow``, in a format with an alpha channel.
            shadowed: the cut-out with its shadow, likewise; exact over white.

        Raises:
            UsageError: a suffix that is unknown or cannot hold the picture, a repeated path, the
                path of an input file, or a shadow if the composite has none.
            ImageError: a file cannot be written.
        """
        paths = (path, alpha, cutout, steps, blurred, shadow, shadowed)
        targets = {key: file for key, file in zip(OUTPUTS, paths, strict=True) if file is not None}
        take(targets.values(), set(self.sources))
        pictures = self.pictures(targets)
        write_images({target: pictures[key] for key, target in targets.items()})


def _checker(size: tuple[int, int], side: int = 12) -> Tensor:
    """A gray checkerboard that shows transparency, (1, 3, H, W)."""
    rows = torch.arange(size[0])[:, None] // side
    columns = torch.arange(size[1])[None] // side
    return (0.6 + 0.3 * ((rows + columns) % 2)).expand(1, 3, *size)
