"""Self-teaching: a trained fuser makes hard triplets that train the next one.

The fuser composites an easy photograph, ``αF + (1 − α)B₀`` with camera effects, over ``B₁``, which
gives the hard photograph, and over ``B₂``, which gives its target. Each shard is made by a single
process, so any number of processes writes the same bytes, and an interrupted run can be resumed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from deep_image_compositing.data import shards, triplets
from deep_image_compositing.data.crops import planes
from deep_image_compositing.data.datasets import Mixture, Reading, ShardDataset, open_all
from deep_image_compositing.data.items import ShardItem, Source
from deep_image_compositing.data.loading import WorkerLoader, raise_sent, start_worker
from deep_image_compositing.data.modules import Sources, as_sources
from deep_image_compositing.data.tars import open_by_number
from deep_image_compositing.data.transfer import local_path
from deep_image_compositing.data.triplets import Recipe, plan
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.files import make_folder
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.sheets import contact_sheet
from deep_image_compositing.images import write_image
from deep_image_compositing.running import Guard, make_trainer, quiet
from deep_image_compositing.stages.base import Fuser

_STOPPED = "stopped; finished shards are kept; run the same command to continue"
_log = logging.getLogger("deep_image_compositing")
Mixtures = Mapping[str, tuple[Mixture, Mixture]]
"""Mattes and backgrounds of each split."""


class TripletWriter:
    """Writes the shards of one process, one batch at a time."""

    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        self.out, self.about = out, about
        self.done = 0
        self._threads = ThreadPoolExecutor(4)
        self._pending: tuple[str, bool, dict[str, Any]] = "", False, {}
        self._writer: shards.ShardWriter | None = None

    def add(self, batch: Mapping[str, Any], pictures: Mapping[str, Tensor], device: str) -> None:
        """Start to encode a batch, and write the previous one."""
        jobs = {}
        for i, number in enumerate(batch["number"]):
            key, sample = f"{number:08d}", {name: value[i] for name, value in pictures.items()}
            info = {"key": key, **batch["info"][i], "recipe": self.about, "device": device}
            jobs[key] = self._threads.submit(triplets.encode_sample, sample, batch["jpeg"][i], info)
        self._write()
        self._pending = batch["shard"], batch["last"], jobs  # encoded while the device works

    def finish(self) -> None:
        """Write the last batch."""
        self._write()
        self._threads.shutdown()

    def abandon(self) -> None:
        """Discard the unfinished shard."""
        self._threads.shutdown(cancel_futures=True)
        if self._writer is not None:
            self._writer.__exit__(KeyboardInterrupt)

    def _write(self) -> None:
        """Write the pending batch, if there is one."""
        name, last, jobs = self._pending
        for key, job in jobs.items():
            if self._writer is None:
                self._writer = shards.ShardWriter(self.out / name).__enter__()
            self._writer.write(key, job.result())
        if last and self._writer is not None:
            writer, self._writer = self._writer, None
            writer.__exit__(None)
        self.done += len(jobs)
        self._pending = "", False, {}


class Teaching(LightningModule):
    """Makes the triplets of the missing shards, which are divided among the processes."""

    def __init__(
        self,
        fuser: Fuser,
        recipe: Recipe,
        mixtures: Mixtures,
        writer: TripletWriter,
        workers: int,
        advance: Callable[[str, int, int], None],
    ) -> None:
        super().__init__()
        self.prepare_data_per_node = False
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.fuser, self.recipe, self.mixtures = fuser, recipe, mixtures
        self.writer, self.workers, self.advance = writer, workers, advance

    def prepare_data(self) -> None:
        make_folder(self.writer.out)
        shards.remove_unfinished(self.writer.out)

    def setup(self, stage: str) -> None:
        # Lightning synchronizes after setup: no process writes until all have looked for shards.
        out = self.writer.out
        missing = [shard for shard in plan(self.recipe) if not (out / shard.name).exists()]
        if missing and self.trainer.is_global_zero:
            (out / shards.INDEX).unlink(missing_ok=True)
        assigned = missing[self.trainer.global_rank :: self.trainer.world_size]
        self.batches = triplets.Batches(self.recipe, assigned, self.mixtures)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        return WorkerLoader(
            self.batches, batch_size=None, num_workers=self.workers, worker_init_fn=start_worker
        )

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Make ``foreground``, ``composite``, ``mask`` and ``alpha`` (uint8), and write them."""
        raise_sent(batch)
        *inputs, new = (batch[name].float() / 255 for name in triplets.PICTURES)
        # One generator per sample, so that no sample depends on the rest of its batch.
        generators = [Generator(self.device).manual_seed(seed) for seed in batch["seed"]]
        rows = zip(*(x.split(1) for x in inputs), generators, strict=True)
        recipe = self.recipe
        make = partial(triplets.make_easy, augment=recipe.augment, degrade=recipe.teacher_degrade)
        easy = [make(*row) for row in rows]
        alpha = inputs[1]
        photograph, scene, mask = (torch.cat(x) for x in zip(*easy, strict=True))
        hard, target, alpha = triplets.make_hard(self.fuser, photograph, mask, scene, new, alpha)
        rough = [
            degrade_mask(row, generator, recipe.degrade, exact=triplets.EXACT)
            for row, generator in zip(alpha.split(1), generators, strict=True)
        ]
        fields = {"foreground": hard, "composite": target, "alpha": alpha, "mask": torch.cat(rough)}
        pictures = {name: to_bytes(value).cpu() for name, value in fields.items()}
        self.writer.add(batch, pictures, self.device.type)
        self.advance("triplets", self.writer.done, self.batches.samples)
        return pictures

    def on_predict_end(self) -> None:
        self.writer.finish()

    def teardown(self, stage: str) -> None:
        self.trainer.strategy.barrier("shards")
        out = self.writer.out
        if not self.trainer.is_global_zero or (out / shards.INDEX).exists():
            return
        index = shards.Index("triplets", about=self.writer.about)
        for shard in plan(self.recipe):
            path = out / shard.name
            if not path.is_file():
                raise DataError(f"{path} is missing: run the same command again")
            index.splits.setdefault(shard.split, []).append(
                shards.describe(path, len(shard.numbers))
            )
        index.write(out)


