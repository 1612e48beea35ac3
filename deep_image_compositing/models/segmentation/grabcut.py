"""The classical segmenter: GrabCut from a rectangle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.models.base import SegmenterModel
from deep_image_compositing.options import check_positive, check_range


class GrabCutModel(SegmenterModel):
    """Cuts out what is coloured unlike the rim of the picture.

    GrabCut begins with a rectangle: everything outside is background, everything inside may be
    subject, and mixtures of colours and a graph cut separate the two. A subject that reaches the
    rim loses what it shows there. Pictures less than 3 pixels high or wide are all subject.

    Args:
        margin: width of the rim on every side, as a share of that side; at least 1 pixel.
        iterations: of modelling and cutting.
        size: long side in pixels to which larger pictures are reduced; the mask is enlarged.
        seed: of the initial mixtures.
    """

    def __init__(
        self,
        margin: float = 0.05,
        iterations: int = 5,
        size: int = 320,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < margin < 0.5:
            raise UsageError(f"margin is a share of a side between 0 and 0.5, got {margin}")
        check_range("iterations", iterations, 1, 1000)
        check_range("seed", seed, -(2**31), 2**31 - 1)
        check_positive(size=size)
        import_extra("cv2", "the segmenter 'grabcut'")
        self.save_hyperparameters()
        self.margin = margin
        self.iterations = iterations
        self.size = size
        self.seed = seed

    def forward(self, image: Tensor) -> Tensor:
        """Mask (B, 1, H, W): 0 or 1, and between them where it was enlarged."""
        height, width = image.shape[-2:]
        small = resize(image.detach(), fit_long_side(height, width, self.size))
        pictures = to_bytes(small).permute(0, 2, 3, 1).cpu().numpy()
        masks = np.stack([self._cut(np.ascontiguousarray(picture)) for picture in pictures])
        mask = torch.from_numpy(masks).to(image).unsqueeze(1)
        return resize(mask, (height, width)).clamp(0, 1)

    def _cut(self, picture: Any) -> Any:
        """The mask (H, W) of an 8-bit picture (H, W, 3), of zeros and ones."""
        import cv2

        height, width = picture.shape[:2]
        if min(height, width) < 3:
            return np.ones((height, width), np.uint8)
        top, left = (
            min(max(1, round(self.margin * side)), (side - 1) // 2) for side in (height, width)
        )
        labels = np.zeros((height, width), np.uint8)
        cv2.setRNGSeed(self.seed)
        cv2.grabCut(
            picture,
            labels,
            (left, top, width - 2 * left, height - 2 * top),
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            self.iterations,
            cv2.GC_INIT_WITH_RECT,
        )
        # Labels are certain and probable background (0, 2) and subject (1, 3).
        return labels & 1
