"""The two-stage network of Deep Image Matting (Xu et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.resize import pad_to_multiple
from deep_image_compositing.networks.backbone import Backbone

CHANNELS = (64, 128, 256, 512, 512)  # of the five scales of VGG-16, finest first
CONVOLUTIONS = (2, 2, 3, 3, 3)  # number of convolutions at each scale
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DeepImageMattingNetwork(nn.Module):
    """Predicts alpha from an image and a trimap: an encoder-decoder and a refinement stage.

    The encoder has VGG-16's thirteen convolutions, with a fourth input channel for the trimap, and
    a fourteenth of kernel size ``context``. The decoder has max unpooling and one 5 x 5 convolution
    per scale. Four more convolutions refine its alpha.

    Not in the paper: ``width``, a factor on all channels; ``batch_norm``; ``skips``, which add the
    encoder's features to the decoder's and speed up training; and ``features``, a backbone whose
    features are added to the encoder's through projections initialised to zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: float = 1.0,
        context: int = 1,
        batch_norm: bool = False,
        skips: bool = False,
        refine: bool = True,
        features: Backbone | None = None,
    ) -> None:
        super().__init__()
        if not 0 < width <= 10:
            raise UsageError(f"width must be above 0 and at most 10, got {width}")
        if not 1 <= context <= 31 or context % 2 == 0:
            raise UsageError(f"context is the side of a kernel, odd and 1 to 31, got {context}")
        self.skips = skips

        def convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
            parts: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)]
            if batch_norm:
                parts.append(nn.BatchNorm2d(outputs))
            return nn.Sequential(*parts, nn.ReLU(inplace=True))

        channels = [max(8, 8 * round(width * c / 8)) for c in CHANNELS]
        first, last = channels[0], channels[-1]
        self.encoder = nn.ModuleList()
        inputs = 4
        for outputs, count in zip(channels, CONVOLUTIONS, strict=True):
            scale = [convolution(inputs if i == 0 else outputs, outputs, 3) for i in range(count)]
            self.encoder.append(nn.Sequential(*scale))
            inputs = outputs
        self.bottom = nn.Sequential(convolution(last, last, context), convolution(last, last, 1))
        self.decoder = nn.ModuleList(
            convolution(inputs, outputs, 5)
            for inputs, outputs in zip(channels[::-1], [*channels[-2::-1], first], strict=True)
        )
        self.head = nn.Conv2d(first, 1, 5, padding=2)
        self.refinement: nn.Sequential | None = None
        if refine:
            three = [convolution(inputs, first, 3) for inputs in (4, first, first)]
            self.refinement = nn.Sequential(*three, nn.Conv2d(first, 1, 3, padding=1))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self._initialize()
        self.features = features
        self.projections = nn.ModuleDict()
        if features is not None:
            for stride, count in zip(features.strides, features.channels, strict=True):
                scale_index = stride.bit_length() - 1
                projection = nn.Conv2d(count, channels[scale_index - 1], 1, bias=False)
                nn.init.zeros_(projection.weight)
                self.projections[str(scale_index)] = projection

    def _initialize(self) -> None:
        """Variance-preserving random weights; the refinement starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.xavier_normal_(self.head.weight)
        if self.refinement is not None:
            nn.init.zeros_(self.refinement[-1].weight)  # type: ignore[arg-type]

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        """Alpha (B, 1, H, W) for ``image`` (B, 3, H, W) and ``trimap`` (B, 1, H, W), in [0, 1]."""
        return self.stages(image, trimap)[-1]

    def stages(self, image: Tensor, trimap: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha of the encoder-decoder and of the refinement (if any), (B, 1, H, W) each."""
        x = torch.cat([(image - self.mean) / self.std, trimap], 1)
        x, (height, width) = pad_to_multiple(x, 32)
        added = {}
        if self.features is not None:
            features = self.features(pad_to_multiple(image, 32)[0])
            for (scale, project), feature in zip(self.projections.items(), features, strict=True):
                added[int(scale)] = project(feature)
        logits = self._encode_and_decode(x, added)
        raw = logits.sigmoid()
        refined = raw
        if self.refinement is not None:
            refined = (logits + self.refinement(torch.cat([x[:, :3], raw], 1))).sigmoid()
        return raw[..., :height, :width], refined[..., :height, :width]

    def _encode_and_decode(self, x: Tensor, added: Mapping[int, Tensor]) -> Tensor:
        """Logits (B, 1, H, W) from normalised image and trimap (B, 4, H, W)."""
        indices, features = [], []
        for number, scale in enumerate(self.encoder):
            x = scale(x + added[number] if number in added else x)
            features.append(x if self.skips else None)
            x, index = F.max_pool2d(x, 2, return_indices=True)
            indices.append(index)
        x = self.bottom(x)
        for convolution in self.decoder:
            x = F.max_unpool2d(x, indices.pop(), [2, 2])
            skip = features.pop()
            x = convolution(x if skip is None else x + skip)
        return self.head(x)

    def load_vgg(self, pretrained: str) -> None:
        """Initialise the encoder with VGG-16; weights for the trimap are zero.

        ``pretrained`` is as for ``Backbone``, for timm's ``vgg16`` (``vgg16_bn`` with batch norm)
        or torchvision's. Raises ``UsageError`` unless this network has VGG's width.
        """
        has_norm = isinstance(self.encoder[0][0][1], nn.BatchNorm2d)  # type: ignore[index]
        name = "vgg16_bn" if has_norm else "vgg16"
        if self.head.in_channels != CHANNELS[0]:
            raise UsageError(f"weights of {name} need width=1.0")
        source = Backbone(name, pretrained, extra_channels=1, max_stride=16).body.state_dict()
        names = self.encoder.state_dict()
        self.encoder.load_state_dict(dict(zip(names, source.values(), strict=True)))


