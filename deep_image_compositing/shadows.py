"""A subject's shadow in a frame of any size: found small, laid on the background in bands of rows.

The compositor lays it after fusing; ``Composite.with_shadow`` does so afterwards.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_image_compositing.functional.boxes import Box, bounding_box, edges
from deep_image_compositing.functional.ground import Stand, find_stands
from deep_image_compositing.functional.light import guess_light
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.functional.shadow import (
    Fall,
    Plane,
    cast_shade,
    cast_span,
    contact_shade,
    contact_span,
    darken,
    join_shades,
    opacity_over,
)
from deep_image_compositing.placement import Placement, resample
from deep_image_compositing.settings import DIRECTIONS, Shadow

SUBJECT_SIDE, PLANE_SIDE = 384, 768
"""Pixels on the long side of the subject from whose alpha a shade is found; and pixels that a
subject and the length of its shadow take side by side, at most."""

STRENGTH = {"contact": 0.85, "cast": 0.8}
"""Share of the light that is taken away by default; a soft cast shadow takes less of it."""

SOFTNESS, DIRECTION, LENGTH = 0.5, DIRECTIONS["right"], 1.0
"""Where neither an option nor the background says it; the length is in heights of the subject."""

HORIZON, FOCAL = 0.42, 1.1
"""Where the ground ends, as a share of the frame's height from its top; and the camera's focal
length as a share of its long side: a normal lens."""

BAND = 64
"""Rows that are darkened at once."""

_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True, eq=False)
class Shade:
    """Share of light that a shadow takes away, all over a frame; a smooth plane, kept small."""

    values: Tensor
    """(h, w) float in [0, 1]; outside it is 0."""
    top: float = 0.0
    """Row of the frame at which the first row of ``values`` begins."""
    left: float = 0.0
    """Column, likewise."""
    scale: float = 1.0
    """Pixels of ``values`` in one of the frame's."""

    def box(self, frame: tuple[int, int]) -> Box | None:
        """The part of a frame of ``frame`` = (height, width) in which it is; None if nowhere."""
        inside = bounding_box(self.values > 0)
        if inside is None:
            return None
        spans = []
        for span, start, length in zip(inside, (self.top, self.left), frame, strict=True):
            first = max(0, math.floor(start + (span.start - 1) / self.scale))
            last = min(length, math.ceil(start + (span.stop + 1) / self.scale))
            if first >= last:
                return None
            spans.append(slice(first, last))
        return spans[0], spans[1]

    def bands(self, box: Box) -> Iterator[tuple[slice, Tensor]]:
        """Bands of rows of a box of the frame, and the shade (1, rows, columns) there."""
        top, bottom, left, right = edges(box)
        before, after, share = self._samples(left, right, self.left, self.values.shape[1])
        padded = torch.nn.functional.pad(self.values, (1, 1, 1, 1))
        across = torch.lerp(padded[:, before], padded[:, after], share)
        for start in range(top, bottom, BAND):
            stop = min(start + BAND, bottom)
            before, after, share = self._samples(start, stop, self.top, self.values.shape[0])
            shade = torch.lerp(across[before], across[after], share[:, None])
            yield slice(start, stop), shade[None]

    def _samples(
        self, first: int, last: int, start: float, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Two neighbours, in ``values`` with a border of zeros, and the share of the second."""
        centres = torch.arange(first, last, dtype=torch.float64) + 0.5
        at = ((centres - start) * self.scale + 0.5).clamp(0, length + 1)
        before = at.floor().clamp(max=length)
        return before.long(), before.long() + 1, (at - before).float()

    def resized(self, factor: float) -> Shade:
        """The same in a frame that is larger by ``factor``."""
        return Shade(self.values, self.top * factor, self.left * factor, self.scale / factor)

    def full(self, frame: tuple[int, int]) -> Tensor:
        """(1, H, W), at the size of the frame."""
        out = torch.zeros(1, *frame)
        if (box := self.box(frame)) is not None:
            for rows, shade in self.bands(box):
                out[:, rows, box[1]] = shade
        return out


# Finding it


def floor_row(alpha: Tensor, frame: tuple[int, int], where: Placement | None = None) -> int | None:
    """Row of the frame at which a subject is cut off from its ground; None where it is whole.

    ``alpha`` (1, h, w) is that of its photograph, which lies in the frame as ``where`` says. One
    that fills its photograph on all sides is a cut-out whose borders have been cropped away.
    """
    solid = alpha[0] > (127 if alpha.dtype == torch.uint8 else 0.5)
    box = bounding_box(solid)
    if box is None:
        return None
    where = where or Placement(frame, 0, 0)
    height = solid.shape[0]
    bottom = where.top + where.size[0]
    cropped = edges(box) == (0, height, 0, solid.shape[1])
    if box[0].stop == height and not cropped:
        return min(bottom, frame[0])
    lowest = where.top + box[0].stop * where.size[0] / height
    return frame[0] if lowest > frame[0] + 1 else None


def find_shade(
    alpha: Tensor, background: Tensor, shadow: Shadow, floor: int | None, name: str = ""
) -> Shade:
    """The shade that a subject throws, all over the frame.

    ``alpha`` is (1, H, W), uint8 or float in [0, 1], ``background`` (3, H, W) uint8; ``floor`` is
    as ``floor_row`` says, ``name`` what a message calls the photograph.
    """
    frame, nothing = (alpha.shape[-2], alpha.shape[-1]), Shade(torch.zeros(1, 1))
    levels = to_bytes(alpha)
    box = bounding_box(levels[0] > 127)
    if shadow.strength == 0 or box is None:
        return nothing
    fall = _fall(shadow, background)
    top, bottom, left, right = edges(box)
    height, width = bottom - top, right - left
    aside = 0.0 if fall is None else fall.length * height
    scale = min(SUBJECT_SIDE / max(height, width), PLANE_SIDE / (width + aside))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = resample(levels[..., box[0], box[1]], size, "bilinear")[0] / 255
    stands = find_stands(small, None if floor is None else (floor - top) * scale)
    if not stands:
        _log.warning(
            "%s: the subject is cut off below; there is no ground for a shadow, and it gets none",
            name or "the photograph",
        )
        return nothing
    darkness = STRENGTH["contact"] if shadow.strength is None else shadow.strength
    given = shadow.softness if shadow.kind == "contact" else None
    softness = SOFTNESS if given is None else given
    plane = _plane(stands, (top, left), frame, scale, softness, fall)
    shades = [contact_shade(stand, plane, darkness, softness) for stand in stands]
    if fall is not None:
        darkness = shadow.strength or STRENGTH["cast"] * (1 - 0.4 * fall.softness)
        shades += [cast_shade(stand, plane, fall, darkness) for stand in stands]
    values = join_shades(shades)
    return Shade(values, top + plane.top / scale, left + plane.left / scale, scale)


def _fall(shadow: Shadow, background: Tensor) -> Fall | None:
    """How a cast shadow falls: as it is wanted, else as the background tells, else by default."""
    if shadow.kind != "cast":
        return None
    direction, softness = shadow.direction, shadow.softness
    if direction is None or softness is None:
        size = fit_long_side(background.shape[-2], background.shape[-1], 256)
        light = guess_light(resample(background, size, "bilinear") / 255)
        direction = light.direction if direction is None else direction
        softness = light.softness if softness is None else softness
    return Fall(
        DIRECTION if direction is None else direction,
        shadow.length or LENGTH,
        SOFTNESS if softness is None else softness,
    )


def _plane(
    stands: list[Stand],
    corner: tuple[int, int],
    frame: tuple[int, int],
    scale: float,
    softness: float,
    fall: Fall | None,
) -> Plane:
    """The ground that shadows reach, in pixels of the alpha at ``corner`` (top, left) of the frame.

    ``scale`` of them are one of the frame's.
    """
    top, left = corner
    camera = Plane(0, 0, 0, 0, (HORIZON * frame[0] - top) * scale, FOCAL * max(frame) * scale)
    spans = [contact_span(stand, camera, softness) for stand in stands]
    if fall is not None:
        spans += [cast_span(stand, camera, fall) for stand in stands]
    first, start = (min(span[side] for span in spans) for side in (0, 2))
    last, end = (max(span[side] for span in spans) for side in (1, 3))
    # What lies outside the frame is never seen, but a blur carries it in.
    margin = max(frame) * scale / 4
    first, last = max(first, -top * scale - margin), min(last, (frame[0] - top) * scale + margin)
    start, end = max(start, -left * scale - margin), min(end, (frame[1] - left) * scale + margin)
    # Lengths whose Fourier transform is quick.
    height, width = (
        max(32, 32 * math.ceil(math.ceil(x) / 32)) for x in (last - first, end - start)
    )
    return replace(
        camera, top=math.floor(first), left=math.floor(start), height=height, width=width
    )


# Laying it


def lay_shade(composite: Tensor, background: Tensor, alpha: Tensor, shade: Shade) -> None:
    """Darken the background that is seen in ``composite`` (3, H, W), uint8, in its own memory.

    It becomes composite + (1 − alpha) · (shaded background − background). Where alpha is 255 in 8
    bits, and where the shade is 0, nothing changes.
    """
    if (box := shade.box((alpha.shape[-2], alpha.shape[-1]))) is None:
        return
    for rows, part in shade.bands(box):
        at = (slice(None), rows, box[1])
        levels = to_bytes(alpha[at])
        if int(levels.min()) == 255:  # nothing is seen, and the memory may be a photograph's
            continue
        behind = background[at] / 255
        change = (darken(behind, part) - behind) * (1 - levels / 255)
        composite[at] = to_bytes(composite[at] / 255 + change)


def shadow_levels(background: Tensor, shade: Shade, *, white: bool = False) -> Tensor:
    """Opacity (1, H, W), uint8, of the black that is the shadow over ``background``, uint8.

    See ``opacity_over``. ``white`` is for a white background instead.
    """
    frame = (background.shape[-2], background.shape[-1])
    levels = torch.zeros(1, *frame, dtype=torch.uint8)
    if (box := shade.box(frame)) is not None:
        for rows, part in shade.bands(box):
            behind = background[:, rows, box[1]] / 255
            opacity = opacity_over(torch.ones_like(behind) if white else behind, part)
            levels[:, rows, box[1]] = to_bytes(opacity)
    return levels


def under(color: Tensor, alpha: Tensor, shadow: Tensor) -> tuple[Tensor, Tensor]:
    """A cut-out over its shadow: straight colour (3, H, W) and alpha (1, H, W), uint8.

    ``color`` is uint8, ``alpha`` uint8 or float, ``shadow`` the opacity of black in 8 bits.
    """
    pixels = torch.empty_like(color)
    levels = torch.empty(alpha.shape, dtype=torch.uint8)
    for start in range(0, color.shape[-2], BAND):
        at = (slice(None), slice(start, start + BAND))
        opacity = to_bytes(alpha[at]) / 255
        together = opacity + (1 - opacity) * (shadow[at] / 255)
        levels[at] = to_bytes(together)
        share = torch.where(opacity < 1, opacity / together.clamp_min(1e-6), opacity)
        pixels[at] = to_bytes(color[at] / 255 * share)
    return pixels, levels
