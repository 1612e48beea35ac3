"""LPIPS (Zhang et al., CVPR 2018) over the picture and inside the band; never downloads.

The network and its heads are torchmetrics', AlexNet's weights torchvision's from this machine.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.files import at_home
from deep_image_compositing.metrics.composites import check_pair
from deep_image_compositing.weights import read_state

SMALLEST = 64  # pixels that a picture needs either way: AlexNet's features of fewer say little


class LPIPS(nn.Module):
    """The distance of two pictures in AlexNet's features, by the published heads.

    ``weights`` are torchvision's AlexNet (``alexnet-owt-7be5be79.pth``), or a safetensors file of
    the same names; None for the copy in torch hub's folder. Raises ``WeightsError`` for others.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        path = _cached() if weights is None else at_home(weights)
        if not path.is_file():
            missing = f"{path.name} in torch hub's folder" if weights is None else f"file {path}"
            raise WeightsError(
                f"LPIPS needs torchvision's AlexNet weights, and there is no {missing}; nothing "
                "is downloaded: name a file with lpips_weights, or put it there"
            )
        from torchmetrics.functional.image.lpips import _LPIPS

        with torch.random.fork_rng(devices=[]):  # the numbers it starts from are thrown away
            self.network: Any = _LPIPS(net="alex", pnet_rand=True)
        state = read_state(path)
        names = dict(self.network.net.named_parameters())
        try:
            # The slices keep the numbers of torchvision's layers: slice2.3.weight was features.3's.
            own = {name: state["features." + name.split(".", 1)[1]] for name in names}
            self.network.net.load_state_dict(own)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{path} is no AlexNet of torchvision: {error}") from None
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, composite: Tensor, truth: Tensor, band: Tensor | None = None
    ) -> tuple[float, float]:
        """Distance over the picture, and the mean of its map over ``band`` (1, H, W), boolean.

        Pictures are (3, H, W) in [0, 1], at least 64 pixels either way. Without a band, or with an
        empty one, the second figure is NaN.
        """
        check_pair(composite, truth, 3)
        size = tuple(composite.shape[1:])
        if min(size) < SMALLEST:
            raise UsageError(f"LPIPS needs at least {SMALLEST} pixels either way, got {size}")
        one, other = (
            self.network.net(self.network.scaling_layer(2 * x[None].float() - 1))
            for x in (composite, truth)
        )
        total = inside = 0.0
        for a, b, head in zip(one, other, self.network.lins, strict=True):
            distance = head((_unit(a) - _unit(b)) ** 2)
            total += float(distance.mean())
            if band is not None:
                spread = F.interpolate(distance, size, mode="bilinear", align_corners=False)
                inside += float(spread[0, band].mean())
        return total, inside if band is not None else float("nan")


def find_lpips(weights: str | Path | None = None) -> tuple[LPIPS | None, str]:
    """LPIPS if its weights are at hand, or None, and the reason why not, for a report.

    Raises ``WeightsError`` when ``weights`` are given but not right.
    """
    try:
        return LPIPS(weights), ""
    except WeightsError as error:
        if weights is not None:
            raise
        return None, str(error)


def _cached() -> Path:
    """Where torch hub keeps torchvision's AlexNet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns of parts that this has no use for
        from torchvision.models import AlexNet_Weights  # type: ignore[import-untyped]

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()
