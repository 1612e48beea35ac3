"""The stages that fill the three slots; importing this package registers all that are built in."""

from deep_image_compositing.stages import fusion, refinement, segmentation
from deep_image_compositing.stages.base import Fuser, Refiner, Segmenter, Stage

__all__ = ["Fuser", "Refiner", "Segmenter", "Stage", "fusion", "refinement", "segmentation"]
