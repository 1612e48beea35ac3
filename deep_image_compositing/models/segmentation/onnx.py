"""Any exported ONNX model that turns an image into a mask, as a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

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
    """Runs an ONNX model at its own input size and resizes the mask back.

    The model sees ``(value · scale − mean) / std`` of values in [0, 1]. One that was trained on
    ``(v − m) / s`` of 8-bit values v takes ``scale=255``, ``mean=m`` and ``std=s``. Published
    models have names of their own, see ``PublishedModel``.

    Args:
        path: the ``.onnx`` file.
        size: side in pixels of the model's square input, or (height, width); by default the
            model's own, when its input has a fixed size, or was exported by this library.
        channels: order in which the model takes colours.
        mean: one number, or one a channel in the model's order.
        std: likewise; not 0.
        scale: factor of the values in [0, 1] before the mean is taken off; ``maximum`` divides
            them by the picture's own maximum instead.
        fit: ``stretch`` squeezes the picture to the input's size; ``pad`` keeps its aspect, and
            fills up the bottom and right.
        padding: with what: ``edge`` repeats the picture's border, ``black`` is 0.
        resample: how pictures and masks are resized: ``bilinear``, antialiased; or ``lanczos``, by
            Pillow in 8 bits.
        output: the model's output, by number or name.
        channel: of the output, which holds the subject; by default the only one, or the second
            of two (background, subject).
        logits: the output is not yet in [0, 1]: apply softmax over its channels if there are
            several, else sigmoid. ``auto``: do so where the output leaves [0, 1].
        min_max: stretch the mask so that it spans [0, 1].
        providers: onnxruntime's execution providers, in order of preference; the first has to
            work. By default that of the device on which it is run; the log says which.
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
        (given,) = self.file.session.get_inputs()[:1] or (None,)
        self._input = _describe_input(self.path, given)
        self.size = self._choose_size(size)
        names = [one.name for one in self.file.session.get_outputs()]
        if isinstance(output, str) and output not in names:
            raise UsageError(f"{path} has no output {output!r}; it has: {', '.join(names)}")
        if isinstance(output, int) and not 0 <= output < len(names):
            raise UsageError(f"{path} has {len(names)} outputs; output {output} is not among them")
        self.output = output if isinstance(output, str) else names[output]

    def use(self, device: torch.device) -> None:
        self.file.move(device, asked=True)

    def forward(self, image: Tensor) -> Tensor:
        self.file.move(image.device)
        height, width = image.shape[-2:]
        small, inner = self._fit_in(image.detach().to("cpu", torch.float32))
        if self.channels == "BGR":
            small = small.flip(1)
        if isinstance(self.scale, str):  # of each picture by itself; a black one stays black
            small = small / small.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
        else:
            small = small * self.scale
        values = ((small - self.mean) / self.std).numpy()
        masks = [self._belief(self._run(values[i : i + 1])) for i in range(len(values))]
        mask = torch.cat(masks)
        if self.fit == "pad" and self.size is not None:
            mask = self._resize(mask, self.size, 0)[..., : inner[0], : inner[1]]
        return self._resize(mask, (height, width), 0).to(image)

    def _belief(self, answer: Tensor) -> Tensor:
        """The mask (1, 1, h, w) in [0, 1] that the network's answer (1, C, h, w) stands for."""
        count = answer.shape[1]
        outside = not (float(answer.min()) >= -1e-3 and float(answer.max()) <= 1 + 1e-3)
        if self.apply_logits is True or (self.apply_logits == "auto" and outside):
            answer = answer.softmax(1) if count > 1 else answer.sigmoid()
        mask = answer[:, [self._subject_channel(count)]]
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
                f"the output of {self.path} has {count} channels; say with channel=0 to "
                f"{count - 1} which one holds the subject"
            )
        channel = count - 1 if self.channel is None else self.channel
        if not -count <= channel < count:
            raise UsageError(f"the output of {self.path} has {count} channels, no {channel}")
        return channel

    def _resize(self, picture: Tensor, size: tuple[int, int], rounding: float = 0.5) -> Tensor:
        """A picture or mask (B, C, H, W) in [0, 1] at another size.

        Lanczos' filter works on 8 bits, with no ``rounding`` for masks, as rembg has it.
        """
        if not self.lanczos:
            return resize(picture, size).clamp(0, 1)
        levels = (picture * 255 + rounding).clamp(0, 255).to(torch.uint8)
        resized = torch.empty(*levels.shape[:2], *size, dtype=torch.uint8)
        for source, target in zip(levels.flatten(0, 1), resized.flatten(0, 1), strict=True):
            plane = Image.fromarray(source.numpy()).resize(size[::-1], Image.Resampling.LANCZOS)
            target.copy_(torch.from_numpy(np.array(plane)))
        return resized / 255

    def _fit_in(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The picture at the model's size, and the part (height, width) of it that it fills."""
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
        """The model's output (1, C, h, w) for one normalised picture (1, 3, H, W)."""
        name, dtype, channels_last = self._input
        if channels_last:
            values = values.transpose(0, 2, 3, 1)
        if dtype is np.uint8:
            values = np.rint(values).clip(0, 255)
        feed: dict[str, Any] = {name: np.ascontiguousarray(values.astype(dtype))}
        raw = self.file.run(self.output, feed)
        answer = torch.from_numpy(np.asarray(raw, dtype=np.float32))
        if answer.ndim == 3:  # (1, h, w)
            answer = answer[:, None]
        elif answer.ndim == 2:
            answer = answer[None, None]
        elif answer.ndim == 4 and channels_last:
            answer = answer.permute(0, 3, 1, 2).contiguous()
        if answer.ndim != 4 or answer.shape[0] != 1:
            raise WeightsError(
                f"the output {self.output!r} of {self.path} has shape {np.shape(raw)}; expected "
                "one mask, such as (1, channels, height, width)"
            )
        return answer

    def _choose_size(self, size: int | Sequence[int] | None) -> tuple[int, int] | None:
        """(height, width) of the input; None for the picture's own."""
        shape = self.file.session.get_inputs()[0].shape
        own = tuple(shape[1:3] if self._input[2] else shape[2:4])
        fixed = own if all(isinstance(side, int) and side > 0 for side in own) else None
        if size is None:
            if fixed is None and self.file.described.get("slot") == "segmenter":
                return None
            if fixed is None:
                raise UsageError(f"{self.path} takes any input size; say which with size=")
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


def _describe_input(path: Path, given: Any) -> tuple[str, type, bool]:
    """Name, number type and whether channels come last, of a model's first input."""
    if given is None or given.type not in _DTYPES or len(given.shape) != 4:
        what = "nothing" if given is None else f"{given.type} of shape {given.shape}"
        raise WeightsError(f"{path} takes {what}; expected one picture, (N, 3, H, W) of floats")
    if given.shape[1] == 3:
        return given.name, _DTYPES[given.type], False
    if given.shape[3] == 3:
        return given.name, _DTYPES[given.type], True
    if isinstance(given.shape[1], int) and given.shape[1] > 0:
        raise WeightsError(f"{path} takes {given.shape[1]} channels; expected 3, a colour picture")
    return given.name, _DTYPES[given.type], False


def _per_channel(name: str, value: float | Sequence[float]) -> Tensor:
    """One or three numbers as (1, 1 or 3, 1, 1)."""
    try:
        numbers = [float(value)] if isinstance(value, int | float) else [float(v) for v in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 3) or not np.isfinite(numbers).all():
        raise UsageError(f"{name} must be one number, or three in a list, got {value!r}")
    return torch.tensor(numbers).view(1, -1, 1, 1)
