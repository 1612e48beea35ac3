"""Find and read the files of training pairs in plain folders."""

from __future__ import annotations

import contextlib
import csv
import logging
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.images import read_image, read_mask

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}  # of image files

# Of both labels, the last has precedence: an alpha says more than a mask.
LABELS = (".mask", ".alpha")  # as in NAME.mask.png
_LABEL_FOLDERS = ("masks", "alphas")  # beside images/
_NO_PAIRS = (
    "{} holds no pairs: expected NAME.jpg beside NAME.mask.png or NAME.alpha.png, the folders "
    "images/ and masks/ or alphas/, or RGBA cut-outs"
)
_ASPECT = 0.02  # tolerated relative difference between the aspects of photograph and label
DOUBTS = "labels.tsv"  # table of the doubt in each mask, written by whatever made the masks
HOLD_OUT = 0.1  # default share of a plain folder's photographs held out for validation
Size: TypeAlias = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Pair:
    """The files of one sample, in a plain folder or in a published data set."""

    image: Path  # the photograph, or the subject's straight colour
    label: Path | None = None  # its mask or alpha; None for RGBA cut-outs and backgrounds
    composite: Path | None = None  # the photograph with its subject recoloured
    group: str = ""  # samples of one group share a split, such as those of one photograph
    key: str = ""  # unique in a published set
    split: str = ""  # the set's own train, validation or test; empty to draw one
    straight: bool = False  # ``image`` has the subject's straight colour

    def held_out(self, share: float = HOLD_OUT, sequences: bool = False) -> bool:
        """Whether the pair is in the ``share`` in [0, 1) that is held out, by the hash of its name.

        With ``sequences`` the hash ignores the last ``_`` and what follows it, so that the frames
        of a video, ``NAME_00017.jpg``, are held out together.
        """
        name = self.group or self.image.stem
        name = (sequences and name.rpartition("_")[0]) or name
        code = zlib.crc32(name.encode(errors="surrogateescape"))  # names may not be UTF-8
        # A number in [0, 1): the code's last decimal digit leads, the five before it follow.
        return (code % 10 + (code // 10 % 100_000) / 100_000) / 10 < share

    def files(self, root: Path) -> dict[str, str]:
        """Paths relative to ``root`` by role: image, label, color, composite."""
        image, color = (None, self.image) if self.straight else (self.image, None)
        roles = {"image": image, "label": self.label, "color": color, "composite": self.composite}
        return {role: path.relative_to(root).as_posix() for role, path in roles.items() if path}


# Finding


def find_pairs(root: str | Path) -> list[Pair]:
    """All pairs in ``root``, by name: files in it, or in ``images/`` and its label folders.

    Other subfolders are not searched. Without any label, all PNG and WebP files in and below
    ``root`` count as RGBA cut-outs. ``UsageError`` if nothing is found.
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"no folder of training pairs at {root}")
    label_folders = [root / name for name in _LABEL_FOLDERS if (root / name).is_dir()]
    if label_folders and (root / "images").is_dir():
        images = photographs((root / "images").iterdir())
        labels = {p.stem: p for folder in label_folders for p in image_files(folder.iterdir())}
    else:
        files = image_files(root.iterdir())
        images = photographs(files)
        labels = {
            p.stem.removesuffix(tag): p for tag in LABELS for p in files if p.stem.endswith(tag)
        }
        if not labels:
            return _find_cutouts(root)
    pairs = [Pair(p, labels[p.stem]) for p in images if p.stem in labels]
    if not pairs:
        raise UsageError(_NO_PAIRS.format(root))
    return pairs


def drop_doubtful(pairs: Sequence[Pair], root: str | Path, limit: float) -> list[Pair]:
    """The ``pairs`` whose doubt in ``root/labels.tsv`` is below ``limit``, or not listed.

    The columns are separated by tabs, among them ``name`` (of a photograph, without its suffix)
    and ``doubt``. ``UsageError`` if there is no table, ``DataError`` if it cannot be read.
    """
    table = Path(root) / DOUBTS
    if not table.is_file():
        raise UsageError(f"nothing says how doubtful the masks in {root} are: there is no {table}")
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            doubts = {row["name"]: float(row["doubt"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{table} cannot be read: expected the columns name and doubt, divided by tabs, and "
            f"a number in the second ({error})"
        ) from None
    return [pair for pair in pairs if doubts.get(pair.image.stem, 0.0) < limit]


def _find_cutouts(root: Path) -> list[Pair]:
    """All PNG and WebP files in and below ``root``, which has no labels, as RGBA cut-outs."""
    files = [p for p in find_images(root) if p.suffix.lower() in (".png", ".webp")]
    label = next((p for p in image_files(root.rglob("*")) if p.stem.endswith(LABELS)), None)
    if label is not None:
        raise UsageError(
            f"{root} holds no pairs itself, but {label.parent} does: name each folder of pairs as "
            "a source of its own"
        )
    if not files:
        raise UsageError(_NO_PAIRS.format(root))
    return [Pair(p) for p in files]


def find_images(root: str | Path) -> list[Path]:
    """All images below ``root``, sorted, without labels and hidden files; UsageError if none."""
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"no folder of photographs at {root}")
    if not (images := photographs(root.rglob("*"))):
        raise UsageError(f"{root} holds no image files")
    return images


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The ``paths`` with a suffix of an image, sorted, without hidden files."""
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def photographs(paths: Iterable[Path]) -> list[Path]:
    """The ``image_files`` whose names are not those of labels."""
    return [p for p in image_files(paths) if not p.stem.endswith(LABELS)]


# Reading

Pictures: TypeAlias = Image.Image | tuple[Image.Image, ...]


class Recent:
    """A least-recently-used cache of decoded pictures, of at most ``limit`` bytes."""

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, Pictures] = OrderedDict()
        self._lock = threading.Lock()
        self.held = 0

    def get(self, key: Hashable, make: Callable[[], Pictures]) -> Any:
        """The pictures of ``key``, by ``make`` if they are not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        pictures = make()
        with self._lock:
            if key in self._values or (size := _bytes(pictures)) > self._limit:
                return pictures
            self._values[key] = pictures
            self.held += size
            while self.held > self._limit:
                self.held -= _bytes(self._values.popitem(last=False)[1])
        return pictures


def _bytes(value: Pictures) -> int:
    """Bytes of one or several 8-bit pictures: Pillow stores RGB in four bytes per pixel."""
    pictures = value if isinstance(value, tuple) else (value,)
    return sum(p.width * p.height * (1 if p.mode == "L" else 4) for p in pictures)


DECODED = Recent()  # this process's cache of pictures in plain folders


_levels: list[int] = []  # the log's level before each ``quiet``; all but the first are ERROR
_level_lock = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings about files, where they are expected or recorded elsewhere."""
    log = logging.getLogger("deep_image_compositing")
    with _level_lock:  # several threads may be in here
        _levels.append(log.level)
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        with _level_lock:
            log.setLevel(_levels.pop())


def read_photograph(path: Path, cutout: bool = False) -> tuple[Image.Image, ...]:
    """A file's colour (RGB, upright, sRGB), and its alpha (L) unless it is opaque everywhere.

    Cached in ``DECODED``. Logs a warning about transparency unless ``cutout`` is True.
    """

    def make() -> tuple[Image.Image, ...]:
        image = read_image(path, cutout=cutout)
        planes = [image.pixels] if image.alpha is None else [image.pixels, image.alpha]
        return tuple(map(Image.fromarray, planes))

    return DECODED.get(("photograph", path), make)


def read_label(
    path: Path, whole: Size, size: Size | None = None, pixels: NDArray[Any] | None = None
) -> Image.Image:
    """The mask or alpha of a photograph (L, 255 = subject), upright.

    Its gray values, of 8 or 16 bits; classes 0 and 1 become 0 and 255. If the file is not opaque
    everywhere, its alpha channel is used instead.

    Args:
        path: the label's file.
        whole: (width, height) of its photograph; ``DataError`` if the aspects differ.
        size: (width, height) of the result; None for ``whole``.
        pixels: the label (H, W) if another reader has already read the file.
    """
    with quiet():
        label = read_mask(path if pixels is None else pixels)
    size = size or whole
    height, width = label.shape
    a, b = width * whole[1], height * whole[0]
    if abs(a - b) > _ASPECT * max(a, b):
        raise DataError(
            f"{path} is {width} x {height} pixels, its photograph {whole[0]} x {whole[1]}: "
            "the aspects differ"
        )
    if (width, height) != size:
        resized = Image.fromarray(label).resize(size, Image.Resampling.BILINEAR)
        label = np.asarray(resized).clip(0, 1)
    return Image.fromarray((label * 255 + 0.5).astype(np.uint8))


def check_composite(path: Path, size: Size, expected: Size) -> None:
    """Raise ``DataError`` unless a composite has the (width, height) of its photograph."""
    if size != expected:
        raise DataError(
            f"{path} is {size[0]} x {size[1]} pixels, its photograph "
            f"{expected[0]} x {expected[1]}: both need the same size"
        )
