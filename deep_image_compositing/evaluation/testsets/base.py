"""The base classes of samples and test sets, and helpers for names, options and reading."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.errors import DataError, ImageError, UsageError, error_text
from deep_image_compositing.evaluation import measures
from deep_image_compositing.images import open_picture

if TYPE_CHECKING:
    from deep_image_compositing.composite import Composite
    from deep_image_compositing.metrics.lpips import LPIPS

Paths = str | Path | Sequence[str | Path]
"""One path or several, each in the syntax of training data."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A photograph with a subject, a new background, and the truth if known; uint8, on the CPU."""

    name: str  # unique in its set, fit for a file name
    foreground: Tensor  # (3, H, W), the photograph with its old background
    background: Tensor  # (3, H, W), or without truth of any size
    # the input mask (1, H, W) by grade; None leaves it to the method's segmenter
    masks: Mapping[str, Tensor | None] = field(default_factory=dict)
    composite: Tensor | None = None  # (3, H, W), the true composite
    alpha: Tensor | None = None  # (1, H, W), the true alpha
    foreground_color: Tensor | None = None  # (3, H, W), true straight colour; 0 where alpha is 0
    old_background: Tensor | None = None  # (3, H, W), also behind the subject

    def inputs(self, grade: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """A method's inputs in a grade: photograph, background, and mask if there is one."""
        return self.foreground, self.background, self.masks[grade]

    def about(self, grade: str) -> dict[str, Any]:
        """Entries about the sample itself that its records get, as JSON."""
        return {}

    def measure(self, grade: str, result: Composite, lpips: LPIPS | None) -> dict[str, float]:
        """All measures, except costs, of a method's result in a grade."""
        figures: dict[str, float] = {}
        if self.composite is not None:
            figures |= measures.measure_composite(result.composite_pixels, self, lpips)
        if self.alpha is not None:
            figures |= measures.measure_alpha(result.cutout_alpha, self.alpha)
            if self.masks[grade] is None:
                figures |= measures.measure_mask(result.mask, self.alpha)
        return figures


class TestSet(ABC):
    """A sequence of samples, which are the same in any order of access and in any process.

    Args:
        names: the samples' names, in order.
        about: a description from which the set can be made again, as JSON.
        files: path, bytes and modification time (or SHA-256) of each input file.
    """

    __test__: ClassVar[bool] = False  # or pytest would collect it

    name: ClassVar[str]  # of the kind of set
    slots: ClassVar[tuple[str, ...]] = registry.SLOTS  # that the methods must fill
    grades: tuple[str, ...]  # of the input masks, in table order

    def __init__(self, names: list[str], about: dict[str, Any], files: list[list[Any]]) -> None:
        self.names, self.about, self.files = names, {"kind": self.name, **about}, files

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; IndexError beyond the last, DataError if it cannot be read."""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256, in hex, of ``about`` and ``files``."""
        return json_digest([self.about, self.files])


def json_digest(content: Any) -> str:
    """SHA-256, in hex, of ``content`` as JSON."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# Names, options and random numbers


def unique_names(texts: Iterable[str]) -> list[str]:
    """Names fit for files that differ even without regard to case, changed only where needed."""
    used: set[str] = set()
    names = []
    for text in texts:
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


def as_paths(paths: Paths | None) -> list[str]:
    """One path or several as strings."""
    return [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths or [])]


def check_counts(**options: tuple[int | None, int]) -> None:
    """UsageError if an option's value is below its minimum; None is allowed."""
    for option, (value, minimum) in options.items():
        if value is not None and value < minimum:
            raise UsageError(f"{option} must be at least {minimum}, got {value!r}")


def draw(seed: int, *words: str) -> int:
    """A 63-bit random number that depends on the seed and the words alone."""
    text = "\0".join((str(seed), *words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


# Reading


def picture_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header; DataError if unreadable."""
    try:
        with open_picture(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            width, height = image.size
    except (OSError, SyntaxError, ValueError, ImageError) as error:
        raise DataError(f"{path} cannot be read: {error_text(error)}") from error
    return (width, height) if turned else (height, width)


def stat_of(path: Path) -> list[Any]:
    """Path, bytes and modification time of a file, for ``TestSet.files``."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def planes(pixels: NDArray[np.uint8] | Image.Image) -> Tensor:
    """A picture (H, W, 3) or (H, W) as a new tensor (C, H, W)."""
    pixels = np.asarray(pixels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
