"""The refiner that leaves the mask as it is."""

from __future__ import annotations

from torch import Tensor

from deep_image_compositing.models.base import RefinerModel


class NoRefinementModel(RefinerModel):
    """Returns the mask unchanged."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return mask
