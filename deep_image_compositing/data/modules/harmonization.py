"""Photographs whose subjects are given other colours: the data module of harmonizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from deep_image_compositing.data import crops, synthesis
from deep_image_compositing.data.datasets import Mixture
from deep_image_compositing.data.items import Item, check_shares
from deep_image_compositing.data.loading import Sample
from deep_image_compositing.data.modules.base import Helper, Sources, StageData
from deep_image_compositing.data.recolor import move_colors
from deep_image_compositing.errors import UsageError

SCENES = 0.1
"""Share of training samples in which the scene is recoloured and the subject tells how."""


class HarmonizationData(StageData):
    """``composite``, ``mask`` and ``image`` for harmonizers: the photograph is the truth.

    Subjects of labelled photographs and of mattes that have their photograph get random colours,
    see ``data.recolor``; ``augment`` is how strongly. Samples of the kind ``harmonization`` have
    their composite and keep it. Nothing is pasted: no colours would be true before another scene.

    Args:
        train: labelled photographs, mattes with their photographs, or photographs with composites.
        backgrounds: not needed.
        fused: share of the composites made here that a fuser sets into the photograph, so that
            their rims look like those of the compositor.
        fuser: registered name of that fuser.
        fuser_weights: its weights, a shipped name or a file; None for one without any.
        **kwargs: as for ``StageData``.

    Raises:
        UsageError: ``fused`` is no share, or there is no such fuser for it.
        WeightsError: it has no such weights.
    """

    accepts = ("segmentation", "mattes", "harmonization")

    def __init__(
        self,
        train: Sources,
        backgrounds: Sources | None = None,
        fused: float = 0.0,
        fuser: str | None = None,
        fuser_weights: str | None = "default",
        **kwargs: Any,
    ) -> None:
        super().__init__(train, backgrounds, **kwargs)
        check_shares(fused=fused)
        self.fused = fused
        self.fuse = Helper("fuser", fuser, fuser_weights)
        if fused:
            self.fuse.check("fused composites")

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        return dict.fromkeys(("subject", "other"), self.open_main())

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        subject = items["subject"]
        if not subject.has_scene:
            raise UsageError(
                f"{subject.name} is a subject without its photograph, which alone says what "
                f"colours are true: leave {subject.source.path} out of a harmonizer's data"
            )
        label = subject.label()
        box = crops.subject_box(label)
        if held_out:
            box = (0, 0, *label.size)
        elif rng.random() < subject.source.upper_body:
            box = crops.upper_body_crop(label.size, box, rng)
        else:
            box = crops.whole_crop(label.size, box, rng)
        sample = self._cut(subject, label, box, bool(rng.random() < 0.5))
        if held_out and "composite" not in sample:
            # Whose colours the subject may get; in training it is the next one in the batch.
            sample["other"] = self._scene(rng, items["other"])
        return sample

    def _cut(self, subject: Item, label: Image.Image, box: crops.Box, mirrored: bool) -> Sample:
        """The part of a photograph in the box, with its mask and its own composite, if any."""
        scale = self.size / min(box[2] - box[0], box[3] - box[1])

        def cut(picture: Image.Image) -> Tensor:
            return crops.cut(picture, box, self.size, mirrored, label.size)

        made = subject.composite(scale)
        return {
            "image": cut(subject.image(scale)),
            "mask": cut(label),
            **({} if made is None else {"composite": cut(made)}),
            "made": torch.full((1, 1, 1), 255 * (made is not None), dtype=torch.uint8),
        }

    def finish(self, batch: Sample, generator: Generator, training: bool) -> Sample:
        photograph, given = batch["image"], batch["mask"]
        image, mask = photograph, given
        if training:  # the whole photograph, as cameras and editors would have it
            image = synthesis.jitter_color(image, generator, 0.6 * self.augment)
            swapped = synthesis.chance(len(image), SCENES, generator)
            mask = torch.lerp(mask, 1 - mask, swapped)
        images, masks, untouched = image, mask, {} if training else {"untouched": 0.0}
        if "other" in batch:
            images, masks = torch.cat([image, batch["other"]]), torch.cat([mask, mask])
        moved = move_colors(images, masks, generator, self.augment, **untouched)[: len(image)]
        composite = torch.lerp(image, moved, mask)
        if self.fused:
            rows = synthesis.chance(len(image), self.fused, generator).view(-1) > 0
            if bool(rows.any()):
                fused = self.fuse(moved[rows], image[rows], mask[rows]).clamp(0, 1)
                # It may widen the rim, which no harmonizer could mend: outside nothing changes.
                composite[rows] = torch.where(mask[rows] > 0, fused, image[rows])
        if "composite" in batch:  # both are as they are stored
            made = batch["made"] > 0
            composite = torch.where(made, batch["composite"], composite)
            image, mask = torch.where(made, photograph, image), torch.where(made, given, mask)
        return {"composite": composite, "mask": mask, "image": image}
