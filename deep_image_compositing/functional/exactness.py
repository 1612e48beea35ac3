"""Whether an alpha is exactly that of its photograph, or only roughly so.

Where two colours mix, a true alpha is locally an affine function of the colour (Levin, Lischinski
and Weiss, CVPR 2006). How much of its variation such functions leave unexplained tells a matte from
a mask; slopes do not count, as those of a soft mask and of a smooth photograph explain each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = (0.25, 0.31)
"""Shares of unexplained variation up to which an alpha is exact, and from which on it is not.

Measured on held-out photographs at 640 pixels: exact alphas of composites have 0.03 to 0.25, those
reduced to a half and enlarged again 0.18 to 0.33, to a third at least 0.34. Of 72 masks that the
segmenter makes one has less than 0.31, of the refiner's none has less than 0.35.
"""

WINDOW = 5  # side in pixels of what is looked at
LEAST = 64  # soft pixels that an alpha needs to be judged
FLAT = 1e-6  # mean variance in a window up to which an alpha does not vary


@torch.no_grad()
def exactness(photograph: Tensor, alpha: Tensor) -> Tensor:
    """How far to trust each alpha, (B, 1, 1, 1): 1 where it is exact, 0 where it is rough."""
    share = unexplained(photograph, alpha).view(-1, 1, 1, 1)
    return ((EXACT[1] - share) / (EXACT[1] - EXACT[0])).clamp(0, 1).to(alpha.dtype)


@torch.no_grad()
def unexplained(
    photograph: Tensor, alpha: Tensor, epsilon: float = 1e-5, most: int = 20_000
) -> Tensor:
    """Share (B,) of the soft rim's variation that affine functions of the colour do not explain.

    Measured in windows around pixels of 0.02 < alpha < 0.98 (at most about ``most`` of them), less
    the plane that fits each best; 1 where too few are soft or nothing varies. ``epsilon``
    regularises the colour lines, in squared colour units.
    """
    # Small differences of squares: not for half precision, whoever asks for it.
    with torch.autocast(photograph.device.type, enabled=False):
        pairs = zip(photograph.float(), alpha[:, 0].float(), strict=True)
        return torch.stack([_unexplained(*pair, epsilon, most) for pair in pairs])


def _unexplained(image: Tensor, alpha: Tensor, epsilon: float, most: int) -> Tensor:
    """The share of one picture (3, H, W) and its alpha (H, W)."""
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
    covariance = covariance + epsilon * torch.eye(3, device=colors.device)
    shared = colors.mT @ values / WINDOW**2
    explained = (shared * torch.linalg.solve(covariance, shared)).sum((1, 2))
    variance = values.square().mean((1, 2))
    left = (variance - explained).clamp_min(0).mean()
    return torch.where(variance.mean() > FLAT, left / variance.mean(), 1.0)
