"""Training pairs in plain folders: finding and reading their files."""

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

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
"""Suffixes of files that are taken for images."""

LABELS = (".mask", ".alpha")
"""What stands between the name and the suffix of a label file, as in ``NAME.mask.png``.

Where a photograph has both, the last one is its label: an alpha says more than a mask.
"""

_LABEL_FOLDERS = ("masks", "alphas")  # beside images/, likewise
_NO_PAIRS = (
    "{} holds no pairs: expected NAME.jpg beside NAME.mask.png or NAME.alpha.png, the folders "
    "images/ and masks/ or alphas/, or RGBA cut-outs"
)
_ASPECT = 0.02

DOUBTS = "labels.tsv"
"""Table beside photographs that a network has labelled: how doubtful each of its masks is."""

HOLD_OUT = 0.1
"""Share of a plain folder's photographs that are kept for validation unless told otherwise."""

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Pair:
    """The files of one sample, in a plain folder or in a data set as it was published."""

    image: Path  # the photograph, or the subject's straight colour
    label: Path | None = None  # its mask or alpha; None for RGBA cut-outs and backgrounds
    composite: Path | None = None  # the photograph whose subject has been given other colours
    group: str = ""  # what is never divided between splits, such as the source photograph
    key: str = ""  # unique in a published set
    split: str = ""  # train, validation or test as the set has it; empty to be drawn
    straight: bool = False  # ``image`` has the subject's straight colour

    def held_out(self, share: float = HOLD_OUT, sequences: bool = False) -> bool:
        """Whether the pair belongs to the ``share`` in [0, 1) of names that is held out, by hash.

        With ``sequences`` the hash is of what stands before the name's last ``_``, so that the
        frames of a video, ``NAME_00017.jpg``, are held out together.
        """
        name = self.group or self.image.stem
        name = (sequences and name.rpartition("_")[0]) or name
        code = zlib.crc32(name.encode(errors="surrogateescape"))  # not every name is UTF-8
        # The last digit leads, the five before it break ties: a number in [0, 1) to the name.
        return (code % 10 + (code // 10 % 100_000) / 100_000) / 10 < share

    def files(self, root: Path) -> dict[str, str]:
        """Names below ``root`` of the files that there are, by role."""
        image, color = (None, self.image) if self.straight else (self.image, None)
        roles = {"image": image, "label": self.label, "color": color, "composite": self.composite}
        return {role: path.relative_to(root).as_posix() for role, path in roles.items() if path}


# Finding


def find_pairs(root: str | Path) -> list[Pair]:
    """All pairs in ``root``, by name: its own files, or those of ``images/`` and its labels.

    Subfolders are not searched for pairs. Where nothing is labelled, the files in ``root`` and
    below it that can be RGBA cut-outs are taken for such; ``UsageError`` where there are none.
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"no folder of training pairs at {root}")
    beside = [root / name for name in _LABEL_FOLDERS if (root / name).is_dir()]
    if beside and (root / "images").is_dir():
        images = photographs((root / "images").iterdir())
        labels = {p.stem: p for folder in beside for p in image_files(folder.iterdir())}
    else:
        files = image_files(root.iterdir())
        images = photographs(files)
        labels = {
            p.stem.removesuffix(kind): p for kind in LABELS for p in files if p.stem.endswith(kind)
        }
        if not labels:
            return _find_cutouts(root)
    pairs = [Pair(p, labels[p.stem]) for p in images if p.stem in labels]
    if not pairs:
        raise UsageError(_NO_PAIRS.format(root))
    return pairs


def drop_doubtful(pairs: Sequence[Pair], root: str | Path, limit: float) -> list[Pair]:
    """Those of ``pairs`` whose masks are less doubtful than ``limit``, or not listed.

    The table ``labels.tsv`` in ``root`` has columns divided by tabs, among them ``name`` (of a
    photograph, without its suffix) and ``doubt``. ``UsageError`` where there is none, ``DataError``
    where it cannot be read.
    """
    table = Path(root) / DOUBTS
    if not table.is_file():
        raise UsageError(f"nothing says how doubtful the masks in {root} are: there is no {table}")
    try:
        with table.open(encoding="utf-8", newline="") as rows:
            read = csv.DictReader(rows, delimiter="\t")
            doubts = {row["name"]: float(row["doubt"]) for row in read}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{table} cannot be read: expected the columns name and doubt, divided by tabs, and "
            f"a number in the second ({error})"
        ) from None
    return [pair for pair in pairs if doubts.get(pair.image.stem, 0.0) < limit]


def _find_cutouts(root: Path) -> list[Pair]:
    """What can be RGBA cut-outs in ``root`` and below it, where nothing is labelled."""
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
    """All images below ``root``, sorted, without labels and hidden ones; UsageError if none."""
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"no folder of photographs at {root}")
    if not (found := photographs(root.rglob("*"))):
        raise UsageError(f"{root} holds no image files")
    return found


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Those of ``paths`` that are images by their suffix, sorted; hidden ones are skipped."""
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def photographs(paths: Iterable[Path]) -> list[Path]:
    """Those of ``image_files`` that are no labels by their name."""
    return [p for p in image_files(paths) if not p.stem.endswith(LABELS)]


# Reading

Pictures: TypeAlias = Image.Image | tuple[Image.Image, ...]


class Recent:
    """Keeps pictures that were decoded lately, of ``limit`` bytes together."""

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, Pictures] = OrderedDict()
        self._lock = threading.Lock()
        self.held = 0

    def get(self, key: Hashable, make: Callable[[], Pictures]) -> Any:
        """The pictures of ``key``, made anew where they are not held."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            if key in self._values or (size := _bytes(made)) > self._limit:
                return made
            self._values[key] = made
            self.held += size
            while self.held > self._limit:
                self.held -= _bytes(self._values.popitem(last=False)[1])
        return made


def _bytes(pictures: Pictures) -> int:
    """Bytes of 8-bit pictures together: Pillow keeps colours in four bytes a pixel."""
    each = pictures if isinstance(pictures, tuple) else (pictures,)
    return sum(p.width * p.height * (1 if p.mode == "L" else 4) for p in each)


DECODED = Recent()
"""What this process keeps of plain folders."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what reading warns of, where it is expected of the files or noted elsewhere."""
    log = logging.getLogger("deep_image_compositing")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def read_photograph(path: Path, cutout: bool = False) -> tuple[Image.Image, ...]:
    """A file's colour (RGB, upright, sRGB), and its alpha (L) unless it is opaque everywhere.

    Those read lately stay decoded. A note says that it is transparent unless it is a ``cutout``.
    """

    def make() -> tuple[Image.Image, ...]:
        read = read_image(path, cutout=cutout)
        planes = [read.pixels] if read.alpha is None else [read.pixels, read.alpha]
        return tuple(map(Image.fromarray, planes))

    return DECODED.get(("photograph", path), make)


def read_label(
    path: Path, whole: Size, size: Size | None = None, pixels: NDArray[Any] | None = None
) -> Image.Image:
    """The mask or alpha of a photograph (L, 255 = subject), upright.

    The gray value counts, of 16 bits as of 8; classes 0 and 1 are 0 and 255. A file that is not
    opaque everywhere gives its alpha.

    Args:
        path: its file.
        whole: (width, height) of the photograph that it belongs to; another aspect is a DataError.
        size: (width, height) of the result; None for ``whole``.
        pixels: what another reader has found in the file, (H, W).
    """
    with quiet():
        belief = read_mask(path if pixels is None else pixels)
    size = size or whole
    height, width = belief.shape
    a, b = width * whole[1], height * whole[0]
    if abs(a - b) > _ASPECT * max(a, b):
        raise DataError(
            f"{path} is {width} x {height} pixels, its photograph {whole[0]} x {whole[1]}: "
            "the aspects differ"
        )
    if (width, height) != size:
        resized = Image.fromarray(belief).resize(size, Image.Resampling.BILINEAR)
        belief = np.asarray(resized).clip(0, 1)
    return Image.fromarray((belief * 255 + 0.5).astype(np.uint8))


def check_composite(path: Path, size: Size, true: Size) -> None:
    """``DataError`` unless a composite's (width, height) is that of its photograph."""
    if size != true:
        raise DataError(
            f"{path} is {size[0]} x {size[1]} pixels, its photograph {true[0]} x {true[1]}: "
            "both need the same size"
        )
