"""The fuser that clones gradients instead of colours."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.functional.boxes import Box, bounding_box, edges
from deep_image_compositing.functional.compose import erode, over
from deep_image_compositing.functional.poisson import poisson_clone
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.models.base import FuserModel

_SEAM = 3  # pixels inside the mask's outline that keep the background's gradients: OpenCV's number
_PAD = _SEAM + 2
_LEAST = 3  # sides of the smallest box that has an inside


class PoissonModel(FuserModel):
    """Clones the subject seamlessly: its colours drift until they meet the background's.

    The subject is every pixel whose alpha exceeds a threshold. Inside the box around the subject
    the background changes a little too. Where the mask is empty, covers the whole picture, or
    lies in a box less than 3 pixels high or wide, the item is alpha blending.

    Args:
        mode: ``normal``: OpenCV's ``seamlessClone``, which works in 8 bits. ``mixed``: the
            stronger of both pictures' gradients, so that the background shows through where the
            subject is smooth; solved here, as OpenCV drops the subject's gradients since 4.12.
        threshold: level of alpha in [0, 1) above which a pixel is cloned.
    """

    def __init__(
        self, mode: Literal["normal", "mixed"] = "normal", threshold: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if mode not in ("normal", "mixed"):
            raise UsageError(f"mode must be 'normal' or 'mixed', got {mode!r}")
        if not 0 <= threshold < 1:
            raise UsageError(f"threshold is a level of alpha in [0, 1), got {threshold}")
        if mode == "normal":
            import_extra("cv2", "the fuser 'poisson'")
        self.save_hyperparameters()
        self.mode = mode
        self.threshold = threshold

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        """Composite (B, 3, H, W), cut off at [0, 1]."""
        composite = over(foreground, alpha, background)
        for index, mask in enumerate(alpha > self.threshold):
            if mask.any() and not mask.all():
                self._clone(composite[index], foreground[index], background[index], mask)
        return composite

    def _clone(self, out: Tensor, foreground: Tensor, background: Tensor, mask: Tensor) -> None:
        """Fill ``out`` (3, H, W) with the clone, unless the mask (1, H, W) is too small for it."""
        # The border of the mask's box takes the background's colours, and a seam inside of the
        # outline its gradients. Where the subject leaves the picture, both belong outside of it.
        padded = F.pad(mask[None].float(), (_PAD - 1,) * 4, mode="replicate")
        padded = F.pad(padded, (1,) * 4)[0]
        box = bounding_box(padded[0] > 0)
        if box is None or min(span.stop - span.start for span in box) < _LEAST:
            return
        part = (slice(None), *box)
        front, back = (
            F.pad(x[None], (_PAD,) * 4, mode="replicate")[0] for x in (foreground, background)
        )
        if self.mode == "mixed":
            # Sine transforms of large pictures need double precision, which MPS does not have.
            dtype = out.dtype if out.device.type == "mps" else torch.float64
            subject, scene = (x[part].to(dtype) for x in (front, back))
            inside = erode(padded[None], _SEAM)[0][part] > 0
            cloned = poisson_clone(subject, scene, inside, mixed=True).clamp(0, 1).to(out)
        else:
            cloned = _seamless_clone(front, back, padded, box).to(out)
        back[part] = cloned
        out.copy_(back[:, _PAD:-_PAD, _PAD:-_PAD])


def _seamless_clone(foreground: Tensor, background: Tensor, mask: Tensor, box: Box) -> Tensor:
    """OpenCV's answer inside the ``box`` of ``mask`` (1, H, W)."""
    import cv2

    front, back, where = (
        np.ascontiguousarray(to_bytes(x).permute(1, 2, 0).cpu().numpy())
        for x in (foreground, background, mask)
    )
    top, bottom, left, right = edges(box)
    # It centres the mask's bounding box on this point, halves rounded down.
    centre = (left + (right - left) // 2, top + (bottom - top) // 2)
    cloned = cv2.seamlessClone(front, back, where, centre, cv2.NORMAL_CLONE)
    return torch.from_numpy(cloned[top:bottom, left:right]).permute(2, 0, 1) / 255
