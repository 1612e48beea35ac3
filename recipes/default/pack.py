"""Pack photographs, masks and backgrounds into a few small shards for train.py.

    python recipes/default/pack.py data runs/packed

Held-out photographs (../groups.py) and doubtful masks of other networks are left out; soft masks
stay soft. Picture size and JPEG quality are chosen to fit ``--megabytes``. ``fit`` can read the
shards, too.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from deep_image_compositing.data.datasets import FolderDataset, open_source
from deep_image_compositing.data.encoding import Options, make_sample
from deep_image_compositing.data.folders import DOUBTS, quiet
from deep_image_compositing.data.items import FileItem
from deep_image_compositing.data.shards import Index, ShardWriter, encode
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.images import open_picture

sys.path.insert(0, str(Path(__file__).parents[1]))
from groups import DOUBT, GROUPS, source

SIDES = {"segmentation": 384, "mattes": 768, "sure": 448, "backgrounds": 512, "textures": 384}
"""Longest side in pixels, by kind; ``sure`` are mattes made from other networks' masks."""

QUALITIES = [(1, 85), (1, 75), (1, 65), (0.9, 65), (0.8, 65), (0.8, 55), (0.75, 55), (0.7, 55)]
"""Scale of the sides and JPEG quality; the first pair that fits is used."""

FINE = 88
"""Minimum JPEG quality of straight colours: around hair, block artifacts would look like colour."""

SURE = 0.06
"""Masks of other networks with a lower doubt than this count as mattes."""

LEVELS = 16
"""Levels of soft masks: enough for training, in a third of the bytes."""

OVERHEAD = 1536
"""Bytes per sample in a tar, in addition to its files."""


@dataclass(frozen=True)
class Sample:
    """A photograph to be packed, with its kind, its shard and its number there."""

    kind: str
    shard: str
    number: int
    item: FileItem

    def encode(self, scale: float, quality: int) -> dict[str, bytes]:
        """Encode its files; none if the mask covers almost nothing, or almost everything."""
        if self.kind == "mattes":
            return self.encode_matte(scale, quality)
        image = self.item.image()
        side = round(scale * SIDES[self.kind])
        size = fit_long_side(image.height, image.width, side)[::-1]
        photograph = jpeg(image.resize(size, Image.Resampling.LANCZOS), quality)
        if self.kind != "segmentation":
            return {"image.jpg": photograph}
        label = self.item.label().resize(size, Image.Resampling.BILINEAR)
        soft = np.asarray(label, np.float32) / 255
        if not 0.01 < (soft > 0.5).mean() < 0.97:
            return {}
        levels = np.round(soft * (LEVELS - 1)) * (255 / (LEVELS - 1))
        mask = encode(Image.fromarray(levels.astype(np.uint8)), "PNG")
        return {"image.jpg": photograph, "mask.png": mask}

    def encode_matte(self, scale: float, quality: int) -> dict[str, bytes]:
        """Encode straight colour and alpha."""
        pair, source = self.item.pair, self.item.source
        pair = replace(pair, key=str(self.number), straight=pair.label is None)
        side = SIDES["mattes" if source.doubt is None else "sure"]
        options = Options("mattes", Path(source.path), "", "", round(scale * side))
        fields = make_sample(pair, options)
        color = open_picture(fields["foreground.jpg"])
        return {"foreground.jpg": jpeg(color, max(quality, FINE)), "alpha.png": fields["alpha.png"]}


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with people/, open/, backgrounds/ ...")
    parser.add_argument("out", type=Path, help="folder of the shards; must be empty")
    parser.add_argument("--megabytes", type=float, default=40, help="maximum total size")
    doubt = "leave out masks made by a network whose doubt is this or more"
    parser.add_argument("--doubt", type=float, default=DOUBT, help=doubt)
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty: give a new folder")
    try:
        with quiet():  # no warnings about transparent cut-outs
            samples = list(collect(options.data, options.doubt))
            write(samples, best_quality(samples, options.megabytes * 1e6), options.out)
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None


def collect(data: Path, doubt: float) -> Iterator[Sample]:
    """All training samples, shard by shard."""
    known = [folder for folders in GROUPS.values() for folder in folders]
    labelled = [path for path in sorted(data.glob("*/*/")) if any(path.glob("*.mask.png"))]
    others = [str(path.relative_to(data)) for path in labelled]
    for folder in dict.fromkeys([*known, "mattes", "cutouts", *others]):
        if (data / folder).is_dir():
            yield from training_part(data, folder, "segmentation", doubt)
            fine = folder in ("mattes", "cutouts")
            if fine or (data / folder / DOUBTS).is_file():
                yield from training_part(data, folder, "mattes", doubt if fine else SURE)
    yield from training_part(data, "backgrounds", "backgrounds", doubt)
    if (data / "photographs").is_dir():
        yield from training_part(data, "photographs", "textures", doubt)


def training_part(data: Path, folder: str, kind: str, doubt: float) -> Iterator[Sample]:
    # Masks with a low doubt count as mattes, and can only be opened as masks.
    stored = {"textures": "backgrounds", "mattes": "segmentation"}.get(kind, kind)
    origin = source(data, folder, doubt)
    dataset, _ = open_source(origin, (stored,))
    assert isinstance(dataset, FolderDataset)
    for number, pair in enumerate(dataset.pairs):
        yield Sample(kind, folder.replace("/", "-"), number, FileItem(origin, pair))


def best_quality(samples: list[Sample], limit: float) -> tuple[float, int]:
    """The first of ``QUALITIES`` that fits ``limit`` bytes, estimated from a subset of samples."""
    subset = samples[:: min(20, max(1, len(samples) // 50))]
    for choice in QUALITIES:
        sizes = [sum(map(len, fields.values())) for fields in encoded(subset, choice)]
        total = (np.mean(sizes) + OVERHEAD) * len(samples)
        if total < 0.97 * limit:
            return choice
    raise SystemExit(
        f"error: {len(samples)} photographs take at least {total / 1e6:.0f} MB: "
        "give more --megabytes, or fewer photographs"
    )


def encoded(samples: Iterable[Sample], choice: tuple[float, int]) -> Iterator[dict[str, bytes]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda sample: sample.encode(*choice), samples)


def write(samples: list[Sample], choice: tuple[float, int], out: Path) -> None:
    """Write a shard for each folder and kind, and an index for each kind."""
    pairs = sorted(zip(samples, encoded(samples, choice), strict=True), key=lambda p: p[0].kind)
    for kind, kind_pairs in groupby(pairs, key=lambda p: p[0].kind):
        folder = out / kind
        folder.mkdir(parents=True)
        entries = []
        for shard, shard_pairs in groupby(kind_pairs, key=lambda p: p[0].shard):
            with ShardWriter(folder / f"{shard}.tar") as writer:
                for sample, fields in shard_pairs:
                    if fields:
                        writer.write(f"{sample.number:05}", fields)
            entries.append(writer.entry())
        shards = "backgrounds" if kind == "textures" else kind
        Index(shards, {"train": entries}, {"scale": choice[0], "quality": choice[1]}).write(folder)
        size = sum(entry.bytes for entry in entries) / 1e6
        count = sum(entry.samples for entry in entries)
        print(
            f"{kind:13} {count:5} samples  {size:5.1f} MB  {choice[0]:.0%}, quality {choice[1]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
