"""Stages as files that run without this library: ONNX, or a program of ``torch.export``.

What is exported is a stage's network, for pictures of any size and in batches. What a stage does
around it (looks again, solves a linear system) is not in the file; ``Exported.rest`` says it.
"""

from __future__ import annotations

import contextlib
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
from deep_image_compositing.models.base import StageModel

SUFFIXES = (".onnx", ".pt2")

OPSET = 18
"""Of ONNX: the first whose Resize filters against aliasing."""

METADATA = "deep_image_compositing"
"""Key of an ONNX file's metadata: slot and options of the stage, as JSON."""

SIDES = {"min": 32, "max": 16384}
"""Sides in pixels of the pictures that an exported network takes."""


@dataclass(frozen=True)
class Exported:
    """What is exported of a stage.

    Attributes:
        module: the network, with the resizing around it.
        inputs: channels of each input, by name.
        output: its name.
        rest: what the stage does beyond it.
    """

    module: nn.Module
    inputs: dict[str, int]
    output: str
    rest: str


class _WholePicture(nn.Module):
    """``image → mask`` at any size: a segmenter's look at the whole picture."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(_resized(image, (self.size, self.size)).clamp(0, 1))
        return _resized(logits, (image.shape[-2], image.shape[-1])).sigmoid()


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """As ``functional.resize``, which asks which side shrinks: here the filter knows by itself."""
    return nn.functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def parts(stage: StageModel) -> Exported:
    """What can be exported of ``stage``.

    Raises:
        UsageError: it has no network of a kind that is known here.
    """
    network: Any = getattr(stage, "network", None)
    if not isinstance(network, nn.Module):
        raise UsageError(f"{type(stage).__name__} has no network to export")
    if stage.slot == "segmenter" and hasattr(stage, "size"):
        module = _WholePicture(network, int(stage.size))  # type: ignore[arg-type]
        return Exported(module, {"image": 3}, "mask",
            "closer looks at what was found, and dropping stray patches")  # fmt: skip
    if stage.slot == "refiner" and hasattr(stage, "sizes"):
        return Exported(network, {"image": 3, "mask": 1}, "change",
            "the crop around the subject, a run at each size, and leaving exact alphas as they "
            "are: the refiner 'onnx' does it")  # fmt: skip
    if stage.slot == "fuser" and hasattr(network, "foreground_channels"):
        channels: dict[str, int] = {"foreground": network.foreground_channels}
        if network.background_channels:
            channels["background"] = network.background_channels
        return Exported(network, channels, "change",
            "the solved alpha and the colours that the network is given, and the colours under "
            "the alpha that it corrects")  # fmt: skip
    raise UsageError(f"{type(stage).__name__} cannot be exported: its network takes other inputs")


def export(stage: StageModel, path: str | Path, *, side: int = 256) -> Exported:
    """Write the network of ``stage`` to a file that takes batches of pictures of any size.

    Args:
        stage: a learned stage; it is exported as it answers in evaluation mode.
        path: ends in ``.onnx``, or in ``.pt2`` for ``torch.export.load``.
        side: of the pictures that it is tried on.

    Raises:
        UsageError: another suffix, or a stage that has no network to export.
        MissingExtraError: onnx and onnxscript are not installed.
        ImageError: the file could not be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} has to end in {' or '.join(SUFFIXES)}")
    exported = parts(stage)
    module = exported.module.eval()
    device = next(module.parameters()).device
    given = tuple(torch.rand(2, c, side, side, device=device) for c in exported.inputs.values())
    batch, height, width = (
        torch.export.Dim("batch", min=1, max=4096),
        torch.export.Dim("height", **SIDES),
        torch.export.Dim("width", **SIDES),
    )
    shapes = tuple({0: batch, 2: height, 3: width} for _ in given)
    with torch.no_grad(), _quiet():
        if path.suffix == ".pt2":
            program = torch.export.export(module, given, dynamic_shapes=shapes)
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            data = buffer.getvalue()
        else:
            data = _onnx(stage, exported, given, shapes)
    write_bytes(path, data)
    return exported


def _onnx(stage: StageModel, exported: Exported, given: Any, shapes: Any) -> bytes:
    import_extra("onnxscript", "export to ONNX")
    program: Any = torch.onnx.export(
        exported.module,
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


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what torch says to the makers of operators."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
