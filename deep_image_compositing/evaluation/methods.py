"""Methods: what fills the three slots, by name; the bench and the study choose theirs here.

A method is a triple of stages as people type them, ``multi_stream(weights=runs/mine.ckpt)``. The
paper's comparison, its ablations and a fast set are named. Before anything runs, :func:`choose`
finds what is wrong with any of them: above all a learned stage that has no weights, which would
otherwise be measured as its random numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.registry import SLOTS, key_values

if TYPE_CHECKING:
    from deep_image_compositing.compositor import Compositor

RUNS = "runs"
"""Folder below which the recipes put their runs."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Method:
    """A whole way from two photographs to a composite.

    Attributes:
        name: shown in tables and used for files: letters, digits and ``_ . + -``.
        segmenter: a registered name, with options if need be: ``onnx(path=u2net.onnx, size=320)``.
            Values are JSON or plain text; one with a comma or a bracket of its own is quoted.
        refiner: likewise.
        fuser: likewise. ``weights`` may be a shipped name, a file, or the folder of a training
            run, which means its newest checkpoint.

    Raises:
        UsageError: a name that is no name for a file, or stages that cannot be read.
    """

    name: str
    segmenter: str
    refiner: str
    fuser: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot name a method: up to 64 letters, digits and _ . + -, the "
                "first a letter or a digit"
            )
        for _, text in self.stages():
            parse_stage(text)

    def stages(self) -> Iterator[tuple[str, str]]:
        """Slot and stage, in the order of the slots."""
        return zip(SLOTS, (self.segmenter, self.refiner, self.fuser), strict=True)

    def check(self) -> None:
        """Find out what would keep the method from running, without running it.

        Raises:
            UsageError: a stage that is not registered, an option or value that it does not take,
                or a learned stage without weights.
            WeightsError: weights that are neither shipped nor a file.
            MissingExtraError: a package that a stage needs is not installed.
        """
        raise NotImplementedError

    def compositor(self, device: str = "auto", **kwargs: Any) -> Compositor:
        """The compositor of these stages; a file's stage is made as it was made for training.

        Args:
            device: as for :class:`~deep_image_compositing.compositor.Compositor`.
            **kwargs: likewise.

        Raises:
            UsageError, WeightsError, MissingExtraError: as :meth:`check`.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """The method as JSON has it: names, options, and the SHA-256 of all weights it loads."""
        raise NotImplementedError


METHODS: dict[str, tuple[Method, ...]] = {}
"""The named sets: ``paper``, ``ablations``, ``fast``."""


def parse_stage(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``name`` or ``name(key=value, key=value)``.

    Raises:
        UsageError: anything else.
    """
    raise NotImplementedError


def parse_method(text: str) -> Method:
    """The method that ``NAME=SEGMENTER,REFINER,FUSER`` means.

    Raises:
        UsageError: anything else, or as :class:`Method`.
    """
    raise NotImplementedError


def choose(
    sets: Sequence[str], extra: Sequence[str] = (), *, runs: str | Path = RUNS
) -> list[Method]:
    """The methods that a command names, each checked.

    Args:
        sets: names of sets or of single methods, also several joined by commas; with ``-`` before
            it, one that is left out: ``paper,-knn``.
        extra: more methods, as :func:`parse_method` takes them.
        runs: folder of the training runs from which ``ablations`` takes its checkpoints.

    Raises:
        UsageError: an unknown name, a name twice, nothing at all, or as :meth:`Method.check`.
    """
    raise NotImplementedError
