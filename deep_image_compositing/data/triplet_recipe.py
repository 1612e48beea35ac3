"""What a set of hard triplets is: the recipe that it follows from, and the plan of its shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deep_image_compositing.data.items import Source
from deep_image_compositing.data.shards import INDEX, Index, check_same
from deep_image_compositing.data.tars import open_by_number
from deep_image_compositing.errors import UsageError
from deep_image_compositing.ledger import digest

_LEAST = {"samples": 1, "shard_samples": 1, "size": 16, "batch_size": 1}
_AT_LEAST_0 = ("seed", "augment", "degrade", "teacher_degrade")


@dataclass(frozen=True)
class Recipe:
    """Everything that a set of hard triplets follows from."""

    mattes: tuple[Source, ...]  # of subjects
    backgrounds: tuple[Source, ...]  # of the three backgrounds
    fuser: Mapping[str, str]  # stage, file and sha256 of its weights
    seed: int = 0  # of everything random
    samples: int = 10_000
    shard_samples: int = 100  # shard i holds i · shard_samples and up
    validation: float = 0.0  # share of shards that are made of what the sources hold out
    size: int = 640  # side of the square pictures in pixels
    batch_size: int = 4  # samples that go through the fuser together
    augment: float = 1.0  # strength of colour jitter and camera effects
    degrade: float = 1.0  # how far the masks that are written are degraded
    # And those that the fuser itself is given. The teacher may know more than the pupil: the better
    # its masks, the less its mistakes are learnt.
    teacher_degrade: float = 0.25
    licence: str = ""  # what may be done with what lies in plain folders, for the record
    inputs: str = ""  # SHA-256 of the names of all that the sources hold

    def __post_init__(self) -> None:
        for name, least in {**_LEAST, **dict.fromkeys(_AT_LEAST_0, 0)}.items():
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
        sources = {
            name: [{"path": source.path, "weight": source.weight} for source in getattr(self, name)]
            for name in ("mattes", "backgrounds")
        }
        return {"maker": "teach", **vars(self), **sources, "fuser": dict(self.fuser)}


@dataclass(frozen=True)
class Shard:
    """One shard of the plan: its file name, its split, and the numbers of its samples."""

    name: str
    split: str
    numbers: range


def identify(stage: str, path: str | Path) -> dict[str, str]:
    """What a recipe says of a fuser: the stage, and its weights' file name and SHA-256."""
    return {"stage": stage, "file": Path(path).name, "sha256": digest(path)}


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
    indexed = (out / INDEX).exists()
    if indexed:
        index = Index.read(out)
        check_same(out, {"kind": index.kind, **index.about}, {"kind": "triplets", **recipe.about()})
    names = {shard.name for shard in plan(recipe)}
    for path in sorted(out.glob("*.tar")):
        if path.name not in names:
            raise UsageError(
                f"{out} holds {path.name}, which is none of this set's shards: give another "
                "folder, or empty this one"
            )
        if not indexed:
            check_same(path, open_by_number(str(path))[0].info().get("recipe", {}), recipe.about())
