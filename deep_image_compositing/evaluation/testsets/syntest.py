"""The test set ``syntest``: made from mattes and two backgrounds, so that its truth is exact.

A subject's straight colour F and opacity α are rounded to 8 bits first. With two backgrounds B₁ and
B₂, the photograph is αF + (1 − α)B₁ and the truth αF + (1 − α)B₂, in integers, to the nearest of
256 levels: no truth is off by more than half a level. What is random about a sample follows from
the seed and its name alone, so that a part of a set has the pictures of the whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from deep_image_compositing.benchmark import made
from deep_image_compositing.data import folders
from deep_image_compositing.data.feeds import FolderFeed, Reading, is_shards, open_source
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import FileItem, Item, ShardItem, Source
from deep_image_compositing.data.mattes import estimate_color
from deep_image_compositing.data.shards import Record
from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets.base import (
    Paths,
    Place,
    Sample,
    Shards,
    TestSet,
    as_paths,
    check_grades,
    naming,
    picture_size,
    planes,
    stat_of,
    unique_names,
)
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.placement import cover


class Grade(NamedTuple):
    """How rough a given mask is: the true alpha is degraded ``strength`` times as for training.

    Some draws change next to nothing, others nearly everything; of several, the one is taken that
    more than a share ``rank`` of them are better than.
    """

    strength: float
    rank: float


GRADES: dict[str, Grade | None] = {
    "exact": Grade(0.0, 0.0),
    "rough": Grade(1.0, 0.5),  # the outline is off by some pixels, hair is gone or filled in
    "bad": Grade(2.5, 0.75),  # legs and horns are lost, or much background is in
    "none": None,
}
"""Grades of given masks; None gives no mask at all."""

COLOR_SIDE = 2000
"""Longest side in pixels at which a subject's colour is estimated."""

MADE_SIDE = 320
"""Long side in pixels of a made set."""

_CANDIDATES = 5
_MADE_SUBJECTS, _MADE_BACKGROUNDS = 4, 6
_log = logging.getLogger("deep_image_compositing")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Input:
    """A matte or a background that samples are made of.

    Attributes:
        name: unique among those of its kind.
        where: the file, or the shard and the key in it.
        open: gives the item.
    """

    name: str
    where: str
    open: Callable[[], Item]


