"""The test set ``syntest``: composites of mattes and two backgrounds each, with exact truth.

A subject's straight colour F and opacity α are first rounded to 8 bits. With backgrounds B₁ and B₂,
the photograph is αF + (1 − α)B₁ and the truth αF + (1 − α)B₂, in integers rounded to the nearest of
256 levels, so the truth is off by at most half a level. Random choices depend only on the seed and
the sample's name, so a smaller set has pictures of the larger one.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deep_image_compositing import noise
from deep_image_compositing.data.datasets import is_shards
from deep_image_compositing.data.items import FileItem, Item, ShardItem, Source, estimate_color
from deep_image_compositing.data.shards import Lazy, Record
from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets import base
from deep_image_compositing.evaluation.testsets.inputs import Input, Inputs, named
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.placement import cover

COLOR_SIDE = 2000  # maximum long side in pixels at which a subject's colour is estimated
MADE_SIDE = 320  # long side in pixels of the set made of noise

MADE_NOTE = (
    "made of noise and shapes: the figures say that everything runs, not which method is good"
)

Pixels = NDArray[np.uint8]

GRADES: dict[str, dict[str, float] | None] = {
    "exact": {"strength": 0.0, "rank": 0.0},
    "rough": {"strength": 1.0, "rank": 0.5},
    "bad": {"strength": 2.5, "rank": 0.75},
    "none": None,
}
"""How each mask is made: several times, the true alpha is degraded as for training, multiplied by
``strength``; ``rank`` selects one, from 0, the best, to 1, the worst. None stands for no mask."""

_CANDIDATES = 5
_log = logging.getLogger("deep_image_compositing")


class SynTest(base.TestSet):
    """Photographs made of mattes and backgrounds, with exact truth.

    Args:
        mattes: mattes as for training: plain folders, cut-outs, shards, patterns, URLs. The
            straight colour of a photograph with an alpha is estimated at its full size, at most
            2000 pixels. Without mattes and backgrounds, a small demonstration set is made of noise.
        backgrounds: photographs, scaled and cropped to cover the subject's frame.
        hold_out: share of plain folders of mattes that training with this ``hold_out`` has not
            seen, to which subjects are limited; None for all subjects.
        background_hold_out: the same for backgrounds.
        split: split of folders of shards; None for all.
        samples: number of samples, of subjects drawn with the seed; None uses each subject
            ``per_subject`` times.
        per_subject: number of samples per subject, with different backgrounds.
        size: maximum long side of subjects in pixels.
        seed: seed of subjects, backgrounds and masks.
        cache: folder that caches remote shards.

    Raises:
        UsageError: mattes or backgrounds are missing, there are fewer than two backgrounds, a
            share holds out nothing, or a number is too small.
        DataError: a picture or a shard cannot be read.
    """

    name: ClassVar[str] = "syntest"
    grades = tuple(GRADES)

    def __init__(
        self,
        mattes: base.Paths | None = None,
        backgrounds: base.Paths | None = None,
        hold_out: float | None = None,
        background_hold_out: float | None = None,
        split: str | None = "validation",
        samples: int | None = None,
        per_subject: int = 2,
        size: int = 768,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        base.check_counts(
            samples=(samples, 1), per_subject=(per_subject, 1), size=(size, 16), seed=(seed, 0)
        )
        self.size, self.seed = size, seed
        paths = base.as_paths(mattes), base.as_paths(backgrounds)
        inputs, from_noise = Inputs(split, cache), not any(paths)
        if from_noise:
            _log.warning("no mattes are given, so this test set is %s", MADE_NOTE)
            subjects, self._scenes = made_inputs(seed)
        elif not all(paths):
            missing = "backgrounds" if paths[0] else "mattes"
            raise UsageError(f"syntest needs mattes and backgrounds: there are no {missing}")
        else:
            subjects = _open(inputs, "mattes", paths[0], hold_out)
            self._scenes = _open(inputs, "backgrounds", paths[1], background_hold_out)
        if len(self._scenes) < 2:
            raise UsageError(
                f"syntest needs two backgrounds or more; {', '.join(paths[1])} holds only one"
            )
        self._samples = self._plan(subjects, samples, per_subject)
        about: dict[str, Any] = {
            "seed": seed,
            "size": size,
            "grades": GRADES,
            "made_with": _versions(),
            "sources": inputs.sources,
            "samples": [
                {
                    "name": name,
                    "subject": subject.where,
                    "backgrounds": [scene.where for scene in self._backgrounds(name)],
                }
                for name, subject in self._samples.items()
            ],
        }
        about |= {"note": MADE_NOTE} if from_noise else {}
        super().__init__([*self._samples], about, inputs.files)

    def _plan(
        self, subjects: list[Input], samples: int | None, per_subject: int
    ) -> dict[str, Input]:
        """The subject of each sample by the sample's name."""
        numbers = range(len(subjects))
        chosen = [(n, turn) for n in numbers for turn in range(per_subject)]
        if samples is not None:
            order = sorted(numbers, key=lambda n: base.draw(self.seed, "order", subjects[n].name))
            chosen = sorted(islice(((n, t) for t in range(samples) for n in order), samples))
        return {f"{subjects[n].name}-{turn + 1}": subjects[n] for n, turn in chosen}

    def __getitem__(self, index: int) -> base.Sample:
        name = self.names[index]
        color, alpha = read_subject(self._samples[name], self.size)
        frame = (alpha.shape[-2], alpha.shape[-1])
        old, new = (cover(read_scene(scene), frame) for scene in self._backgrounds(name))
        return base.Sample(
            name,
            foreground=blend(color, alpha, old),
            background=new,
            masks=Lazy(GRADES, lambda grade, quality: self._mask(name, grade, quality, alpha)),
            composite=blend(color, alpha, new),
            alpha=alpha,
            foreground_color=color,
            old_background=old,
        )

    def _backgrounds(self, name: str) -> list[Input]:
        """The old and the new background of a sample."""
        # Sorting by hashes of both names lets an additional background change only few samples.
        return sorted(self._scenes, key=lambda scene: base.draw(self.seed, name, scene.name))[:2]

    def _mask(
        self, name: str, grade: str, quality: dict[str, float] | None, alpha: Tensor
    ) -> Tensor | None:
        """The input mask (1, H, W), uint8."""
        if quality is None or quality["strength"] == 0:
            return None if quality is None else alpha.clone()
        generator = torch.Generator().manual_seed(base.draw(self.seed, name, grade))
        truth = alpha[None] / 255
        subject = truth >= 0.5
        draws = range(_CANDIDATES)
        masks = [degrade_mask(truth, generator, quality["strength"], exact=0.0) for _ in draws]
        # If every draw loses most of a thin subject, the true alpha is used.
        masks = [m for m in masks if (subject & (m >= 0.5)).sum() * 3 >= subject.sum()] or [truth]
        masks.sort(key=lambda mask: float((mask - truth).abs().mean()))
        return to_bytes(masks[round(quality["rank"] * (len(masks) - 1))][0])


