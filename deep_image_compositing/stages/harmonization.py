"""The harmonizers of ``models.harmonization`` as LightningModules."""

from __future__ import annotations

from deep_image_compositing.models.harmonization.classical import (
    NoModel,
    ReinhardModel,
    WhiteBalanceModel,
)
from deep_image_compositing.models.harmonization.color_map import ColorMapModel
from deep_image_compositing.stages.base import Harmonizer


class ColorMapHarmonizer(ColorMapModel, Harmonizer):
    """``ColorMapModel`` as a stage."""


class NoHarmonizer(NoModel, Harmonizer):
    """``NoModel`` as a stage."""


class ReinhardHarmonizer(ReinhardModel, Harmonizer):
    """``ReinhardModel`` as a stage."""


class WhiteBalanceHarmonizer(WhiteBalanceModel, Harmonizer):
    """``WhiteBalanceModel`` as a stage."""
