"""Shadows at full resolution: computed at low resolution and applied in bands of rows.

``Compositor`` and ``Composite.with_shadow`` call this module.
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
"""Largest sides in pixels, at low resolution, of the subject, and of the subject and the length of
its shadow side by side."""

STRENGTH = {"contact": 0.85, "cast": 0.8}
"""Default fraction of light removed; a soft cast shadow removes less."""

SOFTNESS, DIRECTION, LENGTH = 0.5, DIRECTIONS["right"], 1.0
"""Used if neither an option nor the background determines them; length in subject heights."""

HORIZON, FOCAL = 0.42, 1.1
"""Horizon as a fraction of the frame's height from the top, and focal length of the camera as a
fraction of the frame's long side (a normal lens)."""

BAND = 64
"""Rows that are processed at once."""

_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True, eq=False)
class Shade:
    """Fraction of light that a shadow removes: a smooth map, stored at low resolution."""

    values: Tensor
    """(h, w) float in [0, 1]; 0 outside."""
    top: float = 0.0
    """Row of the frame at which ``values`` begins."""
    left: float = 0.0
    """Column of the frame at which ``values`` begins."""
    scale: float = 1.0
    """Pixels of ``values`` per pixel of the frame."""

    def box(self, frame: tuple[int, int]) -> Box | None:
        """Bounding box in a frame of (height, width) ``frame``; None if nothing is in it."""
        support = bounding_box(self.values > 0)
        if support is None:
            return None
        spans = []
        for span, start, length in zip(support, (self.top, self.left), frame, strict=True):
            first = max(0, math.floor(start + (span.start - 1) / self.scale))
            last = min(length, math.ceil(start + (span.stop + 1) / self.scale))
            if first >= last:
                return None
            spans.append(slice(first, last))
        return spans[0], spans[1]

    def bands(self, box: Box) -> Iterator[tuple[slice, Tensor]]:
        """Upsample the shade in ``box`` of the frame; yields bands of rows, (1, rows, columns)."""
        top, bottom, left, right = edges(box)
        before, after, weight = self._samples(left, right, self.left, self.values.shape[1])
        padded = torch.nn.functional.pad(self.values, (1, 1, 1, 1))
        columns = torch.lerp(padded[:, before], padded[:, after], weight)
        for start in range(top, bottom, BAND):
            stop = min(start + BAND, bottom)
            before, after, weight = self._samples(start, stop, self.top, self.values.shape[0])
            shade = torch.lerp(columns[before], columns[after], weight[:, None])
            yield slice(start, stop), shade[None]

    def _samples(
        self, first: int, last: int, start: float, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of two neighbours, in ``values`` padded by 1, and the weight of the second."""
        centres = torch.arange(first, last, dtype=torch.float64) + 0.5
        position = ((centres - start) * self.scale + 0.5).clamp(0, length + 1)
        before = position.floor().clamp(max=length)
        return before.long(), before.long() + 1, (position - before).float()

    def resized(self, factor: float) -> Shade:
        """The same shade in a frame enlarged by ``factor``."""
        return Shade(self.values, self.top * factor, self.left * factor, self.scale / factor)

    def full(self, frame: tuple[int, int]) -> Tensor:
        """The shade at the frame's size, (1, H, W)."""
        out = torch.zeros(1, *frame)
        if (box := self.box(frame)) is not None:
            for rows, shade in self.bands(box):
                out[:, rows, box[1]] = shade
        return out


def floor_row(alpha: Tensor, frame: tuple[int, int], where: Placement | None = None) -> int | None:
    """Row of the frame at which the subject is cut off at the bottom; None if it is whole.

    ``alpha`` (1, h, w) is the photograph's, which is placed in the frame at ``where``. A subject
    that touches all four borders counts as whole: a cut-out cropped to its bounding box.
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
    """Compute the shade of a subject in a frame.

    ``alpha`` is (1, H, W), uint8 or float in [0, 1], and ``background`` (3, H, W) uint8; ``floor``
    is from ``floor_row``, and ``name`` is the photograph's, for messages.
    """
    frame, no_shade = (alpha.shape[-2], alpha.shape[-1]), Shade(torch.zeros(1, 1))
    levels = to_bytes(alpha)
    box = bounding_box(levels[0] > 127)
    if shadow.strength == 0 or box is None:
        return no_shade
    fall = _fall(shadow, background)
    top, bottom, left, right = edges(box)
    height, width = bottom - top, right - left
    length = 0.0 if fall is None else fall.length * height
    scale = min(SUBJECT_SIDE / max(height, width), PLANE_SIDE / (width + length))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = resample(levels[..., box[0], box[1]], size, "bilinear")[0] / 255
    stands = find_stands(small, None if floor is None else (floor - top) * scale)
    if not stands:
        _log.warning(
            "%s: the subject is cut off at the bottom, so there is no ground for a shadow, and it "
            "gets none",
            name or "the photograph",
        )
        return no_shade
    darkness = STRENGTH["contact"] if shadow.strength is None else shadow.strength
    option = shadow.softness if shadow.kind == "contact" else None
    softness = SOFTNESS if option is None else option
    plane = _plane(stands, (top, left), frame, scale, softness, fall)
    shades = [contact_shade(stand, plane, darkness, softness) for stand in stands]
    if fall is not None:
        darkness = shadow.strength or STRENGTH["cast"] * (1 - 0.4 * fall.softness)
        shades += [cast_shade(stand, plane, fall, darkness) for stand in stands]
    values = join_shades(shades)
    return Shade(values, top + plane.top / scale, left + plane.left / scale, scale)


def _fall(shadow: Shadow, background: Tensor) -> Fall | None:
    """Geometry of a cast shadow: from the options, else the background's light, else defaults."""
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
    """The ground plane that shadows reach, in low-resolution pixels from ``corner`` (top, left).

    ``scale`` is low-resolution pixels per pixel of the frame.
    """
    top, left = corner
    camera = Plane(0, 0, 0, 0, (HORIZON * frame[0] - top) * scale, FOCAL * max(frame) * scale)
    spans = [contact_span(stand, camera, softness) for stand in stands]
    if fall is not None:
        spans += [cast_span(stand, camera, fall) for stand in stands]
    first, start = (min(span[side] for span in spans) for side in (0, 2))
    last, end = (max(span[side] for span in spans) for side in (1, 3))
    # Crop to the frame, with a margin for blurs.
    margin = max(frame) * scale / 4
    first, last = max(first, -top * scale - margin), min(last, (frame[0] - top) * scale + margin)
    start, end = max(start, -left * scale - margin), min(end, (frame[1] - left) * scale + margin)
    # Round up to lengths with a fast Fourier transform.
    height, width = (
        max(32, 32 * math.ceil(math.ceil(x) / 32)) for x in (last - first, end - start)
    )
    return replace(
        camera, top=math.floor(first), left=math.floor(start), height=height, width=width
    )


def lay_shade(composite: Tensor, background: Tensor, alpha: Tensor, shade: Shade) -> None:
    """Darken the visible background in ``composite`` (3, H, W), uint8, in place.

    Computes composite + (1 − alpha) · (shaded background − background). Pixels whose alpha rounds
    to 255, or whose shade is 0, do not change.
    """
    if (box := shade.box((alpha.shape[-2], alpha.shape[-1]))) is None:
        return
    for rows, part in shade.bands(box):
        band = (slice(None), rows, box[1])
        levels = to_bytes(alpha[band])
        if int(levels.min()) == 255:  # nothing to do, and ``composite`` may be a photograph
            continue
        behind = background[band] / 255
        change = (darken(behind, part) - behind) * (1 - levels / 255)
        composite[band] = to_bytes(composite[band] / 255 + change)


def shadow_levels(background: Tensor, shade: Shade, *, white: bool = False) -> Tensor:
    """Opacity (1, H, W), uint8, of a black layer that equals the shadow on ``background``, uint8.

    With ``white``, on a white background instead. See ``opacity_over``.
    """
    frame = (background.shape[-2], background.shape[-1])
    levels = torch.zeros(1, *frame, dtype=torch.uint8)
    if (box := shade.box(frame)) is not None:
        for rows, part in shade.bands(box):
            behind = background[:, rows, box[1]] / 255
            opacity = opacity_over(torch.ones_like(behind) if white else behind, part)
            levels[:, rows, box[1]] = to_bytes(opacity)
    return levels


def over_shadow(color: Tensor, alpha: Tensor, shadow: Tensor) -> tuple[Tensor, Tensor]:
    """Merge a cut-out and its shadow: straight colour (3, H, W) and alpha (1, H, W), uint8.

    ``color`` is uint8, ``alpha`` uint8 or float; ``shadow`` is from ``shadow_levels``.
    """
    pixels = torch.empty_like(color)
    levels = torch.empty(alpha.shape, dtype=torch.uint8)
    for start in range(0, color.shape[-2], BAND):
        band = (slice(None), slice(start, start + BAND))
        opacity = to_bytes(alpha[band]) / 255
        total = opacity + (1 - opacity) * (shadow[band] / 255)
        levels[band] = to_bytes(total)
        weight = torch.where(opacity < 1, opacity / total.clamp_min(1e-6), opacity)
        pixels[band] = to_bytes(color[band] / 255 * weight)
    return pixels, levels
