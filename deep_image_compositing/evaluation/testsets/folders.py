"""The test set ``folders``: a user's own pictures, with or without a truth; and lists of pairs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deep_image_compositing.data.folders import SUFFIXES
from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets.base import (
    PairFiles,
    Sample,
    TestSet,
    check_grades,
    picture_size,
    planes,
    stat_of,
    unique_names,
)
from deep_image_compositing.images import read_image, read_mask, to_uint8
from deep_image_compositing.placement import cover

GRADES = ("given", "none")
"""Grades of given masks: the one in ``mask/``, and none."""

EXPECTED = (
    "expected foreground/ and background/ (or one background.jpg for all) and, where there are "
    "any, mask/, composite/ and alpha/, with files of the same names"
)
_LISTS = {".tsv": "\t", ".csv": ","}


class Folders(TestSet):
    """Pictures in a folder: ``foreground/NAME.*`` and ``background/NAME.*`` or ``background.*``.

    ``composite/NAME.*`` and ``alpha/NAME.*`` are truths, of the photograph's size. Where there is
    one, the background is scaled and cropped to cover the photograph. Pairs without any have
    composites to look at and nothing to measure.

    Args:
        path: the folder.
        grades: of given masks: ``given`` where there is a folder ``mask``, and ``none``.

    Raises:
        UsageError: no such folder, a file that is missing or without a photograph of its name, or
            a truth of another size.
        DataError: a picture that cannot be opened.
    """

    name: ClassVar[str] = "folders"

    def __init__(self, path: str | Path, grades: Sequence[str] | str | None = None) -> None:
        self._root = Path(path)
        self._pairs = _find(self._root)
        known = GRADES if any(pair.mask for pair in self._pairs) else GRADES[1:]
        self.grades = check_grades(grades, known)
        stems = {pair.foreground.stem: pair.name for pair in self._pairs}
        self._truths: dict[str, dict[str, Path]] = {pair.name: {} for pair in self._pairs}
        for kind in ("composite", "alpha"):
            for stem, file in _stems(self._root / kind).items():
                if stem not in stems:
                    raise UsageError(f"{file} belongs to no photograph in {self._root}/foreground")
                self._truths[stems[stem]][kind] = file
        for pair in self._pairs:
            self._check(pair)

    def _check(self, pair: PairFiles) -> None:
        """Open what belongs to a pair, and compare sizes."""
        size = picture_size(pair.foreground)
        for file in (pair.background, pair.mask):
            if file is not None:
                picture_size(file)
        for file in self._truths[pair.name].values():
            found = picture_size(file)
            if found != size:
                raise UsageError(
                    f"{file} is {found[1]} x {found[0]} pixels, its photograph {pair.foreground} "
                    f"{size[1]} x {size[0]}: a truth has the photograph's size"
                )

    def names(self) -> list[str]:
        return [pair.name for pair in self._pairs]

    def __getitem__(self, index: int) -> Sample:
        pair = self._pairs[index]
        photograph = read_image(pair.foreground)
        background = planes(read_image(pair.background).pixels)
        truths = self._truths[pair.name]
        composite, alpha = truths.get("composite"), truths.get("alpha")
        if truths:
            background = cover(background, photograph.size)
        masks = {"given": _gray(pair.mask, photograph.size), "none": None}
        return Sample(
            pair.name,
            foreground=planes(photograph.pixels),
            background=background,
            masks={grade: masks[grade] for grade in self.grades},
            composite=None if composite is None else planes(read_image(composite).pixels),
            alpha=_gray(alpha, photograph.size),
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "path": str(self._root),
            "grades": list(self.grades),
            "samples": [
                {
                    "name": pair.name,
                    "foreground": str(pair.foreground),
                    "background": str(pair.background),
                    "mask": None if pair.mask is None else str(pair.mask),
                    **{kind: str(file) for kind, file in self._truths[pair.name].items()},
                }
                for pair in self._pairs
            ],
        }

    def inputs(self) -> list[list[Any]]:
        files = {
            file
            for pair in self._pairs
            for file in (pair.foreground, pair.background, pair.mask)
            if file is not None
        }
        files |= {file for truths in self._truths.values() for file in truths.values()}
        return [stat_of(file) for file in sorted(files)]


def _gray(path: Path | None, size: tuple[int, int]) -> Tensor | None:
    """A mask or alpha (1, H, W), uint8."""
    if path is None:
        return None
    return torch.from_numpy(np.ascontiguousarray(to_uint8(read_mask(path, size=size))))[None]


# Pairs


def read_pairs(path: str | Path) -> list[PairFiles]:
    """Pairs of one's own, by name.

    Args:
        path: a folder as :class:`Folders` takes it, or a ``.tsv`` or ``.csv`` file with the
            columns ``foreground``, ``background`` and, if wanted, ``mask`` and ``name``; its
            paths are relative to the file.

    Raises:
        UsageError: neither, columns that are missing, or a file that is not there.
    """
    path = Path(path)
    if path.is_dir():
        return _find(path)
    if path.suffix.lower() not in _LISTS or not path.is_file():
        raise UsageError(
            f"{path} is no list of pairs: it is neither a folder nor a .tsv or .csv file"
        )
    pairs = list(_listed(path))
    if not pairs:
        raise UsageError(f"{path} lists no pairs")
    stems = [pair.foreground.stem for pair in pairs]
    wanted = [
        pair.name or (stem if stems.count(stem) == 1 else f"{stem}-{pair.background.stem}")
        for stem, pair in zip(stems, pairs, strict=True)
    ]
    return [
        replace(pair, name=name) for pair, name in zip(pairs, unique_names(wanted), strict=True)
    ]


def _listed(path: Path) -> list[PairFiles]:
    """The pairs of a list; without a name where the list gives none."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter=_LISTS[path.suffix.lower()])
        columns = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = columns
        missing = {"foreground", "background"} - set(columns)
        if missing:
            raise UsageError(
                f"{path} has the columns {', '.join(columns) or 'none'}, but needs foreground and "
                "background, and may have mask and name"
            )
        pairs = []
        for row in rows:
            files = {
                kind: (row.get(kind) or "").strip() for kind in ("foreground", "background", "mask")
            }
            for kind, name in files.items():
                if (name and not (path.parent / name).is_file()) or (not name and kind != "mask"):
                    raise UsageError(
                        f"{path}, line {rows.line_num}: there is no {kind} {name or 'given'}"
                    )
            foreground, background, mask = files.values()
            pairs.append(
                PairFiles(
                    (row.get("name") or "").strip(),
                    path.parent / foreground,
                    path.parent / background,
                    path.parent / mask if mask else None,
                )
            )
    return pairs


