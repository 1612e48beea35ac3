"""Train the default stages on the shards of pack.py, in minutes on one GPU.

    python recipes/default/train.py runs/packed runs/gpu --minutes 9.5 --device cuda

Photographs are decoded once and stay in the device's memory, where crops are cut and augmented in
batches; loader processes only draw the positions of crops. Each stage gets a share of the time. Its
speed is measured while the learning rate warms up; then the rate follows a cosine over as many
steps as fit the time. A checkpoint is written every minute, and at the end the averaged weights,
``segmenter.safetensors`` and so on.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from PIL import Image
from torch import Tensor

from deep_image_compositing import registry, weights
from deep_image_compositing.data import crops
from deep_image_compositing.data.crops import outline_crop
from deep_image_compositing.data.datasets import FolderDataset, Mixture, open_source
from deep_image_compositing.data.items import Item, ShardItem, Source
from deep_image_compositing.data.loading import Sample
from deep_image_compositing.data.modules import (
    FusionData,
    HarmonizationData,
    RefinementData,
    SegmentationData,
    StageData,
)
from deep_image_compositing.data.modules.labelled import LOOK, crops_at, surroundings
from deep_image_compositing.data.procedural import draw_alpha
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.evaluation.methods import parse_stage
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.stages.base import Stage


@dataclass(frozen=True)
class Plan:
    """How a stage is trained; it starts from the shipped weights."""

    stage: str  # name and options
    share: float  # share of the time
    subjects: tuple[str, int]  # kind of photographs, and their longest side in memory
    size: int  # side of the crops, if the stage has no size
    batch: int  # crops per step
    rate: float  # peak learning rate


PLANS = {
    "segmenter": Plan("pyramid", 0.5, ("segmentation", 384), 320, 64, 1e-3),
    "refiner": Plan("cascade", 0.15, ("segmentation", 384), 256, 64, 7e-4),
    "harmonizer": Plan("color_map", 0.15, ("segmentation", 384), 256, 32, 1e-3),
    "fuser": Plan("multi_stream(two_sizes=0.25)", 0.2, ("mattes", 768), 192, 32, 5e-4),
}

SETTINGS: dict[str, dict[str, float]] = {
    "people": {"upper_body": 0.5, "paste": 0.35},
    "cats": {"distrust": 3},
    "subjects": {"distrust": 2, "paste": 0.35},
    "mattes": {"paste": 0.8},
    "cutouts": {"paste": 1.0},
    "procedural": {"weight": 10.0},
}
"""Settings of sources; a weight defaults to the square root of the number of photographs."""

BUSY = 0.25
"""Share of backgrounds that show other possible subjects."""

PROCEDURAL = 80
"""Number of procedural alphas for the fuser; see ``data.procedural``."""


# Photographs in the device's memory


@dataclass(eq=False)
class Row(Item):
    """A photograph in a bank; loader processes only have its mask."""

    row: int
    mask: Image.Image

    @property
    def name(self) -> str:
        return f"row {self.row} of {self.source.path}"

    def size(self) -> tuple[int, int]:
        return self.mask.size

    def label(self) -> Image.Image:
        return self.mask

    def image(self, scale: float = 1.0) -> Image.Image:
        raise NotImplementedError(f"{self.name} is on the device")

    def color(self, label: Image.Image, box: crops.Box, size: int) -> Image.Image:
        raise NotImplementedError(f"{self.name} is on the device")

    def crop(self, box: crops.Box, mirrored: bool = False) -> Tensor:
        """A crop (5,) for ``Bank.cut``: row, and left, top, right, bottom as shares."""
        (left, top, right, bottom), (width, height) = box, self.size()
        if mirrored:
            left, right = right, left
        shares = [left / width, top / height, right / width, bottom / height]
        return torch.tensor([self.row, *shares], dtype=torch.float32)


class Rows(FolderDataset):
    """The photographs of one source."""

    pairs: Sequence[Row]

    def __getitem__(self, index: int) -> Row:
        return self.pairs[index]


class Bank:
    """Photographs with their masks as one 8-bit tensor (N, 4, side, side) on a device.

    Args:
        packed: folder of the shards written by pack.py.
        kinds: folders in it.
        side: side in pixels; larger photographs are shrunk, smaller ones padded with their border.
        device: device of the tensor.
    """

    def __init__(self, packed: Path, kinds: Sequence[str], side: int, device: str) -> None:
        self.datasets: dict[str, list[Rows]] = {kind: [] for kind in kinds}
        parts, extents = [], []
        for kind, name, pictures in shards(packed, kinds, side):
            source = Source(name, **{"weight": math.sqrt(len(pictures)), **SETTINGS.get(name, {})})
            rows = [Row(source, len(extents) + i, mask) for i, (_, mask) in enumerate(pictures)]
            self.datasets[kind].append(Rows(source, rows))
            parts.append(torch.empty((len(pictures), 4, side, side), dtype=torch.uint8))
            for target, (image, mask) in zip(parts[-1].numpy(), pictures, strict=True):
                padding = [(0, 0), (0, side - mask.height), (0, side - mask.width)]
                rgba = np.dstack([image, mask]).transpose(2, 0, 1)
                target[:] = np.pad(rgba, padding, mode="edge")
                extents.append((mask.width / side, mask.height / side))
        self.planes = torch.cat(parts).to(device)
        self.extents = torch.tensor(extents, device=device)

    def cut(self, crops: Tensor, size: int) -> Tensor:
        """Photographs and masks (B, 4, size, size) in [0, 1] of crops (B, 5)."""
        rows = crops[:, 0].long()
        places = crops[:, 1:] * self.extents[rows].repeat(1, 2)
        return crops_at(self.planes[rows].float() / 255, places, size).clamp(0, 1)

    def mix(self, **shares: float) -> tuple[Mixture, Mixture]:
        """Mix kinds by their shares of the samples; nothing is held out."""
        datasets: list[Rows] = []
        for kind, share in shares.items():
            total = sum(rows.source.weight for rows in self.datasets.get(kind, []))
            for rows in self.datasets.get(kind, []):
                source = replace(rows.source, weight=share * rows.source.weight / total)
                datasets.append(Rows(source, rows.pairs))
        return Mixture(datasets), Mixture([])


Pictures = list[tuple[Image.Image, Image.Image]]


def shards(packed: Path, kinds: Sequence[str], side: int) -> Iterator[tuple[str, str, Pictures]]:
    """Kind, name and decoded photographs (straight colour of mattes) with masks of each shard."""
    for kind in kinds:
        stored = "backgrounds" if kind == "textures" else kind

        def decode(item: Item | None, kind: str = kind) -> tuple[Image.Image, Image.Image]:
            assert isinstance(item, ShardItem)
            image = item.picture("foreground.jpg") if kind == "mattes" else item.image()
            labelled = kind in ("segmentation", "mattes")
            mask = item.label() if labelled else Image.new("L", image.size)
            size = fit_long_side(image.height, image.width, side)[::-1]
            return image.resize(size, reducing_gap=2.0), mask.resize(size, reducing_gap=2.0)

        for path in sorted((packed / kind).glob("*.tar")):
            dataset, _ = open_source(Source(str(path)), (stored,))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                yield kind, path.stem, list(pool.map(decode, dataset))
    if "mattes" in kinds:
        rng = np.random.default_rng(0)
        alphas = [draw_alpha(rng, 256) for _ in range(PROCEDURAL)]
        yield "mattes", "procedural", [(Image.new("RGB", alpha.size), alpha) for alpha in alphas]


# The library's data modules, with crops cut on the device


class Resident(StageData):
    """Mixin for data modules: samples hold crops of a bank's rows, cut in ``finish``."""

    bank: Bank
    masks: ClassVar[dict[str, str]] = {"image": "mask", "around": "around_mask", "alpha": "alpha"}
    """Batch keys of photographs whose mask is needed, and the key of that mask."""

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        scenes = self.bank.mix(backgrounds=1 - BUSY, textures=BUSY)
        return {"subject": self.bank.mix(segmentation=1), "scene": scenes}

    def _scene(self, rng: np.random.Generator, item: Item, low: float = 0.4) -> Tensor:
        assert isinstance(item, Row)
        return item.crop(crops.any_crop(item.size(), rng, low), bool(rng.random() < 0.5))

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        """Replace crops (B, 5) by pictures, and finish the batch as the data module does."""
        pictures = dict(batch)
        for name, cut in batch.items():
            if cut.ndim == 2:
                size = LOOK if name.startswith("around") else self.size
                pictures[name], mask = self.bank.cut(cut, size).split((3, 1), 1)
                if name in self.masks:
                    pictures[self.masks[name]] = mask
        return super().finish(pictures, generator, training)


