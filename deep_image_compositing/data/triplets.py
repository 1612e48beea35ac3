"""Hard triplets of self-teaching: the recipe of a set, and how samples are made and stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset

from deep_image_compositing.data import crops, synthesis
from deep_image_compositing.data.crops import MIN_SCALE, outline_crop, planes
from deep_image_compositing.data.datasets import Mixture
from deep_image_compositing.data.items import FileItem, Item, ShardItem, Source, scene_crop
from deep_image_compositing.data.loading import sent
from deep_image_compositing.data.sampler import seed_of
from deep_image_compositing.data.shards import encode
from deep_image_compositing.data.tars import UNREADABLE, Tolerance
from deep_image_compositing.data.transfer import local_path
from deep_image_compositing.errors import CompositingError, DataError, UsageError
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.images import open_picture
from deep_image_compositing.ledger import digest
from deep_image_compositing.options import check_range
from deep_image_compositing.stages.base import Fuser

MAX_DRAWS = 100
"""Draws of a sample before giving up."""

EXACT = 0.2  # share of masks that are not degraded, as in FusionData
PICTURES = ("color", "alpha", "old", "scene", "new")
_MINIMA = {"samples": 1, "shard_samples": 1, "size": 16, "batch_size": 1} | dict.fromkeys(
    ("seed", "augment", "degrade", "teacher_degrade"), 0
)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a set of hard triplets."""

    mattes: tuple[Source, ...]
    backgrounds: tuple[Source, ...]
    fuser: Mapping[str, str]  # its stage, and the file name and sha256 of its weights
    seed: int = 0
    samples: int = 10_000
    shard_samples: int = 100  # shard i starts with sample i · shard_samples
    validation: float = 0.0  # share of shards that are made from the sources' held-out part
    size: int = 640  # side of the square pictures in pixels
    batch_size: int = 4  # samples that go through the fuser together
    augment: float = 1.0  # strength of colour jitter and camera effects
    degrade: float = 1.0  # degradation of the stored masks
    # Degradation of the fuser's input masks. The teacher may have better masks than the student:
    # it makes fewer mistakes for the student to learn.
    teacher_degrade: float = 0.25
    licence: str = ""  # licence of the plain folders, for the record
    inputs: str = ""  # SHA-256 of the names of all files and shards in the sources

    def __post_init__(self) -> None:
        for name, minimum in _MINIMA.items():
            check_range(name, getattr(self, name), minimum, math.inf)
        if not 0 <= self.validation < 1:
            raise UsageError(f"validation is a share from 0 to below 1, got {self.validation}")
        if not (self.mattes and self.backgrounds):
            raise UsageError(
                "self-teaching needs mattes and backgrounds: name at least one of each"
            )

    def about(self) -> dict[str, Any]:
        """The recipe as JSON-compatible values."""
        sources = {
            name: [{"path": source.path, "weight": source.weight} for source in getattr(self, name)]
            for name in ("mattes", "backgrounds")
        }
        return {"maker": "teach", **vars(self), **sources, "fuser": dict(self.fuser)}


@dataclass(frozen=True)
class Shard:
    """A planned shard: its file name, its split, and the numbers of its samples."""

    name: str
    split: str
    numbers: range


def identify(stage: str, path: str | Path) -> dict[str, str]:
    """A fuser's entry in a recipe: its stage, and the file name and SHA-256 of its weights."""
    return {"stage": stage, "file": Path(path).name, "sha256": digest(path)}


def plan(recipe: Recipe) -> list[Shard]:
    """All shards of a set; those of the validation split come last.

    ``UsageError`` if there is only one shard, but a share of the shards is for validation.
    """
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
    splits = ["train"] * (count - held_out) + ["validation"] * held_out
    return [
        Shard(f"{split}-{i:06d}.tar", split, range(recipe.samples)[i * size : (i + 1) * size])
        for i, split in enumerate(splits)
    ]


# Inputs of the triplets, prepared in loader processes


