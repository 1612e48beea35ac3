"""How fast recipes train on the device at hand: ``benchmark train``.

Each recipe runs in a process of its own through the command ``fit``, on made data, so that what is
timed is what a user starts, and its memory is its own. Only speed is measured: networks and the
features of the perceptual loss start from random weights.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from rich.table import Table
from safetensors.torch import save_file

from deep_image_compositing.benchmark import made
from deep_image_compositing.benchmark.pipeline import (
    limit_threads,
    open_console,
    peak_memory,
    synchronise,
)
from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.messages import printable
from deep_image_compositing.networks.backbone import Backbone

AIM_WAITING, AIM_MODERN = 0.05, 3.0
"""On a GPU: most time waiting for data, and least ratio of modern settings to the paper's."""

Recipe = dict[str, Any]

_log = logging.getLogger("deep_image_compositing")
_NEXT = "[_TrainingEpochLoop].train_dataloader_next"
_LEFT_OUT = ("ModelCheckpoint", "EarlyStopping")


@dataclass(frozen=True)
class Amounts:
    """How much is measured.

    Attributes:
        photographs: of each kind in the made data.
        sides: shortest and longest long side of them, in pixels.
        warmup: batches before the timed ones, besides those that wait in the loader's queue.
    """

    photographs: int = 64
    sides: tuple[int, int] = (512, 800)
    warmup: int = 5


@dataclass(frozen=True)
class Timing:
    """What :class:`Meter` has found.

    Attributes:
        batches: that were timed.
        batch_size: samples in each.
        size: side of the crops in pixels.
        seconds: that the batches took.
        waiting: seconds in which the training process waited for data; on a GPU, which works on
            meanwhile, the most that it may have waited.
        peak: bytes of memory at most, of the GPU or else of the training process; None where that
            cannot be known.
        precision: as Lightning calls it.
        compiled: whether the networks ran through torch.compile.
        workers: loader processes.
        device: what it ran on.
    """

    batches: int
    batch_size: int
    size: int
    seconds: float
    waiting: float
    peak: int | None
    precision: str
    compiled: bool
    workers: int
    device: str

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.batches * self.batch_size / self.seconds


class Meter(Callback):
    """Times the batches after the first ones, and writes a :class:`Timing` as JSON.

    It needs Lightning's simple profiler, which knows how long each batch was waited for.

    Args:
        warmup: batches that do not count.
        batches: that count.
        report: file to write.
    """

    def __init__(self, warmup: int, batches: int, report: str) -> None:
        self.warmup = warmup
        self.batches = batches
        self.report = Path(report)
        self._done = 0
        self._begin = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._done += 1
        device = pl_module.device
        if self._done == self.warmup:
            synchronise(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            self._begin = time.perf_counter()
        elif self._done == self.warmup + self.batches:
            synchronise(device)
            seconds = time.perf_counter() - self._begin
            timing = self._timing(trainer, pl_module, batch, seconds)
            self.report.write_text(json.dumps(asdict(timing)))

    def _timing(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, seconds: float
    ) -> Timing:
        profiler = trainer.profiler  # type: ignore[attr-defined]
        assert isinstance(profiler, SimpleProfiler)
        waits = profiler.recorded_durations[_NEXT][self.warmup : self.warmup + self.batches]
        picture = next(value for value in batch.values() if value.ndim == 4)
        on_gpu = pl_module.device.type == "cuda"
        return Timing(
            batches=self.batches,
            batch_size=picture.shape[0],
            size=picture.shape[-1],
            seconds=seconds,
            waiting=sum(waits),
            peak=torch.cuda.max_memory_allocated(pl_module.device) if on_gpu else peak_memory(),
            precision=str(trainer.precision),
            compiled=bool(getattr(pl_module, "compile_networks", False)),
            workers=int(getattr(trainer.train_dataloader, "num_workers", 0)),
            device=torch.cuda.get_device_name() if on_gpu else pl_module.device.type,
        )


def run(
    recipes: Sequence[str] = (),
    *,
    steps: int = 20,
    workers: int | None = None,
    compile: bool = False,
    quick: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Time recipes and print the table.

    Args:
        recipes: files; none for the built-in set, each slot with the paper's settings and
            modern ones.
        steps: batches to time.
        workers: loader processes; None for what the recipes say.
        compile: let recipes compile their networks on a CPU too, where that takes long.
        quick: two steps on tiny pictures; of the built-in set two tiny fusers.
        threads: of torch; None leaves its default.
        device: where to train.

    Raises:
        UsageError: numbers that cannot be, a device that is not there, a file that is no recipe.
        CompositingError: when a recipe failed; the others are timed all the same.
    """
    if steps < 1:
        raise UsageError(f"--steps must be at least 1, got {steps}")
    if workers is not None and workers < 0:
        raise UsageError(f"--workers must be at least 0, got {workers}")
    if threads is not None:
        limit_threads(threads)
    place = choose_device(device)
    given = {path: read_recipe(path) for path in recipes} or built_in(place, quick)
    for name, recipe in given.items():
        slot_of(name, recipe), kind_of(name, recipe)
    amounts = Amounts(photographs=8, sides=(64, 96), warmup=1) if quick else Amounts()
    timings: dict[str, Timing] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bench = Bench(root, place, amounts, 2 if quick else steps, workers, compile)
        for name, recipe in given.items():
            _log.info("timing %s", name)
            try:
                timings[name] = bench.time(name, recipe)
            except CompositingError as error:
                _log.error("%s failed: %s", name, error)
    open_console().print(make_table(given, timings))
    if len(timings) < len(given):
        raise CompositingError(f"{len(given) - len(timings)} of {len(given)} recipes failed")


# Recipes


def read_recipe(path: str) -> Recipe:
    """The contents of a recipe's file.

    Raises:
        UsageError: when there is none, or it names no stage and data module.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UsageError(f"the recipe {path} cannot be read: {reason}") from None
    for part in ("model", "data"):
        entry = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
            raise UsageError(f"{path} is no recipe: it has no {part}.class_path")
    return dict(content)


def slot_of(name: str, recipe: Recipe) -> str:
    """The slot of a recipe's stage."""
    return str(getattr(_class(name, recipe, "model"), "slot", "stage"))


def kind_of(name: str, recipe: Recipe) -> str:
    """The kind of made samples that a recipe's data module trains on."""
    accepted = getattr(_class(name, recipe, "data"), "accepts", ())
    kind = next((kind for kind in accepted if kind in made.KINDS), None)
    if kind is None:
        raise UsageError(f"{name}: its data module takes none of {', '.join(made.KINDS)}")
    return kind


def _class(name: str, recipe: Recipe, part: str) -> Any:
    path = recipe[part]["class_path"]
    module, _, base = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), base)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{name}: {part}.class_path {path!r} is no class: {error}") from None


