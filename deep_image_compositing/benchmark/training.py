"""``benchmark data``, ``train`` and ``gpu``: speed only, with noise and random weights."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from deep_image_compositing.benchmark.measuring import median, now, write_shards
from deep_image_compositing.data import crops
from deep_image_compositing.data.items import Source
from deep_image_compositing.data.modules import (
    FusionData,
    HarmonizationData,
    RefinementData,
    SegmentationData,
)
from deep_image_compositing.images import open_picture
from deep_image_compositing.running import quiet
from deep_image_compositing.stages.fusion import MultiStreamFuser
from deep_image_compositing.stages.harmonization import ColorMapHarmonizer
from deep_image_compositing.stages.making import make_stage
from deep_image_compositing.stages.refinement import CascadeRefiner
from deep_image_compositing.stages.segmentation import PyramidSegmenter

MINUTES = 6.5  # after which no other training is started
CROP, BATCH = 256, 8  # of the loading benchmark: the paper's for segmentation
ENDLESS = 10**9


def loading(workers: int, quick: bool) -> Iterator[Table]:
    """The speed of loading training data from shards, compared with decoding alone."""
    count, sides, batches, turns = (12, (96, 128), 3, 1) if quick else (160, (512, 800), 40, 7)
    table = Table("loading", "workers", "samples/s", "of the bare loop",
                  title=f"Crops of {CROP} × {CROP} of photographs of {sides[0]} to {sides[1]} "
                  f"pixels, median of {turns} turns")  # fmt: skip
    with TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(folder, "segmentation", count, sides)
        scenes = write_shards(folder, "backgrounds", max(40, count // 4), sides)
        plans = draw_crops(folder / "segmentation-files", batches * BATCH)
        for number in sorted({1, workers}):
            # Without pasting, a sample is one photograph and one mask, as in the bare loop.
            data = SegmentationData(Source(str(shards), paste=0.0), str(scenes), size=CROP,
                                    batch_size=BATCH, epoch_length=ENDLESS,
                                    num_workers=number)  # fmt: skip
            data.setup("fit")
            loader: Any = iter(data.train_dataloader())
            rates = []
            with multiprocessing.Pool(number) as pool:
                for _ in range(turns):
                    pool.map(decode, plans[: 4 * number * BATCH])  # while the loaders warm up
                    start = time.perf_counter()
                    pool.map(decode, plans, chunksize=BATCH)
                    bare = time.perf_counter() - start
                    # The batches that were loaded during the bare loop do not count.
                    list(islice(loader, 2 * number + 2))
                    start = time.perf_counter()
                    list(islice(loader, batches))
                    rates.append((len(plans) / bare, len(plans) / (time.perf_counter() - start)))
            bare, loaded = map(statistics.median, zip(*rates, strict=True))
            ratio = statistics.median(loaded / bare for bare, loaded in rates)
            table.add_row("bare loop", str(number), f"{bare:.0f}")
            table.add_row("shards", str(number), f"{loaded:.0f}", f"{ratio:.2f}")
            del loader
    yield table


def draw_crops(files: Path, count: int) -> list[tuple[Path, Path, crops.Box]]:
    """Files of photographs and masks, with crop boxes drawn as in training."""
    rng, plans = np.random.default_rng(0), []
    masks = sorted((files / "masks").iterdir())
    for number in rng.integers(0, len(masks), count):
        with open_picture(masks[number]) as label:
            box = crops.whole_crop(label.size, crops.subject_box(label), rng)
        plans.append((files / "images" / f"{masks[number].stem}.jpg", masks[number], box))
    return plans


def decode(plan: tuple[Path, Path, crops.Box]) -> None:
    """Decode and crop a photograph, its JPEG at reduced scale, and its mask; drop the arrays."""
    *paths, box = plan
    image, mask = map(open_picture, paths)
    with image, mask:
        scale = max(1, min(box[2] - box[0], box[3] - box[1]) / CROP)
        image.draft("RGB", (int(mask.width / scale), int(mask.height / scale)))
        for picture in (image, mask):
            np.array(crops.crop(picture, box, CROP, mask.size))


class Meter(Callback):
    """Measures batches per second, and the share of waiting for data, after ``warmup`` batches."""

    def __init__(self, warmup: int, batches: int) -> None:
        self.warmup, self.batches = warmup, batches
        self.rate = self.waiting = float("nan")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1 - self.warmup
        if done == 0:
            if pl_module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(pl_module.device)
            self._begin = now()
        elif done == self.batches:
            seconds = now() - self._begin
            profiler: Any = trainer.profiler  # type: ignore[attr-defined]
            waits = next(durations for action, durations in profiler.recorded_durations.items()
                         if action.endswith("train_dataloader_next"))  # fmt: skip
            self.rate = self.batches / seconds
            self.waiting = sum(waits[self.warmup : self.warmup + self.batches]) / seconds


def run(device: torch.device, workers: int | None, quick: bool, batches: bool) -> Iterator[Table]:
    """The training speed of each slot and, with ``batches``, first that of batched inference."""
    end = time.monotonic() + 60 * MINUTES
    if batches:
        yield batch_table(device, *((1, 64, 1) if quick else (8, 768, 20)))
    with TemporaryDirectory() as folder:
        loaders = workers or min(12, max(1, (os.cpu_count() or 1) - 1))
        yield train_table(Path(folder), device, loaders, quick, end)


def train_table(folder: Path, device: torch.device, workers: int, quick: bool, end: float) -> Table:
    """Samples per second of each slot, in float32 as in the paper and in faster modes."""
    gpu = device.type == "cuda"
    mattes, scenes = (
        str(write_shards(folder, kind, *((40, (64, 96)) if quick else (64, (512, 800)))))
        for kind in ("mattes", "backgrounds")
    )
    features = "test_efficientnet" if quick else "vgg16"  # the loss requires weights
    weights = str(folder / f"{features}.safetensors")
    save_file(timm.create_model(features, num_classes=0).state_dict(), weights)
    fuser = partial(MultiStreamFuser, perceptual=features, perceptual_weights=weights)
    slots: list[tuple[str, Any, Any, int, int]] = [
        ("fusion", fuser, FusionData, 384, 32),
        ("segmentation", PyramidSegmenter, SegmentationData, 256, 64),
        ("refinement", CascadeRefiner, RefinementData, 256, 64),
        ("harmonization", ColorMapHarmonizer, HarmonizationData, 256, 64),
    ]
    bf16 = {"precision": "bf16-mixed"}
    modes: list[tuple[str, bool, dict[str, Any]]] = [("fp32", False, {}), ("bf16", False, bf16)]
    if gpu or quick:
        modes.append(("bf16, compiled", gpu, bf16))
        modes.append((f"bf16, {'NCCL' if gpu else 'gloo'}", False, {**bf16, "strategy": "ddp"}))
    table = Table("training", "crops", "batch", "samples/s", "of fp32", "waiting", "peak MB",
                  title=f"On {torch.cuda.get_device_name(device) if gpu else device.type}, "
                  f"{workers} loader processes")  # fmt: skip
    for slot, stage, data_module, size, large in slots[: 1 if quick else None]:
        first = 0.0
        for mode, compiled, trainer in modes if slot == "fusion" else modes[:2]:
            if gpu and time.monotonic() > end:
                table.add_row(f"{slot}, {mode}", "left out: time is up")
                continue
            batch = 2 if quick else 8 if mode == "fp32" else large if gpu else 16
            data = data_module(mattes, scenes, size=32 if quick else size, batch_size=batch,
                               num_workers=workers, epoch_length=ENDLESS)  # fmt: skip
            meter = Meter(5 + 2 * workers, 2 if quick else 100 if gpu else 20)
            module = stage(compile=compiled, picture_every=0)
            fit(module, data, device, meter, default_root_dir=folder, **trainer)
            rate = batch * meter.rate
            first = first or rate
            peak = f"{torch.cuda.max_memory_allocated(device) / 1e6:.0f}" if gpu else ""
            table.add_row(f"{slot}, {mode}", str(data.size), str(batch), f"{rate:.3g}",
                          f"{rate / first:.2f}", f"{meter.waiting:.1%}", peak)  # fmt: skip
    return table


def fit(
    stage: LightningModule, data: Any, device: torch.device, meter: Meter, **options: Any
) -> None:
    """Train for the meter's batches, and clean up the process group."""
    gpu = device.type == "cuda"
    environment = dict(os.environ)  # Lightning's launcher adds rank and port to it
    try:
        with quiet():
            Trainer(
                accelerator={"cuda": "gpu"}.get(device.type, device.type),
                devices=[device.index or 0] if gpu else 1, max_epochs=1, limit_val_batches=0,
                limit_train_batches=meter.warmup + meter.batches, profiler="simple", logger=False,
                enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                callbacks=[meter], **options,
            ).fit(stage, data)  # fmt: skip
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in os.environ.keys() - environment:
            del os.environ[name]