def _find(root: Path) -> list[PairFiles]:
    """The pairs of a folder, by name."""
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}")
    foregrounds, backgrounds = _stems(root / "foreground"), _stems(root / "background")
    masks, common = _stems(root / "mask"), _stems(root).get("background")
    if not foregrounds:
        raise UsageError(f"{root}/foreground holds no photographs; {EXPECTED}")
    pairs = []
    for name, (stem, file) in zip(unique_names(foregrounds), foregrounds.items(), strict=True):
        background, mask = backgrounds.pop(stem, common), masks.pop(stem, None)
        if background is None:
            raise UsageError(f"{root}/background holds nothing for {file.name}; {EXPECTED}")
        pairs.append(PairFiles(name, file, background, mask))
    if any(pair.mask for pair in pairs) and not all(pair.mask for pair in pairs):
        lacking = next(pair.foreground.name for pair in pairs if pair.mask is None)
        raise UsageError(f"{root}/mask holds nothing for {lacking}: give all masks, or none")
    for spare in (*backgrounds.values(), *masks.values()):
        raise UsageError(f"{spare} belongs to no photograph in {root}/foreground")
    return pairs


def _stems(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their names without suffix; none without such a folder.

    Raises:
        UsageError: two of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise UsageError(f"{path} and {found[path.stem].name} have one name")
            found[path.stem] = path
    return found
