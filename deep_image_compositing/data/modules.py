"""Data modules over shards and plain folders, one for each slot.

Loader processes decode and crop, to 8-bit tensors; colour, camera effects, pasting, degradation and
triplets are made on the device after the transfer. A batch carries the seed of all that is random
about it, so what is made of it depends on nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.data import folders, synthesis
from deep_image_compositing.data.feeds import Feed, Mix, Reading, open_held_out, open_source
from deep_image_compositing.data.items import Item, ShardItem, Source
from deep_image_compositing.data.packing import nothing
from deep_image_compositing.data.procedural import draw_alpha
from deep_image_compositing.data.stream import (
    EvaluationStream,
    Sample,
    StreamLoader,
    TrainingStream,
)
from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import dilate, erode
from deep_image_compositing.functional.degradation import degrade_mask

Sources = str | Source | list[str | Source]
"""One source or several: a path or pattern alone, or a :class:`Source` with its settings."""

LOOK = 320
"""Side in pixels of what a segmenter is shown of the surroundings of a crop."""

CLOSE_UPS = 0.12
"""Share of a segmenter's training crops that cut the subject."""

LEAST = 0.7
"""Width of the smallest crop of a matte, relative to the size at which it is used."""

_log = logging.getLogger("deep_image_compositing")


def as_sources(given: Sources | None) -> list[Source]:
    """Sources of whatever a recipe or a command line gave."""
    if given is None:
        return []
    each = given if isinstance(given, list) else [given]
    return [source if isinstance(source, Source) else Source(source) for source in each]


