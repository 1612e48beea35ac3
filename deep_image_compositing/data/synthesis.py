"""Samples made on the device: pasted subjects, camera effects, easy triplets.

Everywhere, pictures are (B, 3, H, W) and masks and alphas (B, 1, H, W), floats in [0, 1]; what
comes back has their shapes. All that is random is drawn from ``generator``, which is on their
device, so a batch is repeatable from its seed. ``strength`` 0 leaves a picture as it is, 1 is what
training uses. Colour, JPEG and rotation are kornia's functions, not its augmentation classes: those
draw from the global generator, and noise of one level for the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kornia.enhance import (
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
    jpeg_codec_differentiable,
)
from kornia.geometry.transform import rotate as turn
from torch import Generator, Tensor

from deep_image_compositing.functional.compose import over


def uniform(batch: int, low: float, high: float, generator: Generator) -> Tensor:
    """(B, 1, 1, 1) numbers uniform in [low, high)."""
    shape = (batch, 1, 1, 1)
    draw = torch.rand(shape, generator=generator, device=generator.device)
    return low + (high - low) * draw


def chance(batch: int, share: float, generator: Generator) -> Tensor:
    """(B, 1, 1, 1) zeros and ones, one with probability ``share``."""
    return (uniform(batch, 0, 1, generator) < share).float()


def jitter_color(image: Tensor, generator: Generator, strength: float = 1.0) -> Tensor:
    """Random exposure, contrast, saturation and white balance of each picture."""
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
    """What a camera and a file format add: noise to each picture, blur and JPEG to some."""
    b, _, h, w = image.shape
    if strength == 0:
        return image
    blur = strength * chance(b, 0.3, generator) * uniform(b, 0.2, 1, generator)
    x = torch.lerp(image, _soft(image), blur)
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
    """The very same effects, down to the grain, on batches of one shape, as of one camera."""
    state = generator.get_state()
    return [camera(picture, generator.set_state(state), strength) for picture in pictures]


def rotate(pictures: Tensor, generator: Generator, spread: float = 12.0) -> Tensor:
    """Turn half of the ``pictures`` (B, C, H, W) about their centres, all channels together.

    ``spread`` is the standard deviation of the angle in degrees; what comes in is mirrored.
    """
    b = len(pictures)
    normal = torch.randn((b,), generator=generator, device=pictures.device)
    angle = normal * spread * chance(b, 0.5, generator).view(b)
    turned = turn(pictures, angle, padding_mode="reflection", align_corners=False)
    return torch.where((angle != 0).view(b, 1, 1, 1), turned, pictures)


def _scaled(pictures: Tensor, like: Tensor, size: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Pictures, and nothing around them, ``size`` (B,) times as large on the grid of ``like``."""
    zero = torch.zeros_like(size)
    theta = torch.stack([1 / size, zero, x, zero, 1 / size, y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(like.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def _soft(planes: Tensor, radius: int = 1) -> Tensor:
    """Means over squares; beyond the border stands what is there."""
    return F.avg_pool2d(F.pad(planes, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)


def paste(
    image: Tensor, mask: Tensor, background: Tensor, share: Tensor, generator: Generator
) -> Tensor:
    """Put the subject before another background where ``share`` (B, 1, 1, 1) is 1."""
    # Drawn in by about a pixel and softened, so that no rim of the old background is left.
    inner = -F.max_pool2d(-mask, 3, 1, 1)
    pasted = over(image, _soft(inner), jitter_color(background, generator))
    return torch.where(share > 0, pasted, image)


def shrink(
    image: Tensor, mask: Tensor, share: Tensor, generator: Generator, least: float = 0.35
) -> tuple[Tensor, Tensor]:
    """Make some pictures and their masks smaller, anywhere in the frame; around them is nothing.

    What is pasted afterwards is a small subject in a large scene. Half of those pictures shrink
    whose ``share`` (B, 1, 1, 1) is 1, to ``least`` of their sides or more.
    """
    b = len(image)
    size = uniform(b, least, 1.0, generator).view(b)
    size = torch.where(share.view(b) * chance(b, 0.5, generator).view(b) > 0, size, 1.0)
    place = 2 * torch.rand((2, b), generator=generator, device=image.device) - 1
    x, y = place * (1 - size) / size
    both = torch.cat([image, mask], 1)
    # Averaged first where it shrinks by more than half, as a sample takes two pixels a side.
    fine = torch.where((size < 0.6).view(b, 1, 1, 1), _soft(both), both)
    small = _scaled(fine, both, size, x, y)
    small = torch.where((size < 1).view(b, 1, 1, 1), small, both)
    return small[:, :3], small[:, 3:]


def accompany(
    image: Tensor, mask: Tensor, share: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Give some subjects the next picture's, smaller, as people hold and wear things.

    It is set onto a random point of the subject, and what is seen of either is subject. A ``share``
    of the batch is hit, but for subjects that are tiny or fill the picture.
    """
    b, _, h, w = image.shape
    other = torch.cat([image, mask], 1).roll(1, 0)
    area = mask.mean((2, 3)).view(b)
    whole = (area > 0.03) & (area < 0.8) & (area.roll(1) > 0.01) & (area.roll(1) < 0.7)
    hit = whole & chance(b, share, generator).view(b).bool()
    factor = uniform(b, 0.25, 0.7, generator).view(b)
    size = (factor * (area / area.roll(1).clamp_min(1e-4)).sqrt()).clamp(0.08, 0.9)
    y = torch.linspace(-1, 1, h, device=image.device).view(1, 1, h, 1)
    x = torch.linspace(-1, 1, w, device=image.device).view(1, 1, 1, w)
    weight = other[:, 3:] / other[:, 3:].sum((2, 3), keepdim=True).clamp_min(1e-6)
    centre = torch.stack([(weight * x).sum((1, 2, 3)), (weight * y).sum((1, 2, 3))])
    where = torch.multinomial(mask.flatten(1) + 1e-6, 1, generator=generator).view(b)
    point = torch.stack([x.view(-1)[where % w], y.view(-1)[where // w]])
    half = F.interpolate(other, scale_factor=0.5, mode="bilinear", antialias=True)
    thing = _scaled(half, other, size, *(centre - point / size))
    color, alpha = thing[:, :3], thing[:, 3:] * hit.view(b, 1, 1, 1)
    return over(color, alpha, image), torch.maximum(mask, alpha)


def hesitate(mask: Tensor, generator: Generator) -> Tensor:
    """Make half of the masks unsure, as a segmenter is: soft outlines, gray patches around them."""
    b, _, h, w = mask.shape
    radius = max(1, round(max(h, w) / 50))
    soft = _soft(mask, radius)
    cells = torch.randn((b, 1, 7, 7), generator=generator, device=mask.device)
    clouds = F.interpolate(cells, (h, w), mode="bicubic")
    doubt = uniform(b, 0, 0.25, generator) * (clouds - 1).clamp_min(0)
    unsure = soft + doubt * (1 - 2 * soft)
    return torch.where(chance(b, 0.5, generator) > 0, unsure.clamp(0, 1), mask)


def easy_triplet(
    color: Tensor,
    alpha: Tensor,
    old: Tensor,
    new: Tensor,
    generator: Generator,
    strength: float = 1,
) -> dict[str, Tensor]:
    """A triplet with exact truth: ``foreground = αF + (1 − α)B₁``, ``composite = αF + (1 − α)B₂``.

    ``color`` is straight, of any photograph for random alpha blending; B₁ is ``old``, B₂ ``new``.
    Camera effects are put on the finished photograph. What they did to it is carried into the
    subject's true ``foreground_color`` and into ``old_background``, so that the network is asked to
    separate, not to clean.
    """
    color, old, new = (jitter_color(each, generator, strength) for each in (color, old, new))
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
    """A self-taught triplet, with the subject's colour that its composite and alpha imply.

    The colour is ``(composite − (1 − α) background) / α``; where alpha is small it is uncertain by
    the rounding of the composite over alpha, which the losses, weighted by alpha, undo.
    """
    subject = (composite - (1 - alpha) * background) / alpha.clamp_min(1 / 255)
    return {
        "foreground": foreground,
        "background": background,
        "composite": composite,
        "alpha": alpha,
        "foreground_color": torch.where(alpha > 0, subject.clamp(0, 1), foreground),
    }
