"""What a registered stage is, and the table of those that the library brings.

The registry looks stages up here. Importing this imports no stage: names, options and files are
checked before anything that takes seconds.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import WeightsError
from deep_image_compositing.options import check_names, declared_options

_STAGES = "deep_image_compositing.stages."
_MODELS = "deep_image_compositing.models."


@dataclass(frozen=True)
class Entry:
    """One registered stage.

    Attributes:
        slot: one of ``deep_image_compositing.registry.SLOTS``.
        name: the name users type.
        description: one line that says what it is.
        source: the paper or package it comes from, or an empty string.
        made_by: a class or another factory; or ``module:Class``, imported on first use.
        run_by: what makes it where it is only to run, without Lightning; by default ``made_by``.
        trained: of one that is imported on first use, the names of its trained weights.
        file: an option that must name a file.
    """

    slot: str
    name: str
    description: str
    source: str
    made_by: Callable[..., Any] | str
    run_by: str | None = None
    trained: tuple[str, ...] = ()
    file: str | None = None

    @property
    def factory(self) -> Callable[..., Any]:
        """What is called with the user's keyword arguments to make the stage."""
        return _found(self.made_by)

    @property
    def model(self) -> Callable[..., Any]:
        """Likewise, where it is only to run: a plain module, if there is one."""
        return _found(self.run_by or self.made_by)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the trained weights that ship for this stage, ``default`` first."""
        if isinstance(self.made_by, str):
            return self.trained
        return tuple(getattr(self.made_by, "shipped", {}))

    def check(self, options: Mapping[str, Any]) -> None:
        """Find what cannot be right about options without importing the stage.

        Raises:
            UsageError: an option that it does not take, or one that it lacks.
            WeightsError: a file that is not there.
        """
        if isinstance(self.made_by, str):
            check_names(self.slot, self.name, declared_options(self.made_by), options)
        given = options.get("weights")
        if _is_lacking(given) and given not in self.weights:
            raise WeightsError(
                f"no weights {str(given)!r} for the {self.slot} {self.name!r}: not a file, and the "
                f"weights that ship for it are: {', '.join(map(repr, self.weights)) or 'none'}"
            )
        if self.file is not None and _is_lacking(options.get(self.file)):
            raise WeightsError(f"there is no {self.name.upper()} file {options[self.file]}")


def _found(target: Callable[..., Any] | str) -> Callable[..., Any]:
    """What ``module:Class`` names."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _is_lacking(given: Any) -> bool:
    """Whether ``given`` is a path without a file; what is no path at all is found later."""
    return isinstance(given, (str, os.PathLike)) and not Path(given).expanduser().is_file()


