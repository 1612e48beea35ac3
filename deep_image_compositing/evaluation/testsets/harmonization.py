"""The test set ``harmonization``: composites whose subject should have other colours.

Either photographs whose subject is recoloured as for training, so that the photograph is the truth,
or the triples of composite, photograph and mask that a data set has. What is random about a sample
follows from the seed and its name, and from the names of the photographs beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import PIL
import torch
from torch import Tensor

from deep_image_compositing.data import layouts
from deep_image_compositing.data.datasets import is_shards
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import FileItem, Item, Source
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation import measures
from deep_image_compositing.evaluation.methods import ALONE
from deep_image_compositing.evaluation.testsets import base
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.metrics import foreground_error
from deep_image_compositing.placement import resample

if TYPE_CHECKING:
    from deep_image_compositing.composite import Composite
    from deep_image_compositing.metrics.lpips import LPIPS

Given: TypeAlias = base.Paths | Sequence[Source]
"""One path or several, or sources."""

RECOLORED, UNTOUCHED = "recolored", "untouched"

KINDS = ("harmonization", "segmentation", "mattes")
"""Kinds of samples that it is made of; the first have composites of their own."""

STRENGTHS = (("faint", 200.0), ("middle", 1000.0), ("strong", float("inf")))
"""How strongly a composite is off, by what its fMSE stays below."""

SHARES = (("up to 5 %", 0.05), ("5 to 15 %", 0.15), ("above 15 %", 1.0))
"""The subject's share of the picture, by its end: the steps of DoveNet (Cong et al., 2020)."""

LEAST = 1.0
"""Least fMSE of a recoloured subject: colours are drawn anew below it, at most ``_DRAWS`` times."""

_DRAWS = 20


@dataclass(frozen=True, eq=False)
class Recolored(base.Sample):
    """A composite and the photograph that it should look like, which is its truth."""

    group: str = ""  # where the photograph comes from

    def given(self, grade: str) -> tuple[Tensor, Tensor, Tensor | None]:
        picture = self.foreground if grade == RECOLORED else self.composite
        assert picture is not None
        return picture, picture, self.masks[grade]

    def about(self, grade: str) -> dict[str, Any]:
        given, _, mask = self.given(grade)
        assert mask is not None
        assert self.composite is not None
        groups = {"subject": _step(float((mask > 127).float().mean()), SHARES)}
        about: dict[str, Any] = {"groups": groups}
        if grade == RECOLORED:
            about["given_fmse"] = fmse(given, self.composite, mask)
            groups["strength"] = _step(about["given_fmse"], STRENGTHS)
        if self.group:
            groups["photographs"] = self.group
        return about

    def measure(self, grade: str, result: Composite, lpips: LPIPS | None) -> dict[str, float]:
        given, _, mask = self.given(grade)
        assert mask is not None
        assert self.composite is not None
        return measures.measure_colors(result.composite_pixels, self.composite, mask, given)


class Input(NamedTuple):
    """A photograph with its mask, and the composite of it where there is one."""

    name: str  # unique in the set
    where: str  # the file, or the shard and the key in it
    group: str
    open: Callable[[], Item]


