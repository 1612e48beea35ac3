"""Base classes of matting refiners, and the training of those with a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import dilate, trimap_from_mask
from deep_image_compositing.models.refinement.matting import MattingModel, SolvedMattingModel
from deep_image_compositing.models.refinement.trained import TrainedMattingModel
from deep_image_compositing.stages.base import Batch, Refiner, Step

EPSILON = 1e-6  # smooths the absolute value at 0 (Xu et al., 2017, section 4.1)


class MattingRefiner(MattingModel, Refiner):
    """``MattingModel`` as a stage."""


class SolvedMattingRefiner(SolvedMattingModel, MattingRefiner):
    """``SolvedMattingModel`` as a stage."""


class TrainedMattingRefiner(TrainedMattingModel, MattingRefiner):
    """``TrainedMattingModel`` as a stage, trained on random trimaps.

    Training batches hold ``image``, ``mask`` (rough), ``alpha`` (true) and, for the composition
    loss, ``foreground_color`` and the image's ``background``, as from ``MattingData``.

    Args:
        widths: minimum and maximum half width of the unknown band of a training trimap, in pixels.
    """

    def __init__(self, *, widths: tuple[int, int] = (2, 20), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(widths) != 2 or not 1 <= widths[0] <= widths[1]:
            raise UsageError(
                f"widths are a minimum and a maximum of at least 1 pixel, got {widths}"
            )
        self.widths = tuple(widths)

    def loss(self, batch: Batch) -> Step:
        trimap = self.random_trimap(batch)
        alpha, terms = self.terms(batch, trimap)
        output = torch.where(trimap == 0.5, alpha.detach().to(trimap), trimap)
        pictures = {"image": batch["image"], "trimap": trimap}
        pictures |= {"target": batch["alpha"], "output": output}
        return Step(torch.stack(list(terms.values())).sum(), terms, pictures)

    def terms(self, batch: Batch, trimap: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's alpha (B, 1, H, W) for a training batch, and the terms of its loss."""
        alpha = self.network(batch["image"], trimap)
        return alpha, matting_terms(alpha, batch, trimap)

    @torch.no_grad()
    def random_trimap(self, batch: Batch) -> Tensor:
        """Trimaps (B, 1, H, W) with unknown bands of random width.

        Each is derived from the true alpha or, with a probability of 0.5, from the rough mask. The
        band of the latter may miss parts of the transition, as in inference.
        """
        low, high = self.widths
        count = len(batch["alpha"])
        radii = torch.randint(low, high + 1, (count,)).tolist()
        exact = (torch.rand(count) < 0.5).tolist()
        items = zip(batch["alpha"].split(1), batch["mask"].split(1), radii, exact, strict=True)
        return torch.cat(
            [trimap_from_alpha(a, r) if e else trimap_from_mask(m, r) for a, m, r, e in items]
        )


def trimap_from_alpha(alpha: Tensor, radius: int) -> Tensor:
    """The trimap (B, 1, H, W) of an alpha: unknown within ``radius`` pixels of partial opacity.

    Values of ``alpha`` (B, 1, H, W) up to 0.02 count as 0, and from 0.98 on as 1.
    """
    subject = dilate(alpha > 0.02, radius)
    background = dilate(alpha < 0.98, radius)
    return (subject.to(alpha.dtype) + (~background).to(alpha.dtype)) / 2


def matting_terms(output: Tensor, batch: Batch, trimap: Tensor) -> dict[str, Tensor]:
    """Alpha and composition loss over unknown pixels, 0.5 each (Xu et al., 2017, section 4.1).

    ``output`` is an alpha (B, 1, H, W). Without ``foreground_color`` and ``background`` in
    ``batch``, the alpha loss has a weight of 1.
    """
    unknown = (trimap == 0.5).float()
    alpha = batch["alpha"].float()
    alpha_loss = distance(output, alpha, unknown)
    if "foreground_color" not in batch or "background" not in batch:
        return {"alpha": alpha_loss}
    color, background = batch["foreground_color"].float(), batch["background"].float()
    composite, true = (background + x.float() * (color - background) for x in (output, alpha))
    return {"alpha": 0.5 * alpha_loss, "composition": 0.5 * distance(composite, true, unknown)}


def distance(output: Tensor, target: Tensor, unknown: Tensor) -> Tensor:
    """Mean of ``sqrt(difference² + EPSILON²)`` over the unknown pixels, in float32.

    ``output`` and ``target`` are (B, C, H, W). ``unknown`` (B, 1, H, W) is 1 at unknown pixels,
    otherwise 0; without any, the mean is 0.
    """
    difference = output.float() - target.float()
    distances = (difference.square() + EPSILON**2).sqrt()
    return (distances * unknown).sum() / (unknown.sum() * output.shape[1]).clamp_min(1)
