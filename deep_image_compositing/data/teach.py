"""Self-teaching, the easy-to-hard step: a trained fuser makes the triplets that train the next.

An easy photograph, ``αF + (1 − α)B₀`` seen by a camera, is composited by the fuser before ``B₁``,
which is the new, hard photograph, and before ``B₂``, which is its target. Sample *n* follows from
the recipe and *n* alone. Shards are made by one process each, written aside and renamed; so the
bytes are the same for any number of processes, and a run that was ended goes on where it was.
``deep-image-compositing teach`` calls :func:`teach`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from deep_image_compositing.data import folders, pool, synthesis
from deep_image_compositing.data.feeds import (
    Feed,
    FolderFeed,
    Mix,
    Reading,
    ShardFeed,
    Tolerance,
    TooManyError,
    open_source,
)
from deep_image_compositing.data.items import UNREADABLE, FileItem, Item, ShardItem, Source
from deep_image_compositing.data.modules import (
    LEAST,
    Sources,
    as_sources,
    mirror,
    outline_crop,
    planes,
    scene_crop,
)
from deep_image_compositing.data.shards import (
    INDEX,
    Index,
    Record,
    ShardWriter,
    describe,
    encode,
    read_records,
)
from deep_image_compositing.data.stream import raise_sent, seed_of, sent, start_worker
from deep_image_compositing.data.transfer import open_shard
from deep_image_compositing.errors import CompositingError, DataError, UsageError
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.sheets import contact_sheet
from deep_image_compositing.images import open_picture, write_image
from deep_image_compositing.running import end_launched, make_trainer, quiet, stop_on_sigterm
from deep_image_compositing.stages.base import Fuser

BLOCK = 64
"""Samples in a row for which a source of shards lends the same :data:`RUN` of its samples."""

RUN = 128

TRIES = 100
"""Draws after which nothing that fits is expected to be found any more."""

_EXACT = 0.2  # share of masks that stay exact, as in FusionData
_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True)
class Recipe:
    """Everything that a set of hard triplets follows from.

    Attributes:
        mattes: sources of subjects.
        backgrounds: sources of the three backgrounds.
        fuser: which one: ``stage``, ``file`` and ``sha256`` of its weights.
        seed: of everything random.
        samples: how many are made.
        shard_samples: samples in a shard; shard *i* holds ``i · shard_samples`` and up.
        validation: share of shards that are made of what the sources hold out.
        size: side of the square pictures in pixels.
        batch_size: samples that go through the fuser together.
        augment: strength of colour jitter and camera effects.
        degrade: how far the masks that are written are degraded.
        teacher_degrade: how far those are that the fuser itself is given. The teacher may know more
            than the pupil: the better its masks, the less its mistakes are learnt.
        licence: what may be done with what lies in plain folders, for the record.
        inputs: SHA-256 of the names of all that the sources hold.
    """

    mattes: tuple[Source, ...]
    backgrounds: tuple[Source, ...]
    fuser: Mapping[str, str]
    seed: int = 0
    samples: int = 10_000
    shard_samples: int = 100
    validation: float = 0.0
    size: int = 640
    batch_size: int = 4
    augment: float = 1.0
    degrade: float = 1.0
    teacher_degrade: float = 0.25
    licence: str = ""
    inputs: str = ""

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0), ("samples", 1), ("shard_samples", 1), ("size", 16), ("batch_size", 1),
            ("augment", 0), ("degrade", 0), ("teacher_degrade", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.validation < 1:
            raise UsageError(f"validation is a share from 0 to below 1, got {self.validation}")
        if not (self.mattes and self.backgrounds):
            raise UsageError(
                "self-teaching needs mattes and backgrounds: name at least one of each"
            )

    def about(self) -> dict[str, Any]:
        """The recipe as JSON has it."""
        sources = ("mattes", "backgrounds")
        content = {name: [_about_source(s) for s in getattr(self, name)] for name in sources}
        rest = {name: value for name, value in vars(self).items() if name not in sources}
        return {"maker": "teach", **content, **rest, "fuser": dict(self.fuser)}


def _about_source(source: Source) -> dict[str, Any]:
    return {"path": source.path, "weight": source.weight}


def identify(stage: str, path: str | Path) -> dict[str, str]:
    """What a recipe says of a fuser: the stage, and its weights' file name and SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"stage": stage, "file": Path(path).name, "sha256": digest}