def open_mixtures(recipe: Recipe, cache: str | None = None) -> dict[str, tuple[Mixture, Mixture]]:
    """Open the mattes and backgrounds of each split; ``validation`` needs held-out mattes."""
    mattes, held_out = open_all(recipe.mattes, ("mattes",), Reading(cache=cache))
    scenes, new = open_all(recipe.backgrounds, ("backgrounds",), Reading(cache=cache))
    mixtures = {"train": (mattes, scenes)}
    if held_out.datasets:
        # Without held-out backgrounds, held-out subjects on training backgrounds have to do.
        mixtures["validation"] = held_out, new if new.datasets else scenes
    for split in mixtures if recipe.validation else ["train"]:
        for mixture in mixtures[split]:
            mixture.weights()  # fail early rather than at every sample
    return mixtures


def _fingerprint(mixtures: Mixtures) -> str:
    """SHA-256 of the names of all files and shards, and of the shards' sample counts."""
    contents: list[Any] = []
    for split, mattes_and_backgrounds in sorted(mixtures.items()):
        for dataset in (d for mixture in mattes_and_backgrounds for d in mixture.datasets):
            if isinstance(dataset, ShardDataset):
                names: list[Any] = [Path(url).name for url in dataset.urls] + dataset.blocks()
            else:
                root = local_path(dataset.source.path)
                names = [pair.image.relative_to(root).as_posix() for pair in dataset.pairs]
            contents.append([split, names])
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


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
) -> shards.Index | None:
    """Make hard triplets with ``fuser`` and write them as shards into ``out``.

    Shards that an earlier run with the same arguments has finished are kept.

    Args:
        fuser: a fuser trained on easy triplets.
        identity: its entry in the recipe, from ``identify``.
        mattes: sources of subjects, as for training.
        backgrounds: sources of backgrounds.
        out: folder of the shards; created if it does not exist.
        devices: number of devices, or of processes on CPUs; it does not change the output.
        nodes: number of machines, when started by SLURM or torchrun.
        accelerator: ``auto``, ``cpu``, ``cuda``, ...
        workers: loader processes per device; 0 loads in the calling process.
        cache: folder for copies of remote shards.
        sheet: file for a labelled contact sheet of the first triplets.
        show: draw a progress bar on standard error.
        **options: as for ``Recipe``.

    Returns:
        The index of the set; None in every process but the first.

    Raises:
        UsageError: a wrong argument; a folder that holds other shards.
        DataError: pictures too small for the size; more than one unreadable sample in a hundred.
    """
    if workers < 0:
        raise UsageError(f"workers must be at least 0, got {workers}")
    if not isinstance(fuser, Fuser):
        raise UsageError(f"only a fuser can teach, not a {type(fuser).__name__}")
    sources = tuple(as_sources(mattes)), tuple(as_sources(backgrounds))
    recipe, out = Recipe(*sources, identity, **options), Path(out)
    mixtures = open_mixtures(recipe, cache)
    recipe = replace(recipe, inputs=_fingerprint(mixtures))
    if recipe.validation and "validation" not in mixtures:
        if getattr(rank_zero_only, "rank", 0) == 0:
            _log.warning("the mattes hold nothing out, so there is no validation split")
        recipe = replace(recipe, validation=0.0)
    _check_folder(out, recipe)
    writer = TripletWriter(out, recipe.about())
    guard = Guard(writer.abandon, show)
    with quiet():
        trainer = make_trainer(guard, devices=devices, nodes=nodes, accelerator=accelerator)
        with _one_thread(trainer), guard.ending(trainer, _STOPPED):
            teaching = Teaching(fuser, recipe, mixtures, writer, workers, guard.advance)
            trainer.predict(teaching, return_predictions=False)
    if not trainer.is_global_zero:
        return None
    if sheet is not None:
        write_image(sheet, _draw_sheet(out, recipe))
    return shards.Index.read(out)


