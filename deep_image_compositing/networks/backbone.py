"""Feature extractors from timm; that of the shipped weights is built without importing timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.networks import efficientnet_lite
from deep_image_compositing.weights import check_finite, read_state


class Backbone(nn.Module):
    """A timm backbone that takes images in [0, 1] and returns one feature map per stride.

    Images are normalised inside. ``channels`` and ``strides`` list the features, finest first.

    Args:
        name: a timm model name that supports ``features_only``.
        pretrained: None for random weights, ``pretrained`` to download timm's weights, or the path
            of a checkpoint with timm's parameter names (.safetensors, or .pth without code).
        extra_channels: input channels after RGB, such as a mask, initialised with zero weights.
        max_stride: maximum stride of the features.
        freeze_stride: layers up to this stride keep their weights and statistics in training.

    Raises:
        UsageError: timm has no such backbone.
        WeightsError: the weights cannot be downloaded or do not fit.
    """

    body: Any  # timm's feature extractors are untyped
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: str | None = None,
        extra_channels: int = 0,
        max_stride: int = 32,
        freeze_stride: int = 0,
    ) -> None:
        super().__init__()
        fetch = pretrained == "pretrained"
        self.body, features, mean, std = _make_body(name, max_stride, fetch)
        self._name, self._side = name, getattr(self.body, "fixed_side", None)
        self._dropped = _drop_after(self.body, features[-1]["module"])
        self.register_load_state_dict_pre_hook(_ignore_dropped)
        self.channels: list[int] = [feature["num_chs"] for feature in features]
        self.strides: list[int] = [feature["reduction"] for feature in features]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        if pretrained and not fetch:
            load_backbone(self.body, pretrained, name)
        stem = _widen_stem(self.body, extra_channels) if extra_channels else None
        # A widened stem is never frozen: its weights for the extra channels are still zero.
        frozen = [f["module"] for f in features if f["reduction"] <= freeze_stride][-1:]
        modules = [m for last in frozen for m in _modules_up_to(self.body, last)]
        self._frozen = [m for m in modules if m is not stem]
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """As in torch; frozen layers stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, image: Tensor, extra: Tensor | None = None) -> list[Tensor]:
        """Features, finest first, of ``image`` (B, 3, H, W) in [0, 1].

        ``extra`` (B, extra_channels, H, W) in [0, 1] is rescaled to [-1, 1] inside. Raises
        ``UsageError`` for the wrong size if the backbone takes a fixed one.
        """
        if self._side is not None and tuple(image.shape[-2:]) != self._side:
            expected, actual = ("{1} x {0}".format(*x) for x in (self._side, image.shape[-2:]))
            raise UsageError(
                f"the timm backbone {self._name!r} takes pictures of {expected} pixels only, got "
                f"{actual}: use that size, or a backbone that takes any size"
            )
        x = (image - self.mean) / self.std
        if extra is not None:
            x = torch.cat([x, extra * 2 - 1], dim=1)
        channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")  # Swin
        return [feature.movedim(-1, 1) if channels_last else feature for feature in self.body(x)]


