"""Interactive segmentation from brush strokes that mark subject or background.

Uses geodesic distances (Bai and Sapiro, ICCV 2007): a path costs its length, its changes of colour,
and pixels whose colours differ from those under the stroke.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.compose import reconstruct

SIDE = 320  # long side in pixels of the intended images
REACH = 90.0  # reach of a stroke in pixels over its own, constant colour
_CHANGE = 3.0  # cost of a colour change: 1 / 3 uses up the reach
_FOREIGN = 0.4  # cost of a foreign colour: 10 pixels at a distance of 0.25 use up the reach
_LEVELS = 12  # levels per channel to which stroke colours are quantised
_NEIGHBOURS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 2**0.5), (1, -1, 2**0.5))


def spread_strokes(image: Tensor, strokes: Tensor) -> Tensor:
    """Spread strokes over connected pixels of similar colour; deterministic.

    Each pixel takes the nearest stroke within reach. Regions enclosed by subject belong to it, too,
    unless they contain background. ``image`` is (1, 3, H, W) in [0, 1], about ``SIDE`` pixels long;
    ``strokes`` and the result are (1, 1, H, W): 1 subject, -1 background, 0 undecided.
    """
    labels = torch.cat([strokes > 0, strokes < 0])
    distance = torch.stack([_distance(image[0], label) for label in labels])
    near = distance <= 1
    subject = near[:1] & (distance[:1] < distance[1:])
    background = near[1:] & ~subject
    border = torch.zeros_like(subject)
    border[..., [0, -1], :] = border[..., :, [0, -1]] = True
    outside = reconstruct((border | background) & ~subject, ~subject)
    return (~outside).to(strokes.dtype) - background.to(strokes.dtype)


def _distance(image: Tensor, seeds: Tensor) -> Tensor:
    """Geodesic distance from ``seeds`` (1, H, W) in units of the reach; infinity beyond it."""
    far = torch.full(seeds.shape, torch.inf)
    if not seeds.any():
        return far
    colors = (image[:, seeds[0]] * _LEVELS).round().unique(dim=1) / _LEVELS
    pixels = image.flatten(1).T
    foreign = torch.cdist(pixels, colors.T).amin(1).sub(1.5 / _LEVELS).clamp_min(0)
    foreign = _FOREIGN * foreign.view(1, *image.shape[1:])
    costs = []
    for down, right, step in _NEIGHBOURS:
        change = (image - _shift(image, down, right)).norm(dim=0, keepdim=True)
        costs.append(step * (1 / REACH) + _CHANGE * change)
    distance = torch.where(seeds, 0.0, far)
    while True:
        before = distance
        for (down, right, _), cost in zip(_NEIGHBOURS, costs, strict=True):
            forward = _shift(distance, down, right) + cost
            backward = _shift(distance + cost, -down, -right)
            distance = torch.minimum(distance, torch.minimum(forward, backward) + foreign)
        distance = torch.where(distance <= 1, distance, far)
        if torch.equal(distance, before):
            return distance


def _shift(x: Tensor, down: int, right: int) -> Tensor:
    """Values ``down`` rows below and ``right`` columns to the right; infinity outside."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1), value=torch.inf)
    return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]
