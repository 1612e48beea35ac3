"""Colour transfer from a scene to a subject.

Reinhard et al., "Color Transfer between Images", 2001: match mean and deviation along the axes of
a colour space. Von Kries, 1902: scale the cone responses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_image_compositing.functional.linear import LUMINANCE, from_linear, to_linear
from deep_image_compositing.functional.precision import widen

MOST = 2.0  # maximum scale of a deviation; beyond it gray subjects become gaudy
_FLOOR = 1e-4  # minimum linear cone response, a third of the smallest 8-bit value

# The paper's matrices: linear RGB to the responses of the three kinds of cones, and their
# logarithms to lightness, yellow-blue and red-green.
_CONES = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_AXES = ((3**-0.5,) * 3, (6**-0.5, 6**-0.5, -2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))


@dataclass(frozen=True)
class ColorStatistics:
    """Mean and standard deviation of colours in ``to_lab``, (B, 3, 1, 1) each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, picture: Tensor, weight: Tensor) -> ColorStatistics:
        """Measure ``picture`` (B, 3, H, W) in [0, 1] with pixel weights ``weight`` (B, 1, H, W)."""
        lab, weight = to_lab(picture), widen(weight)
        mean = weighted_mean(lab, weight)
        return cls(mean, weighted_mean((lab - mean) ** 2, weight).sqrt())


def transfer_color(picture: Tensor, source: ColorStatistics, target: ColorStatistics) -> Tensor:
    """Map the colours of ``picture``, sRGB in [0, 1], from statistics ``source`` to ``target``.

    Deviations are scaled by at most ``MOST`` either way.
    """
    factor = (target.deviation / source.deviation.clamp_min(1e-6)).clamp(1 / MOST, MOST)
    factor = torch.where(source.deviation > 1e-6, factor, 1)
    # The scaling and both changes of axes are a single matrix in the log domain.
    axes = factor.new_tensor(_AXES)
    matrix = axes.T @ (factor[..., 0] * axes)
    offset = axes.T @ (target.mean - source.mean * factor)[..., 0]
    cones = to_cones(picture).clamp_min_(_FLOOR).log_()
    mapped = torch.baddbmm(math.log(10) * offset, matrix, cones.flatten(2)).exp_()
    return _encode(_product(_inverse(cones), mapped.view_as(cones))).to(picture.dtype)


def light_gains(composite: Tensor, mask: Tensor) -> Tensor:
    """Factors (B, 3, 1, 1) on cone responses that give a subject the scene's average tint.

    They keep its average luminance. If one exceeds ``MOST`` either way, as under a blue sky, all
    shrink towards 1 together, as clamping each separately turns faces green.
    """
    cones = to_cones(composite).clamp_min(_FLOOR)
    subject, scene = weighted_mean(cones, mask), weighted_mean(cones, 1 - mask)
    gains = scene / subject
    inverse = _inverse(cones)
    luma = cones.new_tensor(LUMINANCE)

    def luminance(response: Tensor) -> Tensor:
        return torch.einsum("i,ij,bjhw->bhw", luma, inverse, response)[:, None]

    def keep_luminance(gains: Tensor) -> Tensor:
        return gains * luminance(subject) / luminance(gains * subject).clamp_min(_FLOOR)

    logs = keep_luminance(gains).log()
    largest = logs.abs().amax(1, keepdim=True).clamp_min(math.log(MOST))
    return keep_luminance((logs * (math.log(MOST) / largest)).exp())


def adapt(picture: Tensor, gains: Tensor) -> Tensor:
    """Scale the cone responses of ``picture`` (B, 3, H, W), sRGB in [0, 1], by ``gains``."""
    linear = to_linear(widen(picture))
    cones = linear.new_tensor(_CONES)
    matrix = _inverse(linear) @ (gains[..., 0].to(linear) * cones)
    return _encode(_product(matrix, linear)).to(picture.dtype)


def weighted_mean(picture: Tensor, weight: Tensor) -> Tensor:
    """Means (B, C, 1, 1) of ``picture`` (B, C, H, W) with pixel weights (B, 1, H, W)."""
    total = weight.sum((2, 3), keepdim=True).clamp_min(1e-12)
    return (weight * picture).sum((2, 3), keepdim=True) / total


def to_cones(picture: Tensor) -> Tensor:
    """Cone responses (B, 3, H, W) to colours (B, 3, H, W), sRGB in [0, 1]."""
    linear = to_linear(widen(picture))
    return _product(linear.new_tensor(_CONES), linear)


def to_lab(picture: Tensor) -> Tensor:
    """Convert sRGB (B, 3, H, W) in [0, 1] to Ruderman's lαβ, which is not CIELAB."""
    cones = to_cones(picture)
    return _product(cones.new_tensor(_AXES), cones.clamp_min(_FLOOR).log10())


def _encode(linear: Tensor) -> Tensor:
    """Linear light as sRGB, clamped to [0, 1]; modifies its argument."""
    return from_linear(linear.clamp_(0, 1)).clamp_(0, 1)


def _inverse(like: Tensor) -> Tensor:
    return torch.linalg.inv(torch.tensor(_CONES, dtype=torch.float64)).to(like)


def _product(matrix: Tensor, picture: Tensor) -> Tensor:
    """Multiply every colour of ``picture`` (B, 3, H, W) by ``matrix`` (3, 3) or (B, 3, 3)."""
    return (matrix @ picture.flatten(2)).view_as(picture)
