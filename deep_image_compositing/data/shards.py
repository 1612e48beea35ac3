"""The format of shards: WebDataset tar files of samples and their index; strict writing.

A sample is a run of tar members that share a key: ``KEY.image.jpg``, ``KEY.mask.png``,
``KEY.json``. Only ``FIELDS`` are allowed, and nothing is ever unpickled.
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
        "mask.png",  # its subject, gray; in a triplet the rough mask for the fuser
        "alpha.png",  # its subject's opacity, gray
        "foreground.jpg",  # straight colour of a matte; in a triplet the photograph of the subject
        "foreground.png",  # RGBA matte: straight colour and opacity
        "background.jpg",  # new background of a triplet
        "composite.png",  # target of a triplet
        "composite.jpg",  # the photograph with its subject recoloured
        "json",  # origin of the sample
    }
)
"""The allowed fields of a sample."""

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
"""The required fields of each kind of sample: at least one of the sets."""

INDEX = "index.json"
FORMAT = 1
QUALITY = 95  # of encoded JPEG files


class Lazy(Mapping[str, Any]):
    """A mapping with the values ``make(name, sources[name])``, computed on first access."""

    def __init__(self, sources: Mapping[str, Any], make: Callable[[str, Any], Any]) -> None:
        self._sources, self._make = sources, make
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._make(name, self._sources[name])
        return self._values[name]

    def __contains__(self, name: object) -> bool:  # Mapping.__contains__ would compute the value
        return name in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


@dataclass(eq=False)
class Record:
    """One undecoded sample of a shard: its key, unique in its set, and the files of its fields."""

    key: str
    fields: Mapping[str, bytes]
    shard: str = ""  # its name, for messages
    # Fields whose pictures are known to be complete, so that this is checked only once.
    whole: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Shard and key, for messages."""
        return f"{self.shard}: {self.key}" if self.shard else self.key

    def info(self) -> dict[str, Any]:
        """The ``json`` field, empty without one; ``DataError`` if it is not a JSON object."""
        try:
            content = json.loads(self.fields.get("json", b"{}"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.name}: its json cannot be read: {error}") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.name}: its json is not an object")
        return content

    def check(self, *kinds: str) -> None:
        """Raise ``DataError`` unless the sample has the required fields of one of ``kinds``."""
        sets = [required for kind in kinds for required in KINDS[kind]]
        fields = set(self.fields)
        if not any(required <= fields for required in sets):
            expected = " or ".join("+".join(sorted(required)) for required in sets)
            raise DataError(
                f"{self.name} has {', '.join(sorted(fields)) or 'no fields'}, "
                f"but {' or '.join(kinds)} need {expected}"
            )


# The index


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard: file name, number of samples, bytes, and SHA-256 of the file in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            number = name in ("samples", "bytes")
            if type(value) is not (int if number else str):
                expected = "a whole number" if number else "text"
                raise TypeError(f"{name} of a shard is {value!r}, not {expected}")
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{name} of a shard is {value}, below 0")


@dataclass
class Index:
    """The ``index.json`` beside a set of shards: their kind, and the shards by split.

    ``about`` records how the set was made: layout, seed, source, licence, options; ``skipped`` has
    the samples that were left out, each as ``{"key": ..., "reason": ...}``.
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
        """Number of samples in a split."""
        return sum(shard.samples for shard in self.splits.get(split, []))

    def counts(self) -> str:
        """Number of samples in each split, in words."""
        return ", ".join(f"{self.count(split)} {split}" for split in self.splits) or "no"

    def made_with(self) -> dict[str, Any]:
        """Kind and settings, for ``check_same``."""
        return {"kind": self.kind, **self.about}

    def write(self, folder: str | Path) -> None:
        """Write ``folder/index.json`` atomically."""
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
        """Read ``folder/index.json``; ``DataError`` if it is missing, damaged or something else."""
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
            skipped = [
                {name: item[name] for name in ("key", "reason")} for item in content["skipped"]
            ]
            index = cls(content["kind"], splits, content["about"], skipped)
            if not isinstance(index.about, dict):
                raise TypeError("about is an object of settings")
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


def check_same(path: Path, existing: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` if the ``existing`` settings of ``path`` differ from ``settings``."""
    if changed := differences(existing, settings):
        text = "; ".join(f"{name} {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise UsageError(f"{path} was made with {text}: give another folder, or empty this one")


# Writing


def encode(image: Image.Image, format: str) -> bytes:
    """Encode a picture for a shard as ``JPEG`` (without chroma subsampling) or ``PNG``."""
    options = {"quality": QUALITY, "subsampling": 0} if format == "JPEG" else {}
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


class ShardWriter:
    """Context manager that writes a shard to ``path`` through a temporary file beside it.

    The same samples give the same bytes: members are sorted by field, without times or owners.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        self._samples = 0

    def __enter__(self) -> ShardWriter:
        from webdataset.writer import TarWriter

        self._file = open(self._temporary, "xb")
        self._tar = TarWriter(
            self._file, encoder=False, mtime=0, user="", group="", mode=0o644, compress=False
        )
        return self

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Add a sample; ``UsageError`` for a key or field that readers refuse."""
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
                os.replace(self._temporary, self.path)
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def entry(self) -> ShardEntry:
        """The index entry of the finished shard."""
        return describe(self.path, self._samples)


def describe(path: Path, samples: int) -> ShardEntry:
    """The index entry of a finished shard of ``samples`` samples."""
    return ShardEntry(path.name, samples, path.stat().st_size, digest(path))


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for path in folder.glob(".*.tar.*.part"):
        path.unlink(missing_ok=True)
