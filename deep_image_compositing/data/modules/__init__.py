"""Data modules for the slots, over shards and plain folders.

Loader processes decode and crop to 8-bit tensors; colour jitter, camera effects, pasting, mask
degradation and triplets are computed on the device after the transfer. Each batch carries its
random seed, so the result depends on the batch alone.
"""

from deep_image_compositing.data.modules.base import Sources, StageData, as_sources, batches_trained
from deep_image_compositing.data.modules.fusion import FusionData, MattingData
from deep_image_compositing.data.modules.harmonization import HarmonizationData
from deep_image_compositing.data.modules.labelled import RefinementData, SegmentationData

__all__ = [
    "FusionData", "HarmonizationData", "MattingData", "RefinementData", "SegmentationData",
    "Sources", "StageData", "as_sources", "batches_trained",
]  # fmt: skip
