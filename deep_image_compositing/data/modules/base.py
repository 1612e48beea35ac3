"""Base of all data modules: sources, loaders, and random seeds on the device."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.data.datasets import (
    Mixture,
    Reading,
    open_all,
    open_held_out,
    stream_remote,
)  # fmt: skip
from deep_image_compositing.data.items import Item, Source, scene_crop
from deep_image_compositing.data.loading import Loader, Sample, Samples
from deep_image_compositing.data.sampler import EvaluationSampler, TrainingSampler
from deep_image_compositing.errors import UsageError
from deep_image_compositing.options import check_range

Sources = str | Source | list[str | Source]
"""One or more sources: paths, patterns, or ``Source`` objects with settings."""

_log = logging.getLogger("deep_image_compositing")


def as_sources(sources: Sources | None) -> list[Source]:
    """Normalize one source, several or none to a list of ``Source`` objects."""
    if sources is None:
        return []
    several = sources if isinstance(sources, list | tuple) else [sources]
    return [source if isinstance(source, Source) else Source(source) for source in several]


def batches_trained(trainer: Trainer) -> int:
    """Number of batches trained in a run, including those before it was resumed."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


class LazyStage:
    """A pretrained stage that prepares data for another slot; created on first use."""

    def __init__(self, slot: str, name: str | None, weights: str | None) -> None:
        self.slot, self.name = slot, name
        self.options = {"weights": weights} if weights else {}
        self.network: Any = None

    def check(self, purpose: str) -> None:
        """Raise early what creating the stage would raise; ``purpose`` is a plural noun."""
        if self.name is None:
            raise UsageError(f"{purpose} need a {self.slot}: name one as --data.{self.slot}")
        registry.check(self.slot, self.name, self.options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "network": None}  # loader processes do not use it

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.network is None:
            self.network = registry.create(self.slot, str(self.name), **self.options).eval()
        output: Tensor = self.network.to(inputs[0].device)(*inputs)
        return output