# Published checkpoints


def _published_names() -> dict[str, tuple[str, str]]:
    """Name of each convolution here, to the published flat name and MMEditing's."""
    names = {
        "bottom.0.0": ("conv6_1", "backbone.encoder.conv6"),
        "bottom.1.0": ("deconv6_1", "backbone.decoder.deconv6_1"),
        "head": ("deconv1", "backbone.decoder.deconv1"),
        "refinement.3": ("refine_pred", "refiner.refine_pred"),
    }
    for scale, count in enumerate(CONVOLUTIONS):
        for i in range(count):
            mmediting = f"backbone.encoder.layer{scale + 1}.{2 * i}"
            names[f"encoder.{scale}.{i}.0"] = (f"conv{scale + 1}_{i + 1}", mmediting)
    for i in range(5):
        name = f"deconv{5 - i}_1"
        names[f"decoder.{i}.0"] = (name, f"backbone.decoder.{name}")
    for i in range(3):
        names[f"refinement.{i}.0"] = (f"refine_conv{i + 1}", f"refiner.refine_conv{i + 1}")
    return names


def is_published(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has the parameter names of a public PyTorch implementation."""
    return any(f"{name}.weight" in state for name in _published_names()["encoder.0.0.0"])


def published_options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Network options for a published ``state``; no released checkpoint has ``skips``."""
    shapes = {name: value.shape for name, value in from_published(state).items()}
    return {
        "width": (*shapes.get("encoder.0.0.0.weight", ()), 0)[0] / CHANNELS[0],
        "context": (1, *shapes.get("bottom.0.0.weight", ()))[-1],
        "batch_norm": False,
        "skips": False,
        "refine": "refinement.3.weight" in shapes,
    }


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a published state dict to ``DeepImageMattingNetwork``; unknown names stay.

    Supports github.com/huochaitiantang/pytorch-deep-image-matting (flat names) and MMEditing, both
    trained on inputs as this network takes them.
    """
    names = {theirs: ours for ours, both in _published_names().items() for theirs in both}
    translated = {}
    for key, value in state.items():
        layer, _, parameter = key.rpartition(".")
        translated[f"{names.get(layer, layer)}.{parameter}"] = value
    return translated