class StageData(LightningDataModule):
    """What the data modules of all slots share: sources, loaders, the device generator.

    Args:
        train: what is trained on: shards (a folder with its ``index.json``, a pattern, a URL), or
            plain folders; see :class:`~deep_image_compositing.data.items.Source`.
        backgrounds: photographs without subjects, likewise.
        validation: what is validated and tested on; None for what ``train`` holds out: the split
            ``validation`` of a folder of shards, one photograph in ten of a plain folder.
        size: side of the square crops in pixels.
        batch_size: samples a step and device.
        epoch_length: samples an epoch, of all devices together.
        validation_crops: crops that a validation run makes of each sample.
        num_workers: loader processes a device; 0 loads in the training process.
        augment: strength of colour jitter, camera effects and degradation; 0 for none.
        seed: of everything random about the data.
        shuffle: samples that a loader process holds back to draw from, for each set of shards.
        tolerance: share of shards, and of samples, that may be unreadable before that is an error.
        cache: folder in which shards from elsewhere are kept; None to transfer them every time.
    """

    accepts: ClassVar[tuple[str, ...]]
    """Kinds of samples in ``train``."""

    def __init__(
        self,
        train: Sources,
        backgrounds: Sources | None = None,
        validation: Sources | None = None,
        size: int = 256,
        batch_size: int = 8,
        epoch_length: int = 2000,
        validation_crops: int = 1,
        num_workers: int = 1,
        augment: float = 1.0,
        seed: int = 0,
        shuffle: int = 200,
        tolerance: float = 0.01,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("size", size, 8),
            ("batch_size", batch_size, 1),
            ("epoch_length", epoch_length, 1),
            ("validation_crops", validation_crops, 1),
            ("num_workers", num_workers, 0),
            ("shuffle", shuffle, 0),
        ):
            if value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
        if not 0 <= tolerance <= 1:
            raise UsageError(f"tolerance is a share and must lie in [0, 1], got {tolerance}")
        self.train = as_sources(train)
        self.validation = as_sources(validation)
        self.backgrounds = as_sources(backgrounds)
        if not self.train:
            raise UsageError("there is no source to train on: name one as --data.train")
        self.size = size
        self.batch_size = batch_size
        self.epoch_length = epoch_length
        self.validation_crops = validation_crops
        self.num_workers = num_workers
        self.augment = augment
        self.seed = seed
        self.tolerance = tolerance
        self._reading = Reading(shuffle, tolerance, cache)
        self._mixes: dict[str, tuple[Mix, Mix]] = {}

    # What a slot defines

    def open(self) -> dict[str, tuple[Mix, Mix]]:
        """What each item of a sample is drawn from, for training and evaluation; main one first."""
        return {"subject": self.open_main(), "scene": self.open_scenes()}

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        """One 8-bit sample of the items, made in a loader process."""
        raise NotImplementedError

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        """Turn a batch on the device, floats in [0, 1], into what the slot trains on."""
        raise NotImplementedError

    # What Lightning calls

    def __getstate__(self) -> dict[str, Any]:
        """What a loader process is sent where it is not forked: everything but the trainer."""
        return {**self.__dict__, "trainer": None}

    def setup(self, stage: str) -> None:
        """Open the sources, once."""
        if not self._mixes:
            self._mixes = self.open()
            self._say_where_shards_are_few()

    def train_dataloader(self) -> StreamLoader:
        batches = self.epoch_length // (self.batch_size * self._ranks)
        if not batches:
            raise UsageError(
                f"epoch_length {self.epoch_length} is less than one batch of {self.batch_size} "
                f"on each of {self._ranks} devices"
            )
        mixes = {name: train for name, (train, _) in self._mixes.items()}
        for mix in mixes.values():
            mix.shares()  # raises here what every loader process would
        stream = TrainingStream(
            mixes,
            self.draw,
            self.batch_size,
            batches,
            self.seed,
            self._rank,
            self.tolerance,
        )
        about = {"seed": self.seed, "batch_size": self.batch_size, "devices": self._ranks}
        about["epoch_length"] = self.epoch_length
        return StreamLoader(stream, self.num_workers, self._trained, about=about)

    def val_dataloader(self) -> StreamLoader | list[Any]:
        (name, (_, main)), *others = self._mixes.items()
        if not main.feeds:
            if self._rank == 0:
                _log.warning(
                    "there is no validation: nothing is held out of the training data; "
                    "name some samples with --data.validation"
                )
            return []
        stream = EvaluationStream(
            main,
            {other: held_out for other, (_, held_out) in others},
            name,
            self.draw,
            self.batch_size,
            self.validation_crops,
            self.seed,
            self._rank,
            self._ranks,
            self.tolerance,
        )
        return StreamLoader(stream, self.num_workers)

    def test_dataloader(self) -> StreamLoader | list[Any]:
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Make the batch on the device, from the seed that it carries."""
        valid = batch.get("valid")
        seeds = batch["seed"].view(-1).tolist()
        floats = {
            key: value.float() / 255 if value.dtype == torch.uint8 else value
            for key, value in batch.items()
            if key not in ("seed", "valid")
        }
        generator = torch.Generator(next(iter(floats.values())).device)
        with torch.no_grad():
            if valid is None:
                return self.finish(floats, generator.manual_seed(seeds[0]), True)
            # One at a time: what is made of a sample must not depend on the batch it came in,
            # else a metric would depend on the number of devices.
            rows = [
                self.finish(
                    {key: value[i : i + 1] for key, value in floats.items()},
                    generator.manual_seed(seed),
                    False,
                )
                for i, seed in enumerate(seeds)
            ]
            return {**{key: torch.cat([r[key] for r in rows]) for key in rows[0]}, "valid": valid}

    # Parts

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _ranks(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _trained(self) -> int:
        """Batches that the run has trained on, interruptions included."""
        return 0 if self.trainer is None else batches_trained(self.trainer)

    def open_main(self) -> tuple[Mix, Mix]:
        """Feeds of ``train`` and of ``validation``."""
        train, held_out = self._open(self.train, self.accepts)
        if self.validation:
            held_out = [
                open_held_out(source, self.accepts, self._reading) for source in self.validation
            ]
        return Mix(train), Mix(held_out)

    def open_scenes(self) -> tuple[Mix, Mix]:
        """Feeds of ``backgrounds``."""
        if not self.backgrounds:
            raise UsageError("there are no backgrounds: name some as --data.backgrounds")
        train, held_out = self._open(self.backgrounds, ("backgrounds",))
        return Mix(train), Mix(held_out or train)

    def _open(
        self, sources: Sequence[Source], kinds: tuple[str, ...]
    ) -> tuple[list[Feed], list[Feed]]:
        pairs = [open_source(source, kinds, self._reading) for source in sources]
        return [train for train, _ in pairs], [out for _, out in pairs if out is not None]

    def _say_where_shards_are_few(self) -> None:
        loaders = self._ranks * max(1, self.num_workers)
        for train, _ in self._mixes.values():
            for feed in train.feeds:
                shards = feed.shards()
                if shards is not None and shards < loaders and self._rank == 0:
                    _log.warning(
                        "%s has %d shards for %d loader processes (%d devices of %d each): some "
                        "read the same shard at once; more, smaller shards mix better",
                        feed.source.path,
                        shards,
                        loaders,
                        self._ranks,
                        max(1, self.num_workers),
                    )

    def _scene(self, rng: np.random.Generator, item: Item, low: float = 0.4) -> Tensor:
        return scene_crop(rng, item, self.size, low)


def batches_trained(trainer: Trainer) -> int:
    """Batches that a run has trained on, before interruptions and after them."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


