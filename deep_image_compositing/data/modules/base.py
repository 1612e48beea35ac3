"""What the data modules of all slots share: sources, loaders, the generator on the device."""

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
"""One source or several: a path or pattern alone, or a ``Source`` with its settings."""

_log = logging.getLogger("deep_image_compositing")


def as_sources(given: Sources | None) -> list[Source]:
    """Sources of whatever a recipe or a command line gave."""
    each = given if isinstance(given, list | tuple) else [] if given is None else [given]
    return [source if isinstance(source, Source) else Source(source) for source in each]


def batches_trained(trainer: Trainer) -> int:
    """Batches that a run has trained on, before interruptions and after them."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


class Helper:
    """A stage that data of another slot are made with: loaded when first needed, on the device."""

    def __init__(self, slot: str, name: str | None, weights: str | None) -> None:
        self.slot, self.name = slot, name
        self.options = {"weights": weights} if weights else {}
        self.network: Any = None

    def check(self, made: str) -> None:
        """Raise what making it would, where it is needed for what is ``made`` with it."""
        if self.name is None:
            raise UsageError(f"{made} need a {self.slot}: name one as --data.{self.slot}")
        registry.check(self.slot, self.name, self.options)

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes need no network."""
        return {**self.__dict__, "network": None}

    def __call__(self, *parts: Tensor) -> Tensor:
        if self.network is None:
            self.network = registry.create(self.slot, str(self.name), **self.options).eval()
        made: Tensor = self.network.to(parts[0].device)(*parts)
        return made


class StageData(LightningDataModule):
    """Data of one slot; each slot says what a sample is and what is made of a batch.

    Args:
        train: what is trained on: shards (a folder with its ``index.json``, a pattern, a URL), or
            plain folders; see ``Source``.
        backgrounds: photographs without subjects, likewise.
        validation: what is validated and tested on; None for what ``train`` holds out: the split
            ``validation`` of a folder of shards, one photograph in ten of a plain folder.
        size: side of the square crops in pixels.
        batch_size: samples a step and device.
        epoch_length: samples an epoch, of all devices together.
        validation_crops: crops that a validation run makes of each sample.
        num_workers: loader processes a device; 0 loads in the training process.
        augment: strength of colour jitter, camera effects and degradation; 0 for none.
        seed: of everything random about the data.
        shuffle: samples of shards from elsewhere, which are streamed, that a loader process holds
            back to draw from.
        tolerance: share of shards, and of samples, that may be unreadable before that is an error.
        cache: folder to which shards from elsewhere are transferred before the run, to be read as
            those on disk are; None to stream them.
    """

    accepts: ClassVar[tuple[str, ...]]
    """Kinds of samples in ``train``."""

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
        for name, value, least in (
            ("size", size, 8),
            ("batch_size", batch_size, 1),
            ("epoch_length", epoch_length, 1),
            ("validation_crops", validation_crops, 1),
            ("num_workers", num_workers, 0),
            ("augment", augment, 0),
            ("shuffle", shuffle, 0),
        ):
            check_range(name, value, least, math.inf)
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

    # What a slot defines

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        """What each item of a sample is drawn from, for training and evaluation; main one first."""
        return {"subject": self.open_main(), "scene": self.open_scenes()}

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        """One 8-bit sample of the items, made in a loader process."""
        raise NotImplementedError

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        """Turn a batch on the device, floats in [0, 1], into what the slot trains on."""
        raise NotImplementedError

    # What Lightning calls

    def __getstate__(self) -> dict[str, Any]:
        """What a loader process is sent where it is not forked: everything but the trainer."""
        return {**self.__dict__, "trainer": None}

    def prepare_data(self) -> None:
        """Fill the cache, in one process a machine."""
        if self._reading.cache is not None:
            self.setup("fit")
            for mixture in (mixture for pair in self._mixtures.values() for mixture in pair):
                len(mixture)  # counting transfers what is not there yet

    def setup(self, stage: str) -> None:
        """Open the sources, once."""
        if not self._mixtures:
            self._mixtures = self.open()

    def train_dataloader(self) -> Loader:
        rank, ranks = self._place
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
        about = {"seed": self.seed, "batch_size": self.batch_size, "devices": ranks} | {
            "epoch_length": self.epoch_length
        }
        samples = Samples(mixtures, self.draw, tolerance=self._reading.tolerance)
        return Loader(samples, sampler, self.num_workers, about=about)

    def val_dataloader(self) -> Loader | list[Any]:
        mixtures = {name: held_out for name, (_, held_out) in self._mixtures.items()}
        rank, ranks = self._place
        if not next(iter(mixtures.values())).datasets:
            if rank == 0:
                _log.warning(
                    "there is no validation: nothing is held out of the training data; "
                    "name some samples with --data.validation"
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
        """Make the batch on the device, from the seeds that it carries."""
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
            # One at a time: what is made of a sample must not depend on the batch it came in,
            # else a metric would depend on the number of devices.
            rows = []
            for i, seed in enumerate(seeds):
                row = {key: value[i : i + 1] for key, value in floats.items()}
                rows.append(self.finish(row, generator.manual_seed(seed), False))
            return {**{key: torch.cat([r[key] for r in rows]) for key in rows[0]}, "valid": valid}

    # Parts

    def epoch_batches(self, trainer: Trainer | None) -> int:
        """Batches of an epoch that a device trains on: as many as the ``trainer`` allows."""
        ranks, limit = 1, 1.0
        if trainer is not None:
            ranks, limit = trainer.world_size, trainer.limit_train_batches
        batches = self.epoch_length // (self.batch_size * ranks)
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    @property
    def _place(self) -> tuple[int, int]:
        """The rank of this process, and how many there are."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _trained(self) -> int:
        """Batches that the run has trained on, interruptions included."""
        return 0 if self.trainer is None else batches_trained(self.trainer)

    def open_main(self) -> tuple[Mixture, Mixture]:
        """What lies in ``train`` and in ``validation``."""
        train, held_out = open_all(self.train, self.accepts, self._reading)
        if self.validation:
            held_out = Mixture(
                [open_held_out(source, self.accepts, self._reading) for source in self.validation]
            )
        return train, held_out

    def open_scenes(self) -> tuple[Mixture, Mixture]:
        """What lies in ``backgrounds``."""
        if not self.backgrounds:
            raise UsageError("there are no backgrounds: name some as --data.backgrounds")
        train, held_out = open_all(self.backgrounds, ("backgrounds",), self._reading)
        return train, held_out if held_out.datasets else train

    def _scene(self, rng: np.random.Generator, item: Item, low: float = 0.4) -> Tensor:
        return scene_crop(rng, item, self.size, low)
