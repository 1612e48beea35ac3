"""The test set ``taught``: hard triplets made by a trained network, as in the paper's tests."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deep_image_compositing.data.items import ShardItem
from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets import base
from deep_image_compositing.evaluation.testsets.inputs import Inputs, named


class Taught(base.TestSet):
    """Triplets written by ``deep-image-compositing teach``.

    The photograph is a network's composite, so the background behind the subject is unknown. The
    true alpha and composite follow from the network's alpha and colour.

    Args:
        triplets: folders of shards, patterns or URLs.
        split: split of folders of shards; None for all, including training data.
        samples: maximum number of samples, the first ones; None for all.
        cache: folder that caches remote shards.

    Raises:
        UsageError: there are no shards of triplets, or the split does not exist.
        DataError: a shard cannot be read.
    """

    name: ClassVar[str] = "taught"
    # masks: the true alpha, the triplet's own mask, and none
    grades = ("exact", "rough", "none")

    def __init__(
        self,
        triplets: base.Paths,
        split: str | None = "validation",
        samples: int | None = None,
        cache: str | None = None,
    ) -> None:
        base.check_counts(samples=(samples, 1))
        paths, inputs = base.as_paths(triplets), Inputs(split, cache)
        if not paths:
            raise UsageError("the test set taught needs the shards that teach has written")
        items = [item for path in paths for item in inputs.add_shards(path, ("triplets",))]
        self._triplets = named(items[:samples])
        about = {
            "grades": list(self.grades),
            "sources": inputs.sources,
            "samples": [{"name": t.name, "shard": t.file, "key": t.key} for t in self._triplets],
        }
        super().__init__([triplet.name for triplet in self._triplets], about, inputs.files)

    def __getitem__(self, index: int) -> base.Sample:
        triplet = self._triplets[index]
        item = triplet.open()
        assert isinstance(item, ShardItem)

        def picture(field: str, mode: str = "RGB") -> Tensor:
            return base.planes(item.picture(field).convert(mode))

        alpha = picture("alpha.png", "L")
        return base.Sample(
            triplet.name,
            foreground=picture("foreground.jpg"),
            background=picture("background.jpg"),
            masks={"exact": alpha.clone(), "rough": picture("mask.png", "L"), "none": None},
            composite=picture("composite.png"),
            alpha=alpha,
        )
