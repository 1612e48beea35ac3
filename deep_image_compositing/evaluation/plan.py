"""What an evaluation is to measure and where that goes, checked before the slow work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.evaluation import pages, sheets
from deep_image_compositing.evaluation.methods import Method
from deep_image_compositing.evaluation.testsets import TestSet
from deep_image_compositing.ledger import Ledger, differences

WORK = "work"
"""Folder of the ledger and the result pictures, inside the report's."""

LEDGER = "records.jsonl"


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and where it goes; the arguments of ``evaluate``, settled.

    Raises:
        UsageError: methods, a reference, a number of sheets or a test set that cannot be.
    """

    methods: tuple[Method, ...]
    test_set: TestSet
    out: Path
    grades: tuple[str, ...]
    reference: str
    sheets: int | None = None
    lpips_weights: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len({name.casefold() for name in names}) < len(names):
            raise UsageError(f"methods need names of their own, got {', '.join(names)}")
        if self.reference not in names:
            raise UsageError(
                f"--reference is one of the methods, {', '.join(names)}: {self.reference!r}"
            )
        if self.sheets is not None and self.sheets < 0:
            raise UsageError(f"sheets must be at least 0, got {self.sheets}")
        if not len(self.test_set):
            raise UsageError(f"the test set {self.test_set.name} holds no samples")

    @property
    def ledger(self) -> Path:
        """The file of all records."""
        return self.out / WORK / LEDGER

    @staticmethod
    def sheet(sample: str, grade: str) -> str:
        """The path of a contact sheet within ``out``."""
        return f"{sheets.FOLDER}/{grade}/{sample}.jpg"

    @staticmethod
    def key(sample: str, grade: str, method: str) -> str:
        """A record's key: the path of its pictures within ``out``, without their suffixes."""
        return f"{WORK}/{sample}/{grade}/{method}"

    def about(self) -> dict[str, Any]:
        """What the ledger says that its records are of."""
        return {"fingerprint": self.test_set.fingerprint(), "test_set": self.test_set.describe()}

    def check_folder(self) -> None:
        """Find before the slow work what would keep the report from being written.

        Raises:
            UsageError: ``out`` is a file, holds the report of another test set, or what no
                evaluation has written.
            ImageError: it cannot be made, or may not be written to.
        """
        out, real = self.out, Path(os.path.realpath(self.out))
        if real.exists() and not real.is_dir():
            raise UsageError(f"{out} is a file; --out names a folder")
        nearest = next(folder for folder in (real, *real.parents) if folder.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            name = nearest.name or "/"
            raise ImageError(f"{out} cannot be written to: permission denied in {name}")
        if not self.ledger.exists():
            for name in (WORK, *pages.FILES, sheets.FOLDER):
                if (out / name).exists():
                    raise UsageError(
                        f"{out} holds {name}, which no evaluation has written: give another --out"
                    )
            return
        before, now = Ledger(self.ledger).about, self.about()
        if self.overwrite:
            return
        if before is None or not isinstance(before.get("test_set"), dict):
            raise UsageError(f"{self.ledger} is damaged: give another --out, or --overwrite")
        if before.get("fingerprint") != now["fingerprint"]:
            changes = differences(before["test_set"], now["test_set"])
            texts = [f"{name} {old!r}, now {new!r}" for name, (old, new) in changes.items()]
            how = "; ".join(text for text in texts if len(text) < 200) or "other pictures"
            raise UsageError(
                f"{out} holds the evaluation of another test set ({how}): give another --out, or "
                "--overwrite to begin anew"
            )
