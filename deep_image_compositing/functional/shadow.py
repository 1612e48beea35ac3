"""The shadow that a subject throws on the ground: its shade, and what that does to a background.

A shade is the share of light that is taken away, in [0, 1]: a smooth plane at a small size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.ground import Stand
from deep_image_compositing.functional.linear import from_linear, to_linear

LAYERS = (  # a contact shadow: a core, what is close, what is around; lengths as shares of the size
    # reach of darkness under what hovers, blur, depth on the ground, darkness
    (0.12, 0.03, 0.12, 1.00),
    (0.40, 0.12, 0.35, 0.90),
    (1.50, 0.32, 0.60, 0.80),
)
LEAST = 0.004  # a shade up to this is none: it would change an 8-bit value by less than one half
FLATTEST, STEEPEST = 0.15, 0.5  # least and most by which the ground is shortened in a picture
LEVEL = 0.25  # least sine of a cast shadow's direction: just sideways, it would be a line
_THICK = 0.3  # of a subject's size: how thick it is along the line of sight
_FINE = 4  # rows at which the cast shadow is sampled for each of the plane's
_BASE = 0.006  # of a subject's height: blur of a cast shadow where it starts


@dataclass(frozen=True)
class Plane:
    """The part of the ground on which a shade is found, in pixels of the alpha, and the camera."""

    top: int
    left: int
    height: int
    width: int
    horizon: float  # row at which the ground ends
    focal: float  # focal length of the camera

    def flatness(self, row: float) -> float:
        """By how much the ground at ``row`` is shortened: the slope at which it is seen."""
        return min(STEEPEST, max(FLATTEST, (row - self.horizon) / self.focal))

    def rows(self, fine: int = 1) -> Tensor:
        """(height · fine, 1) rows of the pixels' centres."""
        return self.top + (torch.arange(self.height * fine)[:, None] + 0.5) / fine

    def columns(self) -> Tensor:
        """(width,) columns of the pixels' centres."""
        return self.left + torch.arange(self.width) + 0.5


@dataclass(frozen=True)
class Fall:
    """How a cast shadow falls."""

    direction: float  # where to, in degrees on the ground: 0 right, 90 away from the viewer
    length: float  # of the shadow of something that is 1 high
    softness: float  # In [0, 1]: of the light, from a bare sun to a gray sky


def contact_shade(stand: Stand, plane: Plane, strength: float, softness: float) -> Tensor:
    """Shade around the places where a subject touches the ground, (height, width) of the plane.

    What is close above the ground takes light as well. ``softness``, 0.5 as a rule, scales its
    blur.
    """
    gap = stand.ground - stand.lowest
    shown = stand.lowest.isfinite() & ~stand.cut
    columns = (plane.columns() - 0.5).long()
    inside = (columns >= 0) & (columns < len(gap))
    at = columns.clamp(0, len(gap) - 1)
    ground, rows = stand.ground[at], plane.rows()
    flat = plane.flatness(stand.foot)
    left = torch.ones(plane.height, plane.width)
    for reach, blur, depth, darkness in LAYERS:
        weight = torch.exp(-gap.clamp_min(0) / (reach * stand.size)) * shown
        across = blur * stand.size * 2 * softness
        along = max(flat * across, 0.4)
        first, last = ground - flat * depth * stand.size, ground + along
        span = (rows - first + 0.5).clamp(0, 1) * (last - rows + 0.5).clamp(0, 1)
        dark = gaussians(span * (weight[at] * inside), [(along, across)])[0]
        left *= 1 - strength * darkness * dark
    return 1 - left


def contact_span(stand: Stand, plane: Plane, softness: float) -> tuple[float, float, float, float]:
    """Top, bottom, left and right of what ``contact_shade`` reaches; beyond it is next to 0."""
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
    """Shade of the shadow that a subject casts, (height, width) of the plane.

    The subject, an upright card of some thickness, is laid on the ground as the camera sees it; the
    shade grows softer and fainter with the distance from what casts it.
    """
    thrown, heights, scale = _thrown(stand, plane, fall)
    tall = max(stand.height, 1.0)
    penumbra, least = _blurs(tall, fall)
    wanted = (least + penumbra * heights.clamp(0, tall)) * scale
    steps = max(1, math.ceil(math.log2((least + penumbra * tall) / least)))
    level = (wanted / least).clamp_min(1).log2().clamp(0, steps)
    row, _, _ = stand.line()
    flat = plane.flatness(row)
    shade = torch.zeros_like(thrown)
    blurs = [least * 2**step for step in range(steps + 1)]
    blurred = gaussians(thrown, [(max(flat * blur, 0.4), blur) for blur in blurs])
    for step, soft in enumerate(blurred):
        shade += soft * (1 - (level - step).abs()).clamp_min(0)
    faded = 1 - (0.1 + 0.5 * fall.softness) * (heights / tall).clamp(0, 1)
    return (strength * faded * shade).clamp(0, 1)


