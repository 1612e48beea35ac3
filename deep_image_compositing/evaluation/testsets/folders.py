"""The test set ``folders``: a user's own pictures, with or without truth; and lists of pairs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from deep_image_compositing.data.folders import image_files
from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets import base
from deep_image_compositing.images import read_image, read_mask, to_uint8
from deep_image_compositing.placement import cover

TRUTHS = ("composite", "alpha")

EXPECTED = (
    "expected foreground/ and background/ (or one background.jpg for all) and, where there are "
    "any, mask/, composite/ and alpha/, with files of the same names"
)
_COLUMNS = ("foreground", "background", "mask")
_DELIMITERS = {".tsv": "\t", ".csv": ","}


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair of photographs."""

    name: str  # fit for a file
    foreground: Path
    background: Path
    mask: Path | None = None
    composite: Path | None = None  # the true composite
    alpha: Path | None = None  # the true alpha

    def files(self) -> dict[str, Path]:
        """All existing files by kind."""
        return {kind: path for kind, path in vars(self).items() if isinstance(path, Path)}


class Folders(base.TestSet):
    """Pictures in a folder: ``foreground/NAME.*`` and ``background/NAME.*`` or ``background.*``.

    ``composite/NAME.*`` and ``alpha/NAME.*`` are optional truths of the photograph's size, to
    which the background is then scaled and cropped. Pairs without truth are composited but not
    measured. The grades are ``given``, if there is a folder ``mask``, and ``none``.

    Raises:
        UsageError: the folder or a file is missing, a file belongs to no photograph, or a truth
            has another size.
        DataError: a picture cannot be opened.
    """

    name: ClassVar[str] = "folders"

    def __init__(self, folder: str | Path) -> None:
        self._pairs = _find(Path(folder), TRUTHS)
        self.grades = ("given", "none") if self._pairs[0].mask else ("none",)
        for pair in self._pairs:
            sizes = {kind: base.picture_size(file) for kind, file in pair.files().items()}
            height, width = sizes["foreground"]
            for kind in sizes.keys() & set(TRUTHS):
                if sizes[kind] != (height, width):
                    raise UsageError(
                        f"{getattr(pair, kind)} is {sizes[kind][1]} x {sizes[kind][0]} pixels, its "
                        f"photograph {pair.foreground} {width} x {height}: a truth has the "
                        "photograph's size"
                    )
        samples = [
            {k: v and str(v) for k, v in vars(pair).items() if v or k not in TRUTHS}
            for pair in self._pairs
        ]
        about = {"path": str(Path(folder)), "grades": list(self.grades), "samples": samples}
        files = {file for pair in self._pairs for file in pair.files().values()}
        super().__init__([p.name for p in self._pairs], about, [*map(base.stat_of, sorted(files))])

    def __getitem__(self, index: int) -> base.Sample:
        pair = self._pairs[index]
        photograph = read_image(pair.foreground)
        background = base.planes(read_image(pair.background).pixels)

        def gray(path: Path | None) -> Tensor | None:
            if path is None:
                return None
            return base.planes(to_uint8(read_mask(path, size=photograph.size)))

        truth = pair.composite
        return base.Sample(
            pair.name,
            foreground=base.planes(photograph.pixels),
            background=cover(background, photograph.size) if truth or pair.alpha else background,
            masks={"given": gray(pair.mask), "none": None},
            composite=base.planes(read_image(truth).pixels) if truth else None,
            alpha=gray(pair.alpha),
        )


# Pairs


def read_pairs(path: str | Path) -> list[PairFiles]:
    """Find the pairs of photographs in a folder or a table.

    Args:
        path: a folder with the layout of ``Folders``, or a ``.tsv`` or ``.csv`` file with the
            columns ``foreground``, ``background`` and optionally ``mask`` and ``name``; its paths
            are relative to the file.

    Raises:
        UsageError: the path is neither, or a column or file is missing.
    """
    path = Path(path)
    if path.is_dir():
        return _find(path)
    if path.suffix.lower() not in _DELIMITERS or not path.is_file():
        raise UsageError(
            f"{path} is no list of pairs: it is neither a folder nor a .tsv or .csv file"
        )
    try:
        pairs = _read_table(path)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a table in UTF-8: {error}") from error
    if not pairs:
        raise UsageError(f"{path} lists no pairs")
    stems = [pair.foreground.stem for pair in pairs]
    names = base.unique_names(
        pair.name or (stem if stems.count(stem) == 1 else f"{stem}-{pair.background.stem}")
        for stem, pair in zip(stems, pairs, strict=True)
    )
    return [replace(pair, name=name) for pair, name in zip(pairs, names, strict=True)]


def _read_table(path: Path) -> list[PairFiles]:
    """The pairs of a table; names may be empty."""
    pairs = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter=_DELIMITERS[path.suffix.lower()])
        rows.fieldnames = columns = [name.strip() for name in rows.fieldnames or ()]
        if not {"foreground", "background"} <= set(columns):
            raise UsageError(
                f"{path} has the columns {', '.join(columns) or 'none'}, but needs foreground and "
                "background, and may have mask and name"
            )
        for row in rows:
            files: dict[str, Any] = {}
            for kind in _COLUMNS:
                text = (row.get(kind) or "").strip()
                if (text or kind != "mask") and not (path.parent / text).is_file():
                    where = f"{path}, line {rows.line_num}"
                    raise UsageError(f"{where}: there is no {kind} {text or 'given'}")
                files[kind] = path.parent / text if text else None
            pairs.append(PairFiles((row.get("name") or "").strip(), **files))
    return pairs


def _find(root: Path, optional: Sequence[str] = ()) -> list[PairFiles]:
    """The pairs in a folder, with the ``optional`` kinds of pictures that exist."""
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}")
    others = {kind: _pictures(root / kind) for kind in (*_COLUMNS, *optional)}
    foregrounds, common = others.pop("foreground"), _pictures(root).get("background")
    if not foregrounds:
        raise UsageError(f"{root}/foreground holds no photographs; {EXPECTED}")
    for pictures in others.values():
        for stem in sorted(pictures.keys() - foregrounds):
            raise UsageError(f"{pictures[stem]} belongs to no photograph in {root}/foreground")
    pairs = []
    for name, (stem, file) in zip(base.unique_names(foregrounds), foregrounds.items(), strict=True):
        files = {kind: pictures.get(stem) for kind, pictures in others.items()}
        background = files.pop("background") or common
        if background is None:
            raise UsageError(f"{root}/background holds nothing for {file.name}; {EXPECTED}")
        if others["mask"] and files["mask"] is None:
            raise UsageError(f"{root}/mask holds nothing for {file.name}: give all masks, or none")
        pairs.append(PairFiles(name, file, background, **files))
    return pairs


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by stem; UsageError if two have the same stem."""
    pictures: dict[str, Path] = {}
    for path in image_files(folder.iterdir()) if folder.is_dir() else []:
        if path.stem in pictures:
            raise UsageError(f"{path} and {pictures[path.stem].name} have one name")
        pictures[path.stem] = path
    return pictures