def scene_crop(rng: np.random.Generator, item: Item, size: int, low: float) -> Tensor:
    """A square crop (3, size, size) of a photograph, at least ``low`` of its short side wide."""
    whole = item.size()
    box = folders.any_crop(whole, rng, low)
    picture = item.image(size / (box[2] - box[0]))
    return planes(folders.crop(picture, box, size, bool(rng.random() < 0.5), whole))


def outline_crop(
    rng: np.random.Generator, label: Image.Image, size: int
) -> tuple[folders.Box, bool]:
    """A square at the outline of a matte; whether to mirror it.

    It is magnified little or not at all, but for pictures whose short side is smaller than that.
    """
    short, long = min(label.size), max(label.size)
    low = min(short / long, size * LEAST / long)
    box = folders.local_crop(label, rng, low, min(short / long, max(low, 3 * low)))
    return box, bool(rng.random() < 0.5)


def planes(image: Image.Image) -> Tensor:
    """A picture as an 8-bit tensor (C, H, W)."""
    return torch.from_numpy(folders.to_planes(image))


def mirror(image: Image.Image, mirrored: bool) -> Image.Image:
    """The picture, left for right where ``mirrored``."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


class LabelledData(StageData):
    """What segmentation and refinement share: a cropped photograph, its label and a scene."""

    accepts = ("segmentation", "mattes")

    def _labelled(
        self,
        rng: np.random.Generator,
        items: Mapping[str, Item],
        label: Image.Image,
        box: folders.Box,
        scene_scale: float,
    ) -> Sample:
        """One 8-bit sample of photograph and label; ``scene_scale`` is the smallest scene crop."""
        subject = items["subject"]
        mirrored = bool(rng.random() < 0.5)
        pasted = rng.random() < subject.source.paste
        empty = nothing(3, self.size, self.size)
        scale = self.size / min(box[2] - box[0], box[3] - box[1])
        image = folders.crop(subject.image(scale), box, self.size, mirrored, label.size)
        return {
            "image": planes(image),
            "mask": planes(folders.crop(label, box, self.size, mirrored)),
            "background": self._scene(rng, items["scene"], scene_scale) if pasted else empty,
            "paste": torch.full((1, 1, 1), 255 * pasted, dtype=torch.uint8),
            "distrust": torch.full((1, 1, 1), round(subject.source.distrust * self.size / 320)),
        }


class SegmentationData(LabelledData):
    """``image``, ``mask`` and ``weight`` for segmenters, subjects pasted on other backgrounds."""

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        label = items["subject"].label()
        box = folders.subject_box(label)
        if rng.random() < items["subject"].source.upper_body:
            box = folders.upper_body_crop(label.size, box, rng)
        elif not held_out and rng.random() < CLOSE_UPS:
            box = folders.close_up_crop(label.size, box, rng)
        elif held_out:
            box = (0, 0, *label.size)
        else:
            box = folders.whole_crop(label.size, box, rng)
        return self._labelled(rng, items, label, box, 0.6)

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        image, mask = batch["image"], batch["mask"]
        if training:
            image, mask = synthesis.shrink(image, mask, batch["paste"], generator)
        image = synthesis.paste(image, mask, batch["background"], batch["paste"], generator)
        if training and self.augment:
            image = synthesis.jitter_color(image, generator, self.augment)
            gray = synthesis.chance(len(image), 0.08, generator)
            image = torch.lerp(image, synthesis.luminance(image).expand_as(image), gray)
            image = synthesis.camera(image, generator, self.augment)
        radius = batch["distrust"].view(-1)
        return {"image": image, "mask": mask, "weight": trust_map(mask, radius)}


class RefinementData(LabelledData):
    """``image``, a rough ``mask`` and the true ``alpha``: local crops of the outline.

    The mask is the true one degraded, or for the share ``own`` what a trained segmenter makes of
    the whole photograph, so that a refiner meets the mistakes that it will be given.

    Args:
        train: labelled photographs, or mattes.
        backgrounds: photographs before which subjects are pasted.
        segmenter: registered name of the segmenter whose masks are used.
        segmenter_weights: its weights, a shipped name or a file.
        own: share of samples in [0, 1] whose mask is the segmenter's.
        **kwargs: as for :class:`StageData`.

    Raises:
        UsageError: ``own`` is no share, or no segmenter is named for it.
    """

    def __init__(
        self,
        train: Sources,
        backgrounds: Sources | None = None,
        segmenter: str | None = None,
        segmenter_weights: str = "default",
        own: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(train, backgrounds, **kwargs)
        if not 0 <= own <= 1:
            raise UsageError(f"own is a share in [0, 1], got {own}")
        if own and segmenter is None:
            raise UsageError("own masks need a segmenter: name one as --data.segmenter")
        self.own = own
        self.segmenter = segmenter
        self.segmenter_weights = segmenter_weights
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_made": None}

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        label = items["subject"].label()
        box = folders.local_crop(label, rng, 0.3, 1.0)
        # Not drawn from rng where none is wanted, so that older runs stay repeatable.
        if self.own and rng.random() < self.own:
            return self._draw_own(rng, items, label, box)
        sample = self._labelled(rng, items, label, box, 0.3)
        return {**sample, **_no_surroundings()} if self.own else sample

    def _draw_own(
        self,
        rng: np.random.Generator,
        items: Mapping[str, Item],
        label: Image.Image,
        box: folders.Box,
    ) -> Sample:
        """A crop, and what surrounds it, small, for the segmenter to look at."""
        subject, scene = items["subject"], items["scene"]
        mirrored, pasted = bool(rng.random() < 0.5), bool(rng.random() < subject.source.paste)
        around = folders.whole_crop(label.size, folders.subject_box(label), rng)
        around = folders.union(around, box)
        aspect = (around[2] - around[0]) / (around[3] - around[1])
        seen = folders.any_box(scene.size(), aspect, rng, 0.6)
        image = subject.image()

        def cut(picture: Image.Image, part: folders.Box, side: int) -> Tensor:
            return planes(folders.crop(picture, part, side, mirrored))

        behind, behind_around = nothing(3, self.size, self.size), nothing(3, LOOK, LOOK)
        if pasted:
            picture = scene.image()
            behind = cut(picture, folders.carry(box, around, seen), self.size)
            behind_around = cut(picture, seen, LOOK)
        left, top, right, bottom = folders.carry(box, around, (0, 0, 1, 1))
        if mirrored:
            left, right = 1 - right, 1 - left
        return {
            "image": cut(image, box, self.size),
            "mask": cut(label, box, self.size),
            "background": behind,
            "paste": torch.full((1, 1, 1), 255 * pasted, dtype=torch.uint8),
            "distrust": torch.full((1, 1, 1), round(subject.source.distrust * self.size / 320)),
            "around": cut(image, around, LOOK),
            "around_mask": cut(label, around, LOOK),
            "around_background": behind_around,
            "place": torch.tensor((left, top, right, bottom)).float().view(4, 1, 1),
        }

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        image, alpha = batch["image"], batch["mask"]
        strength = self.augment if training else 0.0
        image = synthesis.paste(image, alpha, batch["background"], batch["paste"], generator)
        if strength:
            image = synthesis.jitter_color(image, generator, strength)
            image = synthesis.camera(image, generator, strength)
        radius = batch["distrust"].view(-1)
        mask = degrade_mask(alpha, generator, softness=0.02, coarseness=0.05, blobs=0.06)
        mask = synthesis.hesitate(mask, generator)
        if self.own:
            own = batch["place"].flatten(1).any(1)
            mask = mask.clone()
            mask[own] = self._own_masks(
                {key: value[own] for key, value in batch.items()}, generator, strength
            )
        # Pixels that the given mask gets wrong are what the network is for.
        weight = trust_map(alpha, radius) * (1 + 3 * (mask - alpha).abs())
        return {"image": image, "mask": mask, "alpha": alpha, "weight": weight}

    def _own_masks(self, batch: Sample, generator: torch.Generator, strength: float) -> Tensor:
        """The segmenter's masks of what surrounds the crops, cut to the crops."""
        around, place = batch["around"], batch["place"].flatten(1)
        if not len(around):
            return around.new_zeros(0, 1, self.size, self.size)
        share = batch["paste"]
        around = synthesis.paste(
            around, batch["around_mask"], batch["around_background"], share, generator
        )
        if strength:
            around = synthesis.jitter_color(around, generator, strength)
            around = synthesis.camera(around, generator, strength)
        if self._made is None:
            options = {"weights": self.segmenter_weights} if self.segmenter_weights else {}
            self._made = registry.create("segmenter", str(self.segmenter), **options).eval()
        found: Tensor = self._made.to(around.device)(around)
        return crops_at(found, place, self.size)