def built_in(device: torch.device, quick: bool = False) -> dict[str, Recipe]:
    """Each slot with the paper's settings, and with modern ones for the same network and crops.

    Those are AdamW, bfloat16, torch.compile, an average of the weights and larger batches: eight
    times on a GPU (fusion four times, as in ``recipes/``), twice on a CPU, which gains little.
    ``quick`` leaves two tiny fusers.
    """
    on_gpu = device.type == "cuda"
    stages, modules = "deep_image_compositing.stages", "deep_image_compositing.data.modules"
    backbone = {"backbone": "resnet50"}
    slots: dict[str, tuple[str, dict[str, Any], str, int, int]] = {
        "segmentation": (
            f"{stages}.segmentation.PyramidSegmenter", backbone,
            f"{modules}.SegmentationData", 256, 8,
        ),
        "refinement": (
            f"{stages}.refinement.CascadeRefiner", backbone,
            f"{modules}.RefinementData", 256, 8,
        ),
        "fusion": (
            f"{stages}.fusion.MultiStreamFuser",
            {"perceptual": "test_efficientnet", "widths": [4, 6]} if quick
            else {"perceptual": "vgg16"},
            f"{modules}.FusionData", 384, 4,
        ),
    }  # fmt: skip
    average = "lightning.pytorch.callbacks.EMAWeightAveraging"
    modern_trainer = {"precision": "bf16-mixed", "callbacks": [{"class_path": average}]}
    found = {}
    for name, (stage, options, module, size, factor) in slots.items():
        if quick and name != "fusion":
            continue
        for modern in (False, True):
            model = {**options, "learning_rate": 0.002, "picture_every": 0}
            batch_size = 2 if quick else 8
            if modern:
                model |= {"weight_decay": 0.01, "compile": True}
                batch_size *= factor if on_gpu else 2
            found[f"{name}, {'modern' if modern else 'paper'}"] = {
                "model": {"class_path": stage, "init_args": model},
                "data": {
                    "class_path": module,
                    "init_args": {
                        "train": "made",
                        "backgrounds": "made",
                        "size": 32 if quick else size,
                        "batch_size": batch_size,
                        "num_workers": min(12, max(1, (os.cpu_count() or 1) - 1)),
                    },
                },
                "trainer": modern_trainer if modern else {"precision": "32-true"},
            }
    return found


# Runs


