"""The fourth slot at full size: colours moved in bands of rows; the compositor calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deep_image_compositing.asking import ask, ask_picture, own_method
from deep_image_compositing.fullsize import Fused, Recolored, as_floats
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.foreground import window_sum
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side, resize, spread
from deep_image_compositing.models.base import Recoloring
from deep_image_compositing.placement import resample

BAND = 64
"""Rows of a picture whose colours are moved at once."""


def harmonize(
    stage: Callable[..., Any],
    fused: Fused,
    pixels: Tensor,
    backdrop: Tensor,
    work_side: int,
    device: torch.device,
) -> Fused:
    """The same with the subject's colours as ``stage`` wants them, found on a small composite.

    ``pixels`` and ``backdrop`` are as for ``recolor_subject``, ``work_side`` and ``device`` as for
    ``Compositor``. Before a backdrop of one colour nothing changes.
    """
    strength = getattr(stage, "strength", 1.0)
    if not strength or _is_plain(backdrop):
        return fused
    find = own_method(stage, "recoloring")
    side = getattr(stage, "long_side", None) if find else None
    at = fit_long_side(pixels.shape[-2], pixels.shape[-1], side or work_side)
    composite = resample(fused.composite, at, "bilinear").to(device)[None] / 255
    mask = resize(as_floats(fused.alpha)[None].to(device), at).clamp(0, 1)
    found = find and ask("harmonizer", find, composite, mask)
    recolor: Recoloring
    if found is not None:
        recolor = partial(ask_picture, "harmonizer", "composite", found)
    else:  # it answers with pictures, whose strength is its own matter
        answer = ask_picture("harmonizer", "composite", stage, composite, mask)
        recolor, strength = change_between(composite, answer, mask), 1.0
    return recolor_subject(fused, pixels, backdrop, recolor, strength, device)


def recolor_subject(
    fused: Fused,
    pixels: Tensor,
    backdrop: Tensor,
    recolor: Recoloring,
    strength: float,
    device: torch.device,
) -> Fused:
    """The same with the subject's colours moved by ``recolor``, on ``device``.

    What is layered is set over the ``backdrop`` again; a composite that a fuser has painted is
    moved itself, under its alpha; in its own memory, and only where alpha is not 0.
    """
    composite, color = fused.composite, fused.repainted.on(pixels)
    full = 255 if fused.alpha.dtype == torch.uint8 else 1
    height, width = composite.shape[-2:]
    for start in range(0, height, BAND):
        used = (fused.alpha[0, start : start + BAND] > 0).any(0).nonzero()
        if not len(used):
            continue
        rows = slice(start, min(start + BAND, height))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        part = (..., rows, columns)
        place = (start / height, columns.start / width, rows.stop / height, columns.stop / width)

        def move(picture: Tensor, part: Any = part, place: Any = place) -> Tensor:
            own = picture[part].contiguous().to(device)[None] / 255
            moved = recolor(own, place)
            return (moved if strength == 1 else torch.lerp(own, moved, strength))[0]

        opacity = fused.alpha[part]
        moved = move(color)
        seen = moved if fused.layered else move(composite)
        behind = backdrop[part] if fused.layered else composite[part]
        y, x = ((opacity > 0) & (opacity < full))[0].nonzero(as_tuple=True)
        front, share, back = (
            one[:, y, x][None, :, None].to(device) for one in (seen, as_floats(opacity), behind)
        )
        mixed = over(front, share, back / 255)[0, :, 0]
        levels = to_bytes(moved).cpu()
        color[part] = levels
        levels = levels if fused.layered else to_bytes(seen).cpu()
        target = composite[part]
        target.copy_(torch.where(opacity == full, levels, target))
        target[:, y, x] = to_bytes(mixed).cpu()
    return replace(fused, repainted=Recolored(color))


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
