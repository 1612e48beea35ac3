"""Poisson blending (seamless cloning), with a solver by fast sine transforms."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.functional.boxes import Box, bounding_box, edges
from deep_image_compositing.functional.compose import erode, over
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.models.base import FuserModel
from deep_image_compositing.options import check_choice

_SEAM = 3  # pixels inside the mask's outline that keep the background's gradients, as in OpenCV
_PAD = _SEAM + 2
_MIN_SIDE = 3  # sides of the smallest box with interior pixels


class PoissonModel(FuserModel):
    """Seamless cloning: shifts the subject's colours to match the background at its outline.

    The subject is every pixel whose alpha exceeds a threshold. Within its bounding box the
    background changes slightly too. Items whose mask is empty, covers the full image, or has a
    bounding box less than 3 pixels high or wide are alpha blended.

    Args:
        mode: ``normal``: OpenCV's ``seamlessClone``, which works in 8 bits. ``mixed``: the
            stronger of both images' gradients, so that the background shows through where the
            subject is smooth; solved here, as OpenCV drops the subject's gradients since 4.12.
        threshold: level of alpha in [0, 1) above which a pixel is cloned.
    """

    def __init__(
        self, mode: Literal["normal", "mixed"] = "normal", threshold: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_choice("mode", mode, ("normal", "mixed"))
        if not 0 <= threshold < 1:
            raise UsageError(f"threshold is a level of alpha in [0, 1), got {threshold}")
        if mode == "normal":
            import_extra("cv2", "the fuser 'poisson'")
        self.save_hyperparameters()
        self.mode = mode
        self.threshold = threshold

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        """Composite (B, 3, H, W), clamped to [0, 1]."""
        composite = over(foreground, alpha, background)
        for index, mask in enumerate(alpha > self.threshold):
            if mask.any() and not mask.all():
                self._clone(composite[index], foreground[index], background[index], mask)
        return composite

    def _clone(self, out: Tensor, foreground: Tensor, background: Tensor, mask: Tensor) -> None:
        """Write the clone to ``out`` (3, H, W), unless the mask (1, H, W) is too small."""
        # The box's border takes the background's colours, and a seam inside the outline its
        # gradients. Padding moves both outside the image where the subject touches its border.
        padded = F.pad(mask[None].float(), (_PAD - 1,) * 4, mode="replicate")
        padded = F.pad(padded, (1,) * 4)[0]
        box = bounding_box(padded[0] > 0)
        if box is None or min(span.stop - span.start for span in box) < _MIN_SIDE:
            return
        crop = (slice(None), *box)
        front, back = (
            F.pad(x[None], (_PAD,) * 4, mode="replicate")[0] for x in (foreground, background)
        )
        if self.mode == "mixed":
            # Sine transforms of large images need double precision, which MPS does not have.
            dtype = out.dtype if out.device.type == "mps" else torch.float64
            subject, scene = (x[crop].to(dtype) for x in (front, back))
            inside = erode(padded[None], _SEAM)[0][crop] > 0
            cloned = poisson_clone(subject, scene, inside, mixed=True).clamp(0, 1).to(out)
        else:
            cloned = _seamless_clone(front, back, padded, box).to(out)
        back[crop] = cloned
        out.copy_(back[:, _PAD:-_PAD, _PAD:-_PAD])


def _seamless_clone(foreground: Tensor, background: Tensor, mask: Tensor, box: Box) -> Tensor:
    """OpenCV's result inside ``box``, the bounding box of ``mask`` (1, H, W)."""
    import cv2

    front, back, stencil = (
        np.ascontiguousarray(to_bytes(x).permute(1, 2, 0).cpu().numpy())
        for x in (foreground, background, mask)
    )
    top, bottom, left, right = edges(box)
    # OpenCV centres the mask's bounding box on this point, rounding halves down.
    center = (left + (right - left) // 2, top + (bottom - top) // 2)
    cloned = cv2.seamlessClone(front, back, stencil, center, cv2.NORMAL_CLONE)
    return torch.from_numpy(cloned[top:bottom, left:right]).permute(2, 0, 1) / 255


def poisson_clone(foreground: Tensor, background: Tensor, inside: Tensor, *, mixed: bool) -> Tensor:
    """Clone the foreground's gradients where ``inside`` (1, H, W), boolean, is true.

    Both images are (C, H, W), each side at least 3. Elsewhere the result has the background's
    gradients, and at the border its colours; it may leave [0, 1]. ``mixed`` keeps the stronger of
    both gradients inside, per pixel and channel. Source: Pérez, Gangnet and Blake, "Poisson Image
    Editing", SIGGRAPH 2003, equations 10 and 12, on the rectangle as in OpenCV's ``seamlessClone``.
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
    # The fixed border's contribution to the Laplacian moves to the right-hand side.
    border = out[:, 2:, 1:-1] + out[:, :-2, 1:-1] + out[:, 1:-1, 2:] + out[:, 1:-1, :-2]
    for channel, right_hand_side in enumerate(divergence - border):  # one by one, to save memory
        out[channel, 1:-1, 1:-1] = solve_poisson(right_hand_side)
    return out


def solve_poisson(right: Tensor) -> Tensor:
    """Solve for the image (H, W) whose Laplacian, with zeros outside, is ``right`` (H, W)."""
    height, width = right.shape
    spectrum = _sine_transform(_sine_transform(right, -1), -2)
    spectrum = spectrum / (_eigenvalues(height, right)[:, None] + _eigenvalues(width, right))
    scale = 4 * (height + 1) * (width + 1)
    return _sine_transform(_sine_transform(spectrum, -1), -2) / scale


def _eigenvalues(size: int, like: Tensor) -> Tensor:
    """Eigenvalues (size,) of the second difference with zeros outside."""
    angle = torch.linspace(0, math.pi, size + 2, dtype=like.dtype, device=like.device)
    return 2 * torch.cos(angle[1:-1]) - 2


def _sine_transform(x: Tensor, dim: int) -> Tensor:
    """Discrete sine transform of type I along ``dim``; applied twice, 2 (n + 1) times the input."""
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
