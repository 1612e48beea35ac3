"""Gradient-domain cloning on a rectangle by fast sine transforms, for the fuser ``poisson``."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def poisson_clone(foreground: Tensor, background: Tensor, inside: Tensor, *, mixed: bool) -> Tensor:
    """Clone the subject's gradients where ``inside`` (1, H, W), boolean.

    Both pictures are (C, H, W), each side at least 3. The result has the background's border and,
    outside, its gradients; it may leave [0, 1]. With ``mixed``, the stronger of both pictures'
    gradients is kept inside, per pixel and channel.

    Source:
        Pérez, Gangnet and Blake, "Poisson Image Editing", SIGGRAPH 2003, equations 10 and 12,
        on the rectangle as OpenCV's ``seamlessClone`` does.
    """
    subject, scene = _gradient(foreground), _gradient(background)
    if mixed:
        subject_strength, scene_strength = (down**2 + right**2 for down, right in (subject, scene))
        inside = inside & (subject_strength > scene_strength)
    down, right = (torch.where(inside, *pair) for pair in zip(subject, scene, strict=True))
    divergence = (down[:, 1:-1, 1:-1] - down[:, :-2, 1:-1]) + (
        right[:, 1:-1, 1:-1] - right[:, 1:-1, :-2]
    )
    out = background.clone()
    out[:, 1:-1, 1:-1] = 0
    # What the fixed border contributes to the Laplacian moves to the right-hand side.
    border = out[:, 2:, 1:-1] + out[:, :-2, 1:-1] + out[:, 1:-1, 2:] + out[:, 1:-1, :-2]
    for channel, right_hand_side in enumerate(divergence - border):  # one by one, to save memory
        out[channel, 1:-1, 1:-1] = solve_poisson(right_hand_side)
    return out


def solve_poisson(right: Tensor) -> Tensor:
    """The picture (H, W) whose Laplacian is ``right`` (H, W), with zeros around it."""
    height, width = right.shape
    spectrum = _sine_transform(_sine_transform(right, -1), -2)
    spectrum = spectrum / (_eigenvalues(height, right)[:, None] + _eigenvalues(width, right))
    scale = 4 * (height + 1) * (width + 1)
    return _sine_transform(_sine_transform(spectrum, -1), -2) / scale


def _eigenvalues(size: int, like: Tensor) -> Tensor:
    """Of the second difference over ``size`` pixels with zeros beyond, (size,)."""
    angle = torch.linspace(0, math.pi, size + 2, dtype=like.dtype, device=like.device)
    return 2 * torch.cos(angle[1:-1]) - 2


def _sine_transform(x: Tensor, dim: int) -> Tensor:
    """Discrete sine transform of type I along ``dim``; twice, it is 2 (n + 1) times the input."""
    size = x.shape[dim]
    zero = torch.zeros_like(x.narrow(dim, 0, 1))
    odd = torch.cat((zero, x, zero, -x.flip(dim)), dim)
    return -torch.fft.rfft(odd, dim=dim).imag.narrow(dim, 1, size)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences of (C, H, W) down and to the right; 0 at the far border."""
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[:, :-1] = x[:, 1:] - x[:, :-1]
    right[:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    return down, right
