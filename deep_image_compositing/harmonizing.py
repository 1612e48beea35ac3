"""The fourth slot at full size: colours moved in bands of rows; the compositor calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import EllipsisType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deep_image_compositing.asking import ask, ask_picture, own_method
from deep_image_compositing.fullsize import Colors, Fused, Scene, as_floats, floats
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.foreground import window_sum
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side, resize, spread
from deep_image_compositing.models.base import Recoloring

BAND = 64
"""Rows of a picture whose colours are moved at once."""

Part: TypeAlias = tuple[EllipsisType, slice, slice]
Place: TypeAlias = tuple[float, float, float, float]
"""Top, left, bottom and right of a part, as shares of the picture."""


def harmonize(stage: Callable[..., Any], fused: Fused, scene: Scene) -> Fused:
    """The same with the subject's colours as ``stage`` wants them, found on a small composite.

    Before a backdrop of one colour nothing changes.
    """
    strength = getattr(stage, "strength", 1.0)
    if not strength or _is_plain(scene.backdrop):
        return fused
    find = own_method(stage, "recoloring")
    side = getattr(stage, "long_side", None) if find else None
    at = fit_long_side(*scene.size, side or scene.work_side)
    composite = floats(fused.composite, at, scene.device)
    mask = resize(as_floats(fused.alpha)[None].to(scene.device), at).clamp(0, 1)
    found = find and ask("harmonizer", find, composite, mask)
    recolor: Recoloring
    if found is not None:
        recolor = partial(ask_picture, "harmonizer", "composite", found)
    else:  # it answers with pictures, whose strength is its own matter
        answer = ask_picture("harmonizer", "composite", stage, composite, mask)
        recolor, strength = change_between(composite, answer, mask), 1.0
    pictures = scene.pixels, scene.backdrop
    return recolor_subject(fused, *pictures, recolor, strength, scene.device)


@dataclass(frozen=True, eq=False)
class Recolored:
    """Colours of a subject, moved each time that they are asked for: a copy would cost memory."""

    before: Colors
    alpha: Tensor
    recolor: Recoloring
    strength: float
    device: torch.device

    def on(self, pixels: Tensor) -> Tensor:
        """A copy of ``pixels`` (3, H, W), uint8, with these colours; moved where alpha is not 0."""
        color = self.before.on(pixels)
        for part, place in self.bands():
            color[part] = to_bytes(self.move(color[part], place)).cpu()
        return color

    def bands(self) -> Iterator[tuple[Part, Place]]:
        """Where there is something of the subject, a band of rows at a time."""
        height, width = self.alpha.shape[-2:]
        for start in range(0, height, BAND):
            used = (self.alpha[0, start : start + BAND] > 0).any(0).nonzero()
            if len(used):
                end = min(start + BAND, height)
                left, right = int(used[0]), int(used[-1]) + 1
                place = (start / height, left / width, end / height, right / width)
                yield (..., slice(start, end), slice(left, right)), place

    def move(self, pixels: Tensor, place: Place) -> Tensor:
        """Part of a picture (3, h, w), uint8, as (3, h, w) float with moved colours."""
        own = pixels.contiguous().to(self.device)[None] / 255
        moved = self.recolor(own, place)
        return (moved if self.strength == 1 else torch.lerp(own, moved, self.strength))[0]


def recolor_subject(
    fused: Fused,
    pixels: Tensor,
    backdrop: Tensor,
    recolor: Recoloring,
    strength: float,
    device: torch.device,
) -> Fused:
    """The same with the subject's colours moved by ``recolor``, on ``device``, so far.

    What is layered is set over the ``backdrop`` again; a composite that a fuser has painted is
    moved itself, under its alpha. ``pixels`` and ``backdrop`` are (3, H, W), uint8. The composite
    is written to in its own memory, only where alpha is not 0.
    """
    composite, moved = (
        fused.composite,
        Recolored(fused.repainted, fused.alpha, recolor, strength, device),
    )
    color = fused.repainted.on(pixels) if fused.layered else composite
    full = 255 if fused.alpha.dtype == torch.uint8 else 1
    for part, place in moved.bands():
        opacity, behind = fused.alpha[part], (backdrop if fused.layered else composite)[part]
        seen = moved.move(color[part], place)
        y, x = ((opacity > 0) & (opacity < full))[0].nonzero(as_tuple=True)
        rim = [one[:, y, x][None, :, None].to(device) for one in (seen, as_floats(opacity), behind)]
        mixed = over(rim[0], rim[1], rim[2] / 255)[0, :, 0]
        target = composite[part]
        target.copy_(torch.where(opacity == full, to_bytes(seen).cpu(), target))
        target[:, y, x] = to_bytes(mixed).cpu()
    return replace(fused, repainted=moved)


def change_between(before: Tensor, after: Tensor, mask: Tensor) -> Recoloring:
    """The change from one small picture (1, 3, h, w) to another, for any size.

    Where the ``mask`` (1, 1, h, w) of the subject is less than almost the most there is, colours
    are mixed, and the change is that of the subject near the pixel.
    """
    own = (after - before) / mask.clamp_min(1e-6)
    most = mask.max()
    known = (mask > 0) & (mask >= 0.95 * most)
    change = torch.where(known, own, 0)
    for radius in (2, 8, 32):
        near, share = (window_sum(x, radius) for x in (change * known, known.to(change)))
        change = torch.where(known, change, near / share.clamp_min(1e-6))
        known = known | (share > 0)
    change = torch.where(known | (mask < 0.5 * most), change, own)

    def recolor(colors: Tensor, place: tuple[float, float, float, float]) -> Tensor:
        size = (colors.shape[-2], colors.shape[-1])
        return (colors + spread(change, size, place)).clamp(0, 1)

    return recolor


def _is_plain(pixels: Tensor) -> bool:
    """Whether a picture (3, H, W) has one colour only."""
    first = pixels[:, :1, :1]
    return all(torch.equal(part, first.expand_as(part)) for part in (pixels[:, :1], pixels))
