"""Folders of training data as users have them, made small; several tests write them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from deep_image_compositing.data.shards import Index, Record, ShardEntry, ShardWriter, describe
from deep_image_compositing.data.tars import read_records


def names(kept: int, held_out: int) -> list[str]:
    """File names of which ``held_out`` fall into the validation split, ``kept`` do not."""
    found: list[str] = []
    counts = {True: held_out, False: kept}
    for i in range(1000):
        out = zlib.crc32(f"photo{i}".encode()) % 10 == 0
        if counts[out]:
            counts[out] -= 1
            found.append(f"photo{i}")
    return found


def photograph(seed: int, size: tuple[int, int] = (72, 56)) -> tuple[Image.Image, Image.Image]:
    """A noisy picture (RGB) of a bright ellipse, and its soft mask (L); size is width, height."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    centre = rng.uniform(-0.2, 0.2, 2)
    distance = np.hypot(x - centre[0], y - centre[1])
    alpha = np.clip((0.55 - distance) / 0.15 + 0.5, 0, 1)[..., None]
    front, back = rng.uniform(0.5, 1, 3), rng.uniform(0, 0.4, 3)
    pixels = alpha * front + (1 - alpha) * back + rng.normal(0, 0.02, (*alpha.shape[:2], 3))
    picture = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
    return picture, Image.fromarray((alpha[..., 0] * 255).round().astype(np.uint8))


def pairs(root: Path, kind: str = "mask", kept: int = 3, held_out: int = 1) -> Path:
    """``NAME.jpg`` beside ``NAME.mask.png`` or ``NAME.alpha.png``."""
    root.mkdir(parents=True)
    for seed, name in enumerate(names(kept, held_out)):
        picture, label = photograph(seed)
        picture.save(root / f"{name}.jpg", quality=95)
        label.save(root / f"{name}.{kind}.png")
    return root


def cutouts(root: Path, kept: int = 2, held_out: int = 1) -> Path:
    """RGBA cut-outs."""
    root.mkdir(parents=True)
    for seed, name in enumerate(names(kept, held_out)):
        picture, label = photograph(seed)
        picture.putalpha(label)
        picture.save(root / f"{name}.png")
    return root


def scenes(root: Path, kept: int = 3, held_out: int = 1) -> Path:
    """Backgrounds without a subject, in a folder below the root."""
    (root / "indoors").mkdir(parents=True)
    for seed, name in enumerate(names(kept, held_out)):
        rng = np.random.default_rng(100 + seed)
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        small.resize((80, 60), Image.Resampling.BICUBIC).save(root / "indoors" / f"{name}.jpg")
    return root


def encode(picture: Image.Image, kind: str) -> bytes:
    """A picture as a file, ``JPEG`` (almost without loss) or ``PNG``."""
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 97, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue()


def sample(kind: str, seed: int) -> dict[str, bytes]:
    """One sample of a shard: of any of ``shards.KINDS``."""
    picture, label = photograph(seed)
    jpeg, png = encode(picture, "JPEG"), encode(label, "PNG")
    if kind == "triplets":
        scene = photograph(seed + 500)[0]
        made = Image.composite(picture, scene, label)
        fields = {"foreground.jpg": jpeg, "background.jpg": encode(scene, "JPEG")}
        return {**fields, "composite.png": encode(made, "PNG"), "mask.png": png, "alpha.png": png}
    if kind == "harmonization":
        dark = Image.composite(picture.point(lambda level: level // 2), picture, label)
        return {"image.jpg": jpeg, "mask.png": png, "composite.jpg": encode(dark, "JPEG")}
    labels = {"segmentation": {"mask.png": png}, "mattes": {"alpha.png": png}, "backgrounds": {}}
    return {"image.jpg": jpeg, **labels[kind]}


def write(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> ShardEntry:
    """A shard of the fields of samples by key."""
    with ShardWriter(path) as writer:
        for key, fields in samples.items():
            writer.write(key, fields)
    return writer.entry()


def shard(path: Path, kind: str, seeds: range, broken: tuple[int, ...] = ()) -> Path:
    """A shard of samples ``s0000``, ...; the photographs of the ``broken`` ones are none."""
    samples = {seed: sample(kind, seed) for seed in seeds}
    for fields in (samples[seed] for seed in broken if seed in samples):
        fields |= {name: b"no picture" for name in fields if name.endswith(".jpg")}
    write(path, {f"s{seed:04d}": fields for seed, fields in samples.items()})
    return path


def read(out: Path) -> dict[str, Record]:
    """All samples of a folder of shards, by key."""
    found: dict[str, Record] = {}
    for path in sorted(out.glob("*.tar")):
        with open(path, "rb") as stream:
            found |= {record.key: record for record in read_records(stream, path.name)}
    return found


def picture(data: bytes) -> Image.Image:
    """A picture of a shard, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def contents(out: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder, by name."""
    return {path.name: path.read_bytes() for path in out.iterdir()}


def shards(root: Path, kind: str, train: int, held_out: int = 0, each: int = 4) -> Path:
    """A folder of shards of ``each`` samples and less, with its index."""
    root.mkdir(parents=True)
    index = Index(kind)
    for split, first, last in (("train", 0, train), ("validation", train, train + held_out)):
        entries = []
        for number, start in enumerate(range(first, last, each)):
            seeds = range(start, min(start + each, last))
            path = shard(root / f"{split}-{number:06d}.tar", kind, seeds)
            entries.append(describe(path, len(seeds)))
        index.splits[split] = entries
    index.write(root)
    return root
