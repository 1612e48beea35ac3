"""Data modules of fusers (triplets) and of matting (photographs with all their layers)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deep_image_compositing.data import crops, synthesis
from deep_image_compositing.data.crops import outline_crop, planes
from deep_image_compositing.data.datasets import Mixture, open_all
from deep_image_compositing.data.items import Item, ShardItem, check_shares
from deep_image_compositing.data.loading import Sample
from deep_image_compositing.data.modules.base import Sources, StageData, as_sources
from deep_image_compositing.data.procedural import draw_alpha
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.options import check_range


class FusionData(StageData):
    """Triplets for fusers: easy ones, composited from mattes, and hard ones, read from shards.

    Args:
        train: mattes (image + alpha, or RGBA cut-outs), and shards of self-taught triplets.
        backgrounds: photographs for new and old backgrounds.
        textures: any photographs, used for random alpha blending and as old backgrounds; None for
            the backgrounds alone.
        blending: share of samples with random alpha blending: the subject's colour is a random
            photograph, unrelated to the alpha.
        procedural: share of samples with a procedural alpha (hair, fur, foliage, lace, veils, soft
            focus) and a random photograph as colour; see
            ``deep_image_compositing.data.procedural``.
        degrade: how far alphas are degraded to become the fuser's rough input masks: 1 imitates a
            good segmenter and refiner, more imitates unrefined masks, 0 leaves alphas unchanged.
        own: share of the triplets from shards that keep their stored mask, made by a segmenter and
            a refiner; the others get a degraded alpha.
        **kwargs: as for ``StageData``.
    """

    accepts: ClassVar[tuple[str, ...]] = ("mattes", "triplets")

    def __init__(
        self,
        train: Sources,
        backgrounds: Sources | None = None,
        textures: Sources | None = None,
        blending: float = 0.35,
        degrade: float = 1.0,
        procedural: float = 0.0,
        own: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(train, backgrounds, **kwargs)
        check_shares(blending=blending, procedural=procedural, own=own)
        check_range("degrade", degrade, 0, math.inf)
        self.textures = as_sources(textures)
        self.blending, self.procedural = blending, procedural
        self.degrade, self.own = degrade, own

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        textures = scenes = self.open_scenes()
        if self.textures:
            kinds = ("backgrounds", "segmentation", "mattes")
            train, held_out = open_all(self.textures, kinds, self._reading)
            textures = train + scenes[0], held_out + scenes[1]
        return {"subject": self.open_main(), "new": scenes, "old": textures, "texture": textures}

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        subject = items["subject"]
        if isinstance(subject, ShardItem) and "composite.png" in subject.record.fields:
            return self._draw_hard(rng, subject)
        return {
            **self._draw_photograph(rng, items, held_out),
            "new": self._scene(rng, items["new"], 0.25),
            "hard": torch.zeros((1, 1, 1), dtype=torch.uint8),
        }

    def _draw_photograph(
        self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool
    ) -> Sample:
        """The subject's colour and alpha, and the old background, of an easy photograph."""
        subject = items["subject"]
        # rng is not used if procedural is 0, so that older runs remain reproducible.
        if not held_out and self.procedural and rng.random() < self.procedural:
            alpha = planes(draw_alpha(rng, self.size))
            color = self._scene(rng, items["texture"], 0.3)
        else:
            label = subject.label()
            box, mirrored = outline_crop(rng, label, self.size)
            alpha = crops.cut(label, box, self.size, mirrored)
            if not held_out and rng.random() < self.blending:
                color = self._scene(rng, items["texture"], 0.3)
            else:
                color = planes(subject.color(label, box, self.size), mirrored)
        return {"color": color, "alpha": alpha, "old": self._scene(rng, items["old"], 0.25)}

    def _draw_hard(self, rng: np.random.Generator, item: ShardItem) -> Sample:
        """A self-taught triplet, with its photograph as ``old`` and its background as ``new``."""
        alpha = item.picture("alpha.png").convert("L")
        low = min(1.0, self.size / max(alpha.size))
        box = crops.local_crop(alpha, rng, low, max(low, min(1.0, 2 * low)))
        mirrored = bool(rng.random() < 0.5)

        def cut(name: str, mode: str = "RGB") -> Tensor:
            return crops.cut(item.picture(name).convert(mode), box, self.size, mirrored, alpha.size)

        composite = cut("composite.png")
        return {
            "color": composite,
            "alpha": crops.cut(alpha, box, self.size, mirrored),
            "old": cut("foreground.jpg"),
            "new": cut("background.jpg"),
            "composite": composite,
            "mask": cut("mask.png", "L"),
            "hard": torch.full((1, 1, 1), 255, dtype=torch.uint8),
        }

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        strength = self.augment if training else 0.0
        color, alpha, old, new = (batch[key] for key in ("color", "alpha", "old", "new"))
        hard = batch["hard"] > 0
        if strength:
            # The pictures of hard triplets are aligned, so those are not rotated.
            rgba = torch.cat([color, alpha], 1)
            rgba = torch.where(hard, rgba, synthesis.rotate(rgba, generator))
            color, alpha = rgba.split((3, 1), 1)
        triplet = synthesis.easy_triplet(color, alpha, old, new, generator, strength)
        del triplet["old_background"]
        triplet["mask"] = degrade_mask(alpha, generator, self.degrade, exact=0.2)
        if bool(hard.any()):
            taught = synthesis.taught_triplet(old, new, batch["composite"], alpha)
            # Training degrades a new mask in every epoch; evaluation uses the stored one.
            taught["mask"] = triplet["mask"] if training else batch["mask"]
            if training and self.own:
                keep = synthesis.chance(len(alpha), self.own, generator) > 0
                taught["mask"] = torch.where(keep, batch["mask"], triplet["mask"])
            triplet = {key: torch.where(hard, taught[key], value) for key, value in triplet.items()}
        return triplet


class MattingData(FusionData):
    """Photographs with their layers, for refiners that are matting methods.

    ``image`` is ``alpha · foreground_color + (1 − alpha) · background``, so ``background`` is the
    one in the photograph; ``mask`` is the degraded alpha.

    Args:
        train: mattes (image + alpha, or RGBA cut-outs).
        backgrounds: photographs for the backgrounds.
        **kwargs: as for ``FusionData``.
    """

    accepts = ("mattes",)

    def open(self) -> dict[str, tuple[Mixture, Mixture]]:
        mixtures = super().open()
        del mixtures["new"]
        return mixtures

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        return self._draw_photograph(rng, items, held_out)

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        strength = self.augment if training else 0.0
        color, alpha, old = (batch[key] for key in ("color", "alpha", "old"))
        if strength:
            rgba = synthesis.rotate(torch.cat([color, alpha], 1), generator)
            color, alpha = rgba.split((3, 1), 1)
        triplet = synthesis.easy_triplet(color, alpha, old, old, generator, strength)
        return {
            "image": triplet["foreground"],
            "mask": degrade_mask(alpha, generator, self.degrade, exact=0.2),
            "alpha": alpha,
            "foreground_color": triplet["foreground_color"],
            "background": triplet["old_background"],
        }
