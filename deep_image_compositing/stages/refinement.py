"""The refiners of ``models.refinement`` as LightningModules."""

from __future__ import annotations

from torch import Tensor

from deep_image_compositing.models.refinement.cascade import CascadeModel
from deep_image_compositing.models.refinement.classical import (
    ClosedFormModel,
    GuidedFilterModel,
    InformationFlowModel,
    KnnModel,
    NoModel,
)
from deep_image_compositing.models.refinement.onnx import OnnxModel
from deep_image_compositing.models.refinement.trained import DeepImageMattingModel, IndexNetModel
from deep_image_compositing.stages.base import Batch, Refiner
from deep_image_compositing.stages.matting import (
    MattingRefiner,
    SolvedMattingRefiner,
    TrainedMattingRefiner,
    distance,
    matting_terms,
)


class CascadeRefiner(CascadeModel, Refiner):
    """``CascadeModel`` as a stage."""


class ClosedFormRefiner(ClosedFormModel, SolvedMattingRefiner):
    """``ClosedFormModel`` as a stage."""


class GuidedFilterRefiner(GuidedFilterModel, MattingRefiner):
    """``GuidedFilterModel`` as a stage."""


class OnnxRefiner(OnnxModel, Refiner):
    """``OnnxModel`` as a stage."""


class InformationFlowRefiner(InformationFlowModel, SolvedMattingRefiner):
    """``InformationFlowModel`` as a stage."""


class KnnRefiner(KnnModel, SolvedMattingRefiner):
    """``KnnModel`` as a stage."""


class NoRefiner(NoModel, Refiner):
    """``NoModel`` as a stage."""


class DeepImageMattingRefiner(DeepImageMattingModel, TrainedMattingRefiner):
    """``DeepImageMattingModel`` as a stage, with a loss for each training phase."""

    def terms(self, batch: Batch, trimap: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raw, refined = self.network.stages(batch["image"], trimap)
        terms = {} if self.phase == "refinement" else matting_terms(raw, batch, trimap)
        if self.network.refinement is not None and self.phase != "encoder_decoder":
            unknown = (trimap == 0.5).float()
            terms["refined"] = distance(refined, batch["alpha"], unknown)
        return refined, terms


class IndexNetRefiner(IndexNetModel, TrainedMattingRefiner):
    """``IndexNetModel`` as a stage, with a separate learning rate for the encoder."""

    def rate_factor(self, name: str) -> float:
        return self.encoder_rate if name.startswith("network.encoder.") else 1.0
