"""A finished composite: every step of it, and the files that it is saved to."""

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
from deep_image_compositing.shadows import Shade, find_shade, lay_shade, shadow_levels, under

OUTPUTS = ("path", "alpha", "cutout", "steps", "blurred", "shadow", "shadowed")
"""What ``Composite.save`` can write."""

BLUR_SIDE = 384
"""Long side in pixels at which a background is blurred."""

BLUR = 0.02
"""Radius of one of the three boxes that blur it, as a share of the long side."""


@dataclass(frozen=True, eq=False, repr=False)
class Composite:
    """A finished composite and everything on the way to it, at the frame's full size, on the CPU.

    Pictures are kept in 8 bits, as photographs are, and handed out as float tensors in [0, 1].

    Attributes:
        composite_pixels: (3, H, W) uint8.
        foreground_pixels: (3, H, W) uint8, the subject's photograph as placed in the frame.
        background_pixels: (3, H, W) uint8, the new background as placed in the frame.
        repainted: where the subject's colour is not the photograph's.
        cutout_levels: (1, H, W), the fuser's own alpha where it works in layers, else the
            refiner's; uint8, or float in [0, 1] where stages saw the whole frame.
        mask_levels: (1, h, w), the segmenter's or the user's, at the size at which it was found.
        alpha_levels: (1, H, W), the refiner's, before the fuser.
        shade: what the subject's shadow takes of the light; None without a shadow.
        floor: row of the frame at which the subject is cut off from its ground; None if it is not.
        name: what the subject's photograph is called.
        device: where the stages ran.
        sources: files that it was made of, which ``save`` does not overwrite.
        seconds: time spent in ``segmentation``, ``refinement``, ``fusion``, ``harmonization`` and
            ``shadow``.
        tiles: how many cells of the frame were worked on at full size, and how many it has;
            (0, 0) where the stages saw all of it.
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
        """The refiner's alpha, before the fuser, (1, H, W) float in [0, 1]."""
        return as_floats(self.alpha_levels)

    @property
    def cutout_alpha(self) -> Tensor:
        """The fuser's own alpha where it works in layers, else ``alpha``; (1, H, W) float."""
        return as_floats(self.cutout_levels)

    @property
    def cutout_pixels(self) -> Tensor:
        """Straight colour of the subject, (3, H, W) uint8; 0 where its alpha is 0 in 8 bits."""
        return self.picture("cutout")[0]

    @property
    def composite(self) -> Tensor:
        """The composite, (3, H, W) float in [0, 1]."""
        return self.composite_pixels / 255

    @property
    def foreground(self) -> Tensor:
        """The subject's photograph as placed, (3, H, W) float in [0, 1]; its border continues."""
        return self.foreground_pixels / 255

    @property
    def background(self) -> Tensor:
        """The new background as placed, (3, H, W) float in [0, 1]."""
        return self.background_pixels / 255

    @property
    def cutout(self) -> Tensor:
        """The subject alone, (4, H, W) float in [0, 1]: straight colour, then alpha.

        Free of the old background's colour where the fuser works in layers. Colour is 0 where
        alpha is, so that nothing of the old background hides in the file.
        """
        return torch.cat([self.cutout_pixels / 255, self.cutout_alpha])

    @property
    def blurred(self) -> Tensor:
        """The subject over its own background, blurred, (3, H, W) float in [0, 1].

        Nothing of the subject's colour is in the blur.
        """
        return self.picture("blurred")[0]

    def _blurred(self, cutout: Tensor) -> Tensor:
        size = fit_long_side(*self.size, BLUR_SIDE)
        small = resize(self.foreground[None], size).clamp(0, 1)
        alpha = self.cutout_alpha
        behind = multilevel_layers(small, resize(alpha[None], size).clamp(0, 1))[1]
        for _ in range(3):  # three boxes are almost a Gaussian
            behind = box_filter(behind, round(BLUR * BLUR_SIDE))
        out = resize(behind, self.size)[0]
        for plane, color in zip(out, cutout, strict=True):  # to hold no other picture in floats
            plane.copy_(over(color / 255, alpha[0], plane))
        return out

    @property
    def shadow(self) -> Tensor:
        """The shadow as a layer, (4, H, W) float in [0, 1]: black, then its opacity.

        Laid over ``background`` in sRGB values, as editors do, and under ``cutout``, it gives the
        composite, as far as one opacity can for three channels.
        """
        levels = shadow_levels(self.background_pixels, self._shade())
        return torch.cat([torch.zeros(3, *self.size), levels / 255])

    def with_shadow(self, shadow: Shadow | str | tuple[str, Mapping[str, Any]]) -> Composite:
        """The same composite with a shadow, as ``Compositor`` takes it; this one stays as it is.

        Raises ``UsageError`` for a shadow that cannot be, or if it has one.
        """
        wanted = Shadow.of(shadow)
        if self.shade is not None:
            raise UsageError("this composite has a shadow already; add it to one without")
        if wanted is None:
            return self
        background, alpha = self.background_pixels, self.cutout_levels
        shade = find_shade(alpha, background, wanted, self.floor, self.name)
        pixels = self.composite_pixels.clone(memory_format=torch.preserve_format)
        lay_shade(pixels, background, alpha, shade)
        return replace(self, composite_pixels=pixels, shade=shade)

    def _shade(self) -> Shade:
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
        return self._sheet(self.repainted.on(self.foreground_pixels), cell)

    def _sheet(self, color: Tensor, cell: int) -> Tensor:
        """``steps``, of a subject of this colour (3, H, W), uint8.

        The photograph goes on beyond the subject, so that nothing dark bleeds into the rim.
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
        """The picture, as ``write_image`` takes it, and its alpha, of one of ``OUTPUTS``."""
        return self.pictures([output])[output]

    def pictures(self, outputs: Collection[str]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """``picture`` of each of some outputs; the subject's colours are found once for all."""
        made: dict[str, tuple[Tensor, Tensor | None]] = {
            "path": (self.composite_pixels, None),
            "alpha": (self.alpha_levels, None),
        }
        if "shadow" in outputs:
            levels = shadow_levels(self.background_pixels, self._shade())
            made["shadow"] = torch.zeros(3, *self.size, dtype=torch.uint8), levels
        if not made.keys() >= set(outputs):
            color = self.repainted.on(self.foreground_pixels)
            if "steps" in outputs:
                made["steps"] = self._sheet(color, 384), None
            cutout = color.mul_(to_bytes(self.cutout_levels) > 0)
            made["cutout"] = cutout, self.cutout_levels
            if "blurred" in outputs:
                made["blurred"] = self._blurred(cutout), None
            if "shadowed" in outputs:
                levels = shadow_levels(self.background_pixels, self._shade(), white=True)
                made["shadowed"] = under(cutout, self.cutout_levels, levels)
        return {output: made[output] for output in outputs}

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
        """Write the composite, and whatever else is asked for: all of it or nothing.

        Args:
            path: the composite's file; the suffix says the format, see ``write_image``.
            alpha: file for the alpha, as a gray picture.
            cutout: file for the cut-out, in a format that holds an alpha.
            steps: file for the contact sheet of ``steps``.
            blurred: file for the subject over its own background, blurred.
            shadow: file for the layer ``shadow``, in a format that holds an alpha.
            shadowed: file for the cut-out with its shadow under it, likewise; exact over white.

        Raises:
            UsageError: a suffix that is not known or cannot hold the picture, a path twice, or
                that of a file of which the composite was made; a shadow where there is none.
            ImageError: a file could not be written.
        """
        given = (path, alpha, cutout, steps, blurred, shadow, shadowed)
        targets = {key: file for key, file in zip(OUTPUTS, given, strict=True) if file is not None}
        take(targets.values(), set(self.sources))
        pictures = self.pictures(targets)
        write_images({target: pictures[key] for key, target in targets.items()})


def _checker(size: tuple[int, int], side: int = 12) -> Tensor:
    """The gray checkerboard on which transparency is shown, (1, 3, H, W)."""
    rows = torch.arange(size[0])[:, None] // side
    columns = torch.arange(size[1])[None] // side
    return (0.6 + 0.3 * ((rows + columns) % 2)).expand(1, 3, *size)
