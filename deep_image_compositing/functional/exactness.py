"""Detection of exact alphas, as opposed to rough masks.

Where two colours mix, a true alpha is locally an affine function of the colour (Levin, Lischinski
and Weiss, CVPR 2006), so the variation that such functions leave unexplained tells a matte from a
mask. Linear trends in space are removed first, as gradients of soft masks and smooth photographs
correlate.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = (0.25, 0.31)
"""Unexplained shares up to which an alpha counts as exact, and from which it does not.

Measured on held-out photographs at 640 pixels: exact alphas of composites have 0.03 to 0.25; after
downsampling to a half and upsampling again, 0.18 to 0.33; to a third, at least 0.34. One of 72
masks of the segmenter is below 0.31; none of the refiner's is below 0.35.
"""

WINDOW = 5  # side of the windows in pixels
LEAST = 64  # minimum number of soft pixels for a judgement
EPSILON = 1e-5  # regularises the colour lines, in squared colour units
FLAT = 1e-6  # mean variance in a window up to which an alpha counts as constant


@torch.no_grad()
def exactness(photograph: Tensor, alpha: Tensor) -> Tensor:
    """Confidence (B, 1, 1, 1) that each alpha is exact: 1 for exact, 0 for rough."""
    share = unexplained(photograph, alpha).view(-1, 1, 1, 1)
    return ((EXACT[1] - share) / (EXACT[1] - EXACT[0])).clamp(0, 1).to(alpha.dtype)


@torch.no_grad()
def unexplained(photograph: Tensor, alpha: Tensor, most: int = 20_000) -> Tensor:
    """Share (B,) of alpha's variance in the soft rim that affine colour functions do not explain.

    Measured in windows around pixels of 0.02 < alpha < 0.98 (about ``most`` at most), after
    subtracting the best-fitting plane from each; 1 for too few soft pixels or no variation.
    """
    # Small differences of squares need full precision, even under autocast.
    with torch.autocast(photograph.device.type, enabled=False):
        pairs = zip(photograph.float(), alpha[:, 0].float(), strict=True)
        return torch.stack([_unexplained(*pair, most) for pair in pairs])


def _unexplained(image: Tensor, alpha: Tensor, most: int) -> Tensor:
    """``unexplained`` for one image (3, H, W) and its alpha (H, W)."""
    border = WINDOW // 2
    inner = alpha[border:-border, border:-border]
    rows, columns = ((inner > 0.02) & (inner < 0.98)).nonzero(as_tuple=True)
    if len(rows) < LEAST:
        return alpha.new_ones(())
    step = -(-len(rows) // most)
    rows, columns = rows[::step], columns[::step]
    side = torch.arange(WINDOW, device=rows.device)
    at = (rows[:, None, None] + side[:, None], columns[:, None, None] + side)
    colors = image[:, at[0], at[1]].flatten(2).permute(1, 2, 0)  # (N, WINDOW², 3)
    values = alpha[at].flatten(1)[..., None]
    offset = (side - border).to(alpha)
    y, x = offset.repeat_interleave(WINDOW), offset.repeat(WINDOW)
    plane = torch.nn.functional.normalize(torch.stack([torch.ones_like(x), x, y]), dim=1)
    colors = colors - plane.mT @ (plane @ colors)
    values = values - plane.mT @ (plane @ values)
    covariance = colors.mT @ colors / WINDOW**2
    covariance = covariance + EPSILON * torch.eye(3, device=colors.device)
    shared = colors.mT @ values / WINDOW**2
    explained = (shared * torch.linalg.solve(covariance, shared)).sum((1, 2))
    variance = values.square().mean((1, 2))
    left = (variance - explained).clamp_min(0).mean()
    return torch.where(variance.mean() > FLAT, left / variance.mean(), 1.0)
