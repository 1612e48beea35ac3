"""Self-teaching, the easy-to-hard step: a trained fuser makes the triplets that train the next.

An easy photograph, ``αF + (1 − α)B₀`` seen by a camera, is composited by the fuser before ``B₁``,
which is the new, hard photograph, and before ``B₂``, which is its target. Shards are made by one
process each, so the bytes are the same for any number of them, and a run that was ended goes on.
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
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.sheets import contact_sheet
from deep_image_compositing.images import write_image
from deep_image_compositing.running import Guard, make_trainer, quiet
from deep_image_compositing.stages.base import Fuser

_FAREWELL = "stopped; finished shards stay, and the same command goes on from there"
_log = logging.getLogger("deep_image_compositing")
Mixtures = Mapping[str, tuple[Mixture, Mixture]]
"""Mattes and backgrounds of each split."""


class TripletWriter:
    """Writes the shards of one process, sample by sample as they are made."""

    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        self.out, self.about = out, about
        self.done = 0
        self._threads = ThreadPoolExecutor(4)
        self._pending: tuple[str, bool, dict[str, Any]] = "", False, {}
        self._writer: shards.ShardWriter | None = None

    def add(self, batch: Mapping[str, Any], pictures: Mapping[str, Tensor], device: str) -> None:
        """Encode a batch, and write the one before."""
        jobs = {}
        for i, number in enumerate(batch["number"]):
            key, own = f"{number:08d}", {name: value[i] for name, value in pictures.items()}
            info = {"key": key, **batch["info"][i], "recipe": self.about, "device": device}
            jobs[key] = self._threads.submit(triplets.encode_sample, own, batch["jpeg"][i], info)
        self._write()
        self._pending = batch["shard"], batch["last"], jobs  # encoded while the device goes on

    def finish(self) -> None:
        """Write what is left."""
        self._write()
        self._threads.shutdown()

    def abandon(self) -> None:
        """Drop the shard that is not whole."""
        self._threads.shutdown(cancel_futures=True)
        if self._writer is not None:
            self._writer.__exit__(KeyboardInterrupt)

    def _write(self) -> None:
        """Write the batch that waits, if there is one."""
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
    """Makes the triplets of the shards that are missing; each process writes shards of its own."""

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
        self.writer.out.mkdir(parents=True, exist_ok=True)
        shards.remove_unfinished(self.writer.out)

    def setup(self, stage: str) -> None:
        # Lightning lets no process begin before all have looked what is left.
        out = self.writer.out
        left = [shard for shard in plan(self.recipe) if not (out / shard.name).exists()]
        if left and self.trainer.is_global_zero:
            (out / shards.INDEX).unlink(missing_ok=True)
        own = left[self.trainer.global_rank :: self.trainer.world_size]
        self.batches = triplets.Batches(self.recipe, own, self.mixtures)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        return WorkerLoader(
            self.batches, batch_size=None, num_workers=self.workers, worker_init_fn=start_worker
        )

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Hand ``foreground``, ``composite``, ``mask`` and ``alpha``, uint8, to the writer."""
        raise_sent(batch)
        *parts, new = (batch[name].float() / 255 for name in triplets.PICTURES)
        # One generator a sample, so that none depends on the batch that it is in.
        generators = [Generator(self.device).manual_seed(seed) for seed in batch["seed"]]
        rows = zip(*(part.split(1) for part in parts), generators, strict=True)
        recipe = self.recipe
        make = partial(triplets.make_easy, augment=recipe.augment, degrade=recipe.teacher_degrade)
        easy = [make(*row) for row in rows]
        alpha = parts[1]
        photograph, scene, mask = (torch.cat(part) for part in zip(*easy, strict=True))
        hard, target, alpha = triplets.make_hard(self.fuser, photograph, mask, scene, new, alpha)
        rough = [
            degrade_mask(row, generator, self.recipe.degrade, exact=triplets.EXACT)
            for row, generator in zip(alpha.split(1), generators, strict=True)
        ]
        made = {"foreground": hard, "composite": target, "alpha": alpha, "mask": torch.cat(rough)}
        pictures = {name: to_bytes(value).cpu() for name, value in made.items()}
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
    """Mattes and backgrounds of the splits; ``validation`` only where mattes are held out."""
    mattes, held_out = open_all(recipe.mattes, ("mattes",), Reading(cache=cache))
    scenes, new = open_all(recipe.backgrounds, ("backgrounds",), Reading(cache=cache))
    mixtures = {"train": (mattes, scenes)}
    if held_out.datasets:
        # Where no background is held out, a new subject before a known one is new enough.
        mixtures["validation"] = held_out, new if new.datasets else scenes
    for split in mixtures if recipe.validation else ["train"]:
        for mixture in mixtures[split]:
            mixture.weights()  # raises here what every sample would
    return mixtures


def _fingerprint(mixtures: Mixtures) -> str:
    """SHA-256 of what all datasets hold, by name and number; the samples depend on it."""
    lines: list[Any] = []
    for split, pair in sorted(mixtures.items()):
        for dataset in (each for mixture in pair for each in mixture.datasets):
            if isinstance(dataset, ShardDataset):
                held: list[Any] = [Path(url).name for url in dataset.urls] + dataset.blocks()
            else:
                root = local_path(dataset.source.path)
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
) -> shards.Index | None:
    """Make hard triplets with ``fuser`` and write them as shards into ``out``.

    What an earlier run with the same arguments has finished is kept.

    Args:
        fuser: trained on easy triplets.
        identity: of the fuser, as ``identify`` gives it.
        mattes: sources of subjects, as for training.
        backgrounds: sources of backgrounds.
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
        with _one_thread(trainer), guard.ending(trainer, _FAREWELL):
            teaching = Teaching(fuser, recipe, mixtures, writer, workers, guard.advance)
            trainer.predict(teaching, return_predictions=False)
    if not trainer.is_global_zero:
        return None
    if sheet is not None:
        write_image(sheet, _draw_sheet(out, recipe))
    return shards.Index.read(out)


def _check_folder(out: Path, recipe: Recipe) -> None:
    """Raise ``UsageError`` if ``out`` holds anything but shards of this very set."""
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
    """On CPUs, sums depend on the number of threads, and that on the number of processes."""
    before = torch.get_num_threads()
    if trainer.strategy.root_device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _draw_sheet(out: Path, recipe: Recipe, rows: int = 8) -> Tensor:
    """A contact sheet (3, H, W) of the first triplets of a finished set, as they are stored."""
    columns = {"hard photograph": "foreground.jpg", "mask": "mask.png", "alpha": "alpha.png"}
    columns |= {"new background": "background.jpg", "target": "composite.png"}
    shard = open_by_number(str(out / plan(recipe)[0].name))
    items = [ShardItem(Source(str(out)), shard[i]) for i in range(min(rows, len(shard)))]
    pictures = {
        label: torch.stack([planes(item.picture(field)) for item in items]).float() / 255
        for label, field in columns.items()
    }
    return contact_sheet(pictures, 256)
