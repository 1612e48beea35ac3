"""The test set ``harmonization``: composites whose subject has the wrong colours.

They are made by recolouring the subjects of photographs, or come from a data set with composites.
Random choices depend only on the seed and the names in the set.
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

Photographs: TypeAlias = base.Paths | Sequence[Source]
"""One path or several, or sources."""

RECOLORED, UNTOUCHED = "recolored", "untouched"

KINDS = ("harmonization", "segmentation", "mattes")
"""Usable kinds of training samples; the first have their own composites."""

STRENGTHS = (("faint", 200.0), ("middle", 1000.0), ("strong", float("inf")))
"""Groups of composites by their largest fMSE."""

SHARES = (("up to 5 %", 0.05), ("5 to 15 %", 0.15), ("above 15 %", 1.0))
"""Groups of pictures by the subject's largest share, as in DoveNet (Cong et al., 2020)."""

LEAST = 1.0
"""Minimum fMSE of a recoloured subject: below it, colours are redrawn, up to ``_DRAWS`` times."""

_DRAWS = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class Recolored(base.Sample):
    """A composite (``foreground``) and the photograph that is its truth."""

    truth: Tensor  # (3, H, W), also ``composite``
    mask: Tensor  # (1, H, W), in both grades
    group: str  # source of the photograph

    def inputs(self, grade: str) -> tuple[Tensor, Tensor, Tensor | None]:
        picture = self.foreground if grade == RECOLORED else self.truth
        return picture, picture, self.mask

    def about(self, grade: str) -> dict[str, Any]:
        groups = {"subject": _step(float((self.mask > 127).float().mean()), SHARES)}
        about: dict[str, Any] = {"groups": groups}
        if grade == RECOLORED:
            about["given_fmse"] = fmse(self.foreground, self.truth, self.mask)
            groups["strength"] = _step(about["given_fmse"], STRENGTHS)
        if self.group:
            groups["photographs"] = self.group
        return about

    def measure(self, grade: str, result: Composite, lpips: LPIPS | None) -> dict[str, float]:
        return measures.measure_colors(
            result.composite_pixels, self.truth, self.mask, self.inputs(grade)[0]
        )


