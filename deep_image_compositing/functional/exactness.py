"""Whether an alpha is exactly that of its photograph, or only roughly so.

Where two colours mix, a true alpha is locally an affine function of the colour (Levin, Lischinski
and Weiss, CVPR 2006). How much of its variation such functions leave unexplained tells a matte from
a mask, however soft.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = (0.10, 0.13)
"""Shares of unexplained variation up to which an alpha is exact, and from which on it is not.

Of the exact alphas of training composites (recipes/own_masks.py) 89 % have less than 0.13, of those
of recipes/self_mattes.py 96 %; of 144 masks by segmenter and refiner, one has.
"""

GOOD = (0.15, 0.20)
"""Likewise for masks good enough for the fuser, such as a matte reduced and enlarged again."""

LEAST = 64  # soft pixels that an alpha needs to be judged
FLAT = 1e-6  # mean variance in a window up to which an alpha does not vary


@torch.no_grad()
def exactness(photograph: Tensor, alpha: Tensor, limits: tuple[float, float] = EXACT) -> Tensor:
    """How far to trust each alpha, (B, 1, 1, 1): 1 where it is exact, 0 where it is rough.

    ``limits`` are the shares of unexplained variation for 1 and 0.
    """
    share = unexplained(photograph, alpha).view(-1, 1, 1, 1)
    return ((limits[1] - share) / (limits[1] - limits[0])).clamp(0, 1).to(alpha.dtype)


@torch.no_grad()
def unexplained(
    photograph: Tensor, alpha: Tensor, epsilon: float = 1e-5, most: int = 20_000
) -> Tensor:
    """Share (B,) of the soft rim's variation that affine functions of the colour do not explain.

    Measured in windows of 3 x 3 pixels around every pixel of 0.02 < alpha < 0.98; of more than
    ``most``, every second, third and so on. 1 where too few pixels are soft or nothing varies: a
    binary mask may be right, but does not show it. ``epsilon`` regularises the colour lines, in
    squared colour units.
    """
    # Small differences of squares: not for half precision, whoever asks for it.
    with torch.autocast(photograph.device.type, enabled=False):
        pairs = zip(photograph.float(), alpha[:, 0].float(), strict=True)
        return torch.stack([_unexplained(*pair, epsilon, most) for pair in pairs])


def _unexplained(image: Tensor, alpha: Tensor, epsilon: float, most: int) -> Tensor:
    """The share of one picture (3, H, W) and its alpha (H, W)."""
    inner = alpha[1:-1, 1:-1]
    rows, columns = ((inner > 0.02) & (inner < 0.98)).nonzero(as_tuple=True)
    if len(rows) < LEAST:
        return alpha.new_ones(())
    step = -(-len(rows) // most)
    rows, columns = rows[::step], columns[::step]
    window = torch.arange(3, device=rows.device)
    at = (rows[:, None, None] + window[:, None], columns[:, None, None] + window)
    colors = image[:, at[0], at[1]].flatten(2).permute(1, 2, 0)  # (N, 9, 3)
    values = alpha[at].flatten(1)[..., None]
    colors = colors - colors.mean(1, keepdim=True)
    values = values - values.mean(1, keepdim=True)
    covariance = colors.mT @ colors / 9 + epsilon * torch.eye(3, device=colors.device)
    shared = colors.mT @ values / 9
    explained = (shared * torch.linalg.solve(covariance, shared)).sum((1, 2))
    variance = values.square().mean((1, 2))
    left = (variance - explained).clamp_min(0).mean()
    return torch.where(variance.mean() > FLAT, left / variance.mean(), 1.0)
