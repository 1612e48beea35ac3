"""Metrics of composites: PSNR, MSE, SSIM, colour error, halo and exactness.

Batch metrics take images (B, 3, H, W) in [0, 1] and alphas or masks (B, 1, H, W), and return (B,).
The others take a single image without B and raise ``UsageError`` if shapes differ.

MSE, fMSE and SSIM of harmonized composites follow the literature: Tsai et al., CVPR 2017; Cun and
Pun, TIP 2020; Guo et al., CVPR 2021. Squared errors are of 8-bit values and range from 0 to 65025.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import unknown_band
from deep_image_compositing.functional.precision import double

BAND_RADIUS = 11  # pixels by which the soft rim (0.02 < alpha < 0.98) is dilated to form the band

HALO_RADIUS = 3
"""Dilation of the soft rim for ``halo``, in pixels: fringes are one or two pixels wide."""

_WINDOW = 5  # half width of the SSIM window in pixels: 11 x 11


# Batches


def rim_band(alpha: Tensor, radius: int = BAND_RADIUS) -> Tensor:
    """Compute the band around the rim, (B, 1, H, W) bool, of the true alpha (B, 1, H, W) in [0, 1].

    It covers 0.02 < alpha < 0.98 and all hard edges, dilated by ``radius`` pixels.
    """
    return unknown_band(alpha, radius, low=0.02, high=0.98)


def band_psnr(
    composite: Tensor, target: Tensor, alpha: Tensor, radius: int = BAND_RADIUS
) -> Tensor:
    """PSNR in dB inside the ``rim_band`` of the true alpha; NaN for an image without a rim.

    The root mean square error is at least half an 8-bit step, which limits the PSNR to 54 dB.
    """
    band = rim_band(alpha, radius).to(torch.float32)
    error = ((composite.float() - target.float()) ** 2).mean(1, keepdim=True)
    return _decibels((error * band).sum((1, 2, 3)) / band.sum((1, 2, 3)))


def picture_psnr(composite: Tensor, target: Tensor) -> Tensor:
    """PSNR in dB of each image, at most 54 as in ``band_psnr``."""
    return _decibels(((composite.float() - target.float()) ** 2).mean((1, 2, 3)))


def _decibels(mean_square: Tensor) -> Tensor:
    return -10 * torch.log10(mean_square.clamp_min((0.5 / 255) ** 2))


def square_error(composite: Tensor, target: Tensor) -> Tensor:
    """MSE of each image, of 8-bit values."""
    return _squares(composite, target).mean((1, 2, 3))


def foreground_error(composite: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """fMSE: MSE of each image where its ``mask`` exceeds 0.5; NaN if it does so nowhere."""
    inside = (mask > 0.5).float()
    return (_squares(composite, target) * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))


def _squares(composite: Tensor, target: Tensor) -> Tensor:
    return (255 * (composite.float() - target.float())).square()


def similarity(composite: Tensor, target: Tensor) -> Tensor:
    """SSIM of each image: the mean of ``ssim_map``; NaN for a height or width below 6 pixels."""
    return torch.stack([ssim_map(*pair).mean() for pair in zip(composite, target, strict=True)])


# Single images


class Halo(NamedTuple):
    """Shares in the rim of remaining old background and of lost subject; 0 for none."""

    old_background: float
    new_background: float


class Exactness(NamedTuple):
    """Agreement of the composite with its source photographs away from the rim."""

    share: float  # of bit-exact pixels; each value is NaN if it covers no pixel
    subject: float  # share within the subject
    background: float  # share within the new background
    worst: float  # largest deviation in 8-bit steps


def ssim_map(composite: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity per pixel and channel, (C, H, W); its mean is the image's SSIM.

    Follows Wang et al. (2004): a Gaussian window of 11 pixels and sigma 1.5, k1 = 0.01, k2 = 0.03,
    mirrored borders. NaN for a height or width below 6 pixels.
    """
    check_pair(composite, truth)
    if min(composite.shape[1:]) <= _WINDOW:
        return torch.full(composite.shape, math.nan, device=composite.device)
    from kornia.metrics import ssim

    pair = composite.float()[None], truth.float()[None]
    return ssim(*pair, window_size=2 * _WINDOW + 1, eps=0.0)[0]


