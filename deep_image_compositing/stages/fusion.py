"""The fusers of ``models.fusion`` as LightningModules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.lift import follow_guide, make_guide
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.losses import laplacian_loss
from deep_image_compositing.models.base import Layers
from deep_image_compositing.models.fusion.classical import (
    AlphaModel,
    CopyPasteModel,
    FeatherModel,
    LaplacianModel,
)
from deep_image_compositing.models.fusion.multi_stream import (
    MultiStreamModel,
    SingleStreamModel,
    band_trimap,
)
from deep_image_compositing.models.fusion.poisson import PoissonModel
from deep_image_compositing.stages.base import Batch, Fuser, Step


class AlphaFuser(AlphaModel, Fuser):
    """``AlphaModel`` as a stage."""


class CopyPasteFuser(CopyPasteModel, Fuser):
    """``CopyPasteModel`` as a stage."""


class FeatherFuser(FeatherModel, Fuser):
    """``FeatherModel`` as a stage."""


class LaplacianFuser(LaplacianModel, Fuser):
    """``LaplacianModel`` as a stage."""


class PoissonFuser(PoissonModel, Fuser):
    """``PoissonModel`` as a stage."""


class MultiStreamFuser(MultiStreamModel, Fuser):
    """``MultiStreamModel`` as a stage, with losses for both heads."""

    def loss(self, batch: Batch) -> Step:
        """The paper's loss; with the head ``layers``, over the band and with more terms."""
        if self.head == "rgb":
            return super().loss(batch)
        layers, batch = self._training_layers(batch)
        output = over(layers.foreground_color, layers.alpha, batch["background"])
        alpha = batch["alpha"]
        # Outside the band nothing can change, which would dilute means over the whole image.
        share = (band_trimap(batch["mask"], self.radius) == 0.5).float().mean().clamp_min(0.05)
        terms = {k: v / share for k, v in self.composite_loss(output, batch["composite"]).items()}
        terms["alpha"] = F.l1_loss(layers.alpha, alpha) / share
        terms["alpha_laplacian"] = 0.2 * laplacian_loss(layers.alpha, alpha) / share
        color = (layers.foreground_color - batch["foreground_color"]).abs() * alpha
        terms["color"] = 0.5 * color.mean() / share
        pictures = {"photograph": batch["foreground"], "mask": batch["mask"]}
        pictures |= {"background": batch["background"], "alpha": alpha}
        pictures |= {"output alpha": layers.alpha, "target": batch["composite"], "output": output}
        return Step(torch.stack(list(terms.values())).sum(), terms, pictures)

    def _training_layers(self, batch: Batch) -> tuple[Layers, Batch]:
        """The networks' layers for a batch, and the batch with its samples in the same order.

        The last samples, a share ``two_sizes`` of the batch, train the finer network. A batch of
        one sample trains both networks, and the result holds the sample twice.
        """
        size = len(batch["mask"])
        count = max(1, round(self.two_sizes * size)) if self.two_sizes else 0
        first = max(1, size - count)
        inputs = [batch[name] for name in ("foreground", "background", "mask")]
        layers = self.layers(*(x[:first] for x in inputs))
        assert layers is not None
        if not count:
            return layers, batch
        finer = self._layers_in_two_sizes(*(x[size - count :] for x in inputs))
        joined = Layers(
            torch.cat([layers.alpha, finer.alpha]),
            torch.cat([layers.foreground_color, finer.foreground_color]),
        )
        order = [*range(first), *range(size - count, size)]
        return joined, {name: value[order] for name, value in batch.items()}

    def _layers_in_two_sizes(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers:
        """The layers as for large photographs: found at half the size, then refined."""
        size = (foreground.shape[-2], foreground.shape[-1])
        half = (-(-size[0] // 2), -(-size[1] // 2))
        small = [resize(x, half).clamp(0, 1) for x in (foreground, background, alpha)]
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            coarse = self.layers(*small)
            assert coarse is not None
            assert coarse.old_background is not None
            parts = (coarse.alpha, coarse.foreground_color, coarse.old_background)
            guide = make_guide(small[0].float(), *(part.float() for part in parts))
            lifted = follow_guide(resize(guide, size), foreground.float())
        self.network.train(training)
        finer = self.finer_layers(foreground, background, Layers(*lifted))
        assert finer is not None
        return finer


class SingleStreamFuser(SingleStreamModel, MultiStreamFuser):
    """``SingleStreamModel`` as a stage."""
