"""Stages as files that run without this library: ONNX, or a program of ``torch.export``.

What is exported is a stage's network, for pictures of any size and in batches; not what it does
around it, which ``Exported.rest`` says.
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
"""Of ONNX: the first whose Resize filters against aliasing."""

SIDES = {"min": 32, "max": 16384}
"""Sides in pixels of the pictures that an exported network takes."""

MULTIPLE = 32
"""Of which the sides of pictures have to be multiples where padding cannot be traced."""


@dataclass(frozen=True)
class Exported:
    """What is exported of a stage."""

    module: nn.Module  # the network, with the resizing around it
    inputs: dict[str, int]  # channels of each input, by name
    output: str  # its name
    rest: str  # what the stage does beyond it


class _WholePicture(nn.Module):
    """``image → mask`` at any size: a segmenter's look at the whole picture."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(_resized(image, (self.size, self.size)).clamp(0, 1))
        return _resized(logits, (image.shape[-2], image.shape[-1])).sigmoid()


class _Harmonized(nn.Module):
    """``composite, mask → composite`` at any size: all that ``color_map`` does."""

    def __init__(self, network: nn.Module, size: int, strength: float) -> None:
        super().__init__()
        self.network, self.size, self.strength = network, size, strength

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        side = (self.size, self.size)
        small = (_resized(picture, side).clamp(0, 1) for picture in (composite, mask))
        polynomial, grid = self.network(*small)
        moved = apply_color_map(composite, polynomial, grid, WHOLE)
        share = mask.mean((1, 2, 3), keepdim=True)
        partly = ((share > 0) & (share < 1)).to(composite.dtype)
        return torch.lerp(composite, moved, self.strength * partly * mask)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """As ``functional.resize``, which asks which side shrinks: here the filter knows by itself."""
    return nn.functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def parts(stage: StageModel) -> Exported:
    """What can be exported of ``stage``; ``UsageError`` for one without a network that we know."""
    network = getattr(stage, "network", None)
    if isinstance(network, PyramidNetwork) and stage.slot == "segmenter":
        module = _WholePicture(network, int(stage.hparams["size"]))
        rest = "closer looks at what was found, and dropping patches that are sure nowhere"
        return Exported(module, {"image": 3}, "mask", rest)
    if isinstance(network, PyramidNetwork) and stage.slot == "refiner":
        rest = (
            "the crop around the subject, a run at each size, and leaving exact alphas as they "
            "are, all of which the refiner 'onnx' does"
        )
        return Exported(network, {"image": 3, "mask": 1}, "change", rest)
    if isinstance(network, MultiStreamNetwork):
        inputs = dict(zip(("foreground", "background"), network.channels, strict=True))
        rest = (
            "solving for the alpha and the colours that the network is given, and for the colours "
            "under the alpha that it corrects"
        )
        return Exported(network, {k: v for k, v in inputs.items() if v}, "change", rest)
    if isinstance(stage, ColorMapModel):
        whole = _Harmonized(stage.network, stage.size, stage.strength)
        rest = "looking at a large photograph in parts, and moving a fuser's own layers"
        return Exported(whole, {"composite": 3, "mask": 1}, "harmonized", rest)
    raise UsageError(f"{type(stage).__name__} has no network that can be exported")


def export(stage: StageModel, path: str | Path) -> Exported:
    """Write the network of ``stage`` to a file that takes batches of pictures.

    Args:
        stage: a learned stage; it is exported as it answers in evaluation mode.
        path: ends in ``.onnx``, or in ``.pt2`` for ``torch.export.load``. Sides of the pictures are
            multiples of 32 and at least 64; those of a segmenter or refiner in ONNX any of at
            least 32.

    Raises:
        UsageError: another suffix, or a stage that has no network to export.
        MissingExtraError: onnx and onnxscript are not installed.
        ImageError: the file could not be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} has to end in {' or '.join(SUFFIXES)}")
    exported = parts(stage)
    # In channels-last layout, tracing would tie the program to some sizes.
    module = copy.deepcopy(exported.module).eval().to(memory_format=torch.contiguous_format)
    device = next(module.parameters()).device
    traced = path.suffix == ".pt2"
    height, width = 8 * MULTIPLE, 6 * MULTIPLE
    given = tuple(torch.rand(2, c, height, width, device=device) for c in exported.inputs.values())
    batch = torch.export.Dim("batch", min=1, max=4096)
    sides = [torch.export.Dim(name, **SIDES) for name in ("height", "width")]
    if traced or isinstance(module, MultiStreamNetwork):  # it would pad any other size
        sides = [MULTIPLE * torch.export.Dim(f"_{name}", min=2, max=512) for name in ("h", "w")]
    shapes = tuple({0: batch, 2: sides[0], 3: sides[1]} for _ in given)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of what torch says to the makers of operators
        if traced:
            program = torch.export.export(module, given, dynamic_shapes=shapes)
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            data = buffer.getvalue()
        else:
            data = _onnx(stage, exported, module, given, shapes)
    write_bytes(path, data)
    return exported


def _onnx(
    stage: StageModel, exported: Exported, module: nn.Module, given: Any, shapes: Any
) -> bytes:
    import_extra("onnxscript", "export to ONNX")
    program: Any = torch.onnx.export(
        module,
        given,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=list(exported.inputs),
        output_names=[exported.output],
        opset_version=OPSET,
        verbose=False,
    )
    about = {"slot": stage.slot, "options": dict(stage.hparams)}
    program.model.metadata_props[METADATA] = json.dumps(about, default=str, sort_keys=True)
    data: bytes = program.model_proto.SerializeToString()
    return data
