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
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.metrics.composites import check_pair

BETA_SQUARED = 0.3
"""Weight of the F-measure as saliency papers have it: precision counts more than recall."""

_NEIGHBOURS = 3
"""Crossings of the other outline that are looked at: the nearest, and both its neighbours."""


def iou(mask: Tensor, truth: Tensor) -> float:
    """Intersection over union of what exceeds 0.5; 1 when that is nothing in either."""
    check_pair(mask, truth, 1)
    a, b = mask > 0.5, truth > 0.5
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def max_f_measure(mask: Tensor, truth: Tensor) -> float:
    """The best F-measure that any of 256 thresholds gives this mask, rounded to 8 bits.

    ``F = 1.3 · P · R / (0.3 · P + R)`` with precision P and recall R of the pixels at or above a
    threshold of 0, 1/255, ... 1; the truth is what exceeds 0.5. NaN when that is nothing. Source:
    Achanta et al., CVPR 2009; papers that average P and R over a data set first have no value a
    picture.
    """
    check_pair(mask, truth, 1)
    subject = (truth > 0.5).flatten()
    levels = to_bytes(mask).flatten().long()
    hits = torch.bincount(levels[subject], minlength=256).double().flip(0).cumsum(0)
    taken = torch.bincount(levels, minlength=256).double().flip(0).cumsum(0)
    wanted = hits[-1]
    if wanted == 0:
        return math.nan
    # P = hits / taken and R = hits / wanted, so F needs no division by zero.
    scores = (1 + BETA_SQUARED) * hits / (BETA_SQUARED * wanted + taken)
    return float(scores.max())


def outline_distance(mask: Tensor, truth: Tensor) -> float:
    """Mean distance in pixels between the two outlines, there and back.

    An outline is where the picture crosses 0.5 between two neighbours in a row or a column, to a
    fraction of a pixel; each crossing's distance is that to the other outline, taken as straight
    between its crossings. The picture's border is no outline. 0 when neither has an outline; the
    picture's diagonal when only one has. Raises ``MissingExtraError`` without scipy.
    """
    import_extra("scipy", "the distance between outlines")
    check_pair(mask, truth, 1)
    one, other = _crossings(mask), _crossings(truth)
    if not (len(one) and len(other)):
        return math.hypot(*mask.shape[1:]) if len(one) or len(other) else 0.0
    return (_mean_distance(one, other) + _mean_distance(other, one)) / 2


def _crossings(mask: Tensor) -> NDArray[np.float64]:
    """Where the mask crosses 0.5 between neighbours, as rows of (y, x)."""
    plane = mask[0].double().cpu().numpy()
    points = []
    pairs = (plane[:-1], plane[1:]), (plane[:, :-1], plane[:, 1:])
    for axis, (first, second) in enumerate(pairs):
        places = np.argwhere((first >= 0.5) != (second >= 0.5))
        index = tuple(places.T)
        way = (0.5 - first[index]) / (second[index] - first[index])
        points.append(places.astype(np.float64))
        points[-1][:, axis] += way
    return np.concatenate(points)


def _mean_distance(points: NDArray[np.float64], outline: NDArray[np.float64]) -> float:
    """Mean distance of ``points`` from the polygon that ``outline``'s points lie on."""
    from scipy.spatial import KDTree

    distances, nearest = KDTree(outline).query(points, k=_NEIGHBOURS)
    least, start = distances[:, 0], outline[nearest[:, 0]]
    for other in range(1, min(_NEIGHBOURS, len(outline))):
        along = outline[nearest[:, other]] - start
        length = (along**2).sum(1)
        # Crossings of one outline around a square of four pixels are no farther apart than this.
        joined = (length > 0) & (length <= 2)
        share = ((points - start) * along).sum(1) / np.where(joined, length, 1)
        foot = start + np.where(joined, share.clip(0, 1), 0)[:, None] * along
        least = np.minimum(least, np.hypot(*(points - foot).T))
    return float(least.mean())