class TooSmallError(DataError):
    """A picture would have to be magnified too far."""


class Batches(Dataset[dict[str, Any]]):
    """The batches of some shards, in order: 8-bit crops, made in loader processes.

    No batch spans two shards, so the batches do not depend on the number of ranks.
    """

    def __init__(
        self,
        recipe: Recipe,
        shards: Sequence[Shard],
        mixtures: Mapping[str, tuple[Mixture, Mixture]],
    ) -> None:
        self.recipe = recipe
        size = recipe.batch_size
        self.batches = [
            (shard, shard.numbers[start : start + size])
            for shard in shards
            for start in range(0, len(shard.numbers), size)
        ]
        self.samples = sum(len(shard.numbers) for shard in shards)
        self._mixtures = mixtures
        self._tolerance = Tolerance("samples")

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, numbers = self.batches[index]
        try:
            samples = [self._sample(shard.split, number) for number in numbers]
        except (CompositingError, OSError) as error:
            return sent(error)
        batch: dict[str, Any] = {name: [s[name] for s in samples] for name in samples[0]}
        stacked = {name: torch.stack(batch[name]) for name in PICTURES}
        return {**batch, **stacked, "shard": shard.name, "last": numbers[-1] == shard.numbers[-1]}

    def _sample(self, split: str, number: int) -> dict[str, Any]:
        """Draw a sample, again and again until it can be used."""
        too_small: TooSmallError | None = None
        for attempt in range(MAX_DRAWS):
            try:
                sample = self._draw(split, number, attempt)
            except TooSmallError as error:
                too_small = error
            except UNREADABLE as error:
                self._tolerance.failed(f"sample {number}: {error}")
            else:
                self._tolerance.passed()
                return sample
        raise too_small or DataError(f"nothing could be read for sample {number}")

    def _draw(self, split: str, number: int, attempt: int) -> dict[str, Any]:
        recipe, size = self.recipe, self.recipe.size
        seed = seed_of(recipe.seed, 3, number, attempt)
        rng = np.random.default_rng(seed)
        mattes, backgrounds = self._mixtures[split]
        subject = _pick(mattes, rng)
        old, scene, new = scenes = [_pick(backgrounds, rng) for _ in range(3)]
        for _ in range(MAX_DRAWS):  # with the same background, the target would be the photograph
            if new.name != scene.name:
                break
            scenes[2] = new = _pick(backgrounds, rng)
        label = subject.label()
        _check_size(size, {subject.name: label.size, **{x.name: x.size() for x in scenes}})
        box, mirrored = outline_crop(rng, label, size)
        background = _background(rng, new, size).float() / 255
        generator = Generator().manual_seed(seed)
        jpeg = encode_jpeg(synthesis.jitter_color(background[None], generator, recipe.augment)[0])
        with open_picture(jpeg) as image:  # the target has to match the background as stored
            stored = planes(image)
        return {
            "color": planes(subject.color(label, box, size), mirrored),
            "alpha": crops.cut(label, box, size, mirrored),
            "old": _background(rng, old, size),
            "scene": _background(rng, scene, size),
            "new": stored,
            "number": number,
            "seed": seed,
            "jpeg": jpeg,
            "info": {
                "number": number,
                "split": split,
                "attempt": attempt,
                "subject": _describe(subject, recipe.licence),
                "backgrounds": [_describe(item, recipe.licence) for item in scenes],
            },
        }


def _check_size(size: int, pictures: Mapping[str, tuple[int, int]]) -> None:
    for name, sides in pictures.items():
        if min(sides) < MIN_SCALE * size:
            raise TooSmallError(
                f"none of {MAX_DRAWS} draws fits --size {size}, which needs mattes and "
                f"backgrounds of at least {round(MIN_SCALE * size)} pixels either way; the last "
                f"was {name} with {min(sides)}: give a smaller --size"
            )


def _pick(mixture: Mixture, rng: np.random.Generator) -> Item:
    """A random item; datasets are drawn by their weights."""
    dataset = mixture.datasets[int(rng.choice(len(mixture.datasets), p=mixture.weights()))]
    return dataset[int(rng.integers(len(dataset)))]