class Harmonization(base.TestSet):
    """Composites with recoloured subjects, and the photographs as truth.

    Grades are ``recolored``, the composites, and ``untouched``, the photographs themselves, which
    a harmonizer should not change.

    Args:
        photographs: photographs with masks or alphas, as for ``HarmonizationData``: plain folders,
            shards, patterns, URLs, or sources, of which the held-out part is used. Of iHarmony4 as
            published, the test split is used. A mapping names the groups that the report
            distinguishes; otherwise paths do.
        hold_out: share of plain folders that training with this ``hold_out`` has not seen, to
            which the set is limited; None for all photographs.
        split: split of folders of shards; None for all.
        samples: number of samples, drawn with the seed; None for all.
        size: maximum long side in pixels; None keeps the photographs' sizes.
        seed: seed of samples and colours.
        strength: strength of the recolouring in (0, 2], see ``data.recolor``.
        cache: folder that caches remote shards.

    Raises:
        UsageError: there is nothing to measure, or a number is out of range.
        DataError: a picture or a shard cannot be read.
    """

    name: ClassVar[str] = "harmonization"
    slots: ClassVar[tuple[str, ...]] = ALONE
    grades = (RECOLORED, UNTOUCHED)

    def __init__(
        self,
        photographs: Photographs | Mapping[str, Photographs],
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
        inputs, photos = Inputs(split, cache), list[Input]()
        groups = photographs if isinstance(photographs, Mapping) else {"": photographs}
        for group, members in groups.items():
            for source in [members] if isinstance(members, str | Path) else members:
                if isinstance(source, Source):
                    photos += _open(inputs, source, source.hold_out, group)
                else:
                    photos += _open(inputs, Source(str(source)), hold_out, group)
        if not photos:
            raise UsageError(
                "nothing is left to measure: give photographs with masks, and a larger share that "
                "is held out, or null for all of them"
            )
        self._photos = named(photos)
        drawn = sorted(self._photos, key=lambda photo: base.draw(seed, "order", photo.name))
        names = {photo.name for photo in drawn[:samples]}
        self._samples = [photo for photo in self._photos if photo.name in names]
        about = {
            "seed": seed,
            "size": size,
            "strength": strength,
            "grades": list(self.grades),
            "made_with": {"pillow": PIL.__version__, "torch": str(torch.__version__)},
            "sources": inputs.sources,
            "samples": [{"name": photo.name, "photograph": photo.where} for photo in self._samples],
        }
        super().__init__([photo.name for photo in self._samples], about, inputs.files)

    def __getitem__(self, index: int) -> Recolored:
        photo = self._samples[index]
        pictures = self._read(photo)
        image, mask = pictures["image"], pictures["mask"]
        composite = pictures.get("composite")
        if composite is None:
            composite = self._recolored(photo.name, image, mask)
        return Recolored(
            photo.name, composite, composite, dict.fromkeys(self.grades, mask), image,
            truth=image, mask=mask, group=photo.group,
        )  # fmt: skip

    def _read(self, photo: Input) -> dict[str, Tensor]:
        """The sample's ``image``, ``mask`` and existing ``composite``, uint8, at the set's size."""
        item = photo.open()
        if not item.has_scene:
            raise DataError(f"{photo.where} is a cut-out: a harmonizer needs a whole photograph")
        files = {"image": item.image(), "mask": item.label(), "composite": item.composite()}
        pictures = {kind: base.planes(file) for kind, file in files.items() if file is not None}
        height, width = pictures["image"].shape[-2:]
        size = fit_long_side(height, width, self.size or max(height, width))
        return {kind: resample(picture, size) for kind, picture in pictures.items()}

    def _recolored(self, name: str, image: Tensor, mask: Tensor) -> Tensor:
        """The photograph with its subject recoloured, partly with colours of another photograph."""
        from deep_image_compositing.data.recolor import recolor

        size = (image.shape[-2], image.shape[-1])
        others = [photo for photo in self._photos if photo.name != name] or self._photos
        other = min(others, key=lambda photo: base.draw(self.seed, name, photo.name))
        images = torch.stack([image, resample(self._read(other)["image"], size)]) / 255
        masks = torch.stack([mask, mask]) / 255
        generator = torch.Generator().manual_seed(base.draw(self.seed, name))
        composite = image
        for _ in range(_DRAWS):
            recolored = recolor(images, masks, generator, self.strength, untouched=0.0)[0]
            composite = torch.where(mask > 0, to_bytes(recolored), image)
            if fmse(composite, image, mask) >= LEAST:
                break
        return composite


def _open(inputs: Inputs, source: Source, share: float | None, group: str) -> list[Input]:
    """The inputs in a source, limited to the held-out ``share`` of a plain folder."""
    folder = Path(source.path).name
    if pairs := [] if is_shards(source.path) else _test_split(source.path):
        about = {"path": source.path, "samples": len(pairs), "split": "test"}
        photos = inputs.add_pairs(source, pairs, kind="photographs", **about)
    else:
        photos = inputs.add(source, KINDS, share, kind="photographs")
    return [
        photo._replace(name=photo.key or f"{folder}-{Path(photo.file).stem}", group=group or folder)
        for photo in photos
    ]


def _test_split(path: str) -> list[Pair]:
    """The test split of iHarmony4 as published, or of one of its subsets; empty for others."""
    root = Path(path).expanduser()
    pairs = layouts.get("harmonization", "iharmony4").find(root) if root.is_dir() else ()
    return [pair for pair in pairs if pair.split == "test"]


def fmse(composite: Tensor, truth: Tensor, mask: Tensor) -> float:
    """The fMSE of one 8-bit composite (3, H, W) under ``mask`` (1, H, W), 0 for an empty mask."""
    pictures = (picture[None] / 255 for picture in (composite, truth, mask))
    value = float(foreground_error(*pictures))
    return 0.0 if math.isnan(value) else value


def _step(value: float, steps: tuple[tuple[str, float], ...]) -> str:
    """The name of the first of ``steps`` whose end is at least ``value``."""
    return next(name for name, end in steps if value <= end)
