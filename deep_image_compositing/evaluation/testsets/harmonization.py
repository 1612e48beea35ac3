"""The test set ``harmonization``: composites whose subject should have other colours.

Either photographs whose subject is recoloured, or the triples of composite, photograph and mask
that a data set has. What is random about a sample follows from the seed and the names of the set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import PIL
import torch
from torch import Tensor

from deep_image_compositing.data import layouts
from deep_image_compositing.data.datasets import is_shards
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import Source
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation import measures
from deep_image_compositing.evaluation.methods import ALONE
from deep_image_compositing.evaluation.testsets import base
from deep_image_compositing.evaluation.testsets.inputs import Input, Inputs, named
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.metrics.composites import foreground_error
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
    """A composite, the ``foreground``, and the photograph that it should look like."""

    group: str = ""  # where the photograph comes from

    def given(self, grade: str) -> tuple[Tensor, Tensor, Tensor | None]:
        picture = self.foreground if grade == RECOLORED else self._truth
        return picture, picture, self.masks[grade]

    @property
    def _truth(self) -> Tensor:
        assert self.composite is not None
        return self.composite

    @property
    def _mask(self) -> Tensor:
        mask = self.masks[RECOLORED]
        assert mask is not None
        return mask

    def about(self, grade: str) -> dict[str, Any]:
        groups = {"subject": _step(float((self._mask > 127).float().mean()), SHARES)}
        about: dict[str, Any] = {"groups": groups}
        if grade == RECOLORED:
            about["given_fmse"] = fmse(self.foreground, self._truth, self._mask)
            groups["strength"] = _step(about["given_fmse"], STRENGTHS)
        if self.group:
            groups["photographs"] = self.group
        return about

    def measure(self, grade: str, result: Composite, lpips: LPIPS | None) -> dict[str, float]:
        return measures.measure_colors(
            result.composite_pixels, self._truth, self._mask, self.given(grade)[0]
        )


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
        base.check_counts(samples=(samples, 1), size=(size, 16), seed=(seed, 0))
        if not 0 < strength <= 2:
            raise UsageError(f"strength is a number in (0, 2], got {strength}")
        self.size, self.seed, self.strength = size, seed, strength
        inputs, found = Inputs(split, cache), list[Input]()
        groups = photographs if isinstance(photographs, Mapping) else {"": photographs}
        for group, given in groups.items():
            for each in [given] if isinstance(given, str | Path) else given:
                if isinstance(each, Source):
                    found += _open(inputs, each, each.hold_out, group)
                else:
                    found += _open(inputs, Source(str(each)), hold_out, group)
        if not found:
            raise UsageError(
                "nothing is left to measure: give photographs with masks, and a larger share that "
                "is held out, or null for all of them"
            )
        self._every = named(found)
        drawn = sorted(self._every, key=lambda one: base.draw(seed, "order", one.name))[:samples]
        chosen = {one.name for one in drawn}
        self._samples = [one for one in self._every if one.name in chosen]
        about = {
            "seed": seed,
            "size": size,
            "strength": strength,
            "grades": list(self.grades),
            "made_with": {"pillow": PIL.__version__, "torch": str(torch.__version__)},
            "sources": inputs.sources,
            "samples": [{"name": one.name, "photograph": one.where} for one in self._samples],
        }
        super().__init__([one.name for one in self._samples], about, inputs.files)

    def __getitem__(self, index: int) -> Recolored:
        one = self._samples[index]
        picture = self._read(one)
        image, mask = picture["image"], picture["mask"]
        composite = picture.get("composite")
        if composite is None:
            composite = self._recolored(one.name, image, mask)
        masks: dict[str, Tensor | None] = dict.fromkeys(self.grades, mask)
        return Recolored(one.name, composite, composite, masks, image, group=one.group)

    def _read(self, one: Input) -> dict[str, Tensor]:
        """What there is of a sample, uint8, reduced to the set's size."""
        with base.naming(one.where):
            item = one.open()
            if not item.has_scene:
                raise DataError(
                    "it is a cut-out: a harmonizer needs a photograph around the subject"
                )
            read = {"image": item.image(), "mask": item.label(), "composite": item.composite()}
            pictures = {k: base.planes(v) for k, v in read.items() if v is not None}
        height, width = pictures["image"].shape[-2:]
        size = fit_long_side(height, width, self.size or max(height, width))
        return {kind: resample(picture, size) for kind, picture in pictures.items()}

    def _recolored(self, name: str, image: Tensor, mask: Tensor) -> Tensor:
        """The photograph with other colours of its subject, some of them those of another one."""
        from deep_image_compositing.data.recolor import recolor

        size = (image.shape[-2], image.shape[-1])
        others = [one for one in self._every if one.name != name] or self._every
        other = min(others, key=lambda one: base.draw(self.seed, name, one.name))
        images = torch.stack([image, resample(self._read(other)["image"], size)]) / 255
        masks = torch.stack([mask, mask]) / 255
        generator = torch.Generator().manual_seed(base.draw(self.seed, name))
        composite = image
        for _ in range(_DRAWS):
            made = recolor(images, masks, generator, self.strength, untouched=0.0)[0]
            composite = torch.where(mask > 0, to_bytes(made), image)
            if fmse(composite, image, mask) >= LEAST:
                break
        return composite


def _open(inputs: Inputs, source: Source, share: float | None, group: str) -> list[Input]:
    """What there is in a source, of which the ``share`` that is held out."""
    folder = Path(source.path).name
    if pairs := [] if is_shards(source.path) else _test_split(source.path):
        about = {"path": source.path, "samples": len(pairs), "split": "test"}
        found = inputs.add_pairs(source, pairs, kind="photographs", **about)
    else:
        found = inputs.add(source, KINDS, share, kind="photographs")
    return [
        one._replace(name=one.key or f"{folder}-{Path(one.file).stem}", group=group or folder)
        for one in found
    ]


def _test_split(path: str) -> list[Pair]:
    """What iHarmony4 as published, or one of its sets, keeps for tests; else nothing."""
    root = Path(path).expanduser()
    pairs = layouts.get("harmonization", "iharmony4").find(root) if root.is_dir() else ()
    return [pair for pair in pairs if pair.split == "test"]


def fmse(composite: Tensor, truth: Tensor, mask: Tensor) -> float:
    """The fMSE of one 8-bit composite (3, H, W) under ``mask`` (1, H, W); 0 for none of it."""
    pictures = (picture[None] / 255 for picture in (composite, truth, mask))
    value = float(foreground_error(*pictures))
    return 0.0 if math.isnan(value) else value


def _step(value: float, steps: tuple[tuple[str, float], ...]) -> str:
    """The name of the first of ``steps`` that a value does not exceed."""
    return next(name for name, end in steps if value <= end)