# The plan


@dataclass(frozen=True)
class Shard:
    """One shard of the plan: its file name, its split, and the numbers of its samples."""

    name: str
    split: str
    numbers: range


def plan(recipe: Recipe) -> list[Shard]:
    """All shards of a set; those of the validation split come last."""
    size = recipe.shard_samples
    count = -(-recipe.samples // size)
    held_out = 0
    if recipe.validation:
        if count < 2:
            raise UsageError(
                f"{recipe.samples} samples are one shard of {size}, of which no share can be held "
                "out for validation: give fewer --shard-samples"
            )
        held_out = min(max(1, round(recipe.validation * count)), count - 1)
    shards = []
    for i in range(count):
        split = "validation" if i >= count - held_out else "train"
        numbers = range(i * size, min((i + 1) * size, recipe.samples))
        shards.append(Shard(f"{split}-{i:06d}.tar", split, numbers))
    return shards


def check_folder(out: Path, recipe: Recipe) -> None:
    """Raise :class:`UsageError` if ``out`` holds anything but shards of this very set."""
    wanted = recipe.about()
    if (out / INDEX).exists():
        index = Index.read(out)
        _compare(out, {"kind": index.kind, **index.about}, {"kind": "triplets", **wanted})
    names = {shard.name for shard in plan(recipe)}
    for path in sorted(out.glob("*.tar")):
        if path.name not in names:
            raise UsageError(
                f"{out} holds {path.name}, which is none of this set's shards: give another "
                "folder, or empty this one"
            )
        if not (out / INDEX).exists():
            _compare(path, _first(path).info().get("recipe", {}), wanted)


def _first(path: Path) -> Record:
    with open_shard(str(path)) as stream:
        for record in read_records(stream, str(path)):
            return record
    raise DataError(f"{path} holds no samples: remove it")


def _compare(where: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = json.loads(json.dumps(found))
    wanted = json.loads(json.dumps(wanted))
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if names:
        differences = "; ".join(f"{n} {found.get(n)!r}, now {wanted.get(n)!r}" for n in names)
        raise UsageError(
            f"{where} was made with {differences}: give another folder, or empty this one"
        )


# What samples are made of


@dataclass
class Lender:
    """Items of a mix by chance, each as the seed and a sample's number say.

    A plain folder lends any of its files. To reach a sample in the middle of a tar all before it
    must be read, so shards lend :data:`RUN` consecutive samples, kept in memory, to :data:`BLOCK`
    samples in a row.

    Attributes:
        mix: where the items come from.
        seed: of what is lent.
    """

    mix: Mix
    seed: tuple[int, ...]
    _runs: dict[int, tuple[int, list[Item]]] = field(default_factory=dict, repr=False)

    def lend(self, rng: np.random.Generator, number: int) -> Item:
        """An item for sample ``number``.

        Raises:
            DataError: when it cannot be read.
            UsageError: when nothing can be drawn, see :meth:`Mix.shares`.
        """
        which = int(rng.choice(len(self.mix.feeds), p=self.mix.shares()))
        feed = self.mix.feeds[which]
        if feed.shards() is None:
            start = int(rng.integers(len(feed)))
            item = next(feed.read(start, start + 1))
        else:
            run = self._run(which, feed, number // BLOCK)
            item = run[int(rng.integers(len(run)))] if run else None
        if item is None:
            raise DataError(f"nothing could be read of {feed.source.path}")
        return item

    def _run(self, which: int, feed: Feed, block: int) -> list[Item]:
        known, run = self._runs.get(which, (-1, []))
        if known != block:
            rng = np.random.default_rng([*self.seed, which, block])
            start = int(rng.integers(max(1, len(feed) - RUN + 1)))
            stop = min(start + RUN, len(feed))
            run = [item for item in feed.read(start, stop) if item is not None]
            self._runs[which] = block, run
        return run


def describe_item(item: Item, licence: str) -> dict[str, Any]:
    """Which item it is, where it comes from, and what may be done with it."""
    source = item.source.path
    if isinstance(item, ShardItem):
        info = item.record.info()
        known = {name: info[name] for name in ("source", "licence") if info.get(name)}
        shard = Path(item.record.shard).name
        return {"from": source, "shard": shard, "key": item.record.key, **known}
    assert isinstance(item, FileItem)
    path = item.pair.image.relative_to(source).as_posix()
    return {"from": source, "key": path, **({"licence": licence} if licence else {})}


class TooSmallError(DataError):
    """A picture that would have to be magnified too far."""


class Batches(Dataset[dict[str, Any]]):
    """The batches of some shards, in order: 8-bit crops, made in loader processes.

    Args:
        recipe: of the set.
        shards: that are to be made.
        mixes: mattes and backgrounds of each split.
    """

    def __init__(
        self, recipe: Recipe, shards: Sequence[Shard], mixes: Mapping[str, tuple[Mix, Mix]]
    ) -> None:
        self.recipe = recipe
        size = recipe.batch_size
        # Batches do not reach over shards: what is computed together must not depend on ranks.
        self.parts = [
            (shard, shard.numbers[start : start + size])
            for shard in shards
            for start in range(0, len(shard.numbers), size)
        ]
        self._lenders = {
            split: (Lender(mattes, (recipe.seed, 1)), Lender(backgrounds, (recipe.seed, 2)))
            for split, (mattes, backgrounds) in mixes.items()
        }
        self._tolerance = Tolerance("samples")

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, numbers = self.parts[index]
        try:
            samples = [self._sample(shard, number) for number in numbers]
        except (CompositingError, OSError) as error:
            return sent(error)
        batch: dict[str, Any] = {
            name: torch.stack([sample[name] for sample in samples])
            for name, value in samples[0].items()
            if isinstance(value, Tensor)
        }
        rest = ("number", "seed", "jpeg", "info")
        batch |= {name: [sample[name] for sample in samples] for name in rest}
        return {**batch, "shard": shard.name, "last": numbers[-1] == shard.numbers[-1]}

    def _sample(self, shard: Shard, number: int) -> dict[str, Any]:
        """The parts of a sample; what cannot be used is drawn again."""
        small: TooSmallError | None = None
        for attempt in range(TRIES):
            try:
                sample = self._draw(shard.split, number, attempt)
            except TooSmallError as error:
                small = error
            except TooManyError:
                raise
            except UNREADABLE as error:
                self._tolerance.failed(f"sample {number}", error)
            else:
                self._tolerance.passed()
                return sample
        raise small or DataError(f"nothing could be read for sample {number}")

    def _draw(self, split: str, number: int, attempt: int) -> dict[str, Any]:
        recipe = self.recipe
        size, seed = recipe.size, seed_of(recipe.seed, 3, number, attempt)
        rng = np.random.default_rng(seed)
        mattes, backgrounds = self._lenders[split]
        subject = mattes.lend(rng, number)
        old, scene, new = (backgrounds.lend(rng, number) for _ in range(3))
        for _ in range(TRIES):  # the same background twice would make the target the photograph
            if new.name != scene.name:
                break
            new = backgrounds.lend(rng, number)
        label = subject.label()
        sides = [(item.name, min(item.size())) for item in (old, scene, new)]
        for name, side in [(subject.name, min(label.size)), *sides]:
            if side < LEAST * size:
                raise TooSmallError(
                    f"none of {TRIES} draws fits --size {size}, which needs mattes and "
                    f"backgrounds of at least {round(LEAST * size)} pixels either way; the last "
                    f"was {name} with {side}: give a smaller --size"
                )
        box, mirrored = outline_crop(rng, label, size)
        fresh = scene_crop(rng, new, size, _least(new, size)).float() / 255
        jpeg = encode_jpeg(
            synthesis.jitter_color(fresh[None], Generator().manual_seed(seed), recipe.augment)[0]
        )
        with open_picture(jpeg) as stored:  # what the target will be judged against
            background = planes(stored)
        return {
            "color": planes(mirror(subject.color(label, box, size), mirrored)),
            "alpha": planes(folders.crop(label, box, size, mirrored)),
            "old": scene_crop(rng, old, size, _least(old, size)),
            "scene": scene_crop(rng, scene, size, _least(scene, size)),
            "new": background,
            "number": number,
            "seed": seed,
            "jpeg": jpeg,
            "info": {
                "number": number,
                "split": split,
                "attempt": attempt,
                "subject": describe_item(subject, recipe.licence),
                "backgrounds": [describe_item(item, recipe.licence) for item in (old, scene, new)],
            },
        }


def _least(item: Item, size: int) -> float:
    """Smallest share of the short side for a crop that is not magnified too far."""
    return min(1.0, max(0.25, LEAST * size / min(item.size())))


# Making triplets, on the device


def make_easy(
    color: Tensor,
    alpha: Tensor,
    old: Tensor,
    scene: Tensor,
    generator: Generator,
    augment: float = 1.0,
    degrade: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """An easy photograph, the rough mask of its subject, and the scene it is to be set into.

    Photograph and scene go through one and the same camera. A photograph has one grain, one blur
    and one compression all over; were the scene clean, the hard photograph would show its subject
    by its noise, which no real photograph does. No effects follow the fuser: what they would do to
    the photograph, its target could not have.

    Args:
        color: (1, 3, H, W), straight colour of the subject.
        alpha: (1, 1, H, W), its true opacity.
        old: (1, 3, H, W), the background B₀ it stands before.
        scene: (1, 3, H, W), the background B₁ of the hard photograph.
        generator: on the tensors' device.
        augment: strength of colour jitter and camera effects.
        degrade: of the mask.

    Returns:
        Photograph and scene (1, 3, H, W), mask (1, 1, H, W).
    """
    color, old, scene = (
        synthesis.jitter_color(picture, generator, augment) for picture in (color, old, scene)
    )
    photograph = over(color, alpha, old)
    photograph, scene = synthesis.one_camera([photograph, scene], generator, augment)
    return photograph, scene, degrade_mask(alpha, generator, degrade, exact=_EXACT)


def make_hard(
    fuser: Fuser, photograph: Tensor, mask: Tensor, scene: Tensor, new: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the fuser makes of easy photographs: hard ones, and their targets.

    A fuser in layers is asked once, before ``new``: the same opacity, rounded to the 8 bits in
    which it is stored, and the same colour then stand before ``scene`` and before ``new``, so that
    the target is one that can be reached from the photograph. Any other fuser is asked twice.

    Args:
        fuser: trained on easy triplets.
        photograph: (B, 3, H, W), easy.
        mask: (B, 1, H, W), rough.
        scene: (B, 3, H, W), background of the hard photograph.
        new: (B, 3, H, W), background of the target.
        alpha: (B, 1, H, W), true opacity, for a fuser that has none of its own.

    Returns:
        Hard photograph and target (B, 3, H, W), and alpha (B, 1, H, W), a multiple of 1/255.
    """
    layers = fuser.layers(photograph, new, mask)
    if layers is None:
        hard, target = fuser(photograph, scene, mask), fuser(photograph, new, mask)
        return hard.clamp(0, 1), target.clamp(0, 1), to_bytes(alpha).float() / 255
    alpha = to_bytes(layers.alpha).float() / 255
    color = layers.foreground_color.clamp(0, 1)
    return over(color, alpha, scene), over(color, alpha, new), alpha


class Teacher(LightningModule):
    """Runs a fuser on the parts of triplets; ``predict_step`` gives finished 8-bit pictures.

    Args:
        fuser: trained on easy triplets.
        recipe: of the set.
    """

    def __init__(self, fuser: Fuser, recipe: Recipe) -> None:
        super().__init__()
        self.fuser = fuser
        self.recipe = recipe

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """``foreground``, ``composite`` (B, 3, H, W), ``mask``, ``alpha`` (B, 1, H, W), uint8."""
        raise_sent(batch)
        names = ("color", "alpha", "old", "scene", "new")
        color, alpha, old, scene, new = (batch[name].float() / 255 for name in names)
        # One generator a sample, so that none depends on the batch that it is in.
        generators = [Generator(self.device).manual_seed(seed) for seed in batch["seed"]]
        rows = zip(
            color.split(1), alpha.split(1), old.split(1), scene.split(1), generators, strict=True
        )
        easy = [make_easy(*row, self.recipe.augment, self.recipe.teacher_degrade) for row in rows]
        photograph, scene, mask = (torch.cat(part) for part in zip(*easy, strict=True))
        hard, target, alpha = make_hard(self.fuser, photograph, mask, scene, new, alpha)
        rough = [
            degrade_mask(row, generator, self.recipe.degrade, exact=_EXACT)
            for row, generator in zip(alpha.split(1), generators, strict=True)
        ]
        made = {"foreground": hard, "composite": target, "alpha": alpha, "mask": torch.cat(rough)}
        return {name: to_bytes(value).cpu() for name, value in made.items()}


# Writing


def encode_jpeg(picture: Tensor) -> bytes:
    """A picture (3, H, W), 8-bit or in [0, 1], as a JPEG file."""
    value = to_bytes(picture)
    image = Image.fromarray(value.permute(1, 2, 0).numpy())
    return encode(image, "JPEG")


def encode_png(picture: Tensor) -> bytes:
    """An 8-bit picture (1 or 3, H, W) as a PNG file."""
    image = picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
    return encode(Image.fromarray(image.numpy()), "PNG")


def encode_sample(
    pictures: Mapping[str, Tensor], background: bytes, info: Mapping[str, Any]
) -> dict[str, bytes]:
    """The fields of one sample."""
    return {
        "foreground.jpg": encode_jpeg(pictures["foreground"]),
        "background.jpg": background,
        "composite.png": encode_png(pictures["composite"]),
        "mask.png": encode_png(pictures["mask"]),
        "alpha.png": encode_png(pictures["alpha"]),
        "json": json.dumps(info, sort_keys=True).encode(),
    }


def key_of(number: int) -> str:
    """The key of a sample."""
    return f"{number:08d}"


class TripletWriter(BasePredictionWriter):
    """Writes the shards of one process, and at the end of all processes' work the index.

    Args:
        out: folder of the shards.
        recipe: of the set.
        show: draw a progress bar on standard error.
    """

    def __init__(self, out: Path, recipe: Recipe, show: bool = False) -> None:
        super().__init__("batch")
        self.out = out
        self.recipe = recipe
        self.show = show
        self._about = recipe.about()
        self._pending: deque[tuple[str, bool, list[tuple[int, Future[dict[str, bytes]]]]]] = deque()
        self._writer: ShardWriter | None = None
        self._exit = ExitStack()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_sigterm()
        self._threads = self._exit.enter_context(ThreadPoolExecutor(4))
        if trainer.is_global_zero:
            data: TeachData = trainer.datamodule  # type: ignore[attr-defined]
            left = sum(len(numbers) for _, numbers in data.batches.parts)
            others = trainer.world_size - 1
            label = f"triplets of this device (1 of {others + 1})" if others else "triplets"
            self._advance = self._exit.enter_context(pool.progress(label, left, self.show))
        else:
            self._advance = lambda steps: None

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
        futures = []
        for i, number in enumerate(batch["number"]):
            pictures = {name: value[i] for name, value in prediction.items()}
            info = {"key": key_of(number), **batch["info"][i], "recipe": self._about}
            info["device"] = pl_module.device.type
            job = self._threads.submit(encode_sample, pictures, batch["jpeg"][i], info)
            futures.append((number, job))
        self._pending.append((batch["shard"], batch["last"], futures))
        while len(self._pending) > 1:  # the device goes on while the last batch is encoded
            self._write(*self._pending.popleft())

    def _write(
        self, name: str, last: bool, futures: Sequence[tuple[int, Future[dict[str, bytes]]]]
    ) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self.out / name).__enter__()
        for number, job in futures:
            self._writer.write(key_of(number), job.result())
        if last:
            writer, self._writer = self._writer, None
            writer.__exit__(None)
        self._advance(len(futures))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        while self._pending:
            self._write(*self._pending.popleft())
        self._exit.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(type(exception), exception, None)
        self._exit.close()
        end_launched(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.barrier("shards")
        if trainer.is_global_zero and not (self.out / INDEX).exists():
            write_index(self.out, self.recipe)


def write_index(out: Path, recipe: Recipe) -> Index:
    """Write ``index.json`` of a finished set.

    Raises:
        DataError: when a shard is missing.
    """
    index = Index("triplets", about=recipe.about())
    for shard in plan(recipe):
        if not (out / shard.name).is_file():
            raise DataError(f"{out / shard.name} is missing: run the same command again")
        entry = describe(out / shard.name, len(shard.numbers))
        index.splits.setdefault(shard.split, []).append(entry)
    index.write(out)
    return index


# Running


class TeachData(LightningDataModule):
    """Shares the shards that are still to be made among the processes.

    Args:
        recipe: of the set.
        out: folder of the shards.
        mixes: mattes and backgrounds of each split.
        workers: loader processes; 0 loads in the calling process.
    """

    def __init__(
        self, recipe: Recipe, out: Path, mixes: Mapping[str, tuple[Mix, Mix]], workers: int
    ) -> None:
        super().__init__()
        self.prepare_data_per_node = False
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.recipe = recipe
        self.out = out
        self.mixes = mixes
        self.workers = workers

    def prepare_data(self) -> None:
        """Clear away what an earlier run did not finish, in one process."""
        self.out.mkdir(parents=True, exist_ok=True)
        for aside in self.out.glob(".*.tar.*.part"):
            aside.unlink(missing_ok=True)

    def setup(self, stage: str) -> None:
        """Look what is left; Lightning lets no process begin before all have looked."""
        assert self.trainer is not None
        left = [shard for shard in plan(self.recipe) if not (self.out / shard.name).exists()]
        if left and self.trainer.is_global_zero:
            (self.out / INDEX).unlink(missing_ok=True)
        own = left[self.trainer.global_rank :: self.trainer.world_size]
        self.batches = Batches(self.recipe, own, self.mixes)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self.batches,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=start_worker,
        )


def open_mixes(recipe: Recipe, cache: str | None = None) -> dict[str, tuple[Mix, Mix]]:
    """Mattes and backgrounds of the splits; ``validation`` only where mattes are held out.

    Raises:
        UsageError: when there is nothing at a source's path, shards of another kind, or nothing to
            draw (:meth:`Mix.shares`).
        DataError: when an index cannot be read.
    """
    reading = Reading(cache=cache)
    mattes = [open_source(source, ("mattes",), reading) for source in recipe.mattes]
    scenes = [open_source(source, ("backgrounds",), reading) for source in recipe.backgrounds]
    mixes = {"train": (Mix([kept for kept, _ in mattes]), Mix([kept for kept, _ in scenes]))}
    held_out = [feed for _, feed in mattes if feed is not None]
    if held_out:
        # Where no background is held out, a new subject before a known one is new enough.
        new = [feed for _, feed in scenes if feed is not None]
        mixes["validation"] = Mix(held_out), Mix(new) if new else mixes["train"][1]
    for split in mixes if recipe.validation else ["train"]:
        for mix in mixes[split]:
            mix.shares()  # raises here what every sample would
    return mixes


def fingerprint(mixes: Mapping[str, tuple[Mix, Mix]]) -> str:
    """SHA-256 of what all feeds hold, by name and number; the samples depend on it."""
    lines: list[Any] = []
    for split, pair in sorted(mixes.items()):
        for feed in (feed for mix in pair for feed in mix.feeds):
            if isinstance(feed, ShardFeed):
                held: list[Any] = [Path(url).name for url in feed.urls] + feed.count()
            else:
                assert isinstance(feed, FolderFeed)
                root = feed.source.path
                held = [pair.image.relative_to(root).as_posix() for pair in feed.pairs]
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
        identity: of the fuser, as :func:`identify` gives it.
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
        **options: as for :class:`Recipe`.

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
    mixes = open_mixes(recipe, cache)
    recipe = replace(recipe, inputs=fingerprint(mixes))
    if recipe.validation and "validation" not in mixes:
        if getattr(rank_zero_only, "rank", 0) == 0:
            _log.warning("the mattes hold nothing out, so there is no validation split")
        recipe = replace(recipe, validation=0.0)
    check_folder(out, recipe)
    writer, data = TripletWriter(out, recipe, show), TeachData(recipe, out, mixes, workers)
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
    from itertools import islice

    name = plan(recipe)[0].name
    columns = {
        "hard photograph": "foreground.jpg",
        "mask": "mask.png",
        "alpha": "alpha.png",
        "new background": "background.jpg",
        "target": "composite.png",
    }
    with open_shard(str(out / name)) as stream:
        items = [ShardItem(Source(str(out)), r) for r in islice(read_records(stream, name), rows)]
    pictures = {
        label: torch.stack([planes(item.picture(field)) for item in items])
        for label, field in columns.items()
    }
    return contact_sheet({label: value.float() / 255 for label, value in pictures.items()}, 256)
