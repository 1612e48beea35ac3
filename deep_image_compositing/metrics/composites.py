"""Errors of composites, one picture at a time: structure, colour, old background, exactness.

Pictures are (C, H, W) in [0, 1], alphas (1, H, W) in [0, 1]; shapes that differ raise
``UsageError``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.metrics.band import BAND_RADIUS, rim_band

HALO_RADIUS = 3
"""Pixels by which the soft rim is dilated where ``halo`` looks: fringes are a pixel or two wide."""

_WINDOW = 5  # half width of the SSIM window in pixels: 11 x 11

SMALLEST = _WINDOW + 1
"""Pixels either way that SSIM needs."""


class Halo(NamedTuple):
    """Shares, 0 for none, of the old background that is left and of the subject that is lost."""

    old_background: float
    new_background: float


class Exactness(NamedTuple):
    """How far the composite is, away from the rim, from the photographs it is made of.

    ``share`` is that of pixels that are right in every bit, of all, of the ``subject``'s and of the
    new ``background``'s; NaN without any. ``worst`` is the largest deviation in 8-bit steps.
    """

    share: float
    subject: float
    background: float
    worst: float


def ssim_map(composite: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity at every pixel and channel, (C, H, W); its mean is the picture's SSIM.

    As Wang et al. (2004) have it: a Gaussian window of 11 pixels and sigma 1.5, k1 = 0.01,
    k2 = 0.03; borders mirrored. ``UsageError`` for pictures of 5 pixels or fewer either way.
    """
    check_pair(composite, truth)
    if min(composite.shape[1:]) < SMALLEST:
        raise UsageError(
            f"SSIM needs more than {_WINDOW} pixels either way, got {tuple(composite.shape)}"
        )
    from kornia.metrics import ssim

    both = (composite.float()[None], truth.float()[None])
    return ssim(*both, window_size=2 * _WINDOW + 1, eps=0.0)[0]


def color_error(composite: Tensor, truth: Tensor, where: Tensor) -> float:
    """Mean absolute difference of the channels where ``where`` (1, H, W), in 8-bit steps.

    NaN where that is nowhere. With the true alpha this is the error of the straight colour weighted
    by how visible it is, plus that of the background.
    """
    check_pair(composite, truth)
    return float((composite - truth).abs()[:, where[0]].mean()) * 255


