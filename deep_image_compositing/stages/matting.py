"""Matting refiners to derive from, and how those with a network are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import dilate, trimap_from_mask
from deep_image_compositing.models.refinement.matting import MattingModel, SolvedMattingModel
from deep_image_compositing.models.refinement.trained import TrainedMattingModel
from deep_image_compositing.stages.base import Batch, Refiner, Step

EPSILON = 1e-6  # where the losses turn from round to straight (Xu et al., 2017, section 4.1)


class MattingRefiner(MattingModel, Refiner):
    """``MattingModel`` as a stage."""


class SolvedMattingRefiner(SolvedMattingModel, MattingRefiner):
    """``SolvedMattingModel`` as a stage."""


class TrainedMattingRefiner(TrainedMattingModel, MattingRefiner):
    """``TrainedMattingModel`` as a stage: random trimaps, alpha and composition loss.

    Training batches hold ``image``, ``mask`` (rough), ``alpha`` (true) and, for the composition
    loss, ``foreground_color`` and ``background`` (the old one); ``MattingData`` makes them.

    Args:
        widths: least and greatest half width, in pixels of the training crops, of the unknown
            band of a random trimap in training.
    """

    def __init__(self, *, widths: tuple[int, int] = (2, 20), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(widths) != 2 or not 1 <= widths[0] <= widths[1]:
            raise UsageError(
                f"widths are the least and the greatest, of at least 1 pixel, got {widths}"
            )
        self.widths = tuple(widths)

    def loss(self, batch: Batch) -> Step:
        trimap = self.random_trimap(batch)
        answer, terms = self.terms(batch, trimap)
        output = torch.where(trimap == 0.5, answer.detach().to(trimap), trimap)
        pictures = {"image": batch["image"], "trimap": trimap}
        pictures |= {"target": batch["alpha"], "output": output}
        return Step(torch.stack(list(terms.values())).sum(), terms, pictures)

    def terms(self, batch: Batch, trimap: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's alpha (B, 1, H, W) for a training batch, and the terms of its loss."""
        answer = self.network(batch["image"], trimap)
        return answer, matting_terms(answer, batch, trimap)

    @torch.no_grad()
    def random_trimap(self, batch: Batch) -> Tensor:
        """A trimap (B, 1, H, W) a training sample, of random width.

        Half of them from the true alpha; the others from the rough mask, whose band need not hold
        the whole rim, as later in use.
        """
        low, high = self.widths
        count = len(batch["alpha"])
        radii = torch.randint(low, high + 1, (count,)).tolist()
        exact = (torch.rand(count) < 0.5).tolist()
        items = zip(batch["alpha"].split(1), batch["mask"].split(1), radii, exact, strict=True)
        made = [trimap_from_alpha(a, r) if e else trimap_from_mask(m, r) for a, m, r, e in items]
        return torch.cat(made)


def trimap_from_alpha(alpha: Tensor, radius: int) -> Tensor:
    """The trimap of a known alpha: unknown within ``radius`` of any opacity between 0 and 1.

    Alphas (B, 1, H, W) up to 0.02 count as 0, from 0.98 on as 1.
    """
    subject = dilate(alpha > 0.02, radius)
    background = dilate(alpha < 0.98, radius)
    return (subject.to(alpha.dtype) + (~background).to(alpha.dtype)) / 2


def matting_terms(answer: Tensor, batch: Batch, trimap: Tensor) -> dict[str, Tensor]:
    """Alpha and composition loss over what is unknown, half of each (Xu et al., 2017, section 4.1).

    Without ``foreground_color`` and ``background`` in ``batch`` the alpha loss counts whole.
    """
    unknown = (trimap == 0.5).float()
    alpha = batch["alpha"].float()
    apart = distance(answer, alpha, unknown)
    if "foreground_color" not in batch or "background" not in batch:
        return {"alpha": apart}
    color, background = batch["foreground_color"].float(), batch["background"].float()
    made, true = (background + x.float() * (color - background) for x in (answer, alpha))
    return {"alpha": 0.5 * apart, "composition": 0.5 * distance(made, true, unknown)}


def distance(answer: Tensor, target: Tensor, unknown: Tensor) -> Tensor:
    """Mean of ``sqrt(difference² + EPSILON²)`` over the unknown pixels, in single precision.

    ``unknown`` (B, 1, H, W) is 1 where a pixel counts, else 0; with none, the mean is 0.
    """
    difference = answer.float() - target.float()
    apart = (difference.square() + EPSILON**2).sqrt()
    return (apart * unknown).sum() / (unknown.sum() * answer.shape[1]).clamp_min(1)
