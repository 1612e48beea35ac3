"""Errors of masks, one picture at a time: overlap, F-measure, and the distance of outlines.

Masks are (1, H, W) in [0, 1]; shapes that differ raise ``UsageError``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deep_image_compositing.extras import import_extra
from deep_image_compositing.functional.precision import double, to_bytes
from deep_image_compositing.metrics.composites import check_pair

BETA_SQUARED = 0.3
"""Beta squared of the F-measure in the saliency literature: precision counts more than recall."""

_NEIGHBOURS = 3
"""How many of the other outline's crossings are considered: the nearest and its neighbours."""


def iou(mask: Tensor, truth: Tensor) -> float:
    """Intersection over union of the pixels above 0.5; 1 if neither mask has any."""
    check_pair(mask, truth, 1)
    a, b = mask > 0.5, truth > 0.5
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def max_f_measure(mask: Tensor, truth: Tensor) -> float:
    """The maximum F-measure of the mask, rounded to 8 bits, over 256 thresholds.

    ``F = 1.3 · P · R / (0.3 · P + R)`` with precision P and recall R of the pixels at or above a
    threshold of 0, 1/255, ... 1; the truth is binarized above 0.5. NaN if it is then empty. Source:
    Achanta et al., CVPR 2009; papers that first average P and R over a data set report no value
    per image.
    """
    check_pair(mask, truth, 1)
    subject = (truth > 0.5).flatten()
    levels = to_bytes(mask).flatten().long()
    hits, predicted = (
        double(torch.bincount(x, minlength=256)).flip(0).cumsum(0)
        for x in (levels[subject], levels)
    )
    actual = hits[-1]
    if actual == 0:
        return math.nan
    # With P = hits / predicted and R = hits / actual; this form never divides by zero.
    scores = (1 + BETA_SQUARED) * hits / (BETA_SQUARED * actual + predicted)
    return float(scores.max())


def outline_distance(mask: Tensor, truth: Tensor) -> float:
    """Symmetric mean distance between the two outlines, in pixels.

    An outline consists of the subpixel positions where the mask crosses 0.5 between neighbours in a
    row or column, joined by straight segments; distances are from each crossing to the other
    outline. The image border is not an outline. Returns 0 if neither mask has an outline, and the
    image diagonal if only one has. Raises ``MissingExtraError`` without scipy.
    """
    import_extra("scipy", "the distance between outlines")
    check_pair(mask, truth, 1)
    a, b = _crossings(mask), _crossings(truth)
    if not (len(a) and len(b)):
        return math.hypot(*mask.shape[1:]) if len(a) or len(b) else 0.0
    return (_mean_distance(a, b) + _mean_distance(b, a)) / 2


def _crossings(mask: Tensor) -> NDArray[np.float64]:
    """The positions (y, x) where the mask crosses 0.5 between neighbours."""
    plane = mask[0].cpu().double().numpy()
    points = []
    pairs = (plane[:-1], plane[1:]), (plane[:, :-1], plane[:, 1:])
    for axis, (first, second) in enumerate(pairs):
        positions = np.argwhere((first >= 0.5) != (second >= 0.5))
        index = tuple(positions.T)
        offset = (0.5 - first[index]) / (second[index] - first[index])
        points.append(positions.astype(np.float64))
        points[-1][:, axis] += offset
    return np.concatenate(points)


def _mean_distance(points: NDArray[np.float64], outline: NDArray[np.float64]) -> float:
    """Mean distance of ``points`` from the polygon through the crossings ``outline``."""
    from scipy.spatial import KDTree

    distances, nearest = KDTree(outline).query(points, k=_NEIGHBOURS)
    closest, start = distances[:, 0], outline[nearest[:, 0]]
    for rank in range(1, min(_NEIGHBOURS, len(outline))):
        segment = outline[nearest[:, rank]] - start
        length = (segment**2).sum(1)  # squared
        # Adjacent crossings lie on one square of four pixels, so at most sqrt(2) apart.
        adjacent = (length > 0) & (length <= 2)
        share = ((points - start) * segment).sum(1) / np.where(adjacent, length, 1)
        foot = start + np.where(adjacent, share.clip(0, 1), 0)[:, None] * segment
        closest = np.minimum(closest, np.hypot(*(points - foot).T))
    return float(closest.mean())
