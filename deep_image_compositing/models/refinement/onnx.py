"""Refiner that runs a refinement network exported to ONNX."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deep_image_compositing.errors import WeightsError
from deep_image_compositing.models.onnx_file import OnnxFile
from deep_image_compositing.models.refinement.cascade import DEFAULTS, Cascade, CascadeModel


class OnnxModel(Cascade):
    """``cascade`` with its network, as written by ``export refiner``, run by onnxruntime.

    All options but ``path`` and ``providers`` are as for ``CascadeModel``, and default to their
    values at export.

    Args:
        path: the ``.onnx`` file.
        sizes: long side in pixels of the subject in each stage.
        confidence: factor on the logits.
        trust: factor on the logits of each stage's input mask.
        margin: context around the subject.
        zoom: maximum magnification of small subjects.
        keep_good: leave exact alphas unchanged.
        providers: onnxruntime execution providers, as for the segmenter ``onnx``.
    """

    def __init__(
        self,
        path: str,
        sizes: tuple[int, ...] | None = None,
        confidence: float | None = None,
        trust: float | None = None,
        margin: float | None = None,
        zoom: float | None = None,
        keep_good: bool | None = None,
        providers: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        file = OnnxFile(path, providers, "the refiner 'onnx'")
        names = [x.name for x in file.session.get_inputs()]
        if names != ["image", "mask"]:
            raise WeightsError(
                f"{path} takes {', '.join(names) or 'nothing'}; expected image and mask, as "
                "`export refiner` writes it"
            )
        exported = file.metadata.get("options")
        values = {k: p.default for k, p in inspect.signature(CascadeModel).parameters.items()}
        values |= {**DEFAULTS, **(exported if isinstance(exported, dict) else {})}
        values |= {k: value for k, value in self.hparams.items() if value is not None}
        options = inspect.signature(self._set_options).parameters
        self._set_options(**{name: values[name] for name in options})
        self.file = file
        self.network = _Network(file)

    def use(self, device: torch.device) -> None:
        self.file.move(device, required=True)


class _Network(nn.Module):
    """``image, mask → correction`` by onnxruntime."""

    def __init__(self, file: OnnxFile) -> None:
        super().__init__()
        self.file = file
        self.output = file.session.get_outputs()[0].name

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        self.file.move(image.device)
        feed = {
            name: np.ascontiguousarray(value.detach().cpu().float().numpy())
            for name, value in (("image", image), ("mask", mask))
        }
        return torch.from_numpy(self.file.run(self.output, feed)).to(image)
