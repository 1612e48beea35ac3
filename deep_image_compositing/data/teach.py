"""Self-teaching, the easy-to-hard step: a trained fuser makes the triplets that train the next.

An easy photograph, ``αF + (1 − α)B₀`` seen by a camera, is composited by the fuser before ``B₁``,
which is the new, hard photograph, and before ``B₂``, which is its target. Sample *n* follows from
the recipe and *n* alone. Shards are made by one process each, written aside and renamed; so the
bytes are the same for any number of processes, and a run that was ended goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from deep_image_compositing.data.crops import planes
from deep_image_compositing.data.datasets import (
    Mixture,
    Reading,
    ShardDataset,
    open_source,
)
from deep_image_compositing.data.items import ShardItem, Source
from deep_image_compositing.data.loading import WorkerLoader, start_worker
from deep_image_compositing.data.modules import Sources, as_sources
from deep_image_compositing.data.shards import (
    INDEX,
    Index,
    ShardWriter,
    describe,
    remove_unfinished,
)
from deep_image_compositing.data.tars import open_by_number
from deep_image_compositing.data.triplet_recipe import Recipe, check_folder, plan
from deep_image_compositing.data.triplets import Batches, Teacher, encode_sample
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.functional.sheets import contact_sheet
from deep_image_compositing.images import write_image
from deep_image_compositing.messages import progress
from deep_image_compositing.running import end_launched, make_trainer, quiet, stop_on_sigterm
from deep_image_compositing.stages.base import Fuser

_log = logging.getLogger("deep_image_compositing")


class TripletWriter(BasePredictionWriter):
    """Writes the shards of one process, and when all processes are done the index."""

    def __init__(self, out: Path, recipe: Recipe, show: bool = False) -> None:
        super().__init__("batch")
        self.out = out
        self.recipe = recipe
        self.show = show
        self._about = recipe.about()
        self._pending: deque[tuple[str, bool, dict[str, Any]]] = deque()
        self._writer: ShardWriter | None = None
        self._exit = ExitStack()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_sigterm()
        self._threads = self._exit.enter_context(ThreadPoolExecutor(4))
        data: TeachData = trainer.datamodule  # type: ignore[attr-defined]
        left = sum(len(numbers) for _, numbers in data.batches.parts)
        count = trainer.world_size
        label = f"triplets of this device (1 of {count})" if count > 1 else "triplets"
        bar = progress(label, left, self.show and trainer.is_global_zero)
        self._advance = self._exit.enter_context(bar)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        jobs = {}
        for i, number in enumerate(batch["number"]):
            key, pictures = f"{number:08d}", {name: value[i] for name, value in prediction.items()}
            info = {"key": key, **batch["info"][i], "recipe": self._about}
            info["device"] = pl_module.device.type
            jobs[key] = self._threads.submit(encode_sample, pictures, batch["jpeg"][i], info)
        self._pending.append((batch["shard"], batch["last"], jobs))
        while len(self._pending) > 1:  # the device goes on while the last batch is encoded
            self._write(*self._pending.popleft())

    def _write(self, name: str, last: bool, jobs: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self.out / name).__enter__()
        for key, job in jobs.items():
            self._writer.write(key, job.result())
        if last:
            writer, self._writer = self._writer, None
            writer.__exit__(None)
        self._advance(len(jobs))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        while self._pending:
            self._write(*self._pending.popleft())
        self._exit.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(type(exception))
        self._exit.close()
        end_launched(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.barrier("shards")
        if not trainer.is_global_zero or (self.out / INDEX).exists():
            return
        index = Index("triplets", about=self._about)
        for shard in plan(self.recipe):
            path = self.out / shard.name
            if not path.is_file():
                raise DataError(f"{path} is missing: run the same command again")
            index.splits.setdefault(shard.split, []).append(describe(path, len(shard.numbers)))
        index.write(self.out)


class TeachData(LightningDataModule):
    """Shares the shards that are still to be made among the processes."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        mixtures: Mapping[str, tuple[Mixture, Mixture]],
        workers: int,
    ) -> None:
        super().__init__()
        self.prepare_data_per_node = False
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.recipe = recipe
        self.out = out
        self.mixtures = mixtures
        self.workers = workers

    def prepare_data(self) -> None:
        """Clear away what an earlier run did not finish, in one process."""
        self.out.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.out)

    def setup(self, stage: str) -> None:
        """Look what is left; Lightning lets no process begin before all have looked."""
        assert self.trainer is not None
        left = [shard for shard in plan(self.recipe) if not (self.out / shard.name).exists()]
        if left and self.trainer.is_global_zero:
            (self.out / INDEX).unlink(missing_ok=True)
        own = left[self.trainer.global_rank :: self.trainer.world_size]
        self.batches = Batches(self.recipe, own, self.mixtures)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        return WorkerLoader(
            self.batches,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=start_worker,
        )


