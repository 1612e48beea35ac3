"""Classical fusers: hard pasting, feathered, alpha and Laplacian blending."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.functional.compose import feather
from deep_image_compositing.functional.foreground import (
    blur_fusion_foreground,
    multilevel_foreground,
)
from deep_image_compositing.functional.pyramids import BLEND_LEVELS, laplacian_blend
from deep_image_compositing.models.base import FuserModel, Layers
from deep_image_compositing.options import check_choice, check_positive, check_range


class CopyPasteModel(FuserModel):
    """Pastes every pixel whose alpha exceeds a threshold, fully opaque.

    Args:
        threshold: level of alpha in [0, 1).
    """

    tile_context = 0

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= threshold < 1:
            raise UsageError(f"threshold is a level of alpha in [0, 1), got {threshold}")
        self.save_hyperparameters()
        self.threshold = threshold

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers:
        return Layers((alpha > self.threshold).to(alpha.dtype), foreground)


class FeatherModel(FuserModel):
    """Thresholds alpha at 0.5 and blurs the outline.

    Args:
        sigma: standard deviation of the Gaussian in pixels, at least 0. It is truncated at 22
            pixels along either axis, so that pixels more than 32 away stay unchanged.
    """

    tile_context = 22

    def __init__(self, sigma: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("sigma", sigma, 0, math.inf)
        self.save_hyperparameters()
        self.sigma = sigma

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers:
        return Layers(feather((alpha > 0.5).to(alpha.dtype), self.sigma), foreground)


class AlphaModel(FuserModel):
    """Alpha blending.

    Args:
        foreground_color: colour to blend. ``none``: the photograph, whose rim includes its old
            background. ``blur_fusion``: the subject's colour estimated by
            ``blur_fusion_foreground``. ``multilevel``: by pymatting's multi-level estimation.
        radii: window radii of blur fusion in pixels, one per pass.
    """

    def __init__(
        self,
        foreground_color: Literal["none", "blur_fusion", "multilevel"] = "none",
        radii: Sequence[int] = (90, 6),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("foreground_color", foreground_color, ("none", "blur_fusion", "multilevel"))
        if not radii or min(radii) < 1:
            raise UsageError(f"radii must be one or more of at least 1 pixel, got {radii}")
        if foreground_color == "multilevel":
            import_extra("pymatting", "foreground_color='multilevel'")
        self.save_hyperparameters()
        self.tile_context = 0 if foreground_color == "none" else 48
        self.foreground_color = foreground_color
        self.radii = tuple(radii)

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers:
        if self.foreground_color == "none":
            return Layers(alpha, foreground)
        if self.foreground_color == "multilevel":
            return Layers(alpha, multilevel_foreground(foreground, alpha))
        color, _ = blur_fusion_foreground(foreground, alpha, self.radii)
        return Layers(alpha, color)


class LaplacianModel(FuserModel):
    """Blends coarse detail over a wide seam and fine detail over a narrow one.

    Args:
        levels: pyramid levels, at least 1. With the default of 4, pixels more than 32 away from
            the rim stay unchanged; each further level about doubles that distance.
    """

    def __init__(self, levels: int = BLEND_LEVELS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(levels=levels)
        self.save_hyperparameters()
        self.levels = levels
        self.tile_context = 2 * 2 ** min(levels, 30)  # at 30 wider than any image

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        """Composite (B, 3, H, W), clamped to [0, 1] where the bands overshoot."""
        return laplacian_blend(foreground, background, alpha, self.levels).clamp(0, 1)
