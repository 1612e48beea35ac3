"""Shadows that a subject casts on the ground: their shade, and how it darkens a background.

A shade is the fraction of light blocked, in [0, 1], on a smooth plane at low resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.ground import Stand
from deep_image_compositing.functional.linear import from_linear, to_linear

LAYERS = (  # of a contact shadow, from core to surroundings; lengths as fractions of the size
    # decay with the height above ground, blur, depth on the ground, darkness
    (0.12, 0.03, 0.12, 1.00),
    (0.40, 0.12, 0.35, 0.90),
    (1.50, 0.32, 0.60, 0.80),
)
LEAST = 0.004  # shade treated as 0: it changes 8-bit values by less than one half
FLATTEST, STEEPEST = 0.15, 0.5  # limits of the ground's foreshortening
LEVEL = 0.25  # minimum sine of a cast shadow's direction: purely sideways, it would be a line
_THICK = 0.3  # thickness along the line of sight, as a fraction of the subject's size
_FINE = 4  # vertical supersampling of the cast shadow
_BASE = 0.006  # blur where a cast shadow starts, as a fraction of the subject's height


@dataclass(frozen=True)
class Plane:
    """The region in which a shade is computed, in pixels of the alpha, and the camera."""

    top: int
    left: int
    height: int
    width: int
    horizon: float  # row of the horizon
    focal: float  # focal length of the camera

    def flatness(self, row: float) -> float:
        """Foreshortening of the ground at ``row``: the slope at which the camera sees it."""
        return min(STEEPEST, max(FLATTEST, (row - self.horizon) / self.focal))

    def rows(self, fine: int = 1) -> Tensor:
        """Row coordinates (height · fine, 1) of pixel centres."""
        return self.top + (torch.arange(self.height * fine)[:, None] + 0.5) / fine

    def columns(self) -> Tensor:
        """Column coordinates (width,) of pixel centres."""
        return self.left + torch.arange(self.width) + 0.5


@dataclass(frozen=True)
class Fall:
    """Direction, length and softness of a cast shadow."""

    direction: float  # in degrees on the ground: 0 right, 90 away from the viewer
    length: float  # of the shadow of an object of height 1
    softness: float  # of the light, in [0, 1], from direct sun to overcast sky


def contact_shade(stand: Stand, plane: Plane, strength: float, softness: float) -> Tensor:
    """Shade (height, width) around the contact points of a subject and what is just above ground.

    ``softness``, usually 0.5, scales the blur.
    """
    gap = stand.ground - stand.lowest
    valid = stand.lowest.isfinite() & ~stand.cut
    columns = (plane.columns() - 0.5).long()
    inside = (columns >= 0) & (columns < len(gap))
    at = columns.clamp(0, len(gap) - 1)
    ground, rows = stand.ground[at], plane.rows()
    flat = plane.flatness(stand.foot)
    light = torch.ones(plane.height, plane.width)
    for reach, blur, depth, darkness in LAYERS:
        weight = torch.exp(-gap.clamp_min(0) / (reach * stand.size)) * valid
        across = blur * stand.size * 2 * softness
        along = max(flat * across, 0.4)
        first, last = ground - flat * depth * stand.size, ground + along
        span = (rows - first + 0.5).clamp(0, 1) * (last - rows + 0.5).clamp(0, 1)
        dark = gaussians(span * (weight[at] * inside), [(along, across)])[0]
        light *= 1 - strength * darkness * dark
    return 1 - light


def contact_span(stand: Stand, plane: Plane, softness: float) -> tuple[float, float, float, float]:
    """Top, bottom, left and right of ``contact_shade``; beyond, it is nearly 0."""
    _, blur, depth, _ = LAYERS[-1]
    flat = plane.flatness(stand.foot)
    across = blur * stand.size * 2 * softness + 1
    along = flat * across + 1
    high = flat * depth * stand.size + 3 * along
    width = stand.alpha.shape[1]
    return (
        float(stand.ground.min()) - high,
        float(stand.ground.max()) + 4 * along,
        -3 * across,
        width + 3 * across,
    )


def cast_shade(stand: Stand, plane: Plane, fall: Fall, strength: float) -> Tensor:
    """Shade (height, width) of the shadow that a subject casts.

    Models the subject as an upright card of some thickness, projected onto the ground in
    perspective; the shade gets softer and fainter with the height of what casts it.
    """
    blocked, heights, scale = _project(stand, plane, fall)
    tall = max(stand.height, 1.0)
    penumbra, base = _blurs(tall, fall)
    blur = (base + penumbra * heights.clamp(0, tall)) * scale
    steps = max(1, math.ceil(math.log2((base + penumbra * tall) / base)))
    level = (blur / base).clamp_min(1).log2().clamp(0, steps)
    row, _, _ = stand.line()
    flat = plane.flatness(row)
    shade = torch.zeros_like(blocked)
    # Interpolate between images of doubling blur.
    blurs = [base * 2**step for step in range(steps + 1)]
    blurred = gaussians(blocked, [(max(flat * sigma, 0.4), sigma) for sigma in blurs])
    for step, soft in enumerate(blurred):
        shade += soft * (1 - (level - step).abs()).clamp_min(0)
    fade = 1 - (0.1 + 0.5 * fall.softness) * (heights / tall).clamp(0, 1)
    return (strength * fade * shade).clamp(0, 1)


def cast_span(stand: Stand, plane: Plane, fall: Fall) -> tuple[float, float, float, float]:
    """Top, bottom, left and right of ``cast_shade``, as ``contact_span``."""
    sine, cosine = _direction(fall)
    row, middle, slope = stand.line()
    rise, focal = _view(plane, row)
    tall, width = max(stand.height, 1.0), stand.alpha.shape[1]
    penumbra, base = _blurs(tall, fall)
    soft = 3 * (base + penumbra * tall)
    depth = tall * fall.length * sine
    back = max(depth, 0) + _THICK * stand.size + soft
    front = min(max(-depth, 0) + soft, 0.8 * focal)
    near = focal / (focal - front)
    sideways = tall * fall.length * cosine
    tilt = abs(slope) * (width / 2 + abs(sideways) + soft)
    return (
        row - tilt - rise * back / (focal + back),
        row + tilt + rise * front / (focal - front),
        middle + (min(0, sideways) - middle - soft) * near,
        middle + (width + max(0, sideways) - middle + soft) * near,
    )


def _direction(fall: Fall) -> tuple[float, float]:
    """Sine, at least ``LEVEL`` in size, and cosine of the direction."""
    angle = math.radians(fall.direction)
    sine = math.sin(angle)
    return math.copysign(max(abs(sine), LEVEL), sine), math.cos(angle)


def _view(plane: Plane, row: float) -> tuple[float, float]:
    """Rows from ``row`` to the horizon, and the focal length consistent with ``flatness``."""
    rise = max(row - plane.horizon, FLATTEST * plane.focal)
    return rise, rise / plane.flatness(row)


def _blurs(tall: float, fall: Fall) -> tuple[float, float]:
    """Growth of the blur per height of what casts the shadow, and the blur at height 0."""
    penumbra = (0.015 + 0.25 * fall.softness**2) * math.hypot(1, fall.length)
    return penumbra, max(0.5, _BASE * tall * (1 + 4 * fall.softness))


def _project(stand: Stand, plane: Plane, fall: Fall) -> tuple[Tensor, Tensor, Tensor]:
    """Unblurred shade, the height that casts it, and the perspective scale, (height, width) each.

    A point at depth d behind the subject and x beside it appears at x · f / (f + d), and its
    distance from the horizon scales likewise.
    """
    sine, cosine = _direction(fall)
    row, middle, slope = stand.line()
    rise, focal = _view(plane, row)

    def heights(rows: Tensor) -> tuple[Tensor, Tensor]:
        base = row + slope * (plane.columns() - middle)
        scale = 1 - ((base - rows) / rise).clamp(max=0.95)
        return focal * (1 - scale) / scale / (fall.length * sine), scale

    high, scale = heights(plane.rows(_FINE))
    across = middle + (plane.columns() - middle) / scale - high * fall.length * cosine
    upright = row + slope * (across - middle) - high
    size = across.new_tensor([stand.alpha.shape[1], stand.alpha.shape[0]])
    positions = torch.stack([across, upright], -1) / size * 2 - 1
    blocked = F.grid_sample(stand.alpha[None, None], positions[None], align_corners=False)
    thick = _THICK * stand.size * rise / focal
    blocked = F.avg_pool2d(_extend_up(blocked, round(thick * _FINE)), (_FINE, 1))[0, 0]
    # Fade out towards the horizon.
    rows = plane.rows()
    high, scale = heights(rows)
    blocked = blocked * ((rows - plane.horizon) / (0.1 * rise)).clamp(0, 1)
    return blocked, high, scale


def _extend_up(x: Tensor, rows: int) -> Tensor:
    """Maximum of each pixel of ``x`` (1, 1, h, w) and the ``rows`` below, by doubling windows."""
    span = 1
    while span <= rows:
        step = min(span, rows + 1 - span)
        x = torch.maximum(x, F.pad(x[..., step:, :], (0, 0, 0, min(step, x.shape[-2]))))
        span += step
    return x


def gaussians(x: Tensor, deviations: list[tuple[float, float]]) -> list[Tensor]:
    """Blur periodic ``x`` (h, w) in [0, 1] by Gaussians of deviations (rows, columns)."""
    height, width = x.shape
    rows = torch.fft.fftfreq(height)[:, None].square()
    columns = torch.fft.rfftfreq(width).square()
    spectrum = torch.fft.rfft2(x)
    blurred = []
    for along, across in deviations:
        response = torch.exp(-2 * math.pi**2 * (rows * along**2))
        response = response * torch.exp(-2 * math.pi**2 * (columns * across**2))
        blurred.append(torch.fft.irfft2(spectrum * response, s=(height, width)).clamp(0, 1))
    return blurred


def join_shades(shades: list[Tensor]) -> Tensor:
    """Combine shades multiplicatively; exactly 0 up to ``LEAST``."""
    light = torch.stack([1 - shade for shade in shades]).prod(0)
    return ((1 - light - LEAST) / (1 - LEAST)).clamp(0, 1)


# Light


def darken(background: Tensor, shade: Tensor) -> Tensor:
    """Remove the fraction ``shade`` of linear light from ``background`` (..., 3, H, W), sRGB.

    ``shade`` is (..., 1, H, W); where it is 0 the background stays bit-identical.
    """
    shaded = from_linear(to_linear(background) * (1 - shade))
    return torch.where(shade > 0, torch.minimum(shaded, background), background)


def opacity_over(background: Tensor, shade: Tensor) -> Tensor:
    """Opacity (..., 1, H, W) of a black layer over ``background`` that best matches ``darken``.

    For blending of sRGB values, as in image editors; least squares over each pixel's channels. On a
    black background, the opacity for a white one.
    """
    shaded = darken(background, shade)
    power = background.square().sum(-3, keepdim=True)
    factor = (background * shaded).sum(-3, keepdim=True) / power.clamp_min(1e-12)
    factor = torch.where(power > 1e-4, factor, from_linear(1 - shade))
    return (1 - factor).clamp(0, 1)