def open_mixtures(recipe: Recipe, cache: str | None = None) -> dict[str, tuple[Mixture, Mixture]]:
    """Mattes and backgrounds of the splits; ``validation`` only where mattes are held out.

    Raises:
        UsageError, DataError: as ``open_source`` and ``Mixture.weights``.
    """
    reading = Reading(cache=cache)
    mattes = [open_source(source, ("mattes",), reading) for source in recipe.mattes]
    scenes = [open_source(source, ("backgrounds",), reading) for source in recipe.backgrounds]
    kept = Mixture([kept for kept, _ in scenes])
    mixtures = {"train": (Mixture([kept for kept, _ in mattes]), kept)}
    if held_out := [dataset for _, dataset in mattes if dataset is not None]:
        # Where no background is held out, a new subject before a known one is new enough.
        new = [dataset for _, dataset in scenes if dataset is not None]
        mixtures["validation"] = Mixture(held_out), Mixture(new) if new else kept
    for split in mixtures if recipe.validation else ["train"]:
        for mixture in mixtures[split]:
            mixture.weights()  # raises here what every sample would
    return mixtures


def fingerprint(mixtures: Mapping[str, tuple[Mixture, Mixture]]) -> str:
    """SHA-256 of what all datasets hold, by name and number; the samples depend on it."""
    lines: list[Any] = []
    for split, pair in sorted(mixtures.items()):
        for dataset in (each for mixture in pair for each in mixture.datasets):
            if isinstance(dataset, ShardDataset):
                held: list[Any] = [Path(url).name for url in dataset.urls] + dataset.blocks()
            else:
                root = dataset.source.path
                held = [pair.image.relative_to(root).as_posix() for pair in dataset.pairs]
            lines.append([split, held])
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def teach(
    fuser: Fuser,
    identity: Mapping[str, str],
    mattes: Sources,
    backgrounds: Sources,
    out: str | Path,
    *,
    devices: int | str = 1,
    nodes: int = 1,
    accelerator: str = "auto",
    workers: int = 2,
    cache: str | None = None,
    sheet: str | Path | None = None,
    show: bool = False,
    **options: Any,
) -> Index | None:
    """Make hard triplets with ``fuser`` and write them as shards into ``out``.

    What an earlier run with the same arguments has finished is kept.

    Args:
        fuser: trained on easy triplets.
        identity: of the fuser, as ``identify`` gives it.
        mattes: sources of subjects, as for training.
        backgrounds: sources of backgrounds, likewise.
        out: folder of the shards; made if need be.
        devices: to work on; on CPUs, processes. Any number of them makes the same bytes.
        nodes: machines, when started by SLURM or torchrun.
        accelerator: ``auto``, ``cpu``, ``cuda``, ...
        workers: loader processes a device; 0 loads in the calling process.
        cache: folder in which shards from elsewhere are kept.
        sheet: file for a labelled contact sheet of the first triplets.
        show: draw a progress bar on standard error.
        **options: as for ``Recipe``.

    Returns:
        The index of the set; None in every process but the first.

    Raises:
        UsageError: a wrong argument; pictures too small for the size; a folder with other shards.
        DataError: more than one sample in a hundred that cannot be read.
    """
    if workers < 0:
        raise UsageError(f"workers must be at least 0, got {workers}")
    if not isinstance(fuser, Fuser):
        raise UsageError(f"only a fuser can teach, not a {type(fuser).__name__}")
    given = tuple(as_sources(mattes)), tuple(as_sources(backgrounds))
    recipe, out = Recipe(*given, identity, **options), Path(out)
    mixtures = open_mixtures(recipe, cache)
    recipe = replace(recipe, inputs=fingerprint(mixtures))
    if recipe.validation and "validation" not in mixtures:
        if getattr(rank_zero_only, "rank", 0) == 0:
            _log.warning("the mattes hold nothing out, so there is no validation split")
        recipe = replace(recipe, validation=0.0)
    check_folder(out, recipe)
    writer, data = TripletWriter(out, recipe, show), TeachData(recipe, out, mixtures, workers)
    with quiet():
        trainer = make_trainer(writer, devices=devices, nodes=nodes, accelerator=accelerator)
        with _one_thread(trainer):
            trainer.predict(Teacher(fuser, recipe), data, return_predictions=False)
    if not trainer.is_global_zero:
        return None
    if sheet is not None:
        write_image(sheet, draw_sheet(out, recipe))
    return Index.read(out)


@contextmanager
def _one_thread(trainer: Trainer) -> Iterator[None]:
    """On CPUs, sums depend on the number of threads, and that on the number of processes."""
    before = torch.get_num_threads()
    if trainer.strategy.root_device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw_sheet(out: Path, recipe: Recipe, rows: int = 8) -> Tensor:
    """A contact sheet (3, H, W) of the first triplets of a finished set, as they are stored."""
    columns = {
        "hard photograph": "foreground.jpg",
        "mask": "mask.png",
        "alpha": "alpha.png",
        "new background": "background.jpg",
        "target": "composite.png",
    }
    shard = open_by_number(str(out / plan(recipe)[0].name))
    items = [ShardItem(Source(str(out)), shard[i]) for i in range(min(rows, len(shard)))]
    pictures = {
        label: torch.stack([planes(item.picture(field)) for item in items]).float() / 255
        for label, field in columns.items()
    }
    return contact_sheet(pictures, 256)
