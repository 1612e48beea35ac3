"""Photographs whose subjects are given other colours: the data module of harmonizers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from deep_image_compositing.data import crops, synthesis
from deep_image_compositing.data.datasets import Mixture
from deep_image_compositing.data.items import Item
from deep_image_compositing.data.loading import Sample
from deep_image_compositing.data.modules.labelled import LabelledData
from deep_image_compositing.data.recolor import recolor


class HarmonizationData(LabelledData):
    """``composite``, ``mask`` and ``image`` for harmonizers: the photograph is the truth.

    ``augment`` is the strength of the changes of the subject's colours, see ``data.recolor``.
    Backgrounds are not needed: a subject that is pasted has no true colours.
    """

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        return {"subject": self.open_main()}

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        label = items["subject"].label()
        box = crops.subject_box(label)
        if held_out:
            box = (0, 0, *label.size)
        elif rng.random() < items["subject"].source.upper_body:
            box = crops.upper_body_crop(label.size, box, rng)
        else:
            box = crops.whole_crop(label.size, box, rng)
        return self._labelled(rng, items, label, box, 0.6)

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        image, mask = batch["image"], batch["mask"]
        if training:  # the whole photograph, as cameras and editors would have it
            image = synthesis.jitter_color(image, generator, 0.4 * self.augment)
        untouched = {} if training else {"untouched": 0.0}
        composite: Tensor = recolor(image, mask, generator, self.augment, **untouched)
        return {"composite": composite, "mask": mask, "image": image}
