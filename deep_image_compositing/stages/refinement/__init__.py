"""Refiners: ``image, mask → alpha``."""

from deep_image_compositing.stages.refinement.cascade import CascadeRefiner
from deep_image_compositing.stages.refinement.classical import (
    ClosedFormRefiner,
    GuidedFilterRefiner,
    KnnRefiner,
)
from deep_image_compositing.stages.refinement.deep_image_matting import DeepImageMattingRefiner
from deep_image_compositing.stages.refinement.index_net import IndexNetRefiner
from deep_image_compositing.stages.refinement.information_flow import InformationFlowRefiner
from deep_image_compositing.stages.refinement.none import NoRefiner

__all__ = [
    "CascadeRefiner",
    "ClosedFormRefiner",
    "DeepImageMattingRefiner",
    "GuidedFilterRefiner",
    "IndexNetRefiner",
    "InformationFlowRefiner",
    "KnnRefiner",
    "NoRefiner",
]
