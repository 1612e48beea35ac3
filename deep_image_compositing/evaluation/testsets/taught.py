"""The test set ``taught``: hard triplets that a trained network has made, as the paper tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from deep_image_compositing.data.items import ShardItem, Source
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
    planes,
    unique_names,
)

GRADES = ("exact", "rough", "none")
"""Grades of given masks: the true alpha, the mask that the set was made with, and none."""


class Taught(TestSet):
    """Triplets of ``deep-image-compositing teach``.

    The photograph is a network's composite; how it looked behind the subject is not known. The
    truth is exact for the alpha and colour that the network gave.

    Args:
        shards: folders of shards, patterns or URLs.
        split: of folders of shards; None for all, training data included.
        samples: how many are used, the first ones; None for all.
        grades: of given masks, all by default: ``exact``, ``rough`` (the triplet's own mask) and
            ``none``.
        cache: folder in which shards from elsewhere are kept.

    Raises:
        UsageError: no shards of triplets, or no such split.
        DataError: a shard that cannot be read.
    """

    name: ClassVar[str] = "taught"

    def __init__(
        self,
        shards: Paths,
        split: str | None = "validation",
        samples: int | None = None,
        grades: Sequence[str] | str | None = None,
        cache: str | None = None,
    ) -> None:
        if samples is not None and not (isinstance(samples, int) and samples >= 1):
            raise UsageError(f"samples must be a whole number of at least 1: {samples!r}")
        self.grades = check_grades(grades, GRADES)
        paths = as_paths(shards, "shards")
        if not paths:
            raise UsageError("the test set taught needs the shards that teach has written")
        self._shards = [Shards(path, ("triplets",), split, cache) for path in paths]
        found = [(part, place) for part in self._shards for place in part.places][:samples]
        self._plan: list[tuple[str, Shards, Place]] = [
            (name, part, place)
            for name, (part, place) in zip(
                unique_names(place.key for _, place in found), found, strict=True
            )
        ]

    def names(self) -> list[str]:
        return [name for name, _, _ in self._plan]

    def __getitem__(self, index: int) -> Sample:
        name, shards, place = self._plan[index]
        item = ShardItem(Source(shards.path), shards.read(place))

        def picture(field: str, mode: str) -> Tensor:
            return planes(np.asarray(item.picture(field).convert(mode)))

        with naming(item.name):
            alpha = picture("alpha.png", "L")
            masks = {"exact": alpha.clone(), "rough": picture("mask.png", "L"), "none": None}
            return Sample(
                name,
                foreground=picture("foreground.jpg", "RGB"),
                background=picture("background.jpg", "RGB"),
                masks={grade: masks[grade] for grade in self.grades},
                composite=picture("composite.png", "RGB"),
                alpha=alpha,
            )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "grades": list(self.grades),
            "sources": [shards.about for shards in self._shards],
            "samples": [
                {"name": name, "shard": place.url, "key": place.key}
                for name, _, place in self._plan
            ],
        }

    def inputs(self) -> list[list[Any]]:
        return [line for shards in self._shards for line in shards.inputs]
