"""Segmenters that run ONNX models from image to mask: any file, or a published model by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deep_image_compositing import published
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.models.base import SegmenterModel
from deep_image_compositing.models.onnx_file import OnnxFile
from deep_image_compositing.options import check_choice

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


class OnnxModel(SegmenterModel):
    """Runs an ONNX model at its input size and resizes the mask back.

    The model's input is ``(value · scale − mean) / std`` for values in [0, 1]. For a model trained
    on ``(v − m) / s`` of 8-bit values v, set ``scale=255``, ``mean=m`` and ``std=s``. Published
    models are available by name, see ``PublishedModel``.

    Args:
        path: the ``.onnx`` file.
        size: side in pixels of a square input, or (height, width). Defaults to the model's fixed
            input size; models exported by this library with a dynamic one take any size.
        channels: channel order of the input.
        mean: one number, or one per channel in the model's order.
        std: likewise; not 0.
        scale: factor applied to values in [0, 1] before subtracting the mean; ``maximum``
            divides by the image's maximum instead.
        fit: ``stretch`` resizes to the input size; ``pad`` keeps the aspect ratio and pads bottom
            and right.
        padding: ``edge`` repeats the border, ``black`` pads with 0.
        resample: how images and masks are resized: ``bilinear``, antialiased; or ``lanczos``, by
            Pillow in 8 bits.
        output: index or name of the model's output.
        channel: output channel of the subject. Defaults to the only one, or the second of two
            (background, subject).
        logits: apply softmax over the output's channels, or sigmoid if there is only one;
            ``auto`` does so if the output leaves [0, 1].
        min_max: stretch the mask to span [0, 1].
        providers: onnxruntime execution providers in order of preference; the first must work.
            Defaults to the provider of the device in use, which is logged.
    """

    known_as = "onnx"

    def __init__(
        self,
        path: str,
        size: int | tuple[int, int] | None = None,
        channels: Literal["RGB", "BGR"] = "RGB",
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        scale: float | Literal["maximum"] = 1.0,
        fit: Literal["stretch", "pad"] = "stretch",
        padding: Literal["edge", "black"] = "edge",
        resample: Literal["bilinear", "lanczos"] = "bilinear",
        output: int | str = 0,
        channel: int | None = None,
        logits: bool | Literal["auto"] = False,
        min_max: bool = False,
        providers: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("channels", channels, ("RGB", "BGR"))
        check_choice("fit", fit, ("stretch", "pad"))
        check_choice("padding", padding, ("edge", "black"))
        check_choice("resample", resample, ("bilinear", "lanczos"))
        check_choice("logits", logits, (False, True, "auto"))
        if isinstance(scale, str):
            check_choice("scale", scale, ("a number", "maximum"))
        self.save_hyperparameters()
        self.file = OnnxFile(path, providers, f"the segmenter {self.known_as!r}")
        self.path = self.file.path
        self.channels = channels
        self.mean = _per_channel("mean", mean)
        self.std = _per_channel("std", std)
        if (self.std == 0).any():
            raise UsageError(f"std must not be 0, got {std}")
        self.scale = scale
        self.fit = fit
        self.padding = padding
        self.lanczos = resample == "lanczos"
        self.channel = channel
        self.apply_logits = logits
        self.min_max = min_max
        inputs = self.file.session.get_inputs()
        self._input = _describe_input(self.path, inputs[0] if inputs else None)
        self.size = self._choose_size(size)
        names = [x.name for x in self.file.session.get_outputs()]
        if isinstance(output, str) and output not in names:
            raise UsageError(f"{path} has no output {output!r}; it has: {', '.join(names)}")
        if isinstance(output, int) and not 0 <= output < len(names):
            raise UsageError(f"{path} has {len(names)} outputs; output {output} is not among them")
        self.output = output if isinstance(output, str) else names[output]

    def use(self, device: torch.device) -> None:
        self.file.move(device, required=True)

    def forward(self, image: Tensor) -> Tensor:
        self.file.move(image.device)
        height, width = image.shape[-2:]
        small, inner = self._fit_in(image.detach().to("cpu", torch.float32))
        if self.channels == "BGR":
            small = small.flip(1)
        if isinstance(self.scale, str):  # "maximum"; the floor keeps black images black
            small = small / small.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
        else:
            small = small * self.scale
        values = ((small - self.mean) / self.std).numpy()
        mask = torch.cat([self._to_mask(self._run(x[None])) for x in values])
        if self.fit == "pad" and self.size is not None:
            mask = self._resize(mask, self.size, 0)[..., : inner[0], : inner[1]]
        return self._resize(mask, (height, width), 0).to(image)

    def _to_mask(self, output: Tensor) -> Tensor:
        """Convert the model's output (1, C, h, w) to a mask (1, 1, h, w) in [0, 1]."""
        count = output.shape[1]
        outside = not (float(output.min()) >= -1e-3 and float(output.max()) <= 1 + 1e-3)
        if self.apply_logits is True or (self.apply_logits == "auto" and outside):
            output = output.softmax(1) if count > 1 else output.sigmoid()
        mask = output[:, [self._subject_channel(count)]]
        low, high = float(mask.min()), float(mask.max())
        if self.min_max and high > low:
            return (mask - low) / (high - low)
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise WeightsError(
                f"the output of {self.path} spans {low:g} to {high:g}, not 0 to 1; "
                "set logits=true if it stops before its sigmoid or softmax"
            )
        return mask.clamp(0, 1)

    def _subject_channel(self, count: int) -> int:
        if self.channel is None and count > 2:
            raise UsageError(
                f"the output of {self.path} has {count} channels; choose the one that holds the "
                f"subject with channel=0 to {count - 1}"
            )
        channel = count - 1 if self.channel is None else self.channel
        if not -count <= channel < count:
            raise UsageError(
                f"the output of {self.path} has {count} channels; there is no channel {channel}"
            )
        return channel

    def _resize(self, picture: Tensor, size: tuple[int, int], rounding: float = 0.5) -> Tensor:
        """Resize (B, C, H, W) in [0, 1]; Lanczos in 8 bits, truncating masks as rembg does."""
        if not self.lanczos:
            return resize(picture, size).clamp(0, 1)
        levels = (picture * 255 + rounding).clamp(0, 255).to(torch.uint8)
        resized = torch.empty(*levels.shape[:2], *size, dtype=torch.uint8)
        for source, target in zip(levels.flatten(0, 1), resized.flatten(0, 1), strict=True):
            plane = Image.fromarray(source.numpy()).resize(size[::-1], Image.Resampling.LANCZOS)
            target.copy_(torch.from_numpy(np.array(plane)))
        return resized / 255

    def _fit_in(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The image at the model's input size, and its (height, width) without padding."""
        if self.size is None:
            return image, (image.shape[-2], image.shape[-1])
        if self.fit == "stretch":
            return self._resize(image, self.size), self.size
        height, width = image.shape[-2:]
        factor = min(self.size[0] / height, self.size[1] / width)
        tall, wide = (max(1, round(side * factor)) for side in (height, width))
        inner = min(self.size[0], tall), min(self.size[1], wide)
        margins = (0, self.size[1] - inner[1], 0, self.size[0] - inner[0])
        mode = "replicate" if self.padding == "edge" else "constant"
        return torch.nn.functional.pad(self._resize(image, inner), margins, mode=mode), inner

    def _run(self, values: NDArray[np.float32]) -> Tensor:
        """The model's output (1, C, h, w) for one normalised image (1, 3, H, W)."""
        name, dtype, channels_last = self._input
        if channels_last:
            values = values.transpose(0, 2, 3, 1)
        if dtype is np.uint8:
            values = np.rint(values).clip(0, 255)
        feed: dict[str, Any] = {name: np.ascontiguousarray(values.astype(dtype))}
        raw = self.file.run(self.output, feed)
        output = torch.from_numpy(np.asarray(raw, dtype=np.float32))
        if output.ndim == 3:  # (1, h, w)
            output = output[:, None]
        elif output.ndim == 2:
            output = output[None, None]
        elif output.ndim == 4 and channels_last:
            output = output.permute(0, 3, 1, 2).contiguous()
        if output.ndim != 4 or output.shape[0] != 1:
            raise WeightsError(
                f"the output {self.output!r} of {self.path} has shape {np.shape(raw)}; expected "
                "one mask, such as (1, channels, height, width)"
            )
        return output

    def _choose_size(self, size: int | Sequence[int] | None) -> tuple[int, int] | None:
        """Input size (height, width); None to use the size of each image."""
        shape = self.file.session.get_inputs()[0].shape
        sides = tuple(shape[1:3] if self._input[2] else shape[2:4])
        fixed = sides if all(isinstance(side, int) and side > 0 for side in sides) else None
        if size is None:
            if fixed is None and self.file.metadata.get("slot") != "segmenter":
                raise UsageError(f"{self.path} takes any input size; choose one with size=")
            return fixed
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or min(sides) < 1:
            raise UsageError(f"size must be one side or (height, width), at least 1, got {size}")
        if fixed is not None and sides != fixed:
            raise UsageError(
                f"{self.path} takes pictures of {fixed[0]} x {fixed[1]} pixels (height x width), "
                f"not {sides[0]} x {sides[1]}; leave size out"
            )
        return sides


class PublishedModel(OnnxModel):
    """A published model with its authors' preprocessing; see ``deep_image_compositing.published``.

    Args:
        model: name of the model.
        path: model file, used without verification. Defaults to the one in the models folder,
            downloaded from the authors' address on first use.
        accept_licence: accept a licence that excludes commercial use; remembered.
        providers: as for ``OnnxModel``.

    Raises:
        UsageError: no such model, or a licence that has not been accepted.
        WeightsError: the file cannot be downloaded, or is not the expected one.
    """

    long_side = 2048  # twice the largest input size, so that resizing matches the authors' code

    def __init__(
        self,
        model: str,
        path: str | None = None,
        accept_licence: bool = False,
        providers: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        entry = published.get(model)
        self.known_as = model
        if path is None:
            file = str(published.fetch(entry, accept_licence=accept_licence))
        else:
            published.check_licence(entry, accept_licence)
            file = path
        super().__init__(file, providers=providers, **{**entry.options, **kwargs})
        self.save_hyperparameters()


def _describe_input(path: Path, model_input: Any) -> tuple[str, type, bool]:
    """Name and dtype of a model's first input, and whether channels come last."""
    shape = [] if model_input is None else model_input.shape
    if len(shape) != 4 or model_input.type not in _DTYPES:
        found = "nothing" if model_input is None else f"{model_input.type} of shape {shape}"
        raise WeightsError(f"{path} takes {found}; expected one picture, (N, 3, H, W) of floats")
    channels_last = shape[1] != 3 and shape[3] == 3
    if not channels_last and isinstance(shape[1], int) and shape[1] > 0 and shape[1] != 3:
        raise WeightsError(f"{path} takes {shape[1]} channels; expected 3, a colour picture")
    return model_input.name, _DTYPES[model_input.type], channels_last


def _per_channel(name: str, value: float | Sequence[float]) -> Tensor:
    """One or three numbers as a tensor (1, 1 or 3, 1, 1)."""
    try:
        numbers = [float(value)] if isinstance(value, int | float) else [float(v) for v in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 3) or not np.isfinite(numbers).all():
        raise UsageError(f"{name} must be one number, or three in a list, got {value!r}")
    return torch.tensor(numbers).view(1, -1, 1, 1)
