"""Batch norms taken into the convolutions before them, for networks that only run."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deep_image_compositing.networks.efficientnet_lite import (
    EfficientNetLite,
    InvertedResidual,
    NormAct,
    SeparableBlock,
)

# Modules that run what they hold in the order in which they hold it.
_IN_ORDER = (nn.Sequential, EfficientNetLite, InvertedResidual, SeparableBlock)


def fold_norms(module: nn.Module) -> None:
    """Fold batch norms into convolutions, in place: the same answers, but for rounding, and faster.

    The network can be neither trained nor saved; other norms, and timm's modules, stay. For the
    library's own networks: somebody else's ``nn.Sequential`` may be looked into from outside.
    """
    module.eval()
    if type(module).__module__.startswith("timm."):
        return
    children = list(module.named_children())
    for (first, convolution), (second, norm) in pairwise(children):
        if not isinstance(module, _IN_ORDER) or not isinstance(convolution, nn.Conv2d):
            continue
        if isinstance(norm, nn.BatchNorm2d) and type(norm) in (nn.BatchNorm2d, NormAct):
            setattr(module, first, fuse_conv_bn_eval(convolution, norm))
            acts = isinstance(norm, NormAct) and norm.act
            setattr(module, second, nn.ReLU6(inplace=True) if acts else nn.Identity())
    for child in module.children():
        fold_norms(child)