def _background(rng: np.random.Generator, item: Item, size: int) -> Tensor:
    """A random crop (3, size, size), at least ``MIN_SCALE * size`` pixels wide."""
    return scene_crop(rng, item, size, min(1.0, max(0.25, MIN_SCALE * size / min(item.size()))))


def _describe(item: Item, licence: str) -> dict[str, Any]:
    """Provenance of an item: its path or key, its source and its licence."""
    source = item.source.path
    if isinstance(item, ShardItem):
        info = item.record.info()
        origin = {name: info[name] for name in ("source", "licence") if info.get(name)}
        shard = Path(item.record.shard).name
        return {"from": source, "shard": shard, "key": item.record.key, **origin}
    assert isinstance(item, FileItem)
    path = item.pair.image.relative_to(local_path(source)).as_posix()
    return {"from": source, "key": path, **({"licence": licence} if licence else {})}


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
    """Make an easy photograph, the background of the hard one, and the subject's rough mask.

    Photograph and background get the same camera effects: noise, blur and compression of a real
    photograph are uniform, and with a clean background the noise would give away the subject of the
    hard photograph. No effects are applied after the fuser, as its target could not show them.

    The subject's straight ``color``, the background ``old`` (B₀) of the easy photograph and the
    background ``scene`` (B₁) of the hard one are (1, 3, H, W), the true ``alpha`` is (1, 1, H, W).
    ``augment`` is the strength of colour jitter and camera effects, ``degrade`` that of the mask's
    degradation.
    """
    color, old, scene = (
        synthesis.jitter_color(picture, generator, augment) for picture in (color, old, scene)
    )
    photograph = over(color, alpha, old)
    photograph, scene = synthesis.one_camera([photograph, scene], generator, augment)
    return photograph, scene, degrade_mask(alpha, generator, degrade, exact=EXACT)


def make_hard(
    fuser: Fuser, photograph: Tensor, mask: Tensor, scene: Tensor, new: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Make hard photographs and their targets from easy photographs.

    A fuser that predicts layers runs once, with ``new`` as background. Its alpha, rounded to the 8
    bits in which it is stored, and its colour are composited over both ``scene`` and ``new``, so
    that the target can be reached from the photograph. Any other fuser runs once for each.

    Pictures are (B, 3, H, W); the rough ``mask``, and the true ``alpha`` for a fuser that predicts
    none, are (B, 1, H, W). Returns hard photograph, target, and the alpha to store, a multiple of
    1/255.
    """
    layers = fuser.layers(photograph, new, mask)
    if layers is None:
        hard, target = fuser(photograph, scene, mask), fuser(photograph, new, mask)
        return hard.clamp(0, 1), target.clamp(0, 1), to_bytes(alpha).float() / 255
    alpha = to_bytes(layers.alpha).float() / 255
    color = layers.foreground_color.clamp(0, 1)
    return over(color, alpha, scene), over(color, alpha, new), alpha


def encode_jpeg(picture: Tensor) -> bytes:
    """Encode a picture (3, H, W), 8-bit or in [0, 1], as JPEG."""
    return encode(Image.fromarray(to_bytes(picture).permute(1, 2, 0).numpy()), "JPEG")


def encode_sample(
    pictures: Mapping[str, Tensor], background: bytes, info: Mapping[str, Any]
) -> dict[str, bytes]:
    """Encode a sample's 8-bit pictures (C, H, W) as the fields of a shard."""
    fields = {"foreground.jpg": encode_jpeg(pictures["foreground"]), "background.jpg": background}
    for name in ("composite", "mask", "alpha"):
        pixels = pictures[name].permute(1, 2, 0).squeeze(-1).numpy()
        fields[f"{name}.png"] = encode(Image.fromarray(pixels), "PNG")
    return {**fields, "json": json.dumps(info, sort_keys=True).encode()}