def _check_folder(out: Path, recipe: Recipe) -> None:
    """Raise ``UsageError`` if ``out`` holds shards of another set."""
    indexed = (out / shards.INDEX).exists()
    if indexed:
        shards.check_same(
            out, shards.Index.read(out).made_with(), {"kind": "triplets", **recipe.about()}
        )
    names = {shard.name for shard in plan(recipe)}
    for path in sorted(out.glob("*.tar")):
        if path.name not in names:
            raise UsageError(
                f"{out} holds {path.name}, which is none of this set's shards: give another "
                "folder, or empty this one"
            )
        if not indexed:
            shards.check_same(
                path, open_by_number(str(path))[0].info().get("recipe", {}), recipe.about()
            )


@contextmanager
def _one_thread(trainer: Trainer) -> Iterator[None]:
    """Use one thread on CPUs: rounding depends on their number, which depends on the processes."""
    threads = torch.get_num_threads()
    if trainer.strategy.root_device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _draw_sheet(out: Path, recipe: Recipe, rows: int = 8) -> Tensor:
    """A contact sheet (3, H, W) of the first triplets of a finished set, as stored."""
    columns = {"hard photograph": "foreground.jpg", "mask": "mask.png", "alpha": "alpha.png"}
    columns |= {"new background": "background.jpg", "target": "composite.png"}
    shard = open_by_number(str(out / plan(recipe)[0].name))
    items = [ShardItem(Source(str(out)), shard[i]) for i in range(min(rows, len(shard)))]
    pictures = {
        label: torch.stack([planes(item.picture(field)) for item in items]).float() / 255
        for label, field in columns.items()
    }
    return contact_sheet(pictures, 256)