def cast_span(stand: Stand, plane: Plane, fall: Fall) -> tuple[float, float, float, float]:
    """Top, bottom, left and right of what ``cast_shade`` reaches, as ``contact_span``."""
    sine, cosine = _direction(fall)
    row, middle, slope = stand.line()
    rise, focal = _view(plane, row)
    tall, width = max(stand.height, 1.0), stand.alpha.shape[1]
    penumbra, least = _blurs(tall, fall)
    soft = 3 * (least + penumbra * tall)
    far = tall * fall.length * sine
    back = max(far, 0) + _THICK * stand.size + soft
    front = min(max(-far, 0) + soft, 0.8 * focal)
    near = focal / (focal - front)
    aside = tall * fall.length * cosine
    tilt = abs(slope) * (width / 2 + abs(aside) + soft)
    return (
        row - tilt - rise * back / (focal + back),
        row + tilt + rise * front / (focal - front),
        middle + (min(0, aside) - middle - soft) * near,
        middle + (width + max(0, aside) - middle + soft) * near,
    )


def _direction(fall: Fall) -> tuple[float, float]:
    """Sine, not too small, and cosine of the direction."""
    angle = math.radians(fall.direction)
    sine = math.sin(angle)
    return math.copysign(max(abs(sine), LEVEL), sine), math.cos(angle)


def _view(plane: Plane, row: float) -> tuple[float, float]:
    """Rows from the ground at ``row`` to the horizon, and the focal length that suits them."""
    rise = max(row - plane.horizon, FLATTEST * plane.focal)
    return rise, rise / plane.flatness(row)


def _blurs(tall: float, fall: Fall) -> tuple[float, float]:
    """By how much the blur grows with the height of what casts a shadow, and where it starts."""
    penumbra = (0.015 + 0.25 * fall.softness**2) * math.hypot(1, fall.length)
    return penumbra, max(0.5, _BASE * tall * (1 + 4 * fall.softness))


def _thrown(stand: Stand, plane: Plane, fall: Fall) -> tuple[Tensor, Tensor, Tensor]:
    """Where the light is blocked, from which height, and how much smaller things look there.

    The camera sees a point at depth d behind the subject and at the column x beside it at
    x · f / (f + d), and as much closer to the horizon. (height, width) each.
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
    places = torch.stack([across, upright], -1) / size * 2 - 1
    found = F.grid_sample(stand.alpha[None, None], places[None], align_corners=False)
    thick = _THICK * stand.size * rise / focal
    found = F.avg_pool2d(_behind(found, round(thick * _FINE)), (_FINE, 1))[0, 0]
    # Of what lies at the end of the ground nothing is known.
    rows = plane.rows()
    high, scale = heights(rows)
    found = found * ((rows - plane.horizon) / (0.1 * rise)).clamp(0, 1)
    return found, high, scale


def _behind(x: Tensor, rows: int) -> Tensor:
    """The maximum of each pixel of ``x`` (1, 1, h, w) and so many below it; windows double."""
    span = 1
    while span <= rows:
        step = min(span, rows + 1 - span)
        x = torch.maximum(x, F.pad(x[..., step:, :], (0, 0, 0, min(step, x.shape[-2]))))
        span += step
    return x


def gaussians(x: Tensor, deviations: list[tuple[float, float]]) -> list[Tensor]:
    """``x`` (h, w) in [0, 1], periodic, blurred by Gaussians of deviations (rows, columns)."""
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
    """What several shades take of the light together; exactly 0 where that is next to nothing."""
    left = torch.stack([1 - shade for shade in shades]).prod(0)
    return ((1 - left - LEAST) / (1 - LEAST)).clamp(0, 1)


# Light


def darken(background: Tensor, shade: Tensor) -> Tensor:
    """``background`` (..., 3, H, W), sRGB in [0, 1], less the share ``shade`` of its linear light.

    ``shade`` is (..., 1, H, W); where it is 0 the background stays, bit for bit.
    """
    shaded = from_linear(to_linear(background) * (1 - shade))
    return torch.where(shade > 0, torch.minimum(shaded, background), background)


def opacity_over(background: Tensor, shade: Tensor) -> Tensor:
    """Opacity (..., 1, H, W) of black which, over ``background``, comes closest to ``darken``.

    It is laid over sRGB values, as editors do; of each pixel the least squares over its channels.
    On a black background it is that for a white one.
    """
    shaded = darken(background, shade)
    power = background.square().sum(-3, keepdim=True)
    kept = (background * shaded).sum(-3, keepdim=True) / power.clamp_min(1e-12)
    kept = torch.where(power > 1e-4, kept, from_linear(1 - shade))
    return (1 - kept).clamp(0, 1)
