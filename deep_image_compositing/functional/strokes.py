"""Strokes of a brush, "this belongs" and "this does not", spread to what they mean; serving calls.

A way from a stroke grows longer with each step, each change of colour, and each colour that the
stroke has not touched: the geodesic distances of Bai and Sapiro, ICCV 2007.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.compose import reconstruct

SIDE = 320  # long side in pixels of the pictures that ``spread_strokes`` is meant for
REACH = 90.0  # pixels that a stroke reaches in a flat surface of its own colour
_CHANGE = 3.0  # a change of colour of 1 / 3 on the way is as far as a stroke reaches
_FOREIGN = 0.4  # so are 10 pixels whose colour is 0.25 off the stroke's
_LEVELS = 12  # to which a stroke's colours are rounded, to have few of them
_NEIGHBOURS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 2**0.5), (1, -1, 2**0.5))


def spread_strokes(image: Tensor, strokes: Tensor) -> Tensor:
    """Spread strokes over connected pixels of similar colour; deterministic.

    Where both kinds reach, the nearer one has it. What strokes of the first kind enclose belongs to
    them as well, unless one of the other kind is there. ``image`` is (1, 3, H, W) in [0, 1], about
    ``SIDE`` pixels long; ``strokes`` and the answer are (1, 1, H, W): 1 "belongs", -1 "does not",
    0 nothing said.
    """
    sides = torch.cat([strokes > 0, strokes < 0])
    distance = torch.stack([_distance(image[0], side) for side in sides])
    near = distance <= 1
    belongs = near[:1] & (distance[:1] < distance[1:])
    excluded = near[1:] & ~belongs
    rim = torch.zeros_like(belongs)
    rim[..., [0, -1], :] = rim[..., :, [0, -1]] = True
    open_ground = reconstruct((rim | excluded) & ~belongs, ~belongs)
    return (~open_ground).to(strokes.dtype) - excluded.to(strokes.dtype)


def _distance(image: Tensor, seeds: Tensor) -> Tensor:
    """Length of the shortest way from ``seeds`` (1, H, W) to each pixel, 1 being the reach."""
    far = torch.full(seeds.shape, torch.inf)
    if not seeds.any():
        return far
    colors = (image[:, seeds[0]] * _LEVELS).round().unique(dim=1) / _LEVELS
    pixels = image.flatten(1).T
    foreign = torch.cdist(pixels, colors.T).amin(1).sub(1.5 / _LEVELS).clamp_min(0)
    foreign = _FOREIGN * foreign.view(1, *image.shape[1:])
    costs = []
    for down, right, step in _NEIGHBOURS:
        change = (image - _shifted(image, down, right)).norm(dim=0, keepdim=True)
        costs.append(step * (1 / REACH) + _CHANGE * change)
    distance = torch.where(seeds, 0.0, far)
    while True:
        before = distance
        for (down, right, _), cost in zip(_NEIGHBOURS, costs, strict=True):
            ahead = _shifted(distance, down, right) + cost
            behind = _shifted(distance + cost, -down, -right)
            distance = torch.minimum(distance, torch.minimum(ahead, behind) + foreign)
        distance = torch.where(distance <= 1, distance, far)
        if torch.equal(distance, before):
            return distance


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """What lies so many rows below and columns to the right; infinity beyond the border."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1), value=torch.inf)
    return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]
