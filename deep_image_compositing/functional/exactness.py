"""Whether an alpha is exactly that of its photograph, or only roughly so.

Where two colours mix, a true alpha is locally an affine function of the colour (Levin, Lischinski
and Weiss, CVPR 2006). How much of an alpha's variation such functions leave unexplained tells a
matte from a mask, however soft: of an exact alpha, every strand is one of the photograph's. The
refiner ``cascade`` and the fuser ``multi_stream`` leave alone what is good enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = (0.10, 0.13)
"""Shares of unexplained variation up to which an alpha is exact, and from which on it is not.

Measured on composites of training subjects as recipes/own_masks.py makes them: of the exact alphas
of mattes 74 % have less than 0.10 and 89 % less than 0.13, of those of recipes/self_mattes.py 93 %
and 96 %. Of 144 masks that segmenter and refiner had made, one has less than 0.13, none less than
0.12.
"""

GOOD = (0.15, 0.20)
"""Likewise for masks that are good enough to be left to the fuser, such as a matte that was reduced
and enlarged again: rough ones have more than 0.2."""

LEAST = 64
"""Soft pixels without which an alpha has nothing to be judged by."""

FLAT = 1e-6
"""Mean variance in a window up to which an alpha does not vary."""


@torch.no_grad()
def exactness(photograph: Tensor, alpha: Tensor, limits: tuple[float, float] = EXACT) -> Tensor:
    """How far to trust each alpha: 1 where it is exact, 0 where it is rough, rarely in between.

    Args:
        photograph: (B, 3, H, W) in [0, 1].
        alpha: (B, 1, H, W) in [0, 1].
        limits: shares of unexplained variation for 1 and 0.

    Returns:
        (B, 1, 1, 1) in [0, 1].
    """
    share = unexplained(photograph, alpha).view(-1, 1, 1, 1)
    return ((limits[1] - share) / (limits[1] - limits[0])).clamp(0, 1).to(alpha.dtype)


@torch.no_grad()
def unexplained(
    photograph: Tensor, alpha: Tensor, epsilon: float = 1e-5, most: int = 20_000
) -> Tensor:
    """Share (B,) of the soft rim's variation that affine functions of the colour do not explain.

    Windows of 3 x 3 pixels around every pixel of 0.02 < alpha < 0.98 are looked at. 1 where too
    few pixels are so soft, or nothing varies: a binary mask may be right, but does not show it.

    Args:
        photograph: (B, 3, H, W) in [0, 1].
        alpha: (B, 1, H, W) in [0, 1].
        epsilon: regularisation of the local colour lines, in squared colour units.
        most: windows that are looked at; of more, every second, third or so on is.
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
