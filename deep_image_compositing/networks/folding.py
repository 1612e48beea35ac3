"""Folding of batch norms into the preceding convolutions, for inference."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deep_image_compositing.networks.efficientnet_lite import EfficientNetLite, NormAct

# Modules that run their children in registration order.
_IN_ORDER = (nn.Sequential, EfficientNetLite)


def fold_norms(module: nn.Module) -> None:
    """Fold batch norms into convolutions in place; the output is the same up to rounding.

    The network can no longer be trained or saved. Other norms and timm's modules stay unchanged.
    Only for this library's networks: other code may access the children of its ``nn.Sequential``s.
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
            has_act = isinstance(norm, NormAct) and norm.act
            setattr(module, second, nn.ReLU6(inplace=True) if has_act else nn.Identity())
    for child in module.children():
        fold_norms(child)