@dataclass(frozen=True)
class Bench:
    """Where and how recipes are timed.

    Attributes:
        root: a folder for made data and runs.
        device: to train on.
        amounts: of made data and of batches that do not count.
        steps: batches that count.
        workers: loader processes; None for what a recipe says.
        compile: whether recipes may compile on a CPU.
    """

    root: Path
    device: torch.device
    amounts: Amounts
    steps: int
    workers: int | None
    compile: bool

    def time(self, name: str, recipe: Recipe) -> Timing:
        """Run a recipe in a fresh process.

        Raises:
            CompositingError: when it fails.
        """
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            run = Path(folder)
            report, file = run / "timing.json", run / "recipe.yaml"
            file.write_text(json.dumps(recipe))
            command = [sys.executable, "-m", "deep_image_compositing", "fit", f"--config={file}"]
            done = subprocess.run(
                [*command, *self.overrides(name, recipe, run, report)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not report.is_file():
                said = [line for line in done.stderr.splitlines() if line.strip()]
                raise CompositingError(said[-1] if said else f"exit code {done.returncode}")
            return Timing(**json.loads(report.read_text()))

    def overrides(self, name: str, recipe: Recipe, run: Path, report: Path) -> list[str]:
        """Arguments after the recipe: made data, few steps, nothing fetched or kept."""
        model, data = (recipe[part].get("init_args") or {} for part in ("model", "data"))
        trainer = recipe.get("trainer") or {}
        workers = self.workers if self.workers is not None else data.get("num_workers", 1)
        # A loader may have two batches of each process ready, which were no work in the time.
        warmup = self.amounts.warmup + 2 * workers
        given: dict[str, Any] = {
            "data.init_args.train": str(self._made(kind_of(name, recipe))),
            "data.init_args.backgrounds": str(self._made("backgrounds")),
            "data.init_args.validation": None,
            "data.init_args.epoch_length": 10**9,
            "data.init_args.num_workers": workers,
            "trainer.default_root_dir": str(run),
            "trainer.limit_train_batches": warmup + self.steps,
            "trainer.max_epochs": 1,
            "trainer.max_steps": -1,
            "trainer.limit_val_batches": 0,
            "trainer.num_sanity_val_steps": 0,
            "trainer.val_check_interval": 1.0,
            "trainer.accelerator": {"cuda": "gpu"}.get(self.device.type, self.device.type),
            "trainer.devices": [self.device.index or 0] if self.device.type == "cuda" else 1,
            "trainer.num_nodes": 1,
            "trainer.strategy": "auto",
            "trainer.profiler": "simple",
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
            "trainer.enable_checkpointing": False,
            "trainer.callbacks": [
                *_kept(trainer.get("callbacks")),
                {
                    "class_path": f"{__name__}.{Meter.__name__}",
                    "init_args": {"warmup": warmup, "batches": self.steps, "report": str(report)},
                },
            ],
        }
        given |= {
            f"model.init_args.{key}": None for key in ("weights", "pretrained") if model.get(key)
        }
        if data.get("textures"):
            given["data.init_args.textures"] = None
        if model.get("perceptual"):
            given["model.init_args.perceptual_weights"] = str(self._features(model["perceptual"]))
        if model.get("compile") and self.device.type == "cpu" and not self.compile:
            given["model.init_args.compile"] = False
        return [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in given.items()
        ]

    def _made(self, kind: str) -> Path:
        """Shards of a kind, made when they are first needed."""
        folder = self.root / kind
        if not folder.exists():
            photographs = made.samples(kind, self.amounts.photographs, self.amounts.sides)
            made.write_shards(folder, kind, photographs)
        return folder

    def _features(self, backbone: str) -> Path:
        """A checkpoint of random weights for the perceptual loss, which refuses to have none."""
        path = self.root / f"{backbone}.safetensors"
        if not path.exists():
            save_file(Backbone(backbone, max_stride=8).body.state_dict(), path)
        return path


def _kept(callbacks: Any) -> list[Any]:
    """A recipe's callbacks without those that wait for a validation or write checkpoints."""
    each = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    return [entry for entry in each if not str(entry["class_path"]).endswith(_LEFT_OUT)]


# The table


def make_table(recipes: Mapping[str, Recipe], timings: Mapping[str, Timing]) -> Table:
    """A row for each recipe; ratios are to the first one of the same slot that was timed."""
    where = ", ".join(sorted({timing.device for timing in timings.values()})) or "nothing"
    table = Table(
        *("recipe", "crops", "batch", "precision", "compiled", "workers", "steps/s", "samples/s"),
        *("ratio", "to", "waiting", "peak MB"),
        title=f"Training on {where}, random weights: only speed is measured. Aims on a GPU: "
        f"waiting < {AIM_WAITING:.0%}, modern ratio >= {AIM_MODERN:g}",
    )
    first: dict[str, str] = {}
    for name, recipe in recipes.items():
        timing = timings.get(name)
        if timing is None:
            table.add_row(printable(name), "failed")
            continue
        base = first.setdefault(slot_of(name, recipe), name)
        ratio = f"{timing.rate / timings[base].rate:.2f}" if base != name else ""
        table.add_row(
            printable(name),
            str(timing.size),
            str(timing.batch_size),
            timing.precision,
            "yes" if timing.compiled else "no",
            str(timing.workers),
            f"{timing.batches / timing.seconds:.3g}",
            f"{timing.rate:.3g}",
            ratio,
            printable(base) if ratio else "",
            f"{timing.waiting / timing.seconds:.1%}",
            "-" if timing.peak is None else f"{timing.peak / 1e6:.0f}",
        )
    return table
