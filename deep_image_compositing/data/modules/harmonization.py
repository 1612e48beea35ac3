"""Data module of harmonizers: photographs whose subjects are recoloured."""

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
from deep_image_compositing.data.modules.base import LazyStage, Sources, StageData
from deep_image_compositing.data.recolor import move_colors
from deep_image_compositing.errors import UsageError

SCENES = 0.1
"""Share of training samples in which the scene is recoloured instead of the subject."""


class HarmonizationData(StageData):
    """``composite``, ``mask`` and ``image`` for harmonizers: the photograph is the truth.

    Subjects of labelled photographs, and of mattes that have their photograph, are recoloured at
    random with strength ``augment``; see ``data.recolor``. Samples of the kind ``harmonization``
    keep their composite. Subjects are never pasted: on another background, their true colours
    would be unknown.

    Args:
        train: labelled photographs, mattes with their photographs, or photographs with composites.
        backgrounds: not used.
        fused: share of the recoloured composites that a fuser composites, so that their rims look
            like the compositor's.
        fuser: registered name of that fuser.
        fuser_weights: its weights, a shipped name or a file; None for a fuser without weights.
        **kwargs: as for ``StageData``.

    Raises:
        UsageError: ``fused`` is outside [0, 1], or the fuser it needs is missing or unknown; also
            while loading, for subjects without their photograph.
        WeightsError: the fuser has no such weights.
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
        self.fuse = LazyStage("fuser", fuser, fuser_weights)
        if fused:
            self.fuse.check("fused composites")

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        return dict.fromkeys(("subject", "other"), self.open_main())

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        subject = items["subject"]
        if not subject.has_scene:
            raise UsageError(
                f"{subject.name} is a subject without its photograph, so its true colours are "
                f"unknown: leave {subject.source.path} out of a harmonizer's data"
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
            # The source of a colour transfer; in training it is another sample of the batch.
            sample["other"] = self._scene(rng, items["other"])
        return sample

    def _cut(self, subject: Item, label: Image.Image, box: crops.Box, mirrored: bool) -> Sample:
        """Cut the photograph, its mask and its stored composite, if any."""
        scale = self.size / min(box[2] - box[0], box[3] - box[1])

        def cut(picture: Image.Image) -> Tensor:
            return crops.cut(picture, box, self.size, mirrored, label.size)

        composite = subject.composite(scale)
        return {
            "image": cut(subject.image(scale)),
            "mask": cut(label),
            **({} if composite is None else {"composite": cut(composite)}),
            "stored": torch.full((1, 1, 1), 255 * (composite is not None), dtype=torch.uint8),
        }

    def finish(self, batch: Sample, generator: Generator, training: bool) -> Sample:
        image, mask = batch["image"], batch["mask"]
        if training:
            image = synthesis.jitter_color(image, generator, 0.6 * self.augment)
            swapped = synthesis.chance(len(image), SCENES, generator)
            mask = torch.lerp(mask, 1 - mask, swapped)
        images, masks, untouched = image, mask, {} if training else {"untouched": 0.0}
        if "other" in batch:
            images, masks = torch.cat([image, batch["other"]]), torch.cat([mask, mask])
        recolored = move_colors(images, masks, generator, self.augment, **untouched)[: len(image)]
        composite = torch.lerp(image, recolored, mask)
        if self.fused:
            rows = synthesis.chance(len(image), self.fused, generator).view(-1) > 0
            if bool(rows.any()):
                fused = self.fuse(recolored[rows], image[rows], mask[rows]).clamp(0, 1)
                # A harmonizer cannot undo a widened rim, so nothing changes outside the mask.
                composite[rows] = torch.where(mask[rows] > 0, fused, image[rows])
        if "composite" in batch:  # stored composites keep their photograph and mask
            stored = batch["stored"] > 0
            composite = torch.where(stored, batch["composite"], composite)
            image = torch.where(stored, batch["image"], image)
            mask = torch.where(stored, batch["mask"], mask)
        return {"composite": composite, "mask": mask, "image": image}
