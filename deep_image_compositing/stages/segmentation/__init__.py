"""Segmenters: ``image → mask``."""

from deep_image_compositing.stages.segmentation.onnx import OnnxSegmenter
from deep_image_compositing.stages.segmentation.pyramid import PyramidSegmenter

__all__ = ["OnnxSegmenter", "PyramidSegmenter"]
