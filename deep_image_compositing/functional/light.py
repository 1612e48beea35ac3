"""A guess at the light in a picture, for a shadow that fits: its direction and its hardness.

It is cheap, and may say that it does not know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_image_compositing.functional.linear import LUMINANCE, to_linear
from deep_image_compositing.functional.resize import fit_long_side, resize

SIDE = 64
"""Long side in pixels at which a picture is looked at."""

TILT = 0.7
"""Stops by which one side has to be brighter than the other for the light to come from there."""

EXPLAINED = 0.6
"""Share of the columns' differences that such a tilt has to explain."""

GLARE = 2.5
"""Stops by which a light in the picture outshines its middle brightness."""

SMALL = 0.06
"""Share of the picture up to which something bright is a light, and not a sky."""

NARROW = 0.12
"""Deviation of a light's columns and rows, as a share of the picture's; others are several."""

SIDEWAYS = 35.0
"""Degrees by which a shadow beside the subject falls backward: light comes over one's shoulder."""

HARD, SOFT = 4.5, 1.2
"""Contrast of the ground in stops from which on the light is hard, and down to which it is soft."""

LEAST, MOST = 0.2, 0.85
"""Softness is never guessed beyond these: dark things on the ground look like hard light."""

PLAIN = 0.3
"""Contrast in stops below which a picture is plain and tells nothing."""


@dataclass(frozen=True)
class Light:
    """What a picture tells of its light; None for what it does not."""

    direction: float | None
    """Where shadows fall, in degrees: 0 is right, 90 away from the viewer, 180 left."""
    softness: float | None
    """From 0, a bare sun, to 1, a gray sky."""


def guess_light(picture: Tensor) -> Light:
    """The light of ``picture`` (3, H, W), sRGB in [0, 1].

    A small light in its upper part throws shadows towards the viewer. Else, where one side is
    clearly brighter than the other, the light comes from there. How hard it is shows in the
    contrast of the lower half, where the ground is.
    """
    size = fit_long_side(picture.shape[-2], picture.shape[-1], SIDE)
    small = resize(picture[None].float(), size)[0].clamp(0, 1)
    weights = small.new_tensor(LUMINANCE)[:, None, None]
    stops = ((to_linear(small) * weights).sum(0) + 0.004).log2()
    low, high = stops.flatten().quantile(stops.new_tensor([0.05, 0.95])).tolist()
    if min(size) < 4 or high - low < PLAIN:
        return Light(None, None)
    direction = _against(stops)
    if direction is None:
        direction = _aside(stops)
    ground = stops[size[0] // 2 :].flatten()
    low, high = ground.quantile(ground.new_tensor([0.1, 0.9])).tolist()
    softness = (HARD - (high - low)) / (HARD - SOFT)
    return Light(direction, min(MOST, max(LEAST, softness)))


def _against(stops: Tensor) -> float | None:
    """Where shadows fall if a light is in the picture; None without one."""
    height, width = stops.shape
    upper = stops[: max(1, round(0.7 * height))]
    bright = float(upper.max())
    rows, columns = (upper > bright - 0.7).nonzero(as_tuple=True)
    if bright < -1 or bright - float(stops.median()) < GLARE or len(rows) > SMALL * stops.numel():
        return None
    if max(_deviation(rows) / height, _deviation(columns) / width) > NARROW:
        return None
    at = (float(columns.double().mean()) + 0.5) / width - 0.5
    return math.degrees(math.atan2(-1.0, -2 * at)) % 360


def _deviation(places: Tensor) -> float:
    return float(places.double().std(correction=0))


def _aside(stops: Tensor) -> float | None:
    """Where shadows fall if one side is brighter; None if none clearly is."""
    profile = stops.mean(0)
    columns = (torch.arange(len(profile)) + 0.5) / len(profile) - 0.5
    middle = profile - profile.mean()
    tilt = float((middle * columns).sum() / columns.square().sum())
    explained = tilt**2 * float(columns.square().sum() / middle.square().sum().clamp_min(1e-9))
    if abs(tilt) < TILT or explained < EXPLAINED:
        return None
    return 180 - SIDEWAYS if tilt > 0 else SIDEWAYS
