"""Harmonizers without parameters to train: by means and deviations of colours."""

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
    """Leaves the composite as it is."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.strength = 0.0

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        return lambda colors, place: colors


class ReinhardModel(HarmonizerModel):
    """Gives the subject's colours the mean and deviation of the scene's.

    An item that is all subject, or has none, keeps its colours.

    Args:
        strength: how far to go, in [0, 1]. All the way is too far for most subjects.
    """

    long_side = 1024  # in a smaller picture, averages would narrow the distributions

    def __init__(self, strength: float = 0.5, **kwargs: Any) -> None:
        super().__init__(strength=strength, **kwargs)
        self.save_hyperparameters()

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        subject = ColorStatistics.of(composite, mask)
        scene = ColorStatistics.of(composite, 1 - mask)
        partly = is_partial(mask)
        return lambda colors, place: torch.where(
            partly, transfer_color(colors, subject, scene), colors
        )


class WhiteBalanceModel(HarmonizerModel):
    """Gives the subject the scene's average tint, as under its light; brightness stays.

    Both averages count as gray, which a subject of one colour is not.

    Args:
        strength: how far to go, in [0, 1].
    """

    def __init__(self, strength: float = 0.5, **kwargs: Any) -> None:
        super().__init__(strength=strength, **kwargs)
        self.save_hyperparameters()

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        gains, partly = light_gains(composite, mask), is_partial(mask)
        return lambda colors, place: torch.where(partly, adapt(colors, gains), colors)


def is_partial(mask: Tensor) -> Tensor:
    """(B, 1, 1, 1) whether ``mask`` (B, 1, H, W) shows some of the subject, and some scene."""
    share = mask.mean((1, 2, 3), keepdim=True)
    return (share > 0) & (share < 1)
