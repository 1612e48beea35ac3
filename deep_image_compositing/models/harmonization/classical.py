"""Classical harmonizers, which match colour statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deep_image_compositing.functional.color_transfer import (
    ColorStatistics,
    adapt,
    light_gains,
    transfer_color,
)
from deep_image_compositing.models.base import HarmonizerModel, Recoloring


class NoModel(HarmonizerModel):
    """Leaves the composite unchanged."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.strength = 0.0

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        return lambda colors, place: colors


class ReinhardModel(HarmonizerModel):
    """Matches the mean and deviation of the subject's colours to the scene's.

    Items that are all subject or all scene stay unchanged.

    Args:
        strength: blend factor in [0, 1]; 1 is too strong for most subjects.
    """

    long_side = 1024  # downsampling further would narrow the colour distributions

    def __init__(self, strength: float = 0.5, **kwargs: Any) -> None:
        super().__init__(strength=strength, **kwargs)
        self.save_hyperparameters()

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        subject = ColorStatistics.of(composite, mask)
        scene = ColorStatistics.of(composite, 1 - mask)
        partial = is_partial(mask)
        return lambda colors, place: torch.where(
            partial, transfer_color(colors, subject, scene), colors
        )


class WhiteBalanceModel(HarmonizerModel):
    """Gives the subject the scene's average tint at unchanged brightness.

    Assumes that both average to gray, which does not hold for subjects of a single colour.

    Args:
        strength: blend factor in [0, 1].
    """

    def __init__(self, strength: float = 0.5, **kwargs: Any) -> None:
        super().__init__(strength=strength, **kwargs)
        self.save_hyperparameters()

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        gains, partial = light_gains(composite, mask), is_partial(mask)
        return lambda colors, place: torch.where(partial, adapt(colors, gains), colors)


def is_partial(mask: Tensor) -> Tensor:
    """Whether each ``mask`` (B, 1, H, W) has both subject and scene, (B, 1, 1, 1)."""
    coverage = mask.mean((1, 2, 3), keepdim=True)
    return (coverage > 0) & (coverage < 1)