class ResidentSegmentation(Resident, SegmentationData):
    """Crops for segmenters, some of them pasted on other backgrounds."""

    def _labelled(
        self,
        rng: np.random.Generator,
        items: Mapping[str, Item],
        label: Image.Image,
        box: crops.Box,
        scene_scale: float,
    ) -> Sample:
        subject = items["subject"]
        assert isinstance(subject, Row)
        return {
            "image": subject.crop(box, bool(rng.random() < 0.5)),
            "background": self._scene(rng, items["scene"], scene_scale),
            **self._settings(subject.source, bool(rng.random() < subject.source.paste)),
        }


class ResidentHarmonization(Resident, HarmonizationData):
    """Whole photographs with their masks."""

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        return {"subject": self.bank.mix(segmentation=1)}

    def _cut(self, subject: Item, label: Image.Image, box: crops.Box, mirrored: bool) -> Sample:
        assert isinstance(subject, Row)
        return {"image": subject.crop(box, mirrored)}


class ResidentRefinement(Resident, RefinementData):
    """Crops of outlines, with their surroundings as the segmenter's input."""

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        subject, scene = items["subject"], items["scene"]
        assert isinstance(subject, Row)
        assert isinstance(scene, Row)
        label, mirrored = subject.label(), bool(rng.random() < 0.5)
        box = crops.local_crop(label, rng, 0.3, 1.0)
        around, scene_box, place = surroundings(rng, label, box, scene.size(), mirrored)
        own = float(rng.random() < self.own)
        return {
            "image": subject.crop(box, mirrored),
            "background": scene.crop(crops.map_box(box, around, scene_box), mirrored),
            "around": subject.crop(around, mirrored),
            "around_background": scene.crop(scene_box, mirrored),
            "place": own * place,
            **self._settings(subject.source, bool(rng.random() < subject.source.paste)),
        }


