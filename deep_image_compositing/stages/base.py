"""The base classes of the stages: training, validation and testing, by slot."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from deep_image_compositing import hub
from deep_image_compositing.conventions import check_batch, set_checks
from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.sheets import contact_sheet
from deep_image_compositing.images import write_image
from deep_image_compositing.losses import PerceptualLoss, cross_entropy, mask_loss, subject_loss
from deep_image_compositing.metrics import fusion_metrics, harmonization_metrics, mask_metrics
from deep_image_compositing.models.base import (
    FuserModel,
    HarmonizerModel,
    Layers,
    RefinerModel,
    SegmenterModel,
    StageModel,
)
from deep_image_compositing.options import check_choice, check_range
from deep_image_compositing.stages.making import pretrained_stage
from deep_image_compositing.weights import BEGINNINGS

__all__ = ["Batch", "Fuser", "Harmonizer", "Layers", "Refiner", "Segmenter", "Stage", "Step"]

Batch = dict[str, Tensor]


@dataclass
class Step:
    """A scalar loss, its terms to log, and pictures (B, 1 or 3, H, W) for a contact sheet."""

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Stage(LightningModule, StageModel):
    """Base of ``Segmenter``, ``Refiner``, ``Fuser`` and ``Harmonizer``; derive from one of these.

    Args:
        learning_rate: learning rate of Adam (AdamW if ``weight_decay`` is set).
        weight_decay: decoupled weight decay; norms and biases are exempt.
        schedule: ``constant``, or ``cosine`` from the learning rate to zero at the last step.
        warmup_steps: steps over which the learning rate rises linearly from zero.
        picture_every: steps between contact sheets in the log; 0 for none.
        compile: train and run the stage's networks through torch.compile.
        criterion: replaces the stage's loss: a function of an output and its target, both
            (B, C, H, W) in [0, 1], that returns a scalar. It is not saved in checkpoints.

    Raises ``UsageError`` for another schedule, or a negative rate, decay or number of steps.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 0,
        picture_every: int = 300,
        compile: bool = False,
        criterion: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("schedule", schedule, ("constant", "cosine"))
        rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        for name, value in {**rates, "warmup_steps": warmup_steps}.items():
            check_range(name, value, 0, math.inf)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.picture_every = picture_every
        self.compile_networks = compile
        # In a tuple, a module is not registered: it is neither trained nor saved with the stage.
        self._criterion = (criterion,)
        self._pictured = -1
        metrics = self.make_metrics()
        self.validation_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    # Defined by each slot

    batch_inputs: ClassVar[tuple[str, ...]]
    """Keys of the batch entries that ``forward`` takes."""
    batch_target: ClassVar[str]
    """Key of the batch entry that ``forward`` should return."""

    def make_metrics(self) -> MetricCollection:
        """The slot's metrics, which are cloned for validation and test."""
        return mask_metrics()

    def predict_batch(self, batch: Batch) -> Tensor:
        """Call ``forward`` with the entries ``batch_inputs`` of a batch."""
        return self(*(batch[name] for name in self.batch_inputs))

    def target(self, batch: Batch) -> Tensor:
        """The ground truth for the output of ``predict_batch``."""
        return batch[self.batch_target]

    def measure(self, metrics: MetricCollection, prediction: Tensor, batch: Batch) -> None:
        """Update ``metrics`` with one batch."""
        metrics.update(prediction, self.target(batch))

    def loss(self, batch: Batch) -> Step:
        """The training loss of a batch."""
        raise NotImplementedError

    def training_output(self, batch: Batch) -> Tensor:
        """The output that ``criterion`` compares with ``target``."""
        if type(self).logits is StageModel.logits:
            return self.predict_batch(batch)
        return self.logits(*(batch[name] for name in self.batch_inputs)).sigmoid()

    def rate_factor(self, name: str) -> float:
        """Factor of the learning rate for the parameter ``name``."""
        return 1.0

    # Called by Lightning

    def configure_model(self) -> None:
        """Compile the networks in place, which keeps the names of their parameters."""
        if self.compile_networks:
            for child in self.children():
                if next(child.parameters(), None) is not None:
                    child.compile()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == 0:  # once an epoch, as the check synchronises with the GPU
            check_batch(batch)
        previous = set_checks(False)
        try:
            step = self._step(batch)
        finally:
            set_checks(previous)
        size = self.target(batch).shape[0]
        self.log("train/loss", step.loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{k}": v for k, v in step.terms.items()}, batch_size=size)
        # A step can consist of several batches; log the first one's pictures.
        due = self.picture_every and self.global_step % self.picture_every == 0
        if due and self.global_step != self._pictured:
            self._pictured = self.global_step
            self._log_pictures("train", step.pictures)
        return step.loss

    def _step(self, batch: Batch) -> Step:
        """The loss of a batch by the stage or by the criterion."""
        (criterion,) = self._criterion
        if criterion is None:
            return self.loss(batch)
        if isinstance(criterion, nn.Module):
            criterion.to(self.device)
        output, target = self.training_output(batch), self.target(batch)
        loss = criterion(output.float(), target.float())
        return Step(loss, pictures={**batch, "output": output})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        prediction = self._evaluate(self.validation_metrics, batch)
        if batch_idx == 0:
            target = self.target(batch)
            omitted = {"weight", "valid", *(name for name in batch if batch[name] is target)}
            pictures = {name: value for name, value in batch.items() if name not in omitted}
            self._log_pictures("val", {**pictures, "output": prediction, "target": target})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: MetricCollection, batch: Batch) -> Tensor:
        """Predict a batch and measure its valid samples; returns the predictions of all samples."""
        prediction = measured = self.predict_batch(batch)
        samples = batch
        if (valid := batch.get("valid")) is not None:
            samples, measured = {k: x[valid] for k, x in batch.items()}, prediction[valid]
        if len(measured):
            self.measure(metrics, measured, samples)
        self.log_dict(metrics, batch_size=len(prediction))
        return prediction

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.predict_batch(batch)

    def configure_optimizers(self) -> Any:
        if not self.trainable:
            return None
        trained = [(self.rate_factor(n), p) for n, p in self.named_parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for f, p in trained if f == factor and (p.ndim > 1) == decayed],
                "lr": factor * self.learning_rate,
                "weight_decay": self.weight_decay if decayed else 0.0,
            }
            for factor in sorted({f for f, _ in trained}, reverse=True)
            for decayed in (True, False)
        ]
        optimizer_class = torch.optim.AdamW if self.weight_decay else torch.optim.Adam
        optimizer = optimizer_class(groups, lr=self.learning_rate)
        if self.schedule == "constant" and not self.warmup_steps:
            return optimizer
        total = float(self.trainer.estimated_stepping_batches)
        if self.schedule == "cosine" and math.isinf(total):
            raise UsageError("the cosine schedule needs --trainer.max_steps or max_epochs")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: self._rate(s, total))
        interval = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": interval}

    def save_pretrained(
        self, folder: str | Path, *, card: str | None = None, run: str | Path | None = None
    ) -> Path:
        """Write weights, options and a model card to a folder; see ``hub.save_pretrained``."""
        return hub.save_pretrained(self, folder, card=card, run=run)

    def push_to_hub(self, repository: str, **how: Any) -> str:
        """Upload to ``user/name`` on the Hugging Face Hub; see ``hub.push_to_hub``."""
        return hub.push_to_hub(self, repository, **how)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a stage from a folder or the Hub; see ``making.pretrained_stage``."""
        stage: Self = pretrained_stage(source, options, kind=cls, revision=revision, token=token)
        return stage

    def save_hyperparameters(
        self, *args: Any, ignore: Sequence[str] | str | None = None, frame: Any = None, **how: Any
    ) -> None:
        """Like Lightning's, without the criterion, which a checkpoint could only hold as code."""
        ignored = [ignore] if isinstance(ignore, str) else [*(ignore or ())]
        frame = frame or inspect.currentframe().f_back  # type: ignore[union-attr]
        super().save_hyperparameters(*args, ignore=[*ignored, "criterion"], frame=frame, **how)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop the paths of initial weights, which the checkpoint replaces."""
        hyper = checkpoint.get("hyper_parameters", {})
        if paths := BEGINNINGS & hyper.keys():
            checkpoint["hyper_parameters"] = {**hyper, **dict.fromkeys(paths)}

    def _rate(self, step: int, total: float) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _log_pictures(self, split: str, pictures: dict[str, Tensor]) -> None:
        if self.logger is None or not pictures or not self.trainer.is_global_zero:
            return
        tensors = {name: x.detach()[:4] for name, x in pictures.items() if isinstance(x, Tensor)}
        images = {k: x for k, x in tensors.items() if x.ndim == 4 and x.shape[1] in (1, 3)}
        sheet = contact_sheet(images)
        experiment = getattr(self.logger, "experiment", None)
        if experiment is not None and hasattr(experiment, "add_image"):
            experiment.add_image(f"{split}/sheet", sheet, self.global_step)
        folder = Path(self.trainer.default_root_dir) / "sheets"
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"{split}-{self.global_step:07d}.png", sheet)


class Segmenter(SegmenterModel, Stage):
    """``image → mask``: segment the subject.

    Training batches hold ``image``, ``mask`` and optionally ``weight`` (B, 1, H, W), a per-pixel
    weight of the loss. Subclasses implement ``forward(image)`` and, to be trained, ``logits``.
    """

    batch_inputs = ("image",)
    batch_target = "mask"

    def loss(self, batch: Batch) -> Step:
        logits = self.logits(batch["image"])
        terms = mask_loss(logits, batch["mask"], batch.get("weight"))
        output = logits.detach().sigmoid()
        pictures = {"image": batch["image"], "target": batch["mask"], "output": output}
        return Step(torch.stack(list(terms.values())).sum(), terms, pictures)


class Refiner(RefinerModel, Stage):
    """``image, mask → alpha``: refine a rough mask to an alpha matte.

    Training batches hold ``image``, ``mask`` (rough), ``alpha`` (true) and optionally ``weight``
    (B, 1, H, W). Subclasses implement ``forward(image, mask)`` and, to be trained, ``logits``.
    """

    batch_inputs = ("image", "mask")
    batch_target = "alpha"

    def loss(self, batch: Batch) -> Step:
        logits = self.logits(batch["image"], batch["mask"])
        loss = cross_entropy(logits, batch["alpha"], batch.get("weight"))
        pictures = {name: batch[name] for name in ("image", "mask")}
        pictures |= {"target": batch["alpha"], "output": logits.detach().sigmoid()}
        return Step(loss, pictures=pictures)


class Fuser(FuserModel, Stage):
    """``foreground, background, alpha → composite``: blend the subject into the new background.

    Training batches hold ``foreground``, ``background``, ``mask`` (the rough alpha that the fuser
    takes), ``composite`` (the target), and for the ``layers`` head the true ``alpha`` and
    ``foreground_color``. Subclasses implement ``forward(foreground, background, alpha)``, or
    ``layers`` with the same arguments, which also yields the cut-out.

    Args:
        perceptual: timm backbone whose features the perceptual loss compares; None for no
            perceptual loss (the paper uses one).
        perceptual_weights: ``pretrained`` to download ImageNet weights, or a local checkpoint.
        perceptual_scale: factor of the perceptual term, 0.8 in the paper.
    """

    batch_inputs = ("foreground", "background", "mask")
    batch_target = "composite"

    def __init__(
        self,
        *,
        perceptual: str | None = None,
        perceptual_weights: str = "pretrained",
        perceptual_scale: float = 0.8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.perceptual = perceptual
        self.perceptual_weights = perceptual_weights
        self.perceptual_scale = perceptual_scale
        # In a list, the frozen backbone is not registered: it is neither trained nor saved.
        self._perceptual_loss: list[nn.Module] = []

    def setup(self, stage: str) -> None:
        """Build the perceptual loss before training, which loads its weights."""
        if stage == "fit" and self.perceptual and not self._perceptual_loss:
            self._perceptual_loss.append(PerceptualLoss(self.perceptual, self.perceptual_weights))

    def composite_loss(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms ``l1`` and, if enabled, ``perceptual`` (scaled) of two (B, 3, H, W) batches."""
        terms = {"l1": F.l1_loss(output.float(), target.float())}
        if self._perceptual_loss:
            module = self._perceptual_loss[0].to(output.device)
            terms["perceptual"] = self.perceptual_scale * module(output, target)
        return terms

    def loss(self, batch: Batch) -> Step:
        output = self.predict_batch(batch)
        terms = self.composite_loss(output, batch["composite"])
        return Step(sum(terms.values(), output.new_zeros(())), terms, {**batch, "output": output})

    def make_metrics(self) -> MetricCollection:
        return fusion_metrics()

    def measure(self, metrics: MetricCollection, prediction: Tensor, batch: Batch) -> None:
        # Without a true alpha, the fuser's mask determines the band that is measured.
        alpha = batch.get("alpha", batch["mask"])
        metrics.update(prediction, batch["composite"], alpha=alpha)


class Harmonizer(HarmonizerModel, Stage):
    """``composite, mask → composite``: match the subject's colours to the scene's light.

    Training batches hold ``image`` (the target, a photograph), ``composite`` (the same with the
    subject recoloured) and ``mask``. Subclasses implement ``recoloring(composite, mask)``, or
    ``forward`` with the same arguments.
    """

    batch_inputs = ("composite", "mask")
    batch_target = "image"

    def loss(self, batch: Batch) -> Step:
        output = self.predict_batch(batch)
        terms = subject_loss(output, batch["image"], batch["mask"])
        total = torch.stack(list(terms.values())).sum()
        return Step(total, terms, {**batch, "output": output})

    def make_metrics(self) -> MetricCollection:
        return harmonization_metrics()

    def measure(self, metrics: MetricCollection, prediction: Tensor, batch: Batch) -> None:
        metrics.update(prediction, batch["image"], mask=batch["mask"])
