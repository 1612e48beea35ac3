"""Make the data of the toy recipes: tiny shards, a folder of backgrounds, and two backbones.

    python recipes/toy/make_data.py

This takes a second or two, and writes everything below ``runs/toy/data`` in the working directory,
where the recipes expect it. The data are random, and serve only to show that a recipe runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from deep_image_compositing.data.shards import Index, ShardWriter, encode

FOLDER = Path("runs/toy/data")
BACKBONES = ("test_convnext", "test_efficientnet")
HEIGHT, WIDTH = 56, 72

Array = NDArray[np.float64]
Fields = dict[str, bytes]


def main(folder: Path = FOLDER) -> None:
    """Write every set, and random weights for the backbones, below ``folder``."""
    for i, name in enumerate(("duts", "msra10k", "portrait_matting", "portrait_stylization")):
        write_set(folder / name, "segmentation", make_segmentation, seed=i)
    write_set(folder / "adobe", "mattes", make_matte, seed=10)
    write_set(folder / "mine", "mattes", make_matte, seed=11)
    write_set(folder / "hard", "triplets", make_triplet, seed=12)
    write_backgrounds(folder / "backgrounds", seed=13)
    write_set(folder / "iharmony4", "harmonization", make_recolored, seed=14)
    for backbone in BACKBONES:
        state = timm.create_model(backbone, pretrained=False).state_dict()
        save_file(state, folder / f"{backbone}.safetensors")


def write_set(
    folder: Path, kind: str, make: Callable[[np.random.Generator], Fields], seed: int
) -> None:
    """Write two shards for training and one for validation, of three samples each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    index = Index(kind, about={"source": "made by recipes/toy/make_data.py", "seed": seed})
    for split, number in (("train", 0), ("train", 1), ("validation", 0)):
        with ShardWriter(folder / f"{split}-{number:06d}.tar") as writer:
            for i in range(3):
                info = json.dumps({"source": "made", "licence": "CC0-1.0"}).encode()
                writer.write(f"{split}{number}{i}", {**make(rng), "json": info})
        index.splits.setdefault(split, []).append(writer.entry())
    index.write(folder)


def write_backgrounds(folder: Path, seed: int) -> None:
    """Write a plain folder of scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(12):  # enough that the hash of the name holds some out
        (folder / f"photo{i:02}.jpg").write_bytes(jpeg(draw_scene(rng)))


# Samples


def make_segmentation(rng: np.random.Generator) -> Fields:
    """A subject on a scene, and a binary mask."""
    alpha = draw_alpha(rng)
    photograph = over(draw_subject(rng), alpha, draw_scene(rng))
    return {"image.jpg": jpeg(photograph), "mask.png": png((alpha > 0.5).astype(float))}


def make_matte(rng: np.random.Generator) -> Fields:
    """Straight colour and opacity."""
    return {"foreground.jpg": jpeg(draw_subject(rng)), "alpha.png": png(draw_alpha(rng))}


def make_triplet(rng: np.random.Generator) -> Fields:
    """A triplet as ``deep-image-compositing teach`` writes it, but with the true composite."""
    subject, alpha = draw_subject(rng), draw_alpha(rng)
    new = draw_scene(rng)
    return {
        "foreground.jpg": jpeg(over(subject, alpha, draw_scene(rng))),
        "background.jpg": jpeg(new),
        "composite.png": png(over(subject, alpha, new)),
        "mask.png": png((alpha > 0.5).astype(float)),
        "alpha.png": png(alpha),
    }


def make_recolored(rng: np.random.Generator) -> Fields:
    """A subject on a scene, a binary mask, and a composite with the subject recoloured."""
    alpha, subject, scene = draw_alpha(rng), draw_subject(rng), draw_scene(rng)
    mask = (alpha > 0.5).astype(float)
    photograph = over(subject, alpha, scene)
    recolored = photograph * rng.uniform(0.5, 1, 3)
    return {
        "image.jpg": jpeg(photograph),
        "mask.png": png(mask),
        "composite.jpg": jpeg(over(recolored, mask, photograph)),
    }


# Pictures, floats in [0, 1]


def draw_alpha(rng: np.random.Generator) -> Array:
    """A soft ellipse (H, W, 1)."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    (center_x, center_y), (width, height) = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.4, 0.7, 2)
    distance = np.hypot((x - center_x) / width, (y - center_y) / height)
    return np.clip((1 - distance) / 0.3 + 0.5, 0, 1)[..., None]


def draw_subject(rng: np.random.Generator) -> Array:
    """A bright colour with a little noise (H, W, 3)."""
    return (rng.uniform(0.5, 1, 3) + rng.normal(0, 0.02, (HEIGHT, WIDTH, 3))).clip(0, 1)


def draw_scene(rng: np.random.Generator) -> Array:
    """Smooth dark colours (H, W, 3)."""
    cells = Image.fromarray(rng.integers(0, 128, (5, 7, 3), dtype=np.uint8))
    return np.asarray(cells.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 255


def over(color: Array, alpha: Array, background: Array) -> Array:
    """Alpha-blend ``color`` over ``background``."""
    return alpha * color + (1 - alpha) * background


def jpeg(pixels: Array) -> bytes:
    """Encode (H, W, 3)."""
    return encode(_image(pixels), "JPEG")


def png(pixels: Array) -> bytes:
    """Encode (H, W, 3), or (H, W, 1) as grayscale."""
    return encode(_image(pixels), "PNG")


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray((pixels * 255).round().astype(np.uint8).squeeze())


if __name__ == "__main__":
    main()
