"""Harmonization at full resolution, in bands of rows; the compositor calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import EllipsisType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deep_image_compositing.fullsize import Colors, Fused, Scene, as_floats, floats
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.foreground import window_sum
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side, resize, spread
from deep_image_compositing.inference import find_override, run_checked, run_stage
from deep_image_compositing.models.base import Recoloring

BAND = 64
"""Rows that are recoloured at once."""

Part: TypeAlias = tuple[EllipsisType, slice, slice]
Place: TypeAlias = tuple[float, float, float, float]
"""(top, left, bottom, right) as fractions of the picture's size."""


def harmonize(stage: Callable[..., Any], fused: Fused, scene: Scene) -> Fused:
    """Recolour the subject by ``stage``, which sees the composite at low resolution.

    A backdrop of uniform colour changes nothing.
    """
    strength = getattr(stage, "strength", 1.0)
    if not strength or _is_uniform(scene.backdrop):
        return fused
    get_recoloring = find_override(stage, "recoloring")
    side = getattr(stage, "long_side", None) if get_recoloring else None
    at = fit_long_side(*scene.size, side or scene.work_side)
    composite = floats(fused.composite, at, scene.device)
    mask = resize(as_floats(fused.alpha)[None].to(scene.device), at).clamp(0, 1)
    recoloring = get_recoloring and run_stage("harmonizer", get_recoloring, composite, mask)
    recolor: Recoloring
    if recoloring is not None:
        recolor = partial(run_checked, "harmonizer", "composite", recoloring)
    else:  # ``forward`` applies the strength itself
        output = run_checked("harmonizer", "composite", stage, composite, mask)
        recolor, strength = change_between(composite, output, mask), 1.0
    return recolor_subject(fused, scene, recolor, strength)


@dataclass(frozen=True, eq=False)
class Recolored:
    """Harmonized colours of a subject, computed on each access to save memory."""

    before: Colors
    alpha: Tensor
    recolor: Recoloring
    strength: float
    device: torch.device

    def apply_to(self, pixels: Tensor) -> Tensor:
        """A copy of ``pixels`` (3, H, W), uint8, recoloured where alpha is not 0."""
        color = self.before.apply_to(pixels)
        for part, place in self.bands():
            color[part] = to_bytes(self.recolor_part(color[part], place)).cpu()
        return color

    def bands(self) -> Iterator[tuple[Part, Place]]:
        """The bands of rows that contain the subject, cropped to its columns."""
        height, width = self.alpha.shape[-2:]
        for start in range(0, height, BAND):
            used = (self.alpha[0, start : start + BAND] > 0).any(0).nonzero()
            if len(used):
                end = min(start + BAND, height)
                left, right = int(used[0]), int(used[-1]) + 1
                place = (start / height, left / width, end / height, right / width)
                yield (..., slice(start, end), slice(left, right)), place

    def recolor_part(self, pixels: Tensor, place: Place) -> Tensor:
        """Recolour a part of a picture, (3, h, w) uint8; returns (3, h, w) float."""
        color = pixels.contiguous().to(self.device)[None] / 255
        recolored = self.recolor(color, place)
        return (recolored if self.strength == 1 else torch.lerp(color, recolored, self.strength))[0]


def recolor_subject(fused: Fused, scene: Scene, recolor: Recoloring, strength: float) -> Fused:
    """Recolour the subject by ``strength`` of ``recolor``.

    Layers are composited over the backdrop again; a composite that the fuser painted is recoloured
    under its alpha. The composite is modified in place, where alpha is not 0.
    """
    composite, device = fused.composite, scene.device
    recolored = Recolored(fused.repainted, fused.alpha, recolor, strength, device)
    color = fused.repainted.apply_to(scene.pixels) if fused.layered else composite
    full = 255 if fused.alpha.dtype == torch.uint8 else 1
    for part, place in recolored.bands():
        opacity, behind = fused.alpha[part], (scene.backdrop if fused.layered else composite)[part]
        front = recolored.recolor_part(color[part], place)
        y, x = ((opacity > 0) & (opacity < full))[0].nonzero(as_tuple=True)
        rim = [p[:, y, x][None, :, None].to(device) for p in (front, as_floats(opacity), behind)]
        mixed = over(rim[0], rim[1], rim[2] / 255)[0, :, 0]
        target = composite[part]
        target.copy_(torch.where(opacity == full, to_bytes(front).cpu(), target))
        target[:, y, x] = to_bytes(mixed).cpu()
    return replace(fused, repainted=recolored)


def change_between(before: Tensor, after: Tensor, mask: Tensor) -> Recoloring:
    """A recolouring for any size from the difference of two small pictures (1, 3, h, w).

    Where ``mask`` (1, 1, h, w), the subject's, is below 95 % of its maximum, colours are mixed with
    the background's; the difference is then extrapolated from the subject nearby.
    """
    scaled = (after - before) / mask.clamp_min(1e-6)
    peak = mask.max()
    known = (mask > 0) & (mask >= 0.95 * peak)
    change = torch.where(known, scaled, 0)
    for radius in (2, 8, 32):
        near, share = (window_sum(x, radius) for x in (change * known, known.to(change)))
        change = torch.where(known, change, near / share.clamp_min(1e-6))
        known = known | (share > 0)
    change = torch.where(known | (mask < 0.5 * peak), change, scaled)

    def recolor(colors: Tensor, place: Place) -> Tensor:
        size = (colors.shape[-2], colors.shape[-1])
        return (colors + spread(change, size, place)).clamp(0, 1)

    return recolor


def _is_uniform(pixels: Tensor) -> bool:
    """Whether a picture (3, H, W) has a single colour."""
    first = pixels[:, :1, :1]
    return all(torch.equal(part, first.expand_as(part)) for part in (pixels[:, :1], pixels))
