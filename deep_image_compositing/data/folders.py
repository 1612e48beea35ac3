"""Training pairs in plain folders: finding, reading and cropping them inside loader workers."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deep_image_compositing.data.memory import DECODED, picture_bytes
from deep_image_compositing.errors import UsageError
from deep_image_compositing.images import Photograph, read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
"""Suffixes of files that are taken for images."""

LABELS = (".mask", ".alpha")
"""What stands between the name and the suffix of a label file, as in ``NAME.mask.png``."""

HOLD_OUT = 0.1
"""Share of a plain folder's photographs that are kept for validation unless told otherwise."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """A photograph and the file that says where its subject is (None for an RGBA cut-out)."""

    image: Path
    label: Path | None

    def held_out(self, share: float = HOLD_OUT) -> bool:
        """Whether the pair belongs to the validation split of this share, by its name's hash."""
        code = zlib.crc32(self.image.stem.encode())
        # The last digit leads, the five before it break ties: a number in [0, 1) to the name.
        return (code % 10 + (code // 10 % 100_000) / 100_000) / 10 < share


def find_pairs(root: str | Path) -> list[Pair]:
    """All pairs below ``root`` (not recursive), by name.

    Raises:
        UsageError: no such folder, or nothing in it that is a pair.
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"no folder of training pairs at {root}")
    if (root / "images").is_dir() and (root / "masks").is_dir():
        masks = {p.stem: p for p in (root / "masks").iterdir() if p.suffix.lower() in SUFFIXES}
        images = [p for p in find_images(root / "images") if p.stem in masks]
        pairs = [Pair(p, masks[p.stem]) for p in images]
    else:
        labels = {
            p.name.removesuffix(p.suffix).removesuffix(kind): p
            for p in root.iterdir()
            for kind in LABELS
            if p.suffix.lower() in SUFFIXES and p.stem.endswith(kind)
        }
        images = find_images(root)
        pairs = [Pair(p, labels[p.stem]) for p in images if p.stem in labels]
        if not labels:
            pairs = [Pair(p, None) for p in images if p.suffix.lower() in (".png", ".webp")]
    if not pairs:
        raise UsageError(
            f"{root} holds no pairs: expected NAME.jpg beside NAME.mask.png or NAME.alpha.png, "
            "the folders images/ and masks/, or RGBA cut-outs"
        )
    return pairs


def find_images(root: str | Path) -> list[Path]:
    """All image files below ``root``, recursively, sorted; labels and hidden ones are skipped.

    Raises:
        UsageError: no such folder, or no images in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"no folder of photographs at {root}")
    found = sorted(
        p
        for p in root.rglob("*")
        if p.suffix.lower() in SUFFIXES
        and not p.name.startswith(".")
        and not p.stem.endswith(LABELS)
    )
    if not found:
        raise UsageError(f"{root} holds no image files")
    return found


def read_rgb(path: Path) -> Image.Image:
    """A photograph as an upright sRGB Pillow image; those read lately stay decoded."""
    return DECODED.get(
        ("photograph", path), lambda: Image.fromarray(read_image(path).pixels), picture_bytes
    )


def _read_cutout(path: Path) -> Photograph:
    def size(cutout: Photograph) -> int:
        return cutout.pixels.nbytes + (0 if cutout.alpha is None else cutout.alpha.nbytes)

    return DECODED.get(("cut-out", path), lambda: read_image(path, cutout=True), size)


def read_pair(pair: Pair) -> tuple[Image.Image, Image.Image]:
    """The photograph (RGB) and its label (L, 255 = subject) at one size.

    Raises:
        ImageError: when a file cannot be read.
        UsageError: when label and photograph differ in aspect, or a cut-out has no alpha.
    """
    if pair.label is None:
        photograph = _read_cutout(pair.image)
        if photograph.alpha is None:
            raise UsageError(f"{pair.image} is meant as a cut-out, but it is opaque everywhere")
        return Image.fromarray(photograph.pixels), Image.fromarray(photograph.alpha)
    image = read_rgb(pair.image)
    label = Image.open(pair.label).convert("L")
    if label.getextrema()[1] == 1:  # classes 0 and 1, not gray values
        label = label.point(lambda v: 255 * v)
    if label.size != image.size:
        a, b = label.width * image.height, label.height * image.width
        if abs(a - b) > 0.02 * max(a, b):
            raise UsageError(
                f"{pair.label} is {label.width}x{label.height}, its photograph "
                f"{image.width}x{image.height}: the aspects differ"
            )
        label = label.resize(image.size, Image.Resampling.BILINEAR)
    return image, label


Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def subject_box(label: Image.Image) -> Box:
    """Bounding box of the label's subject; the whole picture when it is empty."""
    pixels = np.asarray(label)
    columns, rows = np.flatnonzero(pixels.max(0) > 127), np.flatnonzero(pixels.max(1) > 127)
    if not len(rows):
        return 0, 0, label.width, label.height
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def whole_crop(size: tuple[int, int], box: Box, rng: np.random.Generator) -> Box:
    """A large crop that keeps most of the subject: anything from the subject to everything."""
    width, height = size
    keep = rng.uniform(0, 1, 4) ** 1.5  # leans towards the whole picture
    slack = rng.uniform(-0.08, 0.08, 4) * np.tile((box[2] - box[0], box[3] - box[1]), 2)
    left = max(0.0, (box[0] - slack[0]) * keep[0])
    top = max(0.0, (box[1] - slack[1]) * keep[1])
    right = min(width, width - (width - box[2] - slack[2]) * keep[2])
    bottom = min(height, height - (height - box[3] - slack[3]) * keep[3])
    return left, top, max(right, left + 8), max(bottom, top + 8)


def upper_body_crop(size: tuple[int, int], box: Box, rng: np.random.Generator) -> Box:
    """Head and shoulders to half-length of a standing figure, roughly as portraits are framed."""
    width, height = size
    figure = box[3] - box[1]
    seen = figure * rng.uniform(0.2, 0.6)
    headroom = seen * rng.uniform(0.05, 0.45)
    side = (seen + headroom) * rng.uniform(0.6, 1.4)
    centre = (box[0] + box[2]) / 2 + 0.15 * rng.uniform(-1, 1) * side
    left, top = max(0.0, centre - side / 2), max(0.0, box[1] - headroom)
    return left, top, min(width, max(centre + side / 2, left + 8)), min(height, box[1] + seen)


def local_crop(
    label: Image.Image, rng: np.random.Generator, low: float = 0.15, high: float = 0.6
) -> Box:
    """A square around a point of the outline, ``low`` to ``high`` of the long side wide."""
    width, height = label.size
    point = outline_point(np.asarray(label), rng)
    side = max(width, height) * np.exp(rng.uniform(np.log(low), np.log(high)))
    side = float(min(side, width, height))
    shift = rng.uniform(-0.35, 0.35, 2) * side
    left = float(np.clip(point[0] + shift[0] - side / 2, 0, width - side))
    top = float(np.clip(point[1] + shift[1] - side / 2, 0, height - side))
    return left, top, left + side, top + side


def outline_point(label: Pixels, rng: np.random.Generator) -> tuple[int, int]:
    """A random (x, y) on the label's outline or soft rim; anywhere when it has none."""
    coarse = label[::4, ::4].astype(np.int16)
    edge = (coarse > 12) & (coarse < 243)
    edge[:, 1:] |= np.abs(np.diff(coarse, axis=1)) > 60
    edge[1:] |= np.abs(np.diff(coarse, axis=0)) > 60
    found = np.flatnonzero(edge)
    if found.size == 0:
        return int(rng.integers(label.shape[1])), int(rng.integers(label.shape[0]))
    y, x = divmod(int(rng.choice(found)), edge.shape[1])
    return x * 4, y * 4


def any_crop(size: tuple[int, int], rng: np.random.Generator, low: float = 0.4) -> Box:
    """A square of at least ``low`` of the short side, anywhere in the picture."""
    return any_box(size, 1.0, rng, low)


def any_box(
    size: tuple[int, int], aspect: float, rng: np.random.Generator, low: float = 0.4
) -> Box:
    """A box of ``aspect`` (width / height), at least ``low`` of the largest one, anywhere."""
    width = min(size[0], size[1] * aspect) * rng.uniform(low, 1.0)
    height = width / aspect
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return left, top, left + width, min(top + height, size[1])


def union(one: Box, other: Box) -> Box:
    """The smallest box that holds both."""
    left, top = min(one[0], other[0]), min(one[1], other[1])
    return left, top, max(one[2], other[2]), max(one[3], other[3])


def carry(box: Box, source: Box, target: Box) -> Box:
    """Where in ``target`` that part lies which ``box`` is of ``source``."""
    x = (target[2] - target[0]) / (source[2] - source[0])
    y = (target[3] - target[1]) / (source[3] - source[1])
    return (
        target[0] + x * (box[0] - source[0]),
        target[1] + y * (box[1] - source[1]),
        target[0] + x * (box[2] - source[0]),
        target[1] + y * (box[3] - source[1]),
    )


def crop(
    image: Image.Image,
    box: Box,
    size: int,
    mirrored: bool = False,
    whole: tuple[int, int] | None = None,
) -> Image.Image:
    """The crop ``box`` of ``image`` at ``size`` x ``size``, antialiased.

    Args:
        image: any mode that Pillow can resize.
        box: in pixels of the whole picture.
        size: side of the result in pixels.
        mirrored: left for right.
        whole: (width, height) that ``box`` refers to, when ``image`` was decoded smaller.
    """
    if whole is not None and whole != image.size:
        x, y = _reduction(image.size, whole)
        right, bottom = min(box[2] * x, image.width), min(box[3] * y, image.height)
        box = (box[0] * x, box[1] * y, right, bottom)
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else resized


def _reduction(size: tuple[int, int], whole: tuple[int, int]) -> tuple[float, float]:
    """By how much a picture of ``whole`` was decoded smaller, along x and y.

    JPEG is decoded at exactly 1/2, 1/4 or 1/8 and its size rounded up, so that the last pixels show
    less than the others: the ratio of the sizes would shift the crop against its mask.
    """
    for factor in (2, 4, 8):
        if size == (-(-whole[0] // factor), -(-whole[1] // factor)):
            return 1 / factor, 1 / factor
    return size[0] / whole[0], size[1] / whole[1]


def to_planes(image: Image.Image) -> Pixels:
    """A picture as (C, H, W) 8-bit planes of its own memory."""
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels.transpose(2, 0, 1).copy()  # Pillow's own memory is read-only
