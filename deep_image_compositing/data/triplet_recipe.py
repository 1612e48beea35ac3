"""What a set of hard triplets is: the recipe that it follows from, and the plan of its shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deep_image_compositing.data.items import Source
from deep_image_compositing.data.shards import INDEX, Index, Record
from deep_image_compositing.data.tars import open_by_number
from deep_image_compositing.errors import DataError, UsageError


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


@dataclass(frozen=True)
class Shard:
    """One shard of the plan: its file name, its split, and the numbers of its samples."""

    name: str
    split: str
    numbers: range


def identify(stage: str, path: str | Path) -> dict[str, str]:
    """What a recipe says of a fuser: the stage, and its weights' file name and SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"stage": stage, "file": Path(path).name, "sha256": digest}


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
    """Raise ``UsageError`` if ``out`` holds anything but shards of this very set."""
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
    shard = open_by_number(str(path))
    if not len(shard):
        raise DataError(shard.fault or f"{path} holds no samples: remove it")
    return shard[0]


def _compare(where: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = json.loads(json.dumps(found))
    wanted = json.loads(json.dumps(wanted))
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if names:
        differences = "; ".join(f"{n} {found.get(n)!r}, now {wanted.get(n)!r}" for n in names)
        raise UsageError(
            f"{where} was made with {differences}: give another folder, or empty this one"
        )
