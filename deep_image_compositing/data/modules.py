"""Data modules over plain folders, one for each slot.

Workers only decode and crop, to 8-bit tensors; colour, camera effects, pasting, degradation and
triplets are made on the device after the transfer. A module seeds its device generator from the
trainer's seed, its rank and the step, so runs repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deep_image_compositing.data import folders, synthesis
from deep_image_compositing.data.folders import Pair, Source
from deep_image_compositing.data.mattes import Matte, read_matte
from deep_image_compositing.functional.compose import dilate, erode
from deep_image_compositing.functional.degradation import degrade_mask

Sample = dict[str, Tensor]


class Drawn(Dataset[Sample]):
    """``length`` samples, each made by ``draw`` from a random generator of its own.

    Generators are seeded from torch's global one, which every loader worker seeds anew for each
    epoch, so no two samples repeat and a seeded run repeats as a whole. With ``fixed``, sample
    ``i`` has the seed ``i`` and is the same every time.
    """

    def __init__(
        self, draw: Callable[[np.random.Generator], Sample], length: int, fixed: bool = False
    ) -> None:
        self.draw = draw
        self.length = length
        self.fixed = fixed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index >= self.length:
            raise IndexError(index)
        seed = index if self.fixed else int(torch.randint(2**62, ()))
        return self.draw(np.random.default_rng(seed))


class FolderData(LightningDataModule):
    """What the three modules share: sources, loaders, the device generator.

    Args:
        sources: folders of pairs, see :class:`~deep_image_compositing.data.folders.Source`; one
            photograph in ten is held out for validation, by the hash of its name.
        backgrounds: folders of photographs without subjects, searched recursively.
        size: side of the square crops in pixels.
        batch_size: samples a step.
        epoch_length: samples an epoch.
        validation_length: samples of a validation run.
        num_workers: loader processes; 0 loads in the training process.
        augment: strength of colour jitter, camera effects and degradation; 0 for none.
        seed: of the device generator.
    """

    def __init__(
        self,
        sources: list[Source],
        backgrounds: list[str],
        size: int = 256,
        batch_size: int = 8,
        epoch_length: int = 2000,
        validation_length: int = 64,
        num_workers: int = 1,
        augment: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.backgrounds = backgrounds
        self.size = size
        self.batch_size = batch_size
        self.epoch_length = epoch_length
        self.validation_length = validation_length
        self.num_workers = num_workers
        self.augment = augment
        self.seed = seed
        self._pairs: list[tuple[Source, list[Pair], list[Pair]]] = []
        self._scenes: tuple[list[Path], list[Path]] = ([], [])

    # What a slot defines

    def draw(self, rng: np.random.Generator, held_out: bool) -> Sample:
        """One 8-bit sample, made in a worker."""
        raise NotImplementedError

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        """Turn a batch on the device, floats in [0, 1], into what the slot trains on."""
        raise NotImplementedError

    # What Lightning calls

    def setup(self, stage: str) -> None:
        """List the files, once."""
        if self._pairs:
            return
        for source in self.sources:
            pairs = folders.find_pairs(source.path)
            kept = [p for p in pairs if not p.held_out] or pairs
            self._pairs.append((source, kept, [p for p in pairs if p.held_out] or pairs))
        scenes = [path for root in self.backgrounds for path in folders.find_images(root)]
        kept_scenes = [p for p in scenes if not Pair(p, None).held_out] or scenes
        self._scenes = kept_scenes, [p for p in scenes if Pair(p, None).held_out] or scenes

    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader(Drawn(self._draw_training, self.epoch_length), drop_last=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._loader(Drawn(self._draw_held_out, self.validation_length, fixed=True))

    def test_dataloader(self) -> DataLoader[Sample]:
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Make the batch on the device, from a seed that names rank and step."""
        floats = {
            key: value.float() / 255 if value.dtype == torch.uint8 else value
            for key, value in batch.items()
        }
        training = self.trainer is not None and self.trainer.training
        device = next(iter(floats.values())).device
        generator = torch.Generator(device)
        step = self.trainer.global_step if self.trainer is not None and training else 0
        rank = self.trainer.global_rank if self.trainer is not None else 0
        generator.manual_seed(hash((self.seed, rank, step)) & (2**62 - 1))
        with torch.no_grad():
            return self.finish(floats, generator, training)

    # Parts

    def _draw_training(self, rng: np.random.Generator) -> Sample:
        return self.draw(rng, held_out=False)

    def _draw_held_out(self, rng: np.random.Generator) -> Sample:
        return self.draw(rng, held_out=True)

    def _loader(self, dataset: Dataset[Sample], drop_last: bool = False) -> DataLoader[Sample]:
        return DataLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            drop_last=drop_last,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _pick(self, rng: np.random.Generator, held_out: bool) -> tuple[Source, Pair]:
        weights = np.array([source.weight for source, _, _ in self._pairs])
        source, kept, out = self._pairs[rng.choice(len(weights), p=weights / weights.sum())]
        pairs = out if held_out else kept
        return source, pairs[rng.integers(len(pairs))]

    def _scene(self, rng: np.random.Generator, held_out: bool, low: float = 0.4) -> Tensor:
        """A crop (3, size, size) of a background photograph."""
        scenes = self._scenes[held_out]
        image = folders.read_rgb(scenes[rng.integers(len(scenes))])
        box = folders.any_crop(image.size, rng, low)
        return torch.from_numpy(folders.cut(image, box, self.size, bool(rng.random() < 0.5)))


