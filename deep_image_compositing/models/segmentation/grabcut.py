"""Classical segmentation: GrabCut initialised from a rectangle."""

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
    """Segments what differs in colour from the border of the image.

    GrabCut starts from a rectangle: everything outside is background, and colour mixture models
    with graph cuts separate subject from background inside. A subject that touches the border
    loses the part there. Images less than 3 pixels high or wide are all subject.

    Args:
        margin: border width on each side, as a fraction of the image size; at least 1 pixel.
        iterations: of mixture fitting and graph cut.
        size: long side in pixels to which larger images are reduced; the mask is enlarged.
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
        """Mask (B, 1, H, W) in {0, 1}; values between come from enlarging only."""
        height, width = image.shape[-2:]
        small = resize(image.detach(), fit_long_side(height, width, self.size))
        pictures = to_bytes(small).permute(0, 2, 3, 1).cpu().numpy()
        masks = np.stack([self._cut(np.ascontiguousarray(picture)) for picture in pictures])
        mask = torch.from_numpy(masks).to(image).unsqueeze(1)
        return resize(mask, (height, width)).clamp(0, 1)

    def _cut(self, picture: Any) -> Any:
        """Binary uint8 mask (H, W) of an 8-bit image (H, W, 3)."""
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
        return labels & 1  # 0 and 2 are certain and probable background, 1 and 3 subject