class Harmonization(base.TestSet):
    """Composites whose subject has other colours than its photograph, and the photograph as truth.

    Grades are ``recolored``, the composites, and ``untouched``, the photographs as they are, which
    a harmonizer should leave alone.

    Args:
        photographs: photographs with masks or alphas, as ``HarmonizationData`` takes them: plain
            folders, shards, patterns, URLs, or sources, of which what they hold out is used. Of
            iHarmony4 as published it is the split for tests. Also by the name of a group, by which
            the report tells them apart; without one, that is the name of the path.
        hold_out: share of plain folders that training with this ``hold_out`` has not seen: only
            these photographs are used; None for all.
        split: of folders of shards; None for all.
        samples: how many, drawn by the seed; None for all.
        size: long side in pixels to which larger photographs are reduced; None for their own size.
        seed: of the colours.
        strength: of the changes of colour, see ``data.recolor``.
        cache: folder in which shards from elsewhere are kept.

    Raises:
        UsageError: nothing to measure, or a number that is too small.
        DataError: a picture or a shard that cannot be read.
    """

    name: ClassVar[str] = "harmonization"
    slots: ClassVar[tuple[str, ...]] = ALONE
    grades = (RECOLORED, UNTOUCHED)

    def __init__(
        self,
        photographs: Given | Mapping[str, Given],
        hold_out: float | None = None,
        split: str | None = "validation",
        samples: int | None = None,
        size: int | None = None,
        seed: int = 0,
        strength: float = 1.0,
        cache: str | None = None,
    ) -> None:
        base.check_count("samples", samples)
        base.check_count("size", size, 16)
        base.check_count("seed", seed, 0)
        if not 0 < strength <= 2:
            raise UsageError(f"strength is a number in (0, 2], got {strength}")
        self.size, self.seed, self.strength = size, seed, strength
        self._sources: list[dict[str, Any]] = []
        self._inputs: list[list[Any]] = []
        found: list[Input] = []
        groups = photographs if isinstance(photographs, Mapping) else {"": photographs}
        for group, given in groups.items():
            for each in [given] if isinstance(given, str | Path) else given:
                known = isinstance(each, Source)
                source = each if isinstance(each, Source) else Source(str(each))
                share = source.hold_out if known else hold_out
                found += self._open(group or Path(source.path).name, source, share, split, cache)
        if not found:
            raise UsageError(
                "nothing is left to measure: give photographs with masks, and a larger share that "
                "is held out, or null for all of them"
            )
        names = base.unique_names(each.name for each in found)
        self._every = [each._replace(name=name) for name, each in zip(names, found, strict=True)]
        order = sorted(self._every, key=lambda one: self._draw("order", one.name))
        chosen = {one.name for one in order[:samples]}
        self._samples = [one for one in self._every if one.name in chosen]

    def _open(
        self,
        group: str,
        source: Source,
        share: float | None,
        split: str | None,
        cache: str | None,
    ) -> list[Input]:
        """What there is in a source, of which the ``share`` that is held out."""
        path = source.path
        about: dict[str, Any] = {"kind": "photographs", "path": path}
        self._sources.append(about)
        if is_shards(path):
            shards = base.Shards(path, KINDS, split, cache)
            about |= shards.about
            self._inputs += shards.inputs
            return [Input(s.key, f"{s.url}: {s.key}", group, s.open) for s in shards.samples]
        pairs: Sequence[Pair] = _test_split(path)
        if pairs:
            about |= {"samples": len(pairs), "split": "test"}
        else:
            pairs, total = base.held_out(source, KINDS, share)
            about |= {"samples": total, "hold_out": share, "used": len(pairs)}
            about |= {} if source.doubt is None else {"doubt": source.doubt}
        found = []
        for pair in pairs:
            files = [file for file in (pair.composite, pair.image, pair.label) if file]
            self._inputs += [base.stat_of(file) for file in files]
            item = partial(FileItem, source, pair)
            name = f"{Path(path).name}-{files[0].stem}"
            found.append(Input(name, str(files[0]), group, item))
        return found

    def _draw(self, *words: str) -> int:
        """A number of 63 bits that follows from the seed and some words."""
        text = "\0".join((str(self.seed), *words)).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

    def names(self) -> list[str]:
        return [one.name for one in self._samples]

    def __getitem__(self, index: int) -> Recolored:
        one = self._samples[index]
        picture = self._read(one)
        image, mask = picture["image"], picture["mask"]
        composite = picture.get("composite")
        if composite is None:
            composite = self._recolored(one.name, image, mask)
        return Recolored(
            one.name,
            foreground=composite,
            background=composite,
            masks=dict.fromkeys(self.grades, mask),
            composite=image,
            group=one.group,
        )

    def _read(self, one: Input) -> dict[str, Tensor]:
        """What there is of a sample, uint8, reduced to the set's size."""
        with base.naming(one.where):
            item = one.open()
            if not item.has_scene:
                raise DataError(
                    "it is a cut-out: a harmonizer needs a photograph around the subject"
                )
            read = {"image": item.image(), "mask": item.label(), "composite": item.composite()}
            pictures = {k: base.planes(np.asarray(v)) for k, v in read.items() if v is not None}
        height, width = pictures["image"].shape[-2:]
        size = fit_long_side(height, width, self.size or max(height, width))
        return {kind: resample(picture, size) for kind, picture in pictures.items()}

    def _recolored(self, name: str, image: Tensor, mask: Tensor) -> Tensor:
        """The photograph with other colours of its subject, some of them those of another one."""
        from deep_image_compositing.data.recolor import recolor

        size = (image.shape[-2], image.shape[-1])
        others = [one for one in self._every if one.name != name] or self._every
        other = min(others, key=lambda one: self._draw(name, one.name))
        images = torch.stack([image, resample(self._read(other)["image"], size)]) / 255
        masks = torch.stack([mask, mask]) / 255
        generator = torch.Generator().manual_seed(self._draw(name))
        composite = image
        for _ in range(_DRAWS):
            made = recolor(images, masks, generator, self.strength, untouched=0.0)[0]
            composite = torch.where(mask > 0, to_bytes(made), image)
            if fmse(composite, image, mask) >= LEAST:
                break
        return composite

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "seed": self.seed,
            "size": self.size,
            "strength": self.strength,
            "grades": list(self.grades),
            "made_with": {"pillow": PIL.__version__, "torch": str(torch.__version__)},
            "sources": self._sources,
            "samples": [{"name": one.name, "photograph": one.where} for one in self._samples],
        }

    def inputs(self) -> list[list[Any]]:
        return self._inputs


def fmse(composite: Tensor, truth: Tensor, mask: Tensor) -> float:
    """The fMSE of one 8-bit composite (3, H, W) under ``mask`` (1, H, W); 0 for none of it."""
    pictures = (picture[None] / 255 for picture in (composite, truth, mask))
    value = float(foreground_error(*pictures))
    return 0.0 if math.isnan(value) else value


def _step(value: float, steps: tuple[tuple[str, float], ...]) -> str:
    """The name of the first of ``steps`` that a value does not exceed."""
    return next(name for name, end in steps if value <= end)


def _test_split(path: str) -> list[Pair]:
    """What iHarmony4 as published, or one of its sets, keeps for tests; else nothing."""
    root = Path(path).expanduser()
    pairs = layouts.get("harmonization", "iharmony4").find(root) if root.is_dir() else ()
    return [pair for pair in pairs if pair.split == "test"]
