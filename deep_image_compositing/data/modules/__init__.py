"""Data modules over shards and plain folders, one for each slot.

Loader processes decode and crop, to 8-bit tensors; colour, camera effects, pasting, degradation and
triplets are made on the device after the transfer. A batch carries the seed of all that is random
about it, so what is made of it depends on nothing else.
"""

from deep_image_compositing.data.modules.base import Sources, StageData, as_sources, batches_trained
from deep_image_compositing.data.modules.fusion import FusionData, MattingData
from deep_image_compositing.data.modules.harmonization import HarmonizationData
from deep_image_compositing.data.modules.labelled import RefinementData, SegmentationData

__all__ = [
    "FusionData", "HarmonizationData", "MattingData", "RefinementData", "SegmentationData",
    "Sources", "StageData", "as_sources", "batches_trained",
]  # fmt: skip
