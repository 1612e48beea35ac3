"""Fusers: ``foreground, background, alpha → composite``; importing registers them."""

from deep_image_compositing.stages.fusion.classical import (
    AlphaFuser,
    CopyPasteFuser,
    FeatherFuser,
    LaplacianFuser,
)
from deep_image_compositing.stages.fusion.multi_stream import MultiStreamFuser, SingleStreamFuser
from deep_image_compositing.stages.fusion.poisson import PoissonFuser

__all__ = [
    "AlphaFuser",
    "CopyPasteFuser",
    "FeatherFuser",
    "LaplacianFuser",
    "MultiStreamFuser",
    "PoissonFuser",
    "SingleStreamFuser",
]