class ResidentFusion(Resident, FusionData):
    """Crops for easy triplets."""

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        subjects, scenes = self.bank.mix(mattes=1), self.bank.mix(backgrounds=1)
        textures = self.bank.mix(backgrounds=0.4, textures=0.6)
        return {"subject": subjects, "new": scenes, "old": textures, "texture": textures}

    def _draw_photograph(
        self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool
    ) -> Sample:
        subject = items["subject"]
        assert isinstance(subject, Row)
        alpha = subject.crop(*outline_crop(rng, subject.label(), self.size))
        blended = subject.source.path == "procedural" or rng.random() < self.blending
        color = self._scene(rng, items["texture"], 0.3) if blended else alpha
        return {"color": color, "alpha": alpha, "old": self._scene(rng, items["old"], 0.25)}


# Timing


class Budget(Callback):
    """Fits a run into its time: measures the speed, sets the number of steps and the rate.

    Args:
        name: name of the stage, for messages.
        seconds: duration of the run.
        batch: photographs per step.
    """

    def __init__(self, name: str, seconds: float, batch: int) -> None:
        self.name, self.seconds, self.batch = name, seconds, batch
        self.warmup = min(30.0, seconds / 10)
        self.total: int | None = None  # steps; None while the speed is measured
        self.rates: list[float] = []
        self.first = (0, 0.0)  # step and seconds at the start of the current phase

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = self.reported = time.perf_counter()
        self.rates = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.total is None:
            factor = min(1.0, (time.perf_counter() - self.start) / self.warmup)
        else:
            done = (trainer.global_step - self.first[0]) / max(1, self.total - self.first[0])
            factor = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group, rate in zip(trainer.optimizers[0].param_groups, self.rates, strict=True):
            group["lr"] = max(factor, 0.01) * rate

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step, spent = trainer.global_step, time.perf_counter() - self.start
        if step == 3 or (self.total is None and spent >= self.warmup):
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize()  # steps that are only queued do not count
            spent = time.perf_counter() - self.start
        if step == 3:  # initialization is over
            self.first = step, spent
        elif step > 3 and self.total is None and spent >= self.warmup:
            speed = (step - self.first[0]) / (spent - self.first[1])
            self.first = step, spent
            self.total = step + int(0.97 * speed * (self.seconds - spent))
            print(
                f"{self.name}: {speed * self.batch:.3g} images a second, "
                f"{self.total} steps of {self.batch}",
                flush=True,
            )
        if self.start + spent - self.reported > 15:
            self.reported = self.start + spent
            loss = float(trainer.callback_metrics["train/loss"])
            print(f"{self.name}: step {step}, {spent:.0f} s, loss {loss:.4f}", flush=True)
        trainer.should_stop = step == self.total or spent >= self.seconds


