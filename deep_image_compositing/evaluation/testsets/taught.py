"""The test set ``taught``: hard triplets that a trained network has made, as the paper tests."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets import base


class Taught(base.TestSet):
    """Triplets of ``deep-image-compositing teach``.

    The photograph is a network's composite, and what is behind the subject not known. The truth is
    that of the alpha and colour that the network gave.

    Args:
        shards: folders of shards, patterns or URLs.
        split: of folders of shards; None for all, training data included.
        samples: how many are used, the first ones; None for all.
        cache: folder in which shards from elsewhere are kept.

    Raises:
        UsageError: no shards of triplets, or no such split.
        DataError: a shard that cannot be read.
    """

    name: ClassVar[str] = "taught"
    # of given masks: the true alpha, the mask that the set was made with, and none
    grades = ("exact", "rough", "none")

    def __init__(
        self,
        shards: base.Paths,
        split: str | None = "validation",
        samples: int | None = None,
        cache: str | None = None,
    ) -> None:
        base.check_count("samples", samples)
        self._sources = [
            base.Shards(p, "triplets", split, cache) for p in base.as_paths(shards, "shards")
        ]
        if not self._sources:
            raise UsageError("the test set taught needs the shards that teach has written")
        self._samples = [s for source in self._sources for s in source.samples][:samples]
        self._names = base.unique_names(sample.key for sample in self._samples)

    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> base.Sample:
        item = self._samples[index].open()

        def picture(field: str, mode: str = "RGB") -> Tensor:
            return base.planes(np.asarray(item.picture(field).convert(mode)))

        with base.naming(item.name):
            alpha = picture("alpha.png", "L")
            return base.Sample(
                self._names[index],
                foreground=picture("foreground.jpg"),
                background=picture("background.jpg"),
                masks={"exact": alpha.clone(), "rough": picture("mask.png", "L"), "none": None},
                composite=picture("composite.png"),
                alpha=alpha,
            )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "grades": list(self.grades),
            "sources": [source.about for source in self._sources],
            "samples": [
                {"name": name, "shard": sample.url, "key": sample.key}
                for name, sample in zip(self._names, self._samples, strict=True)
            ],
        }

    def inputs(self) -> list[list[Any]]:
        return [line for source in self._sources for line in source.inputs]
