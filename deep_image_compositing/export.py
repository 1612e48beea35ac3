"""Export a stage's network to a file that runs without this library: ONNX or ``torch.export``.

The exported network takes batches of any size. ``Exported.rest`` describes the stage's processing
that is not part of it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import write_bytes
from deep_image_compositing.models.base import WHOLE, StageModel
from deep_image_compositing.models.harmonization.color_map import ColorMapModel, apply_color_map
from deep_image_compositing.models.onnx_file import METADATA
from deep_image_compositing.networks.multi_stream import MultiStreamNetwork
from deep_image_compositing.networks.pyramid import PyramidNetwork

SUFFIXES = (".onnx", ".pt2")

OPSET = 18
"""ONNX opset: the first whose Resize operator supports antialiasing."""

SIDES = {"min": 32, "max": 16384}
"""Range of height and width, in pixels, that an exported network accepts."""

MULTIPLE = 32
"""Divisor of height and width, in pixels, where padding cannot be traced."""


@dataclass(frozen=True)
class Exported:
    """The exported part of a stage."""

    module: nn.Module  # the network and the resizing around it
    inputs: dict[str, int]  # number of channels by input name
    output: str  # output name
    rest: str  # the stage's processing outside ``module``


class _WholePicture(nn.Module):
    """``image → mask`` at any size: a segmenter's first pass, over the whole image."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(_resized(image, (self.size, self.size)).clamp(0, 1))
        return _resized(logits, (image.shape[-2], image.shape[-1])).sigmoid()


class _Harmonized(nn.Module):
    """``composite, mask → composite`` at any size: the whole ``color_map`` harmonizer."""

    def __init__(self, network: nn.Module, size: int, strength: float) -> None:
        super().__init__()
        self.network, self.size, self.strength = network, size, strength

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        side = (self.size, self.size)
        small = (_resized(x, side).clamp(0, 1) for x in (composite, mask))
        polynomial, grid = self.network(*small)
        recolored = apply_color_map(composite, polynomial, grid, WHOLE)
        coverage = mask.mean((1, 2, 3), keepdim=True)
        partial = ((coverage > 0) & (coverage < 1)).to(composite.dtype)
        return torch.lerp(composite, recolored, self.strength * partial * mask)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Like ``functional.resize``, but without its branches on the size, so that it traces."""
    return nn.functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def parts(stage: StageModel) -> Exported:
    """The exportable part of ``stage``; ``UsageError`` if its network cannot be exported."""
    network = getattr(stage, "network", None)
    if isinstance(network, PyramidNetwork) and stage.slot == "segmenter":
        module = _WholePicture(network, int(stage.hparams["size"]))
        rest = "the closer passes over the subject, and removing regions of low confidence"
        return Exported(module, {"image": 3}, "mask", rest)
    if isinstance(network, PyramidNetwork) and stage.slot == "refiner":
        rest = (
            "cropping around the subject, a pass at each size, and keeping masks that are exact "
            "already; the refiner 'onnx' does all three"
        )
        return Exported(network, {"image": 3, "mask": 1}, "change", rest)
    if isinstance(network, MultiStreamNetwork):
        inputs = dict(zip(("foreground", "background"), network.channels, strict=True))
        rest = (
            "solving for the alpha and colours that the network takes, and for the colours under "
            "the alpha that it corrects"
        )
        return Exported(network, {k: v for k, v in inputs.items() if v}, "change", rest)
    if isinstance(stage, ColorMapModel):
        whole = _Harmonized(stage.network, stage.size, stage.strength)
        rest = "processing large photographs in parts, and recolouring a fuser's layers"
        return Exported(whole, {"composite": 3, "mask": 1}, "harmonized", rest)
    raise UsageError(f"{type(stage).__name__} has no network that can be exported")


def export(stage: StageModel, path: str | Path) -> Exported:
    """Write the network of ``stage``, in evaluation mode, to a file that takes batches of images.

    Args:
        stage: a learned stage.
        path: ends in ``.onnx``, or in ``.pt2`` for ``torch.export.load``. The network's inputs
            have a height and width of at least 64 pixels, divisible by 32; for a segmenter,
            refiner or harmonizer in ONNX any of at least 32.

    Raises:
        UsageError: another suffix, or a stage without an exportable network.
        MissingExtraError: onnx or onnxscript is not installed.
        ImageError: the file could not be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} has to end in {' or '.join(SUFFIXES)}")
    exported = parts(stage)
    # In channels-last layout, tracing would restrict the program to some sizes.
    module = copy.deepcopy(exported.module).eval().to(memory_format=torch.contiguous_format)
    device = next(module.parameters()).device
    traced = path.suffix == ".pt2"
    height, width = 8 * MULTIPLE, 6 * MULTIPLE
    channels = exported.inputs.values()
    inputs = tuple(torch.rand(2, c, height, width, device=device) for c in channels)
    batch = torch.export.Dim("batch", min=1, max=4096)
    sides = [torch.export.Dim(name, **SIDES) for name in ("height", "width")]
    if traced or isinstance(module, MultiStreamNetwork):  # it pads other sizes
        sides = [MULTIPLE * torch.export.Dim(f"_{name}", min=2, max=512) for name in ("h", "w")]
    shapes = tuple({0: batch, 2: sides[0], 3: sides[1]} for _ in inputs)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch's are for authors of operators
        if traced:
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            data = buffer.getvalue()
        else:
            data = _onnx(stage, exported, module, inputs, shapes)
    write_bytes(path, data)
    return exported


def _onnx(
    stage: StageModel, exported: Exported, module: nn.Module, inputs: Any, shapes: Any
) -> bytes:
    import_extra("onnxscript", "export to ONNX")
    program: Any = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=list(exported.inputs),
        output_names=[exported.output],
        opset_version=OPSET,
        verbose=False,
    )
    metadata = {"slot": stage.slot, "options": dict(stage.hparams)}
    program.model.metadata_props[METADATA] = json.dumps(metadata, default=str, sort_keys=True)
    data: bytes = program.model_proto.SerializeToString()
    return data
