"""The segmenters of ``models.segmentation`` as LightningModules."""

from __future__ import annotations

from deep_image_compositing.models.segmentation.grabcut import GrabCutModel
from deep_image_compositing.models.segmentation.onnx import OnnxModel, PublishedModel
from deep_image_compositing.models.segmentation.pyramid import PyramidModel
from deep_image_compositing.stages.base import Segmenter


class GrabCutSegmenter(GrabCutModel, Segmenter):
    """``GrabCutModel`` as a stage."""


class OnnxSegmenter(OnnxModel, Segmenter):
    """``OnnxModel`` as a stage."""


class PyramidSegmenter(PyramidModel, Segmenter):
    """``PyramidModel`` as a stage."""


class PublishedSegmenter(PublishedModel, Segmenter):
    """``PublishedModel`` as a stage."""
