"""Triplets for the next fuser: what they are made of, how they are made and how they are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset

from deep_image_compositing.data import crops, synthesis
from deep_image_compositing.data.crops import LEAST, outline_crop, planes
from deep_image_compositing.data.datasets import Mixture
from deep_image_compositing.data.items import FileItem, Item, ShardItem, scene_crop
from deep_image_compositing.data.loading import sent
from deep_image_compositing.data.sampler import seed_of
from deep_image_compositing.data.shards import encode
from deep_image_compositing.data.tolerance import UNREADABLE, Tolerance, TooManyError
from deep_image_compositing.data.triplet_recipe import Recipe, Shard
from deep_image_compositing.errors import CompositingError, DataError
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.degradation import degrade_mask
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.images import open_picture
from deep_image_compositing.stages.base import Fuser

TRIES = 100
"""Draws after which nothing that fits is expected to be found any more."""

EXACT = 0.2  # share of masks that stay exact, as in FusionData
PICTURES = ("color", "alpha", "old", "scene", "new")


class TooSmallError(DataError):
    """A picture that would have to be magnified too far."""


class Batches(Dataset[dict[str, Any]]):
    """The batches of some shards, in order: 8-bit crops, made in loader processes."""

    def __init__(
        self,
        recipe: Recipe,
        shards: Sequence[Shard],
        mixtures: Mapping[str, tuple[Mixture, Mixture]],
    ) -> None:
        self.recipe = recipe
        size = recipe.batch_size
        # Batches do not reach over shards: what is computed together must not depend on ranks.
        self.parts = [
            (shard, shard.numbers[start : start + size])
            for shard in shards
            for start in range(0, len(shard.numbers), size)
        ]
        self.samples = sum(len(shard.numbers) for shard in shards)
        self._mixtures = mixtures
        self._tolerance = Tolerance("samples")

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, numbers = self.parts[index]
        try:
            samples = [self._sample(shard, number) for number in numbers]
        except (CompositingError, OSError) as error:
            return sent(error)
        batch: dict[str, Any] = {name: [each[name] for each in samples] for name in samples[0]}
        stacked = {name: torch.stack(batch[name]) for name in PICTURES}
        return {**batch, **stacked, "shard": shard.name, "last": numbers[-1] == shard.numbers[-1]}

    def _sample(self, shard: Shard, number: int) -> dict[str, Any]:
        """The parts of a sample; what cannot be used is drawn again."""
        small: TooSmallError | None = None
        for attempt in range(TRIES):
            try:
                sample = self._draw(shard.split, number, attempt)
            except TooSmallError as error:
                small = error
            except TooManyError:
                raise
            except UNREADABLE as error:
                self._tolerance.failed(f"sample {number}: {error}")
            else:
                self._tolerance.passed()
                return sample
        raise small or DataError(f"nothing could be read for sample {number}")

    def _draw(self, split: str, number: int, attempt: int) -> dict[str, Any]:
        recipe, size = self.recipe, self.recipe.size
        seed = seed_of(recipe.seed, 3, number, attempt)
        rng = np.random.default_rng(seed)
        mattes, backgrounds = self._mixtures[split]
        subject = _pick(mattes, rng)
        old, scene, new = (_pick(backgrounds, rng) for _ in range(3))
        for _ in range(TRIES):  # the same background twice would make the target the photograph
            if new.name != scene.name:
                break
            new = _pick(backgrounds, rng)
        label = subject.label()
        sides = {item.name: min(item.size()) for item in (old, scene, new)}
        for name, side in {subject.name: min(label.size), **sides}.items():
            if side < LEAST * size:
                raise TooSmallError(
                    f"none of {TRIES} draws fits --size {size}, which needs mattes and "
                    f"backgrounds of at least {round(LEAST * size)} pixels either way; the last "
                    f"was {name} with {side}: give a smaller --size"
                )
        box, mirrored = outline_crop(rng, label, size)
        fresh = _background(rng, new, size).float() / 255
        generator = Generator().manual_seed(seed)
        jpeg = encode_jpeg(synthesis.jitter_color(fresh[None], generator, recipe.augment)[0])
        with open_picture(jpeg) as stored:  # what the target will be judged against
            background = planes(stored)
        return {
            "color": planes(subject.color(label, box, size), mirrored),
            "alpha": planes(crops.crop(label, box, size), mirrored),
            "old": _background(rng, old, size),
            "scene": _background(rng, scene, size),
            "new": background,
            "number": number,
            "seed": seed,
            "jpeg": jpeg,
            "info": {
                "number": number,
                "split": split,
                "attempt": attempt,
                "subject": _describe(subject, recipe.licence),
                "backgrounds": [_describe(item, recipe.licence) for item in (old, scene, new)],
            },
        }


def _pick(mixture: Mixture, rng: np.random.Generator) -> Item:
    """Any item, of each dataset by its weight."""
    dataset = mixture.datasets[int(rng.choice(len(mixture.datasets), p=mixture.weights()))]
    return dataset[int(rng.integers(len(dataset)))]


def _background(rng: np.random.Generator, item: Item, size: int) -> Tensor:
    """A crop (3, size, size) that is not magnified too far."""
    return scene_crop(rng, item, size, min(1.0, max(0.25, LEAST * size / min(item.size()))))


def _describe(item: Item, licence: str) -> dict[str, Any]:
    """Which item it is, where it comes from, and what may be done with it."""
    source = item.source.path
    if isinstance(item, ShardItem):
        info = item.record.info()
        known = {name: info[name] for name in ("source", "licence") if info.get(name)}
        shard = Path(item.record.shard).name
        return {"from": source, "shard": shard, "key": item.record.key, **known}
    assert isinstance(item, FileItem)
    path = item.pair.image.relative_to(source).as_posix()
    return {"from": source, "key": path, **({"licence": licence} if licence else {})}


# Making triplets, on the device


def make_easy(
    color: Tensor,
    alpha: Tensor,
    old: Tensor,
    scene: Tensor,
    generator: Generator,
    augment: float = 1.0,
    degrade: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """An easy photograph, the rough mask of its subject, and the scene it is to be set into.

    Photograph and scene go through one and the same camera. A photograph has one grain, one blur
    and one compression all over; were the scene clean, the hard photograph would show its subject
    by its noise, which no real photograph does. No effects follow the fuser: what they would do to
    the photograph, its target could not have.

    Args:
        color: (1, 3, H, W), straight colour of the subject.
        alpha: (1, 1, H, W), its true opacity.
        old: (1, 3, H, W), the background B₀ it stands before.
        scene: (1, 3, H, W), the background B₁ of the hard photograph.
        generator: on the tensors' device.
        augment: strength of colour jitter and camera effects.
        degrade: of the mask.
    """
    color, old, scene = (
        synthesis.jitter_color(picture, generator, augment) for picture in (color, old, scene)
    )
    photograph = over(color, alpha, old)
    photograph, scene = synthesis.one_camera([photograph, scene], generator, augment)
    return photograph, scene, degrade_mask(alpha, generator, degrade, exact=EXACT)


def make_hard(
    fuser: Fuser, photograph: Tensor, mask: Tensor, scene: Tensor, new: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the fuser makes of easy photographs: hard ones, and their targets.

    A fuser in layers is asked once, before ``new``: the same opacity, rounded to the 8 bits in
    which it is stored, and the same colour then stand before ``scene`` and before ``new``, so that
    the target is one that can be reached from the photograph. Any other fuser is asked twice.

    Args:
        fuser: trained on easy triplets.
        photograph: (B, 3, H, W), easy.
        mask: (B, 1, H, W), rough.
        scene: (B, 3, H, W), background of the hard photograph.
        new: (B, 3, H, W), background of the target.
        alpha: (B, 1, H, W), true opacity, for a fuser that has none of its own.

    Returns:
        Hard photograph, target, and the alpha that is stored, a multiple of 1/255.
    """
    layers = fuser.layers(photograph, new, mask)
    if layers is None:
        hard, target = fuser(photograph, scene, mask), fuser(photograph, new, mask)
        return hard.clamp(0, 1), target.clamp(0, 1), to_bytes(alpha).float() / 255
    alpha = to_bytes(layers.alpha).float() / 255
    color = layers.foreground_color.clamp(0, 1)
    return over(color, alpha, scene), over(color, alpha, new), alpha


def encode_jpeg(picture: Tensor) -> bytes:
    """A picture (3, H, W), 8-bit or in [0, 1], as a JPEG file."""
    return encode(Image.fromarray(to_bytes(picture).permute(1, 2, 0).numpy()), "JPEG")


def encode_png(picture: Tensor) -> bytes:
    """An 8-bit picture (1 or 3, H, W) as a PNG file."""
    return encode(Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).numpy()), "PNG")


def encode_sample(
    pictures: Mapping[str, Tensor], background: bytes, info: Mapping[str, Any]
) -> dict[str, bytes]:
    """The fields of one sample."""
    return {
        "foreground.jpg": encode_jpeg(pictures["foreground"]),
        "background.jpg": background,
        **{f"{name}.png": encode_png(pictures[name]) for name in ("composite", "mask", "alpha")},
        "json": json.dumps(info, sort_keys=True).encode(),
    }