def batch_table(device: torch.device, count: int, size: int, repeats: int) -> Table:
    """Pairs per second through all three stages, copies to the device and back included."""
    names = {"segmenter": "pyramid", "refiner": "cascade", "fuser": "multi_stream"}
    stages: list[Any] = [make_stage(*slot) for slot in names.items()]
    pictures = [torch.randint(0, 256, (count, n, size, size), dtype=torch.uint8) for n in (3, 3, 1)]
    table = Table("precision", "pairs/s", "of fp32", title=f"Batches of {count} pairs of {size} × "
                  f"{size} pixels, copies to the device and back included")  # fmt: skip

    def composite() -> Tensor:
        front, back, mask = (x.to(device).float() / 255 for x in pictures)
        stages[0](front)  # its result for noise is not used
        out: Tensor = stages[2](front, back, stages[1](front, mask).float())
        return out.float().mul(255).add_(0.5).clamp_(0, 255).byte().cpu()

    first = 0.0
    # A CPU may take minutes for bfloat16 and for compiling.
    for mode in ("fp32", "bf16", "bf16, compiled")[: 3 if device.type == "cuda" else 1]:
        for stage in stages:
            stage.to(device).eval()
            if mode == "bf16, compiled":
                stage.compile_networks = True
                stage.configure_model()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, mode != "fp32"):
            pairs = count / median(composite, repeats)
        first = first or pairs
        table.add_row(mode, f"{pairs:.1f}", f"{pairs / first:.2f}")
    return table
