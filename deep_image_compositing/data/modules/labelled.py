"""Data modules of segmenters and refiners: photographs with masks or alphas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from PIL import Image
from torch import Tensor

from deep_image_compositing.data import crops, synthesis
from deep_image_compositing.data.items import Item, Source, check_shares
from deep_image_compositing.data.loading import Sample
from deep_image_compositing.data.modules.base import LazyStage, Sources, StageData
from deep_image_compositing.functional.compose import dilate, erode
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.options import check_range

LOOK = 320
"""Side in pixels of the segmenter's input around a crop."""

ACCOMPANIED = 0.15
"""Share of training samples whose subject gets a companion; see ``synthesis.accompany``."""

CLOSE_UPS = 0.12
"""Share of a segmenter's training crops that show only a part of the subject."""


class LabelledData(StageData):
    """Base class for segmentation and refinement: a cropped photograph, its label and a scene."""

    accepts: ClassVar[tuple[str, ...]] = ("segmentation", "mattes")

    def _labelled(
        self,
        rng: np.random.Generator,
        items: Mapping[str, Item],
        label: Image.Image,
        box: crops.Box,
        scene_scale: float,
    ) -> Sample:
        """Make an 8-bit sample; ``scene_scale`` is the least size of a scene crop."""
        subject = items["subject"]
        mirrored = bool(rng.random() < 0.5)
        pasted = bool(rng.random() < subject.source.paste)
        scale = self.size / min(box[2] - box[0], box[3] - box[1])
        sample = self._settings(subject.source, pasted)
        if pasted:
            sample["background"] = self._scene(rng, items["scene"], scene_scale)
        image = crops.cut(subject.image(scale), box, self.size, mirrored, label.size)
        return {**sample, "image": image, "mask": crops.cut(label, box, self.size, mirrored)}

    def _settings(self, source: Source, pasted: bool) -> Sample:
        return {
            "paste": torch.full((1, 1, 1), 255 * pasted, dtype=torch.uint8),
            "distrust": torch.full((1, 1, 1), round(source.distrust * self.size / 320)),
        }


class SegmentationData(LabelledData):
    """``image``, ``mask`` and ``weight`` for segmenters; some subjects get other backgrounds."""

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        label = items["subject"].label()
        box = crops.subject_box(label)
        if rng.random() < items["subject"].source.upper_body:
            box = crops.upper_body_crop(label.size, box, rng)
        elif held_out:
            box = (0, 0, *label.size)
        elif rng.random() < CLOSE_UPS:
            box = crops.close_up_crop(label.size, box, rng)
        else:
            box = crops.whole_crop(label.size, box, rng)
        return self._labelled(rng, items, label, box, 0.6)

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        image, mask = batch["image"], batch["mask"]
        if training:
            image, mask = synthesis.shrink(image, mask, batch["paste"], generator)
        background = batch.get("background", image)  # absent if no sample is pasted
        image = synthesis.paste(image, mask, background, batch["paste"], generator)
        if training:
            image, mask = synthesis.accompany(image, mask, ACCOMPANIED, generator)
        if training and self.augment:
            image = synthesis.jitter_color(image, generator, self.augment)
            gray = synthesis.chance(len(image), 0.08, generator)
            image = torch.lerp(image, rgb_to_grayscale(image).expand_as(image), gray)
            image = synthesis.camera(image, generator, self.augment)
        return {"image": image, "mask": mask, "weight": trust_map(mask, batch["distrust"])}