BUILT_IN: tuple[Entry, ...] = (
    Entry(
        "segmenter",
        "grabcut",
        "what differs in colour from the picture's rim, by OpenCV; nothing is learned",
        "Rother, Kolmogorov and Blake, SIGGRAPH 2004",
        _STAGES + "segmentation:GrabCutSegmenter",
        _MODELS + "segmentation.grabcut:GrabCutModel",
    ),
    Entry(
        "segmenter",
        "onnx",
        "any segmentation model exported to ONNX; options say how it takes its input",
        "onnxruntime",
        _STAGES + "segmentation:OnnxSegmenter",
        _MODELS + "segmentation.onnx:OnnxModel",
        file="path",
    ),
    Entry(
        "segmenter",
        "pyramid",
        "timm backbone + pyramid pooling + light decoder; salient subjects",
        "Zhang et al., WACV 2021, section 3.1; Zhao et al., CVPR 2017",
        _STAGES + "segmentation:PyramidSegmenter",
        _MODELS + "segmentation.pyramid:PyramidModel",
        trained=("default",),
    ),
    Entry(
        "refiner",
        "cascade",
        "refinement network on RGB + mask, run at one size or more, up to 640 pixels",
        "Zhang et al., WACV 2021, section 3.2",
        _STAGES + "refinement:CascadeRefiner",
        _MODELS + "refinement.cascade:CascadeModel",
        trained=("default",),
    ),
    Entry(
        "refiner",
        "closed_form",
        "closed-form matting inside a trimap, by pymatting; slow and exact",
        "Levin, Lischinski and Weiss, CVPR 2006",
        _STAGES + "refinement:ClosedFormRefiner",
        _MODELS + "refinement.classical:ClosedFormModel",
    ),
    Entry(
        "refiner",
        "deep_image_matting",
        "encoder-decoder on RGB + trimap, and a refinement stage (DIM)",
        "Xu et al., CVPR 2017",
        _STAGES + "refinement:DeepImageMattingRefiner",
        _MODELS + "refinement.deep_image_matting:DeepImageMattingModel",
        trained=("default",),
    ),
    Entry(
        "refiner",
        "guided_filter",
        "the mask follows the picture's edges inside a trimap; fast, on any device",
        "He, Sun and Tang, Guided Image Filtering, PAMI 2013",
        _STAGES + "refinement:GuidedFilterRefiner",
        _MODELS + "refinement.classical:GuidedFilterModel",
    ),
    Entry(
        "refiner",
        "index_net",
        "IndexNet matting inside a trimap: pooling and upsampling by learned indices",
        "Lu, Dai, Shen and Xu, ICCV 2019",
        _STAGES + "refinement:IndexNetRefiner",
        _MODELS + "refinement.index_net:IndexNetModel",
        trained=("default",),
    ),
    Entry(
        "refiner",
        "information_flow",
        "information flow matting inside a trimap; hair and holes, slow",
        "Aksoy, Aydin and Pollefeys, CVPR 2017",
        _STAGES + "refinement:InformationFlowRefiner",
        _MODELS + "refinement.information_flow:InformationFlowModel",
    ),
    Entry(
        "refiner",
        "knn",
        "KNN matting inside a trimap, neighbours by pymatting; far regions help each other",
        "Chen, Li and Tang, CVPR 2012",
        _STAGES + "refinement:KnnRefiner",
        _MODELS + "refinement.classical:KnnModel",
    ),
    Entry(
        "refiner",
        "none",
        "the mask itself is the alpha",
        "",
        _STAGES + "refinement:NoRefiner",
        _MODELS + "refinement.none:NoRefinementModel",
    ),
    Entry(
        "fuser",
        "alpha",
        "alpha blending, with the subject's true colour on request",
        "",
        _STAGES + "fusion:AlphaFuser",
        _MODELS + "fusion.classical:AlphaModel",
    ),
    Entry(
        "fuser",
        "copy_paste",
        "hard cut at a level of alpha, no blending",
        "",
        _STAGES + "fusion:CopyPasteFuser",
        _MODELS + "fusion.classical:CopyPasteModel",
    ),
    Entry(
        "fuser",
        "feather",
        "hard cut whose outline is softened by a Gaussian",
        "",
        _STAGES + "fusion:FeatherFuser",
        _MODELS + "fusion.classical:FeatherModel",
    ),
    Entry(
        "fuser",
        "laplacian",
        "multi-band blending in Laplacian pyramids",
        "Burt and Adelson, 1983",
        _STAGES + "fusion:LaplacianFuser",
        _MODELS + "fusion.classical:LaplacianModel",
    ),
    Entry(
        "fuser",
        "multi_stream",
        "multi-stream fusion network (MLF): two encoders, one decoder for every scale",
        "Zhang et al., WACV 2021, section 3.3",
        _STAGES + "fusion:MultiStreamFuser",
        _MODELS + "fusion.multi_stream:MultiStreamModel",
        trained=("default",),
    ),
    Entry(
        "fuser",
        "poisson",
        "Poisson cloning: the subject's gradients, the background's colours (OpenCV)",
        "Perez, Gangnet and Blake, SIGGRAPH 2003",
        _STAGES + "fusion:PoissonFuser",
        _MODELS + "fusion.poisson:PoissonModel",
    ),
    Entry(
        "fuser",
        "single_stream",
        "the same network with one encoder for both pictures (the paper's ablation)",
        "Zhang et al., WACV 2021, section 4.4",
        _STAGES + "fusion:SingleStreamFuser",
        _MODELS + "fusion.multi_stream:SingleStreamModel",
        trained=("default",),
    ),
)
"""The stages of the library."""
