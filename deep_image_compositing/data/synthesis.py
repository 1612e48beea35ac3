"""Augmentation and compositing of batches on the device: pasting, camera effects, easy triplets.

Pictures are (B, 3, H, W), masks and alphas (B, 1, H, W), floats in [0, 1]; results have the same
shapes. All randomness comes from ``generator``, on the same device, so a seed reproduces a batch.
``strength`` 0 leaves a picture unchanged; 1 is the default of training. Colour, JPEG and rotation
use kornia's functions rather than its augmentation classes, which draw from the global generator
and give a whole batch one noise level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kornia.enhance import (
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
    jpeg_codec_differentiable,
)
from kornia.geometry.transform import rotate as rotate_by
from torch import Generator, Tensor

from deep_image_compositing.functional.compose import dilate, erode, over


def uniform(batch: int, low: float, high: float, generator: Generator) -> Tensor:
    """(B, 1, 1, 1) numbers uniform in [low, high)."""
    shape = (batch, 1, 1, 1)
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def chance(batch: int, share: float, generator: Generator) -> Tensor:
    """(B, 1, 1, 1) zeros and ones, one with probability ``share``."""
    return (uniform(batch, 0, 1, generator) < share).float()


def jitter_color(image: Tensor, generator: Generator, strength: float = 1.0) -> Tensor:
    """Random exposure, contrast, saturation and white balance for each picture."""
    b = image.shape[0]
    gain = torch.exp(strength * uniform(b, -0.35, 0.35, generator))
    gamma = torch.exp(strength * uniform(b, -0.3, 0.3, generator))
    contrast = 1 + strength * uniform(b, -0.25, 0.25, generator)
    saturation = 1 + strength * uniform(b, -0.5, 0.4, generator)
    tint = torch.rand((b, 3, 1, 1), generator=generator, device=image.device)
    x = (image * gain * (1 + 0.16 * strength * (tint - 0.5))).clamp(0, 1) ** gamma
    x = adjust_saturation_with_gray_subtraction(x, saturation.view(b))
    return adjust_contrast_with_mean_subtraction(x, contrast.view(b))


def camera(image: Tensor, generator: Generator, strength: float = 1.0) -> Tensor:
    """Camera and file effects: noise on every picture, blur and JPEG compression on some."""
    b, _, h, w = image.shape
    if strength == 0:
        return image
    blur = strength * chance(b, 0.3, generator) * uniform(b, 0.2, 1, generator)
    x = torch.lerp(image, _box_blur(image), blur)
    level = strength * 0.03 * uniform(b, 0, 1, generator) ** 2
    noise = torch.randn((b, 3, h, w), generator=generator, device=x.device)
    grain = torch.randn((b, 1, h, w), generator=generator, device=x.device)
    x = x + level * (0.6 * noise + 0.6 * grain)
    hit = chance(b, 0.4 * strength, generator).view(b).bool()
    if bool(hit.any()):
        quality = 92 - 57 * uniform(b, 0, 1, generator).view(b)[hit] ** 2
        x[hit] = jpeg_codec_differentiable(x[hit].clamp(0, 1), quality)
    return x.clamp(0, 1)


def one_camera(pictures: list[Tensor], generator: Generator, strength: float = 1.0) -> list[Tensor]:
    """Apply identical ``camera`` effects, including the noise, to batches of the same shape."""
    state = generator.get_state()
    return [camera(picture, generator.set_state(state), strength) for picture in pictures]


def rotate(pictures: Tensor, generator: Generator, spread: float = 12.0) -> Tensor:
    """Rotate half of the ``pictures`` (B, C, H, W) about their centres, all channels together.

    ``spread`` is the standard deviation of the angle in degrees; corners are filled by reflection.
    """
    b = len(pictures)
    normal = torch.randn((b,), generator=generator, device=pictures.device)
    angle = normal * spread * chance(b, 0.5, generator).view(b)
    rotated = rotate_by(pictures, angle, padding_mode="reflection", align_corners=False)
    return torch.where((angle != 0).view(b, 1, 1, 1), rotated, pictures)


def _rescale(pictures: Tensor, like: Tensor, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Resample at ``scale`` (B,) and offset (x, y) on the grid of ``like``, padded with zeros."""
    zero = torch.zeros_like(scale)
    theta = torch.stack([1 / scale, zero, x, zero, 1 / scale, y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(like.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def _box_blur(planes: Tensor, radius: int = 1) -> Tensor:
    """Box blur with replicated borders."""
    return F.avg_pool2d(F.pad(planes, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)


def paste(
    image: Tensor, mask: Tensor, background: Tensor, share: Tensor, generator: Generator
) -> Tensor:
    """Put the subject on ``background`` where ``share`` (B, 1, 1, 1) is 1."""
    # Eroded by a pixel and blurred, so that no rim of the old background remains.
    inner = -F.max_pool2d(-mask, 3, 1, 1)
    pasted = over(image, _box_blur(inner), jitter_color(background, generator))
    return torch.where(share > 0, pasted, image)


def shrink(
    image: Tensor, mask: Tensor, share: Tensor, generator: Generator, least: float = 0.35
) -> tuple[Tensor, Tensor]:
    """Shrink some pictures and their masks to a random place in an empty frame.

    Pasted afterwards, they become small subjects in large scenes. Of the pictures whose ``share``
    (B, 1, 1, 1) is 1, half are scaled by a random factor from ``least`` to 1.
    """
    b = len(image)
    scale = uniform(b, least, 1.0, generator).view(b)
    scale = torch.where(share.view(b) * chance(b, 0.5, generator).view(b) > 0, scale, 1.0)
    place = 2 * torch.rand((2, b), generator=generator, device=image.device) - 1
    x, y = place * (1 - scale) / scale
    rgba = torch.cat([image, mask], 1)
    # Bilinear sampling reads two pixels a side, so scales far below 1 need a blur against aliasing.
    smooth = torch.where((scale < 0.6).view(b, 1, 1, 1), _box_blur(rgba), rgba)
    small = _rescale(smooth, rgba, scale, x, y)
    small = torch.where((scale < 1).view(b, 1, 1, 1), small, rgba)
    return small[:, :3], small[:, 3:]


def accompany(
    image: Tensor, mask: Tensor, share: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Put the next picture's subject, smaller, on a ``share`` of the subjects.

    This imitates people who hold or wear things: it is centred on a random point of the subject,
    and the mask covers both. Subjects that are tiny or fill the picture are left alone.
    """
    b, _, h, w = image.shape
    other = torch.cat([image, mask], 1).roll(1, 0)
    area = mask.mean((2, 3)).view(b)
    suitable = (area > 0.03) & (area < 0.8) & (area.roll(1) > 0.01) & (area.roll(1) < 0.7)
    hit = suitable & chance(b, share, generator).view(b).bool()
    factor = uniform(b, 0.25, 0.7, generator).view(b)
    scale = (factor * (area / area.roll(1).clamp_min(1e-4)).sqrt()).clamp(0.08, 0.9)
    y = torch.linspace(-1, 1, h, device=image.device).view(1, 1, h, 1)
    x = torch.linspace(-1, 1, w, device=image.device).view(1, 1, 1, w)
    weight = other[:, 3:] / other[:, 3:].sum((2, 3), keepdim=True).clamp_min(1e-6)
    centre = torch.stack([(weight * x).sum((1, 2, 3)), (weight * y).sum((1, 2, 3))])
    pixel = torch.multinomial(mask.flatten(1) + 1e-6, 1, generator=generator).view(b)
    point = torch.stack([x.view(-1)[pixel % w], y.view(-1)[pixel // w]])
    half = F.interpolate(other, scale_factor=0.5, mode="bilinear", antialias=True)
    companion = _rescale(half, other, scale, *(centre - point / scale))
    color, alpha = companion[:, :3], companion[:, 3:] * hit.view(b, 1, 1, 1)
    return over(color, alpha, image), torch.maximum(mask, alpha)


def add_uncertainty(mask: Tensor, generator: Generator) -> Tensor:
    """Give half of the masks the soft outlines and gray patches of an unsure segmenter."""
    b, _, h, w = mask.shape
    soft = _box_blur(mask, max(1, round(max(h, w) / 50)))
    cells = torch.randn((b, 1, 7, 7), generator=generator, device=mask.device)
    clouds = F.interpolate(cells, (h, w), mode="bicubic")
    doubt = uniform(b, 0, 0.25, generator) * (clouds - 1).clamp_min(0)
    unsure = soft + doubt * (1 - 2 * soft)
    return torch.where(chance(b, 0.5, generator) > 0, unsure.clamp(0, 1), mask)


def close_gaps(mask: Tensor, alpha: Tensor, share: float, generator: Generator) -> Tensor:
    """Make a ``share`` of the masks cover narrow gaps of the true ``alpha``, as segmenters do.

    Gaps are up to 4 to 20 % of the picture wide.
    """
    longer = max(mask.shape[-2:])
    hits = chance(len(mask), share, generator).flatten().tolist()
    radii = uniform(len(mask), 0.02 * longer, 0.1 * longer, generator).flatten().tolist()
    mask = mask.clone()
    for item in (number for number, hit in enumerate(hits) if hit):
        truth, radius = alpha[item : item + 1], max(1, round(radii[item]))
        mask[item] = torch.maximum(mask[item], erode(dilate(truth, radius), radius)[0])
    return mask


def easy_triplet(
    color: Tensor,
    alpha: Tensor,
    old: Tensor,
    new: Tensor,
    generator: Generator,
    strength: float = 1,
) -> dict[str, Tensor]:
    """A triplet with exact truth: ``foreground = αF + (1 − α)B₁``, ``composite = αF + (1 − α)B₂``.

    F is the straight ``color`` (any photograph, for random alpha blending), B₁ is ``old``, B₂ is
    ``new``. Camera effects are applied to the finished photograph, and the change they cause is
    added to the true ``foreground_color`` and ``old_background``: the network learns to separate
    layers, not to denoise.
    """
    color, old, new = (jitter_color(x, generator, strength) for x in (color, old, new))
    clean = over(color, alpha, old)
    photograph = camera(clean, generator, strength)
    effects = photograph - clean
    color = (color + effects).clamp(0, 1)
    return {
        "foreground": photograph,
        "background": new,
        "composite": over(color, alpha, new),
        "alpha": alpha,
        "foreground_color": color,
        "old_background": (old + effects).clamp(0, 1),
    }


def taught_triplet(
    foreground: Tensor, background: Tensor, composite: Tensor, alpha: Tensor
) -> dict[str, Tensor]:
    """A self-taught triplet, completed with ``(composite − (1 − α) background) / α`` as colour.

    Where alpha is small, the composite's rounding error is amplified by 1 / α; the losses weight
    the colour by alpha, which cancels that.
    """
    subject = (composite - (1 - alpha) * background) / alpha.clamp_min(1 / 255)
    return {
        "foreground": foreground,
        "background": background,
        "composite": composite,
        "alpha": alpha,
        "foreground_color": torch.where(alpha > 0, subject.clamp(0, 1), foreground),
    }