class RefinementData(LabelledData):
    """``image``, rough ``mask``, true ``alpha`` and ``weight``: local crops of the outline.

    The mask is the degraded truth, or for the share ``own`` a trained segmenter's output for the
    whole photograph, so that refiners are trained on realistic mistakes. Either may have its gaps
    closed.

    Args:
        train: labelled photographs, or mattes.
        backgrounds: photographs on which subjects are pasted.
        segmenter: registered name of the segmenter whose masks are used.
        segmenter_weights: its weights, a shipped name or a file.
        own: share of samples in [0, 1] whose mask is the segmenter's.
        degrade: how far the truth is degraded at most: 1 imitates a good segmenter, 2.5 a bad one.
        closed: share of samples in [0, 1] whose mask also covers the background between legs or
            strands of hair.
        **kwargs: as for ``StageData``.

    Raises:
        UsageError: an option is out of range, or the segmenter that ``own`` needs is missing or
            unknown.
        WeightsError: the segmenter has no such weights.
    """

    def __init__(
        self,
        train: Sources,
        backgrounds: Sources | None = None,
        segmenter: str | None = None,
        segmenter_weights: str = "default",
        own: float = 0.0,
        degrade: float = 1.0,
        closed: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(train, backgrounds, **kwargs)
        check_shares(own=own, closed=closed)
        check_range("degrade", degrade, 0, math.inf)
        self.own, self.degrade, self.closed = own, degrade, closed
        self.segment = LazyStage("segmenter", segmenter, segmenter_weights)
        if own:
            self.segment.check("own masks")

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        label = items["subject"].label()
        box = crops.local_crop(label, rng, 0.3, 1.0)
        # rng is not used if own is 0, so that older runs remain reproducible.
        if self.own and rng.random() < self.own:
            return self._draw_own(rng, items, label, box)
        return self._labelled(rng, items, label, box, 0.3)

    def _draw_own(
        self,
        rng: np.random.Generator,
        items: Mapping[str, Item],
        label: Image.Image,
        box: crops.Box,
    ) -> Sample:
        """A crop, with a small picture of its surroundings as the segmenter's input."""
        subject, scene = items["subject"], items["scene"]
        mirrored, pasted = bool(rng.random() < 0.5), bool(rng.random() < subject.source.paste)
        around, scene_box, place = surroundings(rng, label, box, scene.size(), mirrored)
        image, sample = subject.image(), self._settings(subject.source, pasted)
        if pasted:
            picture, part = scene.image(), crops.map_box(box, around, scene_box)
            sample["background"] = crops.cut(picture, part, self.size, mirrored)
            sample["around_background"] = crops.cut(picture, scene_box, LOOK, mirrored)
        return {
            **sample,
            "image": crops.cut(image, box, self.size, mirrored),
            "mask": crops.cut(label, box, self.size, mirrored),
            "around": crops.cut(image, around, LOOK, mirrored),
            "around_mask": crops.cut(label, around, LOOK, mirrored),
            "place": place,
        }

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        alpha, strength = batch["mask"], self.augment if training else 0.0
        image = _photograph(batch, ("image", "mask", "background"), generator, strength)
        mask = synthesis.add_uncertainty(self._degraded(alpha, generator), generator)
        if "place" in batch:
            selected = batch["place"].flatten(1).any(1)
            if selected.any():
                rows = {key: value[selected] for key, value in batch.items()}
                names = ("around", "around_mask", "around_background")
                around = _photograph(rows, names, generator, strength)
                mask = mask.clone()
                own = crops_at(self.segment(around), rows["place"].flatten(1), self.size)
                mask[selected] = own
        if self.closed:
            mask = synthesis.close_gaps(mask, alpha, self.closed, generator)
        # Correcting wrong pixels of the rough mask is the network's task, so they weigh more.
        weight = trust_map(alpha, batch["distrust"]) * (1 + 3 * (mask - alpha).abs())
        return {"image": image, "mask": mask, "alpha": alpha, "weight": weight}

    def _degraded(self, alpha: Tensor, generator: torch.Generator) -> Tensor:
        """Rough masks of ``alpha``, each degraded by its own strength from 1 to ``degrade``."""
        sizes = {"softness": 0.02, "coarseness": 0.05, "blobs": 0.06}
        if self.degrade == 1:  # no draw, so that older runs remain reproducible
            return degrade_mask(alpha, generator, **sizes)
        strengths = synthesis.uniform(len(alpha), 1, self.degrade, generator).flatten().tolist()
        items = zip(alpha.split(1), strengths, strict=True)
        return torch.cat([degrade_mask(item, generator, s, **sizes) for item, s in items])


def _photograph(
    batch: Sample, names: tuple[str, str, str], generator: torch.Generator, strength: float
) -> Tensor:
    """Paste some subjects, then apply colour jitter and camera effects."""
    image, mask = (batch[name] for name in names[:2])
    background = batch.get(names[2], image)
    image = synthesis.paste(image, mask, background, batch["paste"], generator)
    if strength:
        image = synthesis.jitter_color(image, generator, strength)
        image = synthesis.camera(image, generator, strength)
    return image


def surroundings(
    rng: np.random.Generator,
    label: Image.Image,
    box: crops.Box,
    scene_size: tuple[int, int],
    mirrored: bool,
) -> tuple[crops.Box, crops.Box, Tensor]:
    """A random crop around ``box``, a crop of the scene for it, and the place of ``box`` in it.

    The place (4, 1, 1) is as for ``crops_at``, after mirroring.
    """
    around = crops.union(crops.whole_crop(label.size, crops.subject_box(label), rng), box)
    aspect = (around[2] - around[0]) / (around[3] - around[1])
    scene_box = crops.any_crop(scene_size, rng, 0.6, aspect)
    left, top, right, bottom = crops.map_box(box, around, (0, 0, 1, 1))
    if mirrored:
        left, right = 1 - right, 1 - left
    place = torch.tensor((left, top, right, bottom)).float().view(4, 1, 1)
    return around, scene_box, place


def crops_at(pictures: Tensor, place: Tensor, size: int) -> Tensor:
    """Crops (B, C, size, size) of ``pictures`` (B, C, H, W), resampled bilinearly.

    ``place`` (B, 4) holds left, top, right and bottom as shares of width and height; left and right
    swapped mirror the crop.
    """
    left, top, right, bottom = place.unbind(1)
    zero = torch.zeros_like(left)
    # From the crop's coordinates to the picture's, both from -1 to 1.
    x = torch.stack([right - left, zero, left + right - 1], 1)
    y = torch.stack([zero, bottom - top, top + bottom - 1], 1)
    shape = [len(pictures), pictures.shape[1], size, size]
    grid = F.affine_grid(torch.stack([x, y], 1), shape, align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def trust_map(mask: Tensor, radius: Tensor) -> Tensor:
    """0 within ``radius`` (B values, in pixels) of the outline of ``mask`` (B, 1, H, W), else 1."""
    trust, radius = torch.ones_like(mask), radius.view(-1, 1, 1, 1)
    for value in sorted({int(r) for r in radius.flatten() if r > 0}):
        band = dilate(mask, value) - erode(mask, value) > 0.5
        trust = torch.where((radius == value) & band, 0.0, trust)
    return trust