def color_error(composite: Tensor, truth: Tensor, where: Tensor) -> float:
    """Mean absolute difference over the pixels in ``where`` (1, H, W) bool, in 8-bit steps.

    NaN if ``where`` is empty. For composites with the true alpha, this is the error of the straight
    colour weighted by alpha plus that of the background.
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
    """Measure how much of the old background's colour remains in the rim (a metric of our own).

    In the rim, 0.02 < alpha < 0.98 dilated by ``radius`` pixels, the error is fitted by least
    squares, with the old and new backgrounds B1 and B2 and the subject's colour F, as::

        composite − truth  ≈  h · (1 − alpha) · (B1 − B2)  +  l · alpha · (B2 − F)

    ``h`` is 0 for the truth and 1 if the photograph is pasted over the whole rim; ``l`` is 1 if the
    whole subject in the rim is lost. See ``docs/measures.md`` for the rationale and limitations.
    Both are NaN if ``(1 − alpha) · (B1 − B2)`` has a root mean square below one 8-bit step. Only
    ``l`` is NaN if the second term is that small or nearly collinear with the first (cosine above
    0.995); all error is then attributed to ``h``.

    ``background`` is B2 and ``old_background`` B1. ``foreground_color`` is used where alpha > 0;
    without it, ``alpha · (B2 − F)`` is taken as ``B2 − truth``, its value for an exact truth.
    """
    for picture in (truth, background, old_background, foreground_color):
        if picture is not None:
            check_pair(composite, picture)
    check_alpha(composite, alpha)
    band = rim_band(alpha[None], radius)[0, 0]
    a = double(alpha[0, band])
    c, t, new, old = (double(x[:, band]) for x in (composite, truth, background, old_background))
    error, halo_term = c - t, (1 - a) * (old - new)
    if foreground_color is None:
        loss_term = new - t
    else:
        loss_term = torch.where(a > 0, a * (new - double(foreground_color[:, band])), 0)
    if not band.any() or float(halo_term.square().mean().sqrt()) < 1 / 255:
        return Halo(math.nan, math.nan)
    rows = torch.stack([halo_term.flatten(), loss_term.flatten(), error.flatten()])
    (hh, hl, he), (_, ll, le), _ = (rows @ rows.T).tolist()
    determinant = hh * ll - hl * hl
    if float(loss_term.square().mean().sqrt()) < 1 / 255 or determinant < 0.01 * hh * ll:
        return Halo(he / hh, math.nan)
    return Halo((ll * he - hl * le) / determinant, (hh * le - hl * he) / determinant)


def exactness(
    composite: Tensor,
    alpha: Tensor,
    foreground: Tensor,
    background: Tensor,
    radius: int = BAND_RADIUS,
) -> Exactness:
    """Measure how many pixels away from the rim are bit-exact copies of the photographs.

    Outside the band, pixels with a true alpha of exactly 1 should equal ``foreground``, and those
    with exactly 0 ``background``. Images are uint8.
    """
    for picture in (composite, foreground, background):
        check_pair(composite, picture)
        if picture.dtype != torch.uint8:
            raise UsageError(f"exactness needs uint8 pictures, got {picture.dtype}")
    check_alpha(composite, alpha)
    away = ~rim_band(alpha[None], radius)[0]
    expected = torch.where(alpha == 1, foreground, background)
    difference = (composite.short() - expected.short()).abs_().amax(0, keepdim=True)
    inside, outside = (difference[away & (alpha == value)] for value in (1, 0))
    pixels = torch.cat([inside, outside])
    share, subject, ground = (float(double(part == 0).mean()) for part in (pixels, inside, outside))
    worst = float(pixels.max()) if len(pixels) else math.nan
    return Exactness(share, subject, ground, worst)


def check_pair(one: Tensor, other: Tensor, channels: int | None = None) -> None:
    """Raise ``UsageError`` unless both are (C, H, W) of equal shape, with C of ``channels``."""
    if one.ndim != 3 or one.shape != other.shape or channels not in (None, one.shape[0]):
        raise UsageError(
            f"both pictures must be ({channels or 'C'}, H, W) and of the same size, got "
            f"{tuple(one.shape)} and {tuple(other.shape)}"
        )


def check_alpha(composite: Tensor, alpha: Tensor) -> None:
    """Raise ``UsageError`` unless ``alpha`` is (1, H, W) of the composite's size."""
    if alpha.shape != (1, *composite.shape[1:]):
        raise UsageError(
            f"alpha must be (1, H, W) of the composite's size, got {tuple(alpha.shape)} for "
            f"{tuple(composite.shape)}"
        )