class LabelledData(FolderData):
    """What segmentation and refinement share: a cropped photograph, its label and a scene."""

    def _labelled(
        self,
        rng: np.random.Generator,
        held_out: bool,
        source: Source,
        pair: tuple[Image.Image, Image.Image],
        crop: folders.Box,
        scene_scale: float,
    ) -> Sample:
        """One 8-bit sample of photograph and label; ``scene_scale`` is the smallest scene crop."""
        image, label = pair
        mirrored = bool(rng.random() < 0.5)
        pasted = rng.random() < source.paste
        empty = torch.zeros((3, self.size, self.size), dtype=torch.uint8)
        return {
            "image": torch.from_numpy(folders.cut(image, crop, self.size, mirrored)),
            "mask": torch.from_numpy(folders.cut(label, crop, self.size, mirrored)),
            "background": self._scene(rng, held_out, scene_scale) if pasted else empty,
            "paste": torch.full((1, 1, 1), 255 * pasted, dtype=torch.uint8),
            "distrust": torch.full((1, 1, 1), round(source.distrust * self.size / 320)),
        }


class SegmentationData(LabelledData):
    """``image``, ``mask`` and ``weight`` for segmenters, subjects pasted on other backgrounds."""

    def draw(self, rng: np.random.Generator, held_out: bool) -> Sample:
        source, pair = self._pick(rng, held_out)
        image, label = folders.read_pair(pair)
        box = folders.subject_box(label)
        if rng.random() < source.upper_body:
            crop = folders.upper_body_crop(image.size, box, rng)
        elif held_out:
            crop = (0, 0, *image.size)
        else:
            crop = folders.whole_crop(image.size, box, rng)
        return self._labelled(rng, held_out, source, (image, label), crop, 0.6)

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        image, mask = batch["image"], batch["mask"]
        image = synthesis.paste(image, mask, batch["background"], batch["paste"], generator)
        if training and self.augment:
            image = synthesis.jitter_color(image, generator, self.augment)
            gray = synthesis.chance(len(image), 0.08, generator)
            image = torch.lerp(image, synthesis.luminance(image).expand_as(image), gray)
            image = synthesis.camera(image, generator, self.augment)
        radius = batch["distrust"].view(-1)
        return {"image": image, "mask": mask, "weight": trust_map(mask, radius)}


class RefinementData(LabelledData):
    """``image``, a degraded ``mask`` and the true ``alpha``: local crops of the outline."""

    def draw(self, rng: np.random.Generator, held_out: bool) -> Sample:
        source, pair = self._pick(rng, held_out)
        image, label = folders.read_pair(pair)
        crop = folders.local_crop(label, rng, 0.3, 1.0)
        return self._labelled(rng, held_out, source, (image, label), crop, 0.3)

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        image, alpha = batch["image"], batch["mask"]
        image = synthesis.paste(image, alpha, batch["background"], batch["paste"], generator)
        if training and self.augment:
            image = synthesis.jitter_color(image, generator, self.augment)
            image = synthesis.camera(image, generator, self.augment)
        radius = batch["distrust"].view(-1)
        mask = degrade_mask(alpha, generator, softness=0.02, coarseness=0.05, blobs=0.06)
        mask = synthesis.hesitate(mask, generator)
        # Pixels that the given mask gets wrong are what the network is for.
        weight = trust_map(alpha, radius) * (1 + 3 * (mask - alpha).abs())
        return {"image": image, "mask": mask, "alpha": alpha, "weight": weight}