class SynTest(TestSet):
    """Photographs made from mattes and backgrounds, with the exact truth of everything.

    Args:
        mattes: what training takes as mattes: folders of ``NAME.jpg`` beside ``NAME.alpha.png`` or
            of RGBA cut-outs, folders of shards, patterns, URLs. The straight colour of a
            photograph with an alpha is estimated at its full size, at most 2000 pixels. Without
            any, a small set is made of noise and shapes, which only shows that everything runs.
        backgrounds: likewise; each is scaled and cropped to cover the subject's frame.
        hold_out: share of plain folders of mattes that training with this ``hold_out`` has not
            seen; only these subjects are used. None for all.
        background_hold_out: the same for backgrounds.
        split: of folders of shards; None for all.
        samples: how many there are, of subjects drawn by the seed; None for all subjects, each
            ``per_subject`` times.
        per_subject: samples with other backgrounds that each subject gives.
        size: long side in pixels to which larger subjects are reduced, by the area that each pixel
            covers and weighted by opacity.
        seed: of backgrounds and masks.
        grades: of given masks, all by default: ``exact``, the true alpha; ``rough``, degraded as
            for training at strength 1; ``bad``, at strength 2.5; ``none``, which leaves the
            subject to be found.
        cache: folder in which shards from elsewhere are kept.

    Raises:
        UsageError: mattes without backgrounds, fewer than two backgrounds, a share at which
            nothing is held out, or a number that is too small.
        DataError: a picture or a shard that cannot be read.
    """

    name: ClassVar[str] = "syntest"

    def __init__(
        self,
        mattes: Paths | None = None,
        backgrounds: Paths | None = None,
        hold_out: float | None = None,
        background_hold_out: float | None = None,
        split: str | None = "validation",
        samples: int | None = None,
        per_subject: int = 2,
        size: int = 768,
        seed: int = 0,
        grades: Sequence[str] | str | None = None,
        cache: str | None = None,
    ) -> None:
        for option, value, least in (
            ("samples", samples, 1), ("per_subject", per_subject, 1), ("size", size, 16),
            ("seed", seed, 0),
        ):  # fmt: skip
            if value is not None and not (isinstance(value, int) and value >= least):
                raise UsageError(f"{option} must be a whole number of at least {least}: {value!r}")
        self.grades = check_grades(grades, tuple(GRADES))
        self.size, self.seed = size, seed
        self._sources: list[dict[str, Any]] = []
        self._inputs: list[list[Any]] = []
        paths = as_paths(mattes, "mattes"), as_paths(backgrounds, "backgrounds")
        self.made = not any(paths)
        if self.made:
            _log.warning(
                "no mattes are given: this test set is made of noise and shapes, and its figures "
                "say that everything runs, not which method is good"
            )
            self._subjects, self._scenes = _made_inputs(seed)
        elif not all(paths):
            missing = "backgrounds" if paths[0] else "mattes"
            raise UsageError(f"syntest needs mattes and backgrounds: there are no {missing}")
        else:
            shares = hold_out, background_hold_out
            self._subjects, self._scenes = (
                self._open(kind, paths[i], shares[i], split, cache)
                for i, kind in enumerate(("mattes", "backgrounds"))
            )
        if len(self._scenes) < 2:
            raise UsageError(
                f"syntest needs two backgrounds or more, of which {', '.join(paths[1])} holds one"
            )
        self._plan = self._make_plan(samples, per_subject)

    def _open(
        self, kind: str, paths: Sequence[str], share: float | None, split: str | None, cache: Any
    ) -> list[Input]:
        """What there is of ``mattes`` or ``backgrounds``."""
        found: list[tuple[str, str, Callable[[], Item]]] = []
        for path in paths:
            about: dict[str, Any] = {"kind": kind, "path": path}
            if is_shards(path):
                shards = Shards(path, (kind,), split, cache)
                about |= shards.about
                self._inputs += shards.inputs
                found += [
                    (place.key, f"{place.url}: {place.key}", partial(_shard_item, shards, place))
                    for place in shards.places
                ]
            else:
                pairs, total = _held_out(path, kind, share)
                for pair in pairs:
                    for file in (pair.image, pair.label):
                        if file is not None:
                            picture_size(file)
                            self._inputs.append(stat_of(file))
                source = Source(path)
                found += [
                    (_key(pair, path), str(pair.image), partial(FileItem, source, pair))
                    for pair in pairs
                ]
                about |= {"samples": total, "hold_out": share, "used": len(pairs)}
                about["licences"] = ["not stated"]
            self._sources.append(about)
        if not found:
            raise UsageError(
                f"{', '.join(paths)} holds out no {kind} at the share {share:g}: give a larger "
                "one, or null for all of them"
            )
        names = unique_names(key for key, _, _ in found)
        return [
            Input(name, where, item) for name, (_, where, item) in zip(names, found, strict=True)
        ]

    def _make_plan(self, samples: int | None, per_subject: int) -> list[tuple[str, Input]]:
        """Name and subject of every sample."""
        subjects = self._subjects
        if samples is None:
            chosen = {(n, turn) for n in range(len(subjects)) for turn in range(per_subject)}
        else:
            order = sorted(
                range(len(subjects)), key=lambda n: _draw(self.seed, "order", subjects[n].name)
            )
            turns = ((n, turn) for turn in range(samples) for n in order)
            chosen = set(islice(turns, samples))
        return [(f"{subjects[n].name}-{turn + 1}", subjects[n]) for n, turn in sorted(chosen)]

    def names(self) -> list[str]:
        return [name for name, _ in self._plan]

    def __getitem__(self, index: int) -> Sample:
        name, subject = self._plan[index]
        color, alpha = _read_subject(subject, self.size)
        frame = (alpha.shape[-2], alpha.shape[-1])
        old, new = (cover(_read_scene(scene), frame) for scene in self._backgrounds(name))
        return Sample(
            name,
            foreground=blend(color, alpha, old),
            background=new,
            masks={grade: self._mask(name, grade, alpha) for grade in self.grades},
            composite=blend(color, alpha, new),
            alpha=alpha,
            foreground_color=color,
            old_background=old,
        )

    def _backgrounds(self, name: str) -> list[Input]:
        """The old and the new background of a sample."""
        # Each background's place in a sample's own order follows from both names alone, so that
        # one more of them changes few samples.
        ranks = {_draw(self.seed, name, scene.name): scene for scene in self._scenes}
        return [ranks[rank] for rank in sorted(ranks)[:2]]

    def _mask(self, name: str, grade: str, alpha: Tensor) -> Tensor | None:
        """The given mask (1, H, W), uint8."""
        wanted = GRADES[grade]
        if wanted is None:
            return None
        if wanted.strength == 0:
            return alpha.clone()
        generator = torch.Generator().manual_seed(_draw(self.seed, name, grade))
        truth = alpha[None] / 255
        found = [
            degrade_mask(truth, generator, wanted.strength, exact=0.0) for _ in range(_CANDIDATES)
        ]
        subject = truth >= 0.5
        kept = [mask for mask in found if (subject & (mask >= 0.5)).sum() * 3 >= subject.sum()]
        # Where every draw loses a thin subject, its own mask is left.
        kept.sort(key=lambda mask: float((mask - truth).abs().mean()))
        mask = kept[round(wanted.rank * (len(kept) - 1))] if kept else truth
        return to_bytes(mask[0])

    def describe(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "kind": self.name,
            "seed": self.seed,
            "size": self.size,
            "grades": {name: _about_grade(GRADES[name]) for name in self.grades},
            "made_with": _versions(),
            "sources": self._sources,
            "samples": [
                {
                    "name": name,
                    "subject": subject.where,
                    "backgrounds": [scene.where for scene in self._backgrounds(name)],
                }
                for name, subject in self._plan
            ],
        }
        if self.made:
            about["note"] = (
                "made of noise and shapes: the figures say that everything runs, not which method "
                "is good"
            )
        return about

    def inputs(self) -> list[list[Any]]:
        return self._inputs


