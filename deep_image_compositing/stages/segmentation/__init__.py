"""Segmenters: ``image → mask``."""

from deep_image_compositing.stages.segmentation.grabcut import GrabCutSegmenter
from deep_image_compositing.stages.segmentation.onnx import OnnxSegmenter
from deep_image_compositing.stages.segmentation.pyramid import PyramidSegmenter

__all__ = ["GrabCutSegmenter", "OnnxSegmenter", "PyramidSegmenter"]
