"""Test sets: photographs, backgrounds, given masks and truths that methods are measured on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One photograph to cut out and one background to set its subject into; uint8, on the CPU.

    Attributes:
        name: unique in its set, fit for a file name.
        foreground: (3, H, W), the photograph, old background and all.
        background: (3, H, W), already covering the frame; of any size where there is no truth.
        masks: the given mask (1, H, W) by grade; None where the method's segmenter finds it.
        composite: (3, H, W), the truth.
        alpha: (1, H, W), the true opacity.
        foreground_color: (3, H, W), the subject's true straight colour, defined where alpha > 0.
        old_background: (3, H, W), what the photograph shows behind the subject.
    """

    name: str
    foreground: Tensor
    background: Tensor
    masks: dict[str, Tensor | None] = field(default_factory=dict)
    composite: Tensor | None = None
    alpha: Tensor | None = None
    foreground_color: Tensor | None = None
    old_background: Tensor | None = None


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair.

    Attributes:
        name: unique, fit for a file name.
        foreground: the photograph with the subject.
        background: the photograph that becomes the new background.
        mask: white where the subject is; None for the segmenter's own.
    """

    name: str
    foreground: Path
    background: Path
    mask: Path | None = None


class TestSet(ABC):
    """Samples by number; the same ones in any order and in any process.

    Attributes:
        name: of the kind of set.
        grades: of the given masks, in the order of tables.
    """

    __test__: ClassVar[bool] = False  # no test, whatever pytest makes of the name

    name: str
    grades: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; IndexError beyond the last."""

    @abstractmethod
    def names(self) -> list[str]:
        """The samples' names, in order, without making any sample."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the set is and what makes it again, as JSON has it."""

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the description and of the files that the set is made from."""
        raise NotImplementedError


def open_test_set(name: str, **options: Any) -> TestSet:
    """The test set called ``name``: ``syntest``, ``taught`` or ``folders``.

    Args:
        name: which kind.
        **options: of its class.

    Raises:
        UsageError: another name, an option that it does not take, or as its class.
    """
    raise NotImplementedError


def read_pairs(path: str | Path) -> list[PairFiles]:
    """Pairs of one's own, by name.

    Args:
        path: a folder as :class:`Folders` takes it, or a ``.tsv`` or ``.csv`` file with the
            columns ``foreground``, ``background`` and, if wanted, ``mask`` and ``name``; its
            paths are relative to the file.

    Raises:
        UsageError: neither, columns that are missing, or a file that is not there.
    """
    raise NotImplementedError