def trust_map(mask: Tensor, radius: Tensor) -> Tensor:
    """0 within ``radius`` (B,) pixels of the outline of ``mask`` (B, 1, H, W), 1 elsewhere."""
    trust = torch.ones_like(mask)
    for value in sorted({int(r) for r in radius if r > 0}):
        wide, narrow = dilate(mask, value), erode(mask, value)
        rows = (radius == value).view(-1, 1, 1, 1)
        trust = torch.where(rows & (wide - narrow > 0.5), 0.0, trust)
    return trust


class FusionData(FolderData):
    """Easy triplets for fusers, made from mattes, backgrounds and any photographs.

    Args:
        sources: folders of mattes (image + alpha, or RGBA cut-outs).
        backgrounds: folders of new and old backgrounds.
        textures: folders of any photographs, for random alpha blending and old backgrounds.
        blending: share of samples whose subject colour is a random photograph, under an alpha that
            has nothing to do with it.
        **kwargs: as for :class:`FolderData`.
    """

    def __init__(
        self,
        sources: list[Source],
        backgrounds: list[str],
        textures: list[str] | None = None,
        blending: float = 0.35,
        **kwargs: Any,
    ) -> None:
        super().__init__(sources, backgrounds, **kwargs)
        self.textures = textures or []
        self.blending = blending
        self._photographs: list[Path] = []
        self._mattes: dict[Pair, Matte] = {}

    def setup(self, stage: str) -> None:
        """List the files and read all mattes, whose true colours are estimated once."""
        super().setup(stage)
        if not self._photographs:
            self._photographs = [
                path for root in self.textures for path in folders.find_images(root)
            ]
        pairs = [p for _, kept, out in self._pairs for p in (*kept, *out)]
        self._mattes = {pair: self._mattes.get(pair) or read_matte(pair) for pair in pairs}

    def draw(self, rng: np.random.Generator, held_out: bool) -> Sample:
        _, pair = self._pick(rng, held_out)
        matte = self._mattes[pair]
        color, alpha = matte.color, matte.alpha
        if not held_out and rng.random() < 0.5:
            angle = float(rng.normal(0, 12))
            color = color.rotate(angle, Image.Resampling.BILINEAR)
            alpha = alpha.rotate(angle, Image.Resampling.BILINEAR)
        short, long = min(alpha.size), max(alpha.size)
        low = min(1.0, self.size * 0.7 / long)
        crop = folders.local_crop(alpha, rng, low, min(short / long, max(low, 3 * low)))
        mirrored = bool(rng.random() < 0.5)
        subject = torch.from_numpy(folders.cut(color, crop, self.size, mirrored))
        if not held_out and rng.random() < self.blending:
            subject = self._texture(rng, held_out)
        return {
            "color": subject,
            "alpha": torch.from_numpy(folders.cut(alpha, crop, self.size, mirrored)),
            "old": self._texture(rng, held_out),
            "new": self._scene(rng, held_out, 0.25),
        }

    def _texture(self, rng: np.random.Generator, held_out: bool) -> Tensor:
        if held_out or not self._photographs or rng.random() < 0.5:
            return self._scene(rng, held_out, 0.25)
        image = folders.read_rgb(self._photographs[rng.integers(len(self._photographs))])
        box = folders.any_crop(image.size, rng, 0.3)
        return torch.from_numpy(folders.cut(image, box, self.size, bool(rng.random() < 0.5)))

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        strength = self.augment if training else 0.0
        color, alpha, old, new = (batch[key] for key in ("color", "alpha", "old", "new"))
        triplet = synthesis.easy_triplet(color, alpha, old, new, generator, strength)
        return {**triplet, "mask": degrade_mask(alpha, generator, exact=0.2)}