# The run


def main() -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("packed", type=Path, help="folder written by pack.py")
    parser.add_argument("out", type=Path, help="folder for weights and checkpoints")
    parser.add_argument("--minutes", type=float, default=9.5, help="total time")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", help="default: bf16-mixed on cuda, 32-true on cpu")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--workers", type=int, help="loader processes; default: CPU cores, max. 14")
    parser.add_argument("--batch", type=int, help="photographs per step, for all stages")
    parser.add_argument("--stages", default=",".join(PLANS), help="stages to train, in order")
    for slot, plan in PLANS.items():
        parser.add_argument(f"--{slot}", default=plan.stage, metavar="NAME(OPTIONS)")
    options = parser.parse_args()
    slots = options.stages.split(",")
    if unknown := set(slots) - PLANS.keys():
        parser.error(f"there is no stage {min(unknown)!r}; choose from {', '.join(PLANS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; try it out with --device cpu")
    seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    bank: Bank | None = None
    share, loaded = 0.0, ("", 0)
    for slot in slots:
        plan = PLANS[slot]
        share += plan.share / sum(PLANS[s].share for s in slots)
        try:
            if bank is None or loaded != plan.subjects:
                (kind, side), bank = plan.subjects, None  # frees the memory of the last one
                bank = Bank(options.packed, (kind, "backgrounds", "textures"), side, options.device)
                loaded, spent = plan.subjects, time.perf_counter() - start
                print(f"{len(bank.planes)} photographs after {spent:.0f} s", flush=True)
            train(slot, options, bank, start + 60 * options.minutes * share)
        except CompositingError as error:
            raise SystemExit(f"error: {error}") from None


def train(slot: str, options: argparse.Namespace, bank: Bank, end: float) -> None:
    """Train one stage until ``end`` and write its weights."""
    plan, cuda = PLANS[slot], options.device == "cuda"
    name, stage_options = parse_stage(getattr(options, slot))
    defaults: dict[str, Any] = {"learning_rate": plan.rate, "weight_decay": 0.02}
    defaults |= {"compile": options.compile, "picture_every": 0}
    if "default" in registry.get(slot, name).weights:
        defaults["weights"] = "default"
    stage: Stage = registry.create(slot, name, **{**defaults, **stage_options})
    workers = min(14, os.cpu_count() or 1) if options.workers is None else options.workers
    common: dict[str, Any] = {
        "size": getattr(stage, "size", plan.size),
        "batch_size": options.batch or plan.batch,
        "epoch_length": 10**9,
        "num_workers": workers,
    }
    data: Resident
    if slot == "segmenter":
        data = ResidentSegmentation("packed", **common)
    elif slot == "refiner":
        trained = options.out / "segmenter.safetensors"
        if trained.is_file():
            common["segmenter_weights"] = str(trained)
        segmenter = parse_stage(options.segmenter)[0]
        masks = {"own": 0.45, "degrade": 3.0, "closed": 0.14}
        data = ResidentRefinement("packed", segmenter=segmenter, **masks, **common)
    elif slot == "harmonizer":
        data = ResidentHarmonization("packed", **common)
    else:
        data = ResidentFusion("packed", degrade=3.0, **common)
    data.bank = bank
    reserve = 2.0 + 0.01 * (end - time.perf_counter())
    trainer = Trainer(
        accelerator=options.device,
        devices=1,
        precision=options.precision or ("bf16-mixed" if cuda else "32-true"),
        max_epochs=1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=options.out,
        callbacks=[
            Budget(slot, end - time.perf_counter() - reserve, common["batch_size"]),
            EMAWeightAveraging(decay=0.99, update_every_n_steps=4),
            ModelCheckpoint(
                options.out / slot, "last", train_time_interval=timedelta(minutes=1), save_top_k=1
            ),
        ],
    )
    with warnings.catch_warnings():
        # Lightning's advice on iterable datasets, numbers of workers and sharded models.
        for message in (
            "Your `IterableDataset`",
            ".*many workers",
            "You're using",
            "`isinstance.treespec",
        ):
            warnings.filterwarnings("ignore", message=message)
        trainer.fit(stage, data)
    weights.save(stage, options.out / f"{slot}.safetensors")
    print(f"{slot}: {trainer.global_step} steps", flush=True)


if __name__ == "__main__":
    main()
