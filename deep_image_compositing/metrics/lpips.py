"""LPIPS (Zhang et al., CVPR 2018) over the whole image and inside the band.

Uses the network and heads of torchmetrics and a local copy of torchvision's AlexNet weights; it
never downloads.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import WeightsError
from deep_image_compositing.files import at_home
from deep_image_compositing.metrics.composites import check_pair
from deep_image_compositing.weights import read_state

SMALLEST = 64  # minimum height and width: below, AlexNet's features are not meaningful


class LPIPS(nn.Module):
    """Distance between two images in AlexNet feature space, weighted by the published heads.

    ``weights`` is torchvision's AlexNet (``alexnet-owt-7be5be79.pth``) or a safetensors file with
    the same names; None for the copy in torch hub's folder. Raises ``WeightsError`` otherwise.
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

        with torch.random.fork_rng(devices=[]):  # the random initialization is discarded
            self.network: Any = _LPIPS(net="alex", pnet_rand=True)
        state = read_state(path)
        names = dict(self.network.net.named_parameters())
        try:
            # Slices keep torchvision's layer numbers: slice2.3.weight is features.3.weight.
            renamed = {name: state["features." + name.split(".", 1)[1]] for name in names}
            self.network.net.load_state_dict(renamed)
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
        """Distance over the image, and the mean of its map over ``band`` (1, H, W) bool.

        Images are (3, H, W) in [0, 1]. Both values are NaN for a height or width below 64 pixels,
        the second one also if there is no band or it is empty.
        """
        check_pair(composite, truth, 3)
        size = tuple(composite.shape[1:])
        if min(size) < SMALLEST:
            return float("nan"), float("nan")
        one, other = (
            self.network.net(self.network.scaling_layer(2 * x[None].float() - 1))
            for x in (composite, truth)
        )
        total = inside = 0.0
        for a, b, head in zip(one, other, self.network.lins, strict=True):
            distance = head((_unit(a) - _unit(b)) ** 2)
            total += float(distance.mean())
            if band is not None:
                upsampled = F.interpolate(distance, size, mode="bilinear", align_corners=False)
                inside += float(upsampled[0, band].mean())
        return total, inside if band is not None else float("nan")


def find_lpips(weights: str | Path | None = None) -> tuple[LPIPS | None, str]:
    """Load LPIPS if its weights are available, else return None and the reason, for a report.

    Raises ``WeightsError`` if ``weights`` is set but invalid.
    """
    try:
        return LPIPS(weights), ""
    except WeightsError as error:
        if weights is not None:
            raise
        return None, str(error)


def _cached() -> Path:
    """The path of torchvision's AlexNet in torch hub's folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns about unrelated extensions
        from torchvision.models import AlexNet_Weights  # type: ignore[import-untyped]

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()