def _about_grade(grade: Grade | None) -> dict[str, float] | None:
    return None if grade is None else grade._asdict()


def _draw(seed: int, *words: str) -> int:
    """A number of 63 bits that follows from the seed and some words."""
    text = "\0".join((str(seed), *words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def _versions() -> dict[str, str]:
    """The packages on which the set's bits depend; another estimate of colour is another set."""
    versions = {"pillow": PIL.__version__, "torch": torch.__version__}
    try:
        versions["pymatting"] = importlib.metadata.version("pymatting")
    except importlib.metadata.PackageNotFoundError:
        versions["pymatting"] = "none: colour by blur fusion"
    return versions


# Reading


def _held_out(path: str, kind: str, share: float | None) -> tuple[Sequence[Pair], int]:
    """The pairs of a plain folder that are used, and how many there are."""
    if share is not None and not isinstance(share, int | float):
        raise UsageError(f"a share that is held out is a number in [0, 1) or null, got {share!r}")
    source = Source(path, hold_out=share or 0.0)
    kept, held_out = open_source(source, (kind,), Reading(tolerance=0))
    assert isinstance(kept, FolderFeed)
    used = held_out.pairs if isinstance(held_out, FolderFeed) else []
    if share is None:
        return kept.pairs, len(kept.pairs)
    return used, len({*kept.pairs, *used})


def _key(pair: Pair, path: str) -> str:
    """What a file of a folder is called."""
    name = pair.image.relative_to(path).with_suffix("").as_posix()
    return name.removeprefix("images/")


def _shard_item(shards: Shards, place: Place) -> Item:
    return ShardItem(Source(shards.path), shards.read(place))


@lru_cache(maxsize=2)
def _read_subject(subject: Input, side: int) -> tuple[Tensor, Tensor]:
    """Straight colour (3, H, W) and alpha (1, H, W), uint8, at most ``side`` pixels long."""
    with naming(subject.where):
        item = subject.open()
        label = item.label()
        picture, straight = _whole(item)
        limit = fit_long_side(label.height, label.width, COLOR_SIDE)
        if (label.height, label.width) != limit and not straight:
            picture, label = (x.resize(limit[::-1], Image.Resampling.BOX) for x in (picture, label))
        color = picture if straight else estimate_color(picture, label)
    size = fit_long_side(label.height, label.width, side)
    reduced, alpha = reduce_matte(np.asarray(color), np.asarray(label), size)
    return planes(reduced), planes(alpha)


def _whole(item: Item) -> tuple[Image.Image, bool]:
    """The whole picture that tells a subject's colour, and whether that is straight already."""
    if isinstance(item, FileItem):
        return folders.read_pair(item.pair)[0], item.pair.label is None
    assert isinstance(item, ShardItem)
    straight = ("foreground.png", "foreground.jpg")
    picture = item.picture(*straight, "image.jpg").convert("RGB")
    return picture, any(field in item.record.fields for field in straight)


def _read_scene(scene: Input) -> Tensor:
    with naming(scene.where):
        return planes(np.asarray(scene.open().image()))


# Pure functions


def reduce_matte(color: Pixels, alpha: Pixels, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """A matte at a smaller size: means over the area of each pixel, colour weighted by opacity.

    Args:
        color: (H, W, 3), straight.
        alpha: (H, W).
        size: (height, width).

    Returns:
        Colour and alpha, rounded to 8 bits; colour is 0 where alpha is.
    """
    if alpha.shape != tuple(size):
        opacity = alpha.astype(np.float32) / 255
        small = _area_mean(opacity, size)
        sums = [_area_mean(opacity * color[..., i], size) for i in range(3)]
        straight = np.stack(sums, -1) / np.maximum(small, 1e-6)[..., None]
        color = (straight.clip(0, 255) + 0.5).astype(np.uint8)
        alpha = (small.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.where(alpha[..., None] > 0, color, np.uint8(0)), alpha


def _area_mean(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX))


def blend(color: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """``αF + (1 − α)B`` of 8-bit pictures, rounded to the nearest level.

    Args:
        color: (3, H, W) uint8, straight.
        alpha: (1, H, W) uint8.
        background: (3, H, W) uint8.

    Returns:
        (3, H, W) uint8: in integers, the same everywhere.
    """
    opacity = alpha.to(torch.int32)
    # 255 is odd: no value lies half-way between two levels.
    mixed = opacity * color + (255 - opacity) * background
    return ((mixed + 127) // 255).to(torch.uint8)


# Without mattes


def _made_inputs(seed: int) -> tuple[list[Input], list[Input]]:
    """Subjects and backgrounds made of noise."""
    subjects = [partial(_made_matte, seed, n) for n in range(_MADE_SUBJECTS)]
    scenes = [partial(_made_scene, seed, n) for n in range(_MADE_BACKGROUNDS)]
    return (
        [Input(f"made-{n + 1}", f"made-{n + 1}", item) for n, item in enumerate(subjects)],
        [Input(f"noise-{n + 1}", f"noise-{n + 1}", item) for n, item in enumerate(scenes)],
    )


def _made_matte(seed: int, number: int) -> Item:
    """A ragged shape with strands around it, and the colours of noise."""
    rng = np.random.default_rng([seed, 1, number])
    picture = made.photograph(rng, (MADE_SIDE, MADE_SIDE))
    width, height = picture.size
    shape = made.subject(rng, picture.size).resize((4 * width, 4 * height))
    middle = [side.mean() for side in np.nonzero(np.asarray(shape) > 127)]
    draw = ImageDraw.Draw(shape)
    for angle in rng.uniform(0, 2 * np.pi, 60):
        turns = angle + rng.normal(0, 0.05, 8).cumsum()
        reach = np.linspace(0.1, rng.uniform(0.3, 0.45), 8) * min(shape.size)
        x, y = middle[1] + reach * np.cos(turns), middle[0] + reach * np.sin(turns)
        draw.line([*zip(x, y, strict=True)], fill=255, width=int(rng.integers(2, 7)))
    picture.putalpha(shape.resize(picture.size, Image.Resampling.BOX))
    return ShardItem(
        Source("made"), Record(f"made-{number + 1}", {"foreground.png": made.png(picture)})
    )


def _made_scene(seed: int, number: int) -> Item:
    rng = np.random.default_rng([seed, 2, number])
    fields = {"image.jpg": made.jpeg(made.photograph(rng, (MADE_SIDE, MADE_SIDE)))}
    return ShardItem(Source("made"), Record(f"noise-{number + 1}", fields))
