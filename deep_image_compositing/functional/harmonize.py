"""Colour transfer of the subject towards its new background.

Reinhard et al., "Color Transfer between Images", 2001: in a colour space whose axes hardly
correlate, shift and scale each axis to another picture's mean and deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deep_image_compositing.functional.precision import widen
from deep_image_compositing.settings import check_strength

MOST = 2.0  # factor by which a deviation is scaled at most; beyond it a gray subject turns gaudy
_FLOOR = 1e-4  # least linear response of a cone, a third of the smallest 8-bit value

# The paper's matrices: linear RGB to the responses of the three kinds of cones, whose logarithms
# are turned into lightness, yellow-blue and red-green.
_CONES = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_AXES = ((3**-0.5,) * 3, (6**-0.5, 6**-0.5, -2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))


@dataclass(frozen=True)
class ColorStatistics:
    """Distribution of a picture's colours in ``to_lab``: mean and deviation, (B, 3, 1, 1) each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, picture: Tensor, weight: Tensor) -> ColorStatistics:
        """Measure ``picture`` (B, 3, H, W) in [0, 1] with pixel weights ``weight`` (B, 1, H, W)."""
        lab, weight = to_lab(picture), widen(weight)
        total = weight.sum((2, 3), keepdim=True).clamp_min(1e-12)
        mean = (weight * lab).sum((2, 3), keepdim=True) / total
        variance = (weight * (lab - mean) ** 2).sum((2, 3), keepdim=True) / total
        return cls(mean, variance.sqrt())


def transfer_color(
    picture: Tensor, source: ColorStatistics, target: ColorStatistics, strength: float
) -> Tensor:
    """Move the colours of ``picture``, sRGB-encoded, from one distribution towards another.

    ``source`` is the subject's own distribution. Deviations are scaled by at most ``MOST`` either
    way. ``strength`` in [0, 1] says how far to go; at 0 the result is ``picture``.
    """
    check_strength(strength)
    if strength == 0:
        return picture
    factor = (target.deviation / source.deviation.clamp_min(1e-6)).clamp(1 / MOST, MOST)
    factor = torch.where(source.deviation > 1e-6, factor, 1)
    lab = to_lab(picture)
    moved = (lab - source.mean) * factor + target.mean
    return from_lab(torch.lerp(lab, moved, strength)).to(picture.dtype)


def harmonize(color: Tensor, alpha: Tensor, background: Tensor, strength: float) -> Tensor:
    """Move a subject's straight ``color`` towards those of the background around it.

    Both count as far as they are seen. ``strength`` in [0, 1] says how far to go. An item that is
    all subject, or has none, keeps its colours.
    """
    subject = ColorStatistics.of(color, alpha)
    scene = ColorStatistics.of(background, 1 - alpha)
    moved = transfer_color(color, subject, scene, strength)
    share = alpha.mean((1, 2, 3), keepdim=True)
    return torch.where((share > 0) & (share < 1), moved, color)


def to_lab(picture: Tensor) -> Tensor:
    """Colours (B, 3, H, W), sRGB in [0, 1], as Ruderman's lαβ, which is not CIELAB."""
    from kornia.color import rgb_to_linear_rgb

    linear = rgb_to_linear_rgb(widen(picture))
    cones = _product(linear.new_tensor(_CONES), linear)
    return _product(linear.new_tensor(_AXES), cones.clamp_min(_FLOOR).log10())


def from_lab(lab: Tensor) -> Tensor:
    """The inverse of ``to_lab``, cut off at [0, 1]."""
    from kornia.color import linear_rgb_to_rgb

    cones = 10 ** _product(lab.new_tensor(_AXES).T, lab)  # its rows are orthonormal
    inverse = torch.linalg.inv(torch.tensor(_CONES, dtype=torch.float64)).to(lab)
    linear = _product(inverse, cones).clamp(0, 1)
    return linear_rgb_to_rgb(linear).clamp(0, 1)


def _product(matrix: Tensor, picture: Tensor) -> Tensor:
    """``matrix`` (3, 3) times every colour of ``picture`` (B, 3, H, W)."""
    return torch.einsum("ij,bjhw->bihw", matrix, picture)