def _make_body(
    name: str, max_stride: int, fetch: bool
) -> tuple[Any, list[dict[str, Any]], tuple[float, ...], tuple[float, ...]]:
    """A feature extractor, timm's description of its features, and its input's mean and deviation.

    The features are those whose stride is at most ``max_stride``, finest first.
    """
    if name == efficientnet_lite.NAME and not fetch:
        features = [f for f in efficientnet_lite.FEATURES if f["reduction"] <= max_stride]
        lite = efficientnet_lite.EfficientNetLite(features)
        return lite, features, efficientnet_lite.MEAN, efficientnet_lite.STD
    import timm

    if not timm.is_model(name):
        similar = ", ".join([model for model in timm.list_models() if name in model][:5])
        raise UsageError(
            f"timm has no backbone {name[:80]!r}" + (f"; similar: {similar}" if similar else "")
        )
    try:
        with torch.device("meta"):
            probe: Any = timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, ValueError) as error:
        raise UsageError(f"the timm backbone {name!r} provides no features: {error}") from error
    features = [f for f in probe.feature_info.get_dicts() if f["reduction"] <= max_stride]
    indices = tuple(range(len(features)))
    body: Any
    try:
        body = timm.create_model(name, pretrained=fetch, features_only=True, out_indices=indices)
    except (RuntimeError, OSError, ValueError) as error:
        if not fetch:
            raise
        raise WeightsError(
            f"the pretrained weights of {name!r} could not be fetched ({error}); give a local "
            "checkpoint file instead of 'pretrained', or none to start from random weights"
        ) from error
    config: Any = timm.get_pretrained_cfg(name)
    if getattr(config, "fixed_input_size", False):
        body.fixed_side = tuple(config.input_size[1:])
    mean = getattr(config, "mean", None) or (0.485, 0.456, 0.406)
    return body, features, mean, getattr(config, "std", None) or (0.229, 0.224, 0.225)


def _drop_after(body: Any, module: str) -> tuple[str, ...]:
    """Remove blocks after ``module``, the last feature, which timm would run; their prefixes."""
    parent, _, last = module.rpartition(".")
    blocks = getattr(body, parent, None) if parent else None
    if not isinstance(blocks, nn.Sequential) or not last.isdigit():
        return ()
    dropped = tuple(f"body.{parent}.{i}." for i in range(int(last) + 1, len(blocks)))
    setattr(body, parent, blocks[: int(last) + 1])
    return dropped


def _ignore_dropped(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load-state hook of ``Backbone``: ignore weights of removed blocks."""
    dropped = tuple(prefix + name for name in cast(Backbone, module)._dropped)
    for key in [key for key in state if key.startswith(dropped)]:
        del state[key]


def _modules_up_to(body: Any, name: str) -> list[nn.Module]:
    """Leaf modules, norms included, up to the last one of the module ``name``."""
    leaves = [
        (_flat(key), m)
        for key, m in body.named_modules()
        # timm's norms have weights and an activation submodule.
        if not any(m.children()) or any(True for _ in m.parameters(recurse=False))
    ]
    last = max((i for i, (key, _) in enumerate(leaves) if key.startswith(_flat(name))), default=-1)
    return [module for _, module in leaves[: last + 1]]


def load_backbone(body: nn.Module, path: str | Path, name: str) -> None:
    """Load a checkpoint with timm's parameter names into a ``features_only`` model.

    Layers that the model lacks are ignored. Raises ``WeightsError`` for a missing file, or a
    missing or wrongly shaped parameter.
    """
    if not Path(path).is_file():
        raise WeightsError(f"no checkpoint for the backbone {name!r} at {path}")
    flat = {_flat(key): value for key, value in read_state(path).items()}
    state: dict[str, Tensor] = {}
    for key, current in body.state_dict().items():
        value = flat.get(_flat(key))
        if value is None and key.endswith("num_batches_tracked"):
            value = current
        if value is None or value.shape != current.shape:
            reason = "is missing" if value is None else f"has shape {tuple(value.shape)}"
            raise WeightsError(
                f"{path} does not fit the timm backbone {name!r}: {key} {reason}, "
                f"expected {tuple(current.shape)}"
            )
        state[key] = value
    check_finite(path, state)
    body.load_state_dict(state)


def _flat(key: str) -> str:
    """Normalise timm's two spellings of parameter names, ``layer1.0`` and ``layer1_0``."""
    return key.replace("_", ".")


def _widen_stem(body: nn.Module, extra: int) -> nn.Module:
    """Add ``extra`` input channels of zero weight to the first convolution, and return it."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            new = module.weight.new_zeros(module.out_channels, extra, *module.kernel_size)
            module.weight = nn.Parameter(torch.cat([module.weight.detach(), new], dim=1))
            module.in_channels = 3 + extra
            return module
    raise UsageError("this backbone has no 3-channel convolution to extend by a mask")