def _open(inputs: Inputs, kind: str, paths: Sequence[str], share: float | None) -> list[Input]:
    """All ``mattes`` or ``backgrounds``; DataError for a file that is not a picture."""
    items: list[Input] = []
    for path in paths:
        previous = len(inputs.files)
        items += inputs.add(Source(path), (kind,), share, kind=kind)
        if not is_shards(path):
            inputs.sources[-1]["licences"] = ["not stated"]
            for file, *_ in inputs.files[previous:]:
                base.picture_size(file)
    if not items:
        raise UsageError(
            f"{', '.join(paths)} holds out no {kind} at the share {share:g}: give a larger "
            "one, or null for all of them"
        )
    return named(items)


def _versions() -> dict[str, str]:
    """Versions of the packages on which the pictures depend, among them the colour estimate."""
    try:
        pymatting = importlib.metadata.version("pymatting")
    except importlib.metadata.PackageNotFoundError:
        pymatting = "none: colour by blur fusion"
    return {"pillow": PIL.__version__, "torch": torch.__version__, "pymatting": pymatting}


# Subjects and backgrounds


@lru_cache(maxsize=2)
def read_subject(subject: Input, side: int) -> tuple[Tensor, Tensor]:
    """Straight colour (3, H, W) and alpha (1, H, W), uint8, long side at most ``side``."""
    item = subject.open()
    label = item.label()
    if isinstance(item, FileItem):
        picture, straight = item.image(), item.pair.label is None
    else:
        assert isinstance(item, ShardItem)
        fields = ("foreground.png", "foreground.jpg")
        picture = item.picture(*fields, "image.jpg").convert("RGB")
        straight = any(field in item.record.fields for field in fields)
    limit = fit_long_side(label.height, label.width, COLOR_SIDE)
    if (label.height, label.width) != limit and not straight:
        picture, label = (x.resize(limit[::-1], Image.Resampling.BOX) for x in (picture, label))
    color = picture if straight else estimate_color(picture, label)
    size = fit_long_side(label.height, label.width, side)
    reduced, alpha = reduce_matte(np.asarray(color), np.asarray(label), size)
    return base.planes(reduced), base.planes(alpha)


def read_scene(scene: Input) -> Tensor:
    """A background (3, H, W), uint8."""
    return base.planes(scene.open().image())


def reduce_matte(color: Pixels, alpha: Pixels, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """Reduce a matte, colour (H, W, 3) and alpha (H, W), to a smaller (height, width).

    Means over each pixel's area; the straight colour is weighted by opacity, and 0 where alpha is.
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
    """``αF + (1 − α)B`` of 8-bit pictures (C, H, W), in integers, rounded to the nearest level."""
    opacity = alpha.to(torch.int32)
    # As 255 is odd, no value is half-way between two levels.
    mixed = opacity * color + (255 - opacity) * background
    return ((mixed + 127) // 255).to(torch.uint8)


def made_inputs(seed: int) -> tuple[list[Input], list[Input]]:
    """Four subjects, ragged shapes with strands, and six backgrounds, all made of noise."""
    subjects, scenes = (
        [Input(f"{name}-{n + 1}", f"{name}-{n + 1}", "", partial(_made, seed, kind, n))
         for n in range(count)]
        for name, kind, count in (("made", 1, 4), ("noise", 2, 6))
    )  # fmt: skip
    return subjects, scenes


def _made(seed: int, kind: int, number: int) -> Item:
    rng = np.random.default_rng([seed, kind, number])
    side = (MADE_SIDE, MADE_SIDE)
    if kind == 1:
        fields = {"foreground.png": noise.png(noise.matte(rng, side))}
    else:
        fields = {"image.jpg": noise.jpeg(noise.photograph(rng, side))}
    return ShardItem(Source("made"), Record(f"made-{number + 1}", fields))
