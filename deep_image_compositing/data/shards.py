"""Shards: tar files of samples as WebDataset has them; their index; strict writing.

A sample is a run of tar members that share a key: ``KEY.image.jpg``, ``KEY.mask.png``,
``KEY.json``. Only ``FIELDS`` are known, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.files import write_bytes
from deep_image_compositing.ledger import differences, digest

FIELDS = frozenset(
    {
        "image.jpg",  # a photograph
        "mask.png",  # its subject, gray; in a triplet the rough mask that the fuser is given
        "alpha.png",  # its subject's opacity, gray
        "foreground.jpg",  # straight colour of a matte; in a triplet the photograph of the subject
        "foreground.png",  # RGBA matte: straight colour and opacity
        "background.jpg",  # new background of a triplet
        "composite.png",  # target of a triplet
        "composite.jpg",  # the photograph whose subject has been given other colours
        "json",  # where the sample comes from
    }
)
"""Fields that a sample may have."""

KINDS: dict[str, tuple[frozenset[str], ...]] = {
    "segmentation": (frozenset({"image.jpg", "mask.png"}),),
    "mattes": (
        frozenset({"foreground.jpg", "alpha.png"}),
        frozenset({"foreground.png"}),
        frozenset({"image.jpg", "alpha.png"}),
    ),
    "backgrounds": (frozenset({"image.jpg"}),),
    "harmonization": (frozenset({"composite.jpg", "image.jpg", "mask.png"}),),
    "triplets": (
        frozenset({"foreground.jpg", "background.jpg", "composite.png", "mask.png", "alpha.png"}),
    ),
}
"""What a sample of each kind needs: at least one of the sets."""

INDEX = "index.json"
FORMAT = 1
QUALITY = 95
"""JPEG quality of what has to be encoded."""


class Lazy(Mapping[str, Any]):
    """A mapping whose values are made, of what is ``given``, when they are first asked for."""

    def __init__(self, given: Mapping[str, Any], make: Callable[[str, Any], Any]) -> None:
        self._given, self._make = given, make
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._make(name, self._given[name])
        return self._made[name]

    def __contains__(self, name: object) -> bool:  # a Mapping's own would make the value
        return name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


@dataclass(eq=False)
class Record:
    """One sample as it lies in a shard: its key, unique in its set, and files by field."""

    key: str
    fields: Mapping[str, bytes]
    shard: str = ""  # that it comes from, for messages
    # Fields whose pictures were found to hold all their data, which is asked only once.
    whole: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.shard}: {self.key}" if self.shard else self.key

    def info(self) -> dict[str, Any]:
        """Its ``json`` field; empty without one. ``DataError`` when it is not a JSON object."""
        try:
            content = json.loads(self.fields.get("json", b"{}"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.name}: its json cannot be read: {error}") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.name}: its json is not an object")
        return content

    def check(self, *kinds: str) -> None:
        """Raise ``DataError`` unless the sample has what one of ``kinds`` needs."""
        sets = [needed for kind in kinds for needed in KINDS[kind]]
        fields = set(self.fields)
        if not any(needed <= fields for needed in sets):
            wanted = " or ".join("+".join(sorted(needed)) for needed in sets)
            raise DataError(
                f"{self.name} has {', '.join(sorted(fields)) or 'no fields'}, "
                f"but {' or '.join(kinds)} need {wanted}"
            )


# The index


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard: file name, samples in it, bytes, and SHA-256 of the file in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        for name in ("name", "sha256"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"{name} of a shard is {value!r}, not text")
        for name in ("samples", "bytes"):
            if type(value := getattr(self, name)) is not int:
                raise TypeError(f"{name} of a shard is {value!r}, not a whole number")
            if value < 0:
                raise ValueError(f"{name} of a shard is {value}, below 0")


@dataclass
class Index:
    """What ``index.json`` beside a set of shards says: their kind, and the shards by split.

    ``about`` says how the set was made: layout, seed, source, licence, options; ``skipped`` what
    was left out, ``{"key": ..., "reason": ...}`` each.
    """

    kind: str
    splits: dict[str, list[ShardEntry]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)

    @property
    def shards(self) -> list[ShardEntry]:
        """The shards of all splits."""
        return [shard for shards in self.splits.values() for shard in shards]

    def count(self, split: str) -> int:
        """Samples of a split."""
        return sum(shard.samples for shard in self.splits.get(split, []))

    def counts(self) -> str:
        """Samples of each split, in words."""
        return ", ".join(f"{self.count(split)} {split}" for split in self.splits) or "no"

    def made_with(self) -> dict[str, Any]:
        """Kind and settings, for ``check_same``."""
        return {"kind": self.kind, **self.about}

    def write(self, folder: str | Path) -> None:
        """Write ``folder/index.json``, whole or not at all."""
        content = {
            "format": FORMAT,
            "kind": self.kind,
            "about": self.about,
            "splits": {
                split: {"samples": self.count(split), "shards": list(map(asdict, shards))}
                for split, shards in sorted(self.splits.items())
            },
            "skipped": self.skipped,
        }
        write_bytes(Path(folder) / INDEX, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: str | Path) -> Index:
        """Read ``folder/index.json``; ``DataError`` when it is missing, damaged or not ours."""
        path = Path(folder) / INDEX
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise DataError(
                    f"{path} has format {content['format']}, this version reads format {FORMAT}"
                )
            if content["kind"] not in KINDS:
                raise DataError(f"{path} is of an unknown kind, {content['kind']!r}")
            splits = {
                split: [ShardEntry(**shard) for shard in entry["shards"]]
                for split, entry in content["splits"].items()
            }
            index = cls(content["kind"], splits, content["about"], content["skipped"])
            if not isinstance(index.about, dict) or not isinstance(index.skipped, list):
                raise TypeError("about is an object and skipped a list")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path} is not an index of shards, or a damaged one: {error!r}"
            ) from None
        for shard in index.shards:
            if Path(shard.name).name != shard.name:
                raise DataError(f"{path} names the shard {shard.name!r}, which is not beside it")
        return index


def check_same(where: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` where what is ``found`` was not made as it is ``wanted``."""
    if changed := differences(found, wanted):
        said = "; ".join(f"{name} {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise UsageError(f"{where} was made with {said}: give another folder, or empty this one")


# Writing


def encode(image: Image.Image, form: str) -> bytes:
    """A picture as shards hold it: ``JPEG`` with colour at full resolution, or ``PNG``."""
    options = {"quality": QUALITY, "subsampling": 0} if form == "JPEG" else {}
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


class ShardWriter:
    """Writes a shard to ``path``, aside until it is whole; used in a ``with`` block.

    The same samples give the same bytes: members are sorted by field, without times or owners.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._aside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        self._samples = 0

    def __enter__(self) -> ShardWriter:
        from webdataset.writer import TarWriter

        self._file = open(self._aside, "xb")
        self._tar = TarWriter(
            self._file, encoder=False, mtime=0, user="", group="", mode=0o644, compress=False
        )
        return self

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Add a sample; ``UsageError`` for a key or field that a reader would refuse."""
        base = key.rpartition("/")[2]
        if not base or "." in base or ".." in key.split("/") or key.startswith("/") or "\\" in key:
            raise UsageError(f"{key!r} cannot be the key of a sample")
        unknown = set(fields) - FIELDS
        if unknown or not fields:
            raise UsageError(f"the sample {key!r} has the unknown fields {sorted(unknown)}")
        self._tar.write({"__key__": key, **dict(sorted(fields.items()))})
        self._samples += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file:
                self._tar.close()
                self._file.flush()
                os.fsync(self._file.fileno())
            if kind is None:
                os.replace(self._aside, self.path)
        finally:
            with contextlib.suppress(OSError):
                self._aside.unlink(missing_ok=True)

    def entry(self) -> ShardEntry:
        """What the index says of the finished shard."""
        return describe(self.path, self._samples)


def describe(path: Path, samples: int) -> ShardEntry:
    """The index's entry for a finished shard of ``samples`` samples."""
    return ShardEntry(path.name, samples, path.stat().st_size, digest(path))


def remove_unfinished(folder: Path) -> None:
    """Remove what writers have left that were killed."""
    for aside in folder.glob(".*.tar.*.part"):
        aside.unlink(missing_ok=True)
