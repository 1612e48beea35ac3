"""Errors of composites: PSNR, structure, colour, old background and exactness.

Those of batches are a number a picture, (B,): pictures are (B, 3, H, W) in [0, 1], alphas and masks
(B, 1, H, W). The others are of one picture without B; shapes that differ raise ``UsageError``.

MSE, fMSE and SSIM of harmonised composites are as in the literature: Tsai et al., CVPR 2017; Cun
and Pun, TIP 2020; Guo et al., CVPR 2021. Squares are of 8-bit values, and span 0 to 65025.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import unknown_band

BAND_RADIUS = 11  # pixels by which the soft rim (0.02 < alpha < 0.98) is dilated to make the band

HALO_RADIUS = 3
"""Pixels by which the soft rim is dilated where ``halo`` looks: fringes are a pixel or two wide."""

_WINDOW = 5  # half width of the SSIM window in pixels: 11 x 11

SMALLEST = _WINDOW + 1
"""Pixels either way that SSIM needs."""


# Of batches


def rim_band(alpha: Tensor, radius: int = BAND_RADIUS) -> Tensor:
    """The band around the rim, (B, 1, H, W) boolean, of the true alpha (B, 1, H, W) in [0, 1].

    It is 0.02 < alpha < 0.98 and every hard edge, dilated by ``radius`` pixels.
    """
    return unknown_band(alpha, radius, low=0.02, high=0.98)


def band_psnr(
    composite: Tensor, target: Tensor, alpha: Tensor, radius: int = BAND_RADIUS
) -> Tensor:
    """PSNR in dB inside the ``rim_band`` of the true alpha; NaN for a picture without a rim.

    Differences below half an 8-bit step count as that, so that the figure is at most 54 dB.
    """
    band = rim_band(alpha, radius).to(torch.float32)
    error = ((composite.float() - target.float()) ** 2).mean(1, keepdim=True)
    return _decibels((error * band).sum((1, 2, 3)) / band.sum((1, 2, 3)))


def picture_psnr(composite: Tensor, target: Tensor) -> Tensor:
    """PSNR in dB of each picture, at most 54 as in ``band_psnr``."""
    return _decibels(((composite.float() - target.float()) ** 2).mean((1, 2, 3)))


def _decibels(mean_square: Tensor) -> Tensor:
    return -10 * torch.log10(mean_square.clamp_min((0.5 / 255) ** 2))


def square_error(composite: Tensor, target: Tensor) -> Tensor:
    """MSE of each picture, of 8-bit values."""
    return _squares(composite, target).mean((1, 2, 3))


def foreground_error(composite: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """fMSE: MSE of each picture where its ``mask`` exceeds one half; NaN where that is nowhere."""
    inside = (mask > 0.5).float()
    return (_squares(composite, target) * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))


def _squares(composite: Tensor, target: Tensor) -> Tensor:
    return (255 * (composite.float() - target.float())).square()


def similarity(composite: Tensor, target: Tensor) -> Tensor:
    """SSIM of each picture: the mean of ``ssim_map``; NaN below 6 pixels either way."""
    if min(composite.shape[-2:]) < SMALLEST:
        return torch.full((len(composite),), math.nan, device=composite.device)
    return torch.stack([ssim_map(*pair).mean() for pair in zip(composite, target, strict=True)])


# Of one picture


class Halo(NamedTuple):
    """Shares, 0 for none, of the old background that is left and of the subject that is lost."""

    old_background: float
    new_background: float


class Exactness(NamedTuple):
    """How far the composite is, away from the rim, from the photographs it is made of."""

    share: float  # of pixels that are right in every bit; NaN, as the next, without any
    subject: float  # of those of the subject
    background: float  # of those of the new background
    worst: float  # the largest deviation in 8-bit steps


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

    In the rim, 0.02 < alpha < 0.98 and ``radius`` pixels around it, the error is fitted by least
    squares, with the old and new background B1 and B2 and the subject's colour F, as::

        composite − truth  ≈  h · (1 − alpha) · (B1 − B2)  +  l · alpha · (B2 − F)

    ``h`` is 0 for the truth and 1 where the photograph was pasted over the whole rim; ``l`` is 1
    when the whole subject in the rim is gone. ``docs/measures.md`` says why, and where it fails.
    Both are NaN when ``(1 − alpha) · (B1 − B2)`` is below one 8-bit step in root mean square;
    ``l`` alone when the two terms have nearly the same shape (their cosine exceeds 0.995), or the
    second is not there: then all is taken for halo.

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
    subject, ground = (difference[away & (alpha == side)] for side in (1, 0))
    both = torch.cat([subject, ground])
    share, *sides = (float((part == 0).double().mean()) for part in (both, subject, ground))
    worst = float(both.max()) if len(both) else math.nan
    return Exactness(share, sides[0], sides[1], worst)


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