class StageData(LightningDataModule):
    """Base class: subclasses define the samples of a slot and the batches made from them.

    Args:
        train: training data: shards (a folder with its ``index.json``, a pattern, a URL) or plain
            folders; see ``Source``.
        backgrounds: photographs without subjects, in the same forms.
        validation: data for validation and tests. None for what ``train`` holds out: the split
            ``validation`` of a folder of shards, a tenth of a plain folder.
        size: side of the square crops in pixels.
        batch_size: samples per step on each device.
        epoch_length: samples per epoch, over all devices.
        validation_crops: crops per sample in a validation run.
        num_workers: loader processes per device; 0 loads in the training process.
        augment: strength of colour jitter, camera effects and degradation; 0 for none.
        seed: seed of all randomness in the data.
        shuffle: size of a loader process's shuffle buffer for streamed (remote) shards, in samples.
        tolerance: share of shards, and of samples, that may be unreadable without an error.
        cache: folder into which remote shards are copied before the run; None to stream them.

    Raises:
        UsageError: an option outside its range; no source to train on.
    """

    accepts: ClassVar[tuple[str, ...]]
    """Kinds of samples that ``train`` may hold."""

    def __init__(
        self,
        train: Sources,
        backgrounds: Sources | None = None,
        validation: Sources | None = None,
        size: int = 256,
        batch_size: int = 8,
        epoch_length: int = 2000,
        validation_crops: int = 1,
        num_workers: int = 1,
        augment: float = 1.0,
        seed: int = 0,
        shuffle: int = 200,
        tolerance: float = 0.01,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, minimum in (
            ("size", size, 8),
            ("batch_size", batch_size, 1),
            ("epoch_length", epoch_length, 1),
            ("validation_crops", validation_crops, 1),
            ("num_workers", num_workers, 0),
            ("augment", augment, 0),
            ("shuffle", shuffle, 0),
        ):
            check_range(name, value, minimum, math.inf)
        if not 0 <= tolerance <= 1:
            raise UsageError(f"tolerance is a share and must lie in [0, 1], got {tolerance}")
        self.train, self.validation, self.backgrounds = map(
            as_sources, (train, validation, backgrounds)
        )
        if not self.train:
            raise UsageError("there is no source to train on: name one as --data.train")
        self.size, self.batch_size, self.epoch_length = size, batch_size, epoch_length
        self.validation_crops, self.num_workers = validation_crops, num_workers
        self.augment, self.seed = augment, seed
        self.prepare_data_per_node = True
        self._reading = Reading(shuffle, tolerance, cache)
        self._mixtures: dict[str, tuple[Mixture, Mixture]] = {}

    # Overridden by the slots

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        """For each item of a sample, the main one first: its training and evaluation data."""
        return {"subject": self.open_main(), "scene": self.open_scenes()}

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        """Make an 8-bit sample from items, in a loader process."""
        raise NotImplementedError

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        """Make the training batch on the device from loaded samples, floats in [0, 1]."""
        raise NotImplementedError

    # Called by Lightning

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the trainer, for loader processes that are not forked."""
        return {**self.__dict__, "trainer": None}

    def prepare_data(self) -> None:
        """Fill the cache, in one process per machine."""
        if self._reading.cache is not None:
            self.setup("fit")
            for mixture in (mixture for pair in self._mixtures.values() for mixture in pair):
                len(mixture)  # counting the samples downloads missing shards

    def setup(self, stage: str) -> None:
        """Open the sources, once."""
        if not self._mixtures:
            self._mixtures = self.open()

    def train_dataloader(self) -> Loader:
        rank, ranks = self._rank_and_size
        length = self.epoch_length // (self.batch_size * ranks)
        if not length:
            raise UsageError(
                f"epoch_length {self.epoch_length} is less than one batch of {self.batch_size} "
                f"on each of {ranks} devices"
            )
        seed = (self.seed, rank, self._trained())
        mixtures = {
            name: stream_remote(train, *seed, number)
            for number, (name, (train, _)) in enumerate(self._mixtures.items())
        }
        sampler = TrainingSampler(
            mixtures, self.batch_size, length, self.seed, rank, ranks, self._trained,
            self.epoch_batches(self.trainer),
        )  # fmt: skip
        about = {
            "seed": self.seed, "batch_size": self.batch_size, "devices": ranks,
            "epoch_length": self.epoch_length,
        }  # fmt: skip
        samples = Samples(mixtures, self.draw, tolerance=self._reading.tolerance)
        return Loader(samples, sampler, self.num_workers, about=about)

    def val_dataloader(self) -> Loader | list[Any]:
        mixtures = {name: held_out for name, (_, held_out) in self._mixtures.items()}
        rank, ranks = self._rank_and_size
        if not next(iter(mixtures.values())).datasets:
            if rank == 0:
                _log.warning(
                    "there is no validation: nothing is held out of the training data; name some "
                    "with --data.validation, or hold out more: [{path: my/pairs, hold_out: 0.2}]"
                )
            return []
        sampler = EvaluationSampler(
            mixtures, self.batch_size, self.validation_crops, self.seed, rank, ranks
        )
        samples = Samples(mixtures, self.draw, True, self._reading.tolerance)
        return Loader(samples, sampler, self.num_workers)

    def test_dataloader(self) -> Loader | list[Any]:
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Make the final batch on the device, with the seeds that it carries."""
        valid = batch.get("valid")
        seeds = batch["seed"].view(-1).tolist()
        floats = {
            key: value.float() / 255 if value.dtype == torch.uint8 else value
            for key, value in batch.items()
            if key not in ("seed", "valid")
        }
        generator = torch.Generator(next(iter(floats.values())).device)
        with torch.no_grad():
            if valid is None:
                return self.finish(floats, generator.manual_seed(seeds[0]), True)
            # Sample by sample: if a sample depended on its batch, metrics would depend on the
            # number of devices.
            rows = []
            for i, seed in enumerate(seeds):
                row = {key: value[i : i + 1] for key, value in floats.items()}
                rows.append(self.finish(row, generator.manual_seed(seed), False))
            return {**{key: torch.cat([r[key] for r in rows]) for key in rows[0]}, "valid": valid}

    def epoch_batches(self, trainer: Trainer | None) -> int:
        """Batches per epoch on each device, within the limits of ``trainer``."""
        ranks, limit = 1, 1.0
        if trainer is not None:
            ranks, limit = trainer.world_size, trainer.limit_train_batches
        batches = self.epoch_length // (self.batch_size * ranks)
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    @property
    def _rank_and_size(self) -> tuple[int, int]:
        """Rank of this process, and number of processes."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _trained(self) -> int:
        return 0 if self.trainer is None else batches_trained(self.trainer)

    def open_main(self) -> tuple[Mixture, Mixture]:
        """Open ``train`` and ``validation``."""
        train, held_out = open_all(self.train, self.accepts, self._reading)
        if self.validation:
            held_out = Mixture(
                [open_held_out(source, self.accepts, self._reading) for source in self.validation]
            )
        return train, held_out

    def open_scenes(self) -> tuple[Mixture, Mixture]:
        """Open ``backgrounds``, for training and evaluation."""
        if not self.backgrounds:
            raise UsageError("there are no backgrounds: name some as --data.backgrounds")
        train, held_out = open_all(self.backgrounds, ("backgrounds",), self._reading)
        return train, held_out if held_out.datasets else train

    def _scene(self, rng: np.random.Generator, item: Item, low: float = 0.4) -> Tensor:
        return scene_crop(rng, item, self.size, low)
