"""Matting refiners with a trained network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deep_image_compositing.errors import UsageError
from deep_image_compositing.models.refinement.matting import MattingModel, check_memory


class TrainedMattingModel(MattingModel):
    """A matting refiner that answers with a network of an image and its trimap.

    A filler sets ``network``, states ``bytes_per_pixel`` and calls ``load_weights`` last.

    Args:
        max_memory: memory in GB that the network may take by its own estimate.

    Attributes:
        network: takes an image (B, 3, H, W) in [0, 1] and a trimap (B, 1, H, W) in {0, 0.5, 1} of
            any size, and gives alpha (B, 1, H, W) in [0, 1].
    """

    network: nn.Module

    def __init__(self, *, max_memory: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not max_memory > 0:
            raise UsageError(f"max_memory must be above 0, got {max_memory}")
        self.max_memory = max_memory

    def bytes_per_pixel(self) -> float:
        """Peak memory of the network for each pixel of a picture, by measurement."""
        raise NotImplementedError

    @torch.no_grad()
    def matte(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """The network's alpha, of as many pictures at a time as ``max_memory`` holds."""
        size = (image.shape[-2], image.shape[-1])
        needed = self.bytes_per_pixel() * size[0] * size[1]
        check_memory(self.method, needed, self.max_memory, size)
        dtype = next(self.network.parameters()).dtype
        rows = int(min(len(image), self.max_memory * 1e9 / needed))
        parts = zip(image.to(dtype).split(rows), trimap.to(dtype).split(rows), strict=True)
        return torch.cat([self.network(*part) for part in parts])