def halo(
    composite: Tensor,
    truth: Tensor,
    alpha: Tensor,
    background: Tensor,
    old_background: Tensor,
    foreground_color: Tensor | None = None,
    radius: int = HALO_RADIUS,
) -> Halo:
    """How much of the old background's colour remains in the rim: a measure of our own.

    A method that sets the *photograph* over the new background with an opacity ``a`` of its own
    makes exactly this error, at every pixel::

        composite − truth  =  a · (1 − alpha) · (B1 − B2)  +  (1 − a) · alpha · (B2 − F)

    with the old and the new background B1 and B2 and the subject's colour F. The first term
    moves the truth towards the photograph (halo), the second towards the new background (lost
    subject). The error in the rim, 0.02 < alpha < 0.98 and ``radius`` pixels around it, is fitted
    by least squares, all pixels and channels at once::

        composite − truth  ≈  h · (1 − alpha) · (B1 − B2)  +  l · alpha · (B2 − F)

    So ``h`` is 0 for the truth and 1 where the photograph was pasted over the whole rim; ``l`` is 1
    when the whole subject in the rim is gone. Noise, and errors of other colours, move neither.

    Where it fails:

    - Where B1 looks like B2 there is nothing to see: NaN when ``(1 − alpha) · (B1 − B2)`` is below
      one 8-bit step in root mean square.
    - Where the subject looks like B1, a mask that is too wide and a leftover halo look the same.
    - It ends at ``radius`` pixels from the rim: whether a mask was 4 pixels too wide or 40 is not
      seen here.
    - One share is fitted to a whole picture; halo here and too little of B1 there cancel.
      Below 0 a method overshoots: it took away more of the old colour than there was.
    - When the two terms have nearly the same shape (their cosine exceeds 0.995), or the second
      is not there, all is taken for halo, and the second figure is NaN.

    ``background`` is B2, ``old_background`` B1. Without a ``foreground_color``, which counts where
    alpha > 0, ``alpha · (B2 − F)`` is taken as ``B2 − truth``, as it is when the truth is exact.
    """
    for picture in (truth, background, old_background, foreground_color):
        if picture is not None:
            check_pair(composite, picture)
    check_alpha(composite, alpha)
    band = rim_band(alpha[None], radius)[0, 0]
    a = alpha[0, band].double()
    c, t, new, old = (x[:, band].double() for x in (composite, truth, background, old_background))
    error, shown = c - t, (1 - a) * (old - new)
    if foreground_color is None:
        hidden = new - t
    else:
        hidden = torch.where(a > 0, a * (new - foreground_color[:, band].double()), 0)
    if not band.any() or float(shown.square().mean().sqrt()) < 1 / 255:
        return Halo(math.nan, math.nan)
    rows = torch.stack([shown.flatten(), hidden.flatten(), error.flatten()])
    (ss, sh, se), (_, hh, he), _ = (rows @ rows.T).tolist()
    determinant = ss * hh - sh * sh
    if float(hidden.square().mean().sqrt()) < 1 / 255 or determinant < 0.01 * ss * hh:
        return Halo(se / ss, math.nan)
    return Halo((hh * se - sh * he) / determinant, (ss * he - sh * se) / determinant)


def exactness(
    composite: Tensor,
    alpha: Tensor,
    foreground: Tensor,
    background: Tensor,
    radius: int = BAND_RADIUS,
) -> Exactness:
    """How many pixels away from the rim are the photographs' own, bit for bit.

    Outside the band, pixels whose true alpha is exactly 1 should be ``foreground``'s, and those
    where it is exactly 0 ``background``'s. Pictures are uint8.
    """
    for picture in (composite, foreground, background):
        check_pair(composite, picture)
        if picture.dtype != torch.uint8:
            raise UsageError(f"bits are compared of uint8 pictures, got {picture.dtype}")
    check_alpha(composite, alpha)
    away = ~rim_band(alpha[None], radius)[0]
    expected = torch.where(alpha == 1, foreground, background)
    difference = (composite.short() - expected.short()).abs_().amax(0, keepdim=True)
    sides, worst = [], 0
    for side in (alpha == 1, alpha == 0):
        off = difference[side & away]
        sides.append((int((off == 0).sum()), off.numel()))
        worst = max(worst, int(off.max()) if off.numel() else 0)
    (right, subject), (left, ground) = sides
    return Exactness(
        share=(right + left) / (subject + ground) if subject + ground else math.nan,
        subject=right / subject if subject else math.nan,
        background=left / ground if ground else math.nan,
        worst=float(worst) if subject + ground else math.nan,
    )


def check_pair(one: Tensor, other: Tensor, channels: int | None = None) -> None:
    """Raise a UsageError unless both are (C, H, W) of one shape, of so many channels if given."""
    if one.ndim != 3 or one.shape != other.shape or channels not in (None, one.shape[0]):
        raise UsageError(
            f"what is compared is ({channels or 'C'}, H, W), both of the same size, got "
            f"{tuple(one.shape)} and {tuple(other.shape)}"
        )


def check_alpha(composite: Tensor, alpha: Tensor) -> None:
    """Raise a UsageError unless ``alpha`` is (1, H, W) of the composite's size."""
    if alpha.shape != (1, *composite.shape[1:]):
        raise UsageError(
            f"alpha is (1, H, W) of the composite's size, got {tuple(alpha.shape)} for "
            f"{tuple(composite.shape)}"
        )
