"""What all test sets share: the sample, the set, names, options, and reading without surprises."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.errors import CompositingError, DataError, UsageError
from deep_image_compositing.evaluation import measures
from deep_image_compositing.images import open_picture

if TYPE_CHECKING:
    from deep_image_compositing.composite import Composite
    from deep_image_compositing.metrics.lpips import LPIPS

Paths = str | Path | Sequence[str | Path]
"""One path or several; what a source of training data may be, as text."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One photograph to cut out and one background to set its subject into; uint8, on the CPU."""

    name: str  # unique in its set, fit for a file name
    foreground: Tensor  # (3, H, W), the photograph, old background and all
    background: Tensor  # (3, H, W), covering the frame; of any size where there is no truth
    # the given mask (1, H, W) by grade; None where the method's segmenter finds it
    masks: dict[str, Tensor | None] = field(default_factory=dict)
    composite: Tensor | None = None  # (3, H, W), the truth
    alpha: Tensor | None = None  # (1, H, W), the true opacity
    foreground_color: Tensor | None = None  # (3, H, W), true straight colour; 0 where alpha is
    old_background: Tensor | None = None  # (3, H, W), what the subject hides in the photograph

    def given(self, grade: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a method is given in a grade: photograph, background, and mask if there is one."""
        return self.foreground, self.background, self.masks[grade]

    def about(self, grade: str) -> dict[str, Any]:
        """What a record says of the sample itself, as JSON has it."""
        return {}

    def measure(self, grade: str, result: Composite, lpips: LPIPS | None) -> dict[str, float]:
        """The measures of what a method has made of it in a grade, but for the costs."""
        figures: dict[str, float] = {}
        if self.composite is not None:
            figures |= measures.measure_composite(
                result.composite_pixels, self.composite, self.alpha, self.foreground,
                self.background, self.old_background, self.foreground_color, lpips,
            )  # fmt: skip
        if self.alpha is not None:
            figures |= measures.measure_alpha(result.cutout_alpha, self.alpha)
            if self.masks[grade] is None:
                figures |= measures.measure_mask(result.mask, self.alpha)
        return figures


class TestSet(ABC):
    """Samples by number; the same ones in any order and in any process.

    Args:
        names: of the samples, in order.
        about: what the set is and what makes it again, as JSON has it.
        files: path, bytes and time of change (or SHA-256) of each file that it is made from.
    """

    __test__: ClassVar[bool] = False  # no test, whatever pytest makes of the name

    name: ClassVar[str]  # of the kind of set
    slots: ClassVar[tuple[str, ...]] = registry.SLOTS  # that a method fills to be measured
    grades: tuple[str, ...]  # of the given masks, in the order of tables

    def __init__(self, names: list[str], about: dict[str, Any], files: list[list[Any]]) -> None:
        self.names, self.about, self.files = names, {"kind": self.name, **about}, files

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; IndexError beyond the last, DataError where it cannot be read."""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the description and of the files' sizes and times of change."""
        content = json.dumps([self.about, self.files], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


# Names, options and chance


def unique_names(wanted: Iterable[str]) -> list[str]:
    """Names fit for files, which differ even without regard to case; what fits is kept."""
    used: set[str] = set()
    names = []
    for text in wanted:
        name = re.sub(r"[^\w.+-]+", "_", re.sub(r"[/\\]", "-", text)).lstrip(".-") or "_"
        if len(name) > 80:
            name = f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        unique, count = name, 1
        while unique.casefold() in used:
            count += 1
            unique = f"{name}-{count}"
        used.add(unique.casefold())
        names.append(unique)
    return names


def as_paths(paths: Paths | None, what: str) -> list[str]:
    """One path or several, as texts; ``UsageError`` for something that is none."""
    each: Any = [paths] if isinstance(paths, str | Path) else paths or []
    if not isinstance(each, list | tuple) or not all(
        isinstance(p, str | Path) and str(p) for p in each
    ):
        raise UsageError(f"{what} are one path or a list of paths, got {paths!r}")
    return [str(path) for path in each]


def check_grades(grades: Sequence[str] | str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The chosen grades in the order of ``known``, all for None; UsageError for others or none."""
    if grades is None:
        return known
    wanted = [g.strip() for g in (grades.split(",") if isinstance(grades, str) else grades)]
    if not wanted or not set(wanted) <= set(known):
        raise UsageError(
            f"the grades here are some of {', '.join(known)}, got {', '.join(wanted) or 'none'}"
        )
    return tuple(grade for grade in known if grade in wanted)


def check_counts(**options: tuple[int | None, int]) -> None:
    """UsageError for a value below its least; None is none."""
    for option, (value, least) in options.items():
        if value is not None and value < least:
            raise UsageError(f"{option} must be at least {least}, got {value!r}")


def draw(seed: int, *words: str) -> int:
    """A number of 63 bits that follows from the seed and some words."""
    text = "\0".join((str(seed), *words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


# Reading


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let errors of reading say what could not be read; those of Pillow become DataErrors."""
    try:
        yield
    except CompositingError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        text = str(error) or type(error).__name__
        raise DataError(text if name in text else f"{name} cannot be read: {text}") from error


def picture_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an upright picture, by its header alone; DataError if it is none."""
    with naming(str(path)), open_picture(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        width, height = image.size
    return (width, height) if turned else (height, width)


def stat_of(path: Path) -> list[Any]:
    """Path, bytes and time of change of a file, for ``TestSet.files``."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def planes(pixels: NDArray[np.uint8] | Image.Image) -> Tensor:
    """A picture (H, W, 3) or (H, W) as (C, H, W) of its own memory."""
    pixels = np.asarray(pixels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
