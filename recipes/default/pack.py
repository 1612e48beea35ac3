"""Pack photographs, masks and backgrounds into a few small shards, for train.py beside this.

    python recipes/default/pack.py data runs/packed

Everything that is held out (../groups.py) stays out, and so do doubtful masks of other networks;
soft masks stay soft. Size and quality are what lets all of it fit into so many megabytes. What is
written are shards as any other: ``fit`` reads them too.
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
"""Longest side in pixels, by kind; ``sure`` are mattes that are masks of other networks."""

QUALITIES = [(1, 85), (1, 75), (1, 65), (0.9, 65), (0.8, 65), (0.8, 55), (0.75, 55), (0.7, 55)]
"""Factors of the sides, and JPEG qualities, of which the first that fits is taken."""

FINE = 88
"""JPEG quality of straight colours at the least: under hair, blocks would be taken for colour."""

SURE = 0.06
"""A mask of another network that is less doubtful than that counts as a matte."""

LEVELS = 16
"""Values of soft masks: enough to learn from, and a third of the bytes."""

OVERHEAD = 1536
"""Bytes that a tar takes for a sample beside its files."""


@dataclass(frozen=True)
class Sample:
    """A photograph that is packed: into which shard of which kind."""

    kind: str
    shard: str
    number: int
    item: FileItem

    def encode(self, scale: float, quality: int) -> dict[str, bytes]:
        """Its files; none where its mask shows next to nothing, or everything."""
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
        """The straight colour and the alpha."""
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
    parser.add_argument("--megabytes", type=float, default=40, help="size of all of it, at most")
    parser.add_argument("--doubt", type=float, default=DOUBT, help="masks as doubtful are left out")
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty: give a new folder")
    try:
        with quiet():  # cut-outs are transparent, as they should be
            samples = list(collect(options.data, options.doubt))
            write(samples, best_quality(samples, options.megabytes * 1e6), options.out)
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None


def collect(data: Path, doubt: float) -> Iterator[Sample]:
    """Everything that may be trained on, shard by shard."""
    known = [folder for folders in GROUPS.values() for folder in folders]
    more = [str(path.relative_to(data)) for path in sorted(data.glob("*/*/")) if labelled(path)]
    folders = list(dict.fromkeys([*known, "mattes", "cutouts", *more]))
    for folder in folders:
        if (data / folder).is_dir():
            yield from kept(data, folder, "segmentation", doubt)
            fine = folder in ("mattes", "cutouts")
            if fine or (data / folder / DOUBTS).is_file():
                yield from kept(data, folder, "mattes", doubt if fine else SURE)
    yield from kept(data, "backgrounds", "backgrounds", doubt)
    if (data / "photographs").is_dir():
        yield from kept(data, "photographs", "textures", doubt)


def labelled(path: Path) -> bool:
    return next(path.glob("*.mask.png"), None) is not None


def kept(data: Path, folder: str, kind: str, doubt: float) -> Iterator[Sample]:
    wanted = "backgrounds" if kind == "textures" else kind
    if kind == "mattes":
        wanted = "segmentation"  # sure masks are taken for alphas
    chosen = source(data, folder, doubt)
    dataset, _ = open_source(chosen, (wanted,))
    assert isinstance(dataset, FolderDataset)
    for number, pair in enumerate(dataset.pairs):
        yield Sample(kind, folder.replace("/", "-"), number, FileItem(chosen, pair))


def best_quality(samples: list[Sample], limit: float) -> tuple[float, int]:
    """The first of ``QUALITIES`` with which all fits into ``limit`` bytes, by a twentieth."""
    some = samples[:: min(20, max(1, len(samples) // 50))]
    for choice in QUALITIES:
        sizes = [sum(map(len, fields.values())) for fields in encoded(some, choice)]
        total = (np.mean(sizes) + OVERHEAD) * len(samples)
        if total < 0.97 * limit:
            return choice
    raise SystemExit(
        f"error: {len(samples)} photographs take {total / 1e6:.0f} MB at the least: "
        "give more --megabytes, or fewer photographs"
    )


def encoded(samples: Iterable[Sample], choice: tuple[float, int]) -> Iterator[dict[str, bytes]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda sample: sample.encode(*choice), samples)


def write(samples: list[Sample], choice: tuple[float, int], out: Path) -> None:
    """A shard for each folder and kind, and an index for each kind."""
    done = zip(samples, encoded(samples, choice), strict=True)
    for kind, of_kind in groupby(sorted(done, key=lambda pair: pair[0].kind), lambda p: p[0].kind):
        folder = out / kind
        folder.mkdir(parents=True)
        entries = []
        for shard, pairs in groupby(of_kind, key=lambda pair: pair[0].shard):
            with ShardWriter(folder / f"{shard}.tar") as writer:
                for sample, fields in pairs:
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
