"""A refinement network that was exported to ONNX, as a refiner."""

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

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(CascadeModel).parameters.items()
    if name in ("confidence", "trust", "margin", "zoom", "keep_good")
}


class OnnxModel(Cascade):
    """``cascade`` with its network run by onnxruntime, from what ``export refiner`` has written.

    Args:
        path: the ``.onnx`` file.
        sizes: as for ``CascadeModel``, and so are all but the last; by default as exported.
        confidence: likewise.
        trust: likewise.
        margin: likewise.
        zoom: likewise.
        keep_good: likewise.
        providers: onnxruntime's execution providers, as for the segmenter ``onnx``.
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
        names = [one.name for one in file.session.get_inputs()]
        if names != ["image", "mask"]:
            raise WeightsError(
                f"{path} takes {', '.join(names) or 'nothing'}; expected image and mask, as "
                "`export refiner` writes it"
            )
        given = (sizes, confidence, trust, margin, zoom, keep_good)
        exported = file.described.get("options")
        known = {**DEFAULTS, **_DEFAULTS, **(exported if isinstance(exported, dict) else {})}
        chosen: list[Any] = [
            known[name] if value is None else value
            for name, value in zip(("sizes", *_DEFAULTS), given, strict=True)
        ]
        self._settle(*chosen)
        self.file = file
        self.network = _Network(file)

    def use(self, device: torch.device) -> None:
        self.file.move(device, asked=True)


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