def crops_at(pictures: Tensor, place: Tensor, size: int) -> Tensor:
    """Crops (B, C, size, size) of ``pictures`` (B, C, H, W).

    Args:
        pictures: of any range.
        place: (B, 4), left, top, right and bottom of each crop as shares of width and height.
        size: side of the crops in pixels.
    """
    left, top, right, bottom = place.unbind(1)
    zero = torch.zeros_like(left)
    # From the crop's coordinates to the picture's, both from -1 to 1.
    across = torch.stack([right - left, zero, left + right - 1], 1)
    down = torch.stack([zero, bottom - top, top + bottom - 1], 1)
    shape = [len(pictures), pictures.shape[1], size, size]
    grid = F.affine_grid(torch.stack([across, down], 1), shape, align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _no_surroundings() -> Sample:
    """The fields of a sample whose mask is not the segmenter's."""
    return {
        "around": nothing(3, LOOK, LOOK),
        "around_mask": nothing(1, LOOK, LOOK),
        "around_background": nothing(3, LOOK, LOOK),
        "place": torch.zeros((4, 1, 1)),
    }


def trust_map(mask: Tensor, radius: Tensor) -> Tensor:
    """0 within ``radius`` (B,) pixels of the outline of ``mask`` (B, 1, H, W), 1 elsewhere."""
    trust = torch.ones_like(mask)
    for value in sorted({int(r) for r in radius if r > 0}):
        wide, narrow = dilate(mask, value), erode(mask, value)
        rows = (radius == value).view(-1, 1, 1, 1)
        trust = torch.where(rows & (wide - narrow > 0.5), 0.0, trust)
    return trust


class FusionData(StageData):
    """Triplets for fusers: easy ones made here of mattes, hard ones read from shards.

    Args:
        train: mattes (image + alpha, or RGBA cut-outs), and shards of self-taught triplets.
        backgrounds: photographs for new and old backgrounds.
        textures: any photographs, for random alpha blending and as old backgrounds; None for the
            backgrounds.
        blending: share of samples whose subject colour is a random photograph, under an alpha that
            has nothing to do with it.
        procedural: share of samples whose alpha is drawn from rules (hair, fur, foliage, lace,
            veils, soft focus), under a random photograph; see
            :mod:`~deep_image_compositing.data.procedural`.
        degrade: how far alphas are degraded into the rough masks that the fuser is given: 1 as a
            good segmenter and refiner leave them, more for masks that nobody refined, 0 not at all.
        own: share of the triplets of shards that keep the mask which they are stored with, made by
            a segmenter and a refiner; the others get a degraded alpha.
        **kwargs: as for :class:`StageData`.
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
        for name, share in (("blending", blending), ("procedural", procedural), ("own", own)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is a share in [0, 1], got {share}")
        self.textures = as_sources(textures)
        self.blending = blending
        self.procedural = procedural
        self.degrade = degrade
        self.own = own

    def open(self) -> dict[str, tuple[Mix, Mix]]:
        scenes = self.open_scenes()
        textures = scenes
        if self.textures:
            train, held_out = self._open(self.textures, ("backgrounds", "segmentation", "mattes"))
            textures = Mix([*train, *scenes[0].feeds]), Mix([*held_out, *scenes[1].feeds])
        return {"subject": self.open_main(), "new": scenes, "old": textures, "texture": textures}

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        subject = items["subject"]
        if isinstance(subject, ShardItem) and "composite.png" in subject.record.fields:
            return self._draw_hard(rng, subject)
        return {
            **self._draw_photograph(rng, items, held_out),
            "new": self._scene(rng, items["new"], 0.25),
            "composite": nothing(3, self.size, self.size),
            "mask": nothing(1, self.size, self.size),
            "hard": torch.zeros((1, 1, 1), dtype=torch.uint8),
        }

    def _draw_photograph(
        self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool
    ) -> Sample:
        """The parts of an easy photograph: the subject's colour and alpha, the old background."""
        subject = items["subject"]
        # Not drawn from rng where nothing is procedural, so that older runs stay repeatable.
        if not held_out and self.procedural and rng.random() < self.procedural:
            alpha = planes(draw_alpha(rng, self.size))
            return self._easy(rng, items, self._scene(rng, items["texture"], 0.3), alpha)
        label = subject.label()
        box, mirrored = outline_crop(rng, label, self.size)
        if not held_out and rng.random() < self.blending:
            color = self._scene(rng, items["texture"], 0.3)
        else:
            color = planes(mirror(subject.color(label, box, self.size), mirrored))
        alpha = planes(folders.crop(label, box, self.size, mirrored))
        return self._easy(rng, items, color, alpha)

    def _easy(
        self, rng: np.random.Generator, items: Mapping[str, Item], color: Tensor, alpha: Tensor
    ) -> Sample:
        """What an easy triplet is made of: a subject and two backgrounds."""
        return {
            "color": color,
            "alpha": alpha,
            "old": self._scene(rng, items["old"], 0.25),
        }

    def _draw_hard(self, rng: np.random.Generator, item: ShardItem) -> Sample:
        """A self-taught triplet: ``old`` is its photograph, ``new`` its background."""
        alpha = item.picture("alpha.png").convert("L")
        low = min(1.0, self.size / max(alpha.size))
        box = folders.local_crop(alpha, rng, low, max(low, min(1.0, 2 * low)))
        mirrored = bool(rng.random() < 0.5)

        def cut(name: str, mode: str = "RGB") -> Tensor:
            picture = item.picture(name).convert(mode)
            return planes(folders.crop(picture, box, self.size, mirrored, alpha.size))

        composite = cut("composite.png")
        return {
            "color": composite,
            "alpha": planes(folders.crop(alpha, box, self.size, mirrored)),
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
            turned = synthesis.rotate(torch.cat([color, alpha], 1), generator)
            # What is self-taught is made already, its pictures lie on top of each other.
            color, alpha = torch.where(hard, torch.cat([color, alpha], 1), turned).split((3, 1), 1)
        made = synthesis.easy_triplet(color, alpha, old, new, generator, strength)
        del made["old_background"]
        made["mask"] = degrade_mask(alpha, generator, self.degrade, exact=0.2)
        if bool(hard.any()):
            taught = synthesis.taught_triplet(old, new, batch["composite"], alpha)
            # Every epoch another mask for the same sample, but one and the same to measure by.
            taught["mask"] = made["mask"] if training else batch["mask"]
            if training and self.own:
                kept = synthesis.chance(len(alpha), self.own, generator) > 0
                taught["mask"] = torch.where(kept, batch["mask"], made["mask"])
            made = {key: torch.where(hard, taught[key], value) for key, value in made.items()}
        return made


class MattingData(FusionData):
    """Photographs with all that they are made of, for refiners that are matting methods.

    ``image`` is ``alpha · foreground_color + (1 − alpha) · background``, where ``background`` is
    the photograph's own, old one; ``mask`` is alpha degraded.

    Args:
        train: mattes (image + alpha, or RGBA cut-outs).
        backgrounds: photographs for the backgrounds.
        **kwargs: as for :class:`FusionData`.
    """

    accepts = ("mattes",)

    def open(self) -> dict[str, tuple[Mix, Mix]]:
        parts = super().open()
        del parts["new"]
        return parts

    def draw(self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        return self._draw_photograph(rng, items, held_out)

    def finish(self, batch: Sample, generator: torch.Generator, training: bool) -> Sample:
        strength = self.augment if training else 0.0
        color, alpha, old = (batch[key] for key in ("color", "alpha", "old"))
        if strength:
            color, alpha = synthesis.rotate(torch.cat([color, alpha], 1), generator).split(
                (3, 1), 1
            )
        made = synthesis.easy_triplet(color, alpha, old, old, generator, strength)
        return {
            "image": made["foreground"],
            "mask": degrade_mask(alpha, generator, self.degrade, exact=0.2),
            "alpha": alpha,
            "foreground_color": made["foreground_color"],
            "background": made["old_background"],
        }
