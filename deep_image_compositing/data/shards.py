"""Shards: tar files of samples as WebDataset has them; their index; strict reading and writing.

A sample is a run of tar members that share a key: ``KEY.image.jpg``, ``KEY.mask.png``,
``KEY.json``. Only the fields of :data:`FIELDS` are known; anything else in a tar, a link or a path
that climbs out of it included, is refused by name. Nothing is ever unpickled.

The readers (:mod:`~deep_image_compositing.data.feeds`) and the writers (``convert``, ``teach``) of
training data meet here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from PIL import Image

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.files import write_bytes

FIELDS = frozenset(
    {
        "image.jpg",  # a photograph
        "mask.png",  # its subject, gray; in a triplet the rough mask that the fuser is given
        "alpha.png",  # its subject's opacity, gray
        "foreground.jpg",  # straight colour of a matte; in a triplet the photograph of the subject
        "foreground.png",  # RGBA matte: straight colour and opacity
        "background.jpg",  # new background of a triplet
        "composite.png",  # target of a triplet
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
    "triplets": (
        frozenset({"foreground.jpg", "background.jpg", "composite.png", "mask.png", "alpha.png"}),
    ),
}
"""What a sample of each kind needs: at least one of the sets."""

INDEX = "index.json"
FORMAT = 1
MAX_FIELD_BYTES = 256 * 2**20
"""Larger members are refused: nothing that a worker would read whole into memory."""

QUALITY = 95
"""JPEG quality of what has to be encoded."""

MAX_HEADER_BYTES = 64 * 2**10
"""Larger headers of a member (long names, PAX) are refused, and so are more than a few of them."""

MAX_RATIO = 200
"""Compressed shards that grow by more are refused, once they have grown beyond ``_RATIO_FROM``."""

_RATIO_FROM = 64 * 2**20
_HEADERS = 8
_CHUNK = 2**20
_TAR_BUFFER = 2**16  # tarfile copies what is left of it for each header: more is slower


@dataclass(frozen=True, eq=False)
class Record:
    """One sample as it lies in a shard.

    Attributes:
        key: its name, unique in its set.
        fields: encoded files by field, see :data:`FIELDS`.
        shard: the shard that it comes from, for messages.
    """

    key: str
    fields: Mapping[str, bytes]
    shard: str = ""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.shard}: {self.key}" if self.shard else self.key

    def info(self) -> dict[str, Any]:
        """Its ``json`` field; empty without one.

        Raises:
            DataError: when it is not a JSON object.
        """
        try:
            content = json.loads(self.fields.get("json", b"{}"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.name}: its json cannot be read: {error}") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.name}: its json is not an object")
        return content

    def check(self, *kinds: str) -> None:
        """Raise :class:`DataError` unless the sample has what one of ``kinds`` needs."""
        sets = [needed for kind in kinds for needed in KINDS[kind]]
        if not any(needed <= self.fields.keys() for needed in sets):
            wanted = " or ".join("+".join(sorted(needed)) for needed in sets)
            raise DataError(
                f"{self.name} has {', '.join(sorted(self.fields)) or 'no fields'}, "
                f"but {' or '.join(kinds)} need {wanted}"
            )


# Reading


def read_records(stream: IO[bytes], name: str) -> Iterator[Record]:
    """The samples of one tar file, in order; compressed tars are read too.

    Args:
        stream: the tar file; it need not be seekable.
        name: what messages call it.

    Raises:
        DataError: not a tar, truncated, or holding anything but samples.
        OSError: when the stream breaks.
    """
    key: str | None = None
    fields: dict[str, bytes] = {}
    seen: set[str] = set()
    counted: Any = _Counted(stream)
    try:
        with tarfile.open(fileobj=counted, mode="r|*", bufsize=_TAR_BUFFER, tarinfo=_Member) as tar:
            for member in tar:
                found, kind = _split(member, name)
                if found != key:
                    if key is not None:
                        yield Record(key, fields, name)
                    if found in seen:
                        raise DataError(f"{name} was refused: it holds the sample {found!r} twice")
                    seen.add(found)
                    key, fields = found, {}
                if kind in fields:
                    raise DataError(f"{name} was refused: it holds {member.name!r} twice")
                file = tar.extractfile(member)
                assert file is not None  # a regular file, by _split
                fields[kind] = b"".join(_parts(file, tar, counted))
                # A stream is never rewound: without this, memory would grow.
                tar.members.clear()  # type: ignore[attr-defined]
            if not getattr(tar, "has_ended", False):
                raise tarfile.ReadError("the end of the archive is missing")
    except _RefusedError as error:
        raise DataError(f"{name} was refused: {error}") from None
    except (tarfile.TarError, EOFError, ValueError) as error:  # the last of broken numbers
        raise DataError(f"{name} is not a tar file, or a truncated one: {error}") from None
    if key is not None:
        yield Record(key, fields, name)


class _RefusedError(tarfile.TarError):
    """What a tar holds that no shard does, and that could exhaust memory or time."""


class _Counted:
    """A stream that knows how many bytes were read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data


def _parts(file: IO[bytes], tar: Any, counted: _Counted) -> Iterator[bytes]:
    """The content of a member in parts, as long as what was compressed does not grow too much."""
    while part := file.read(16 * _CHUNK):
        yield part
        grown = tar.fileobj.tell()
        if grown > max(_RATIO_FROM, MAX_RATIO * counted.count):
            raise _RefusedError(
                f"its first {counted.count:,} bytes decompress to {grown:,}, as no pictures do"
            )


class _Member(tarfile.TarInfo):
    """A member that notes the end mark, without which a tar cut between members looks whole.

    Its headers, which tarfile would read at any length and number, are bounded.
    """

    def _proc_member(self, tar: Any) -> Any:
        tar.headers = getattr(tar, "headers", 0) + 1
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _RefusedError(f"it holds {self.name!r}, which is a sparse file")
        if self.type not in _HEADER_TYPES:
            tar.headers = 0
        elif self.size > MAX_HEADER_BYTES:
            raise _RefusedError(f"it holds a header of {self.size:,} bytes")
        elif tar.headers > _HEADERS:
            raise _RefusedError(f"it holds a member of more than {_HEADERS} headers")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_gnusparse_10(self, member: tarfile.TarInfo, *_: Any) -> None:
        raise _RefusedError(f"it holds {member.name!r}, which is a sparse file")

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.has_ended = True
            raise


_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _split(member: tarfile.TarInfo, name: str) -> tuple[str, str]:
    """Key and field of a member, which must be what a shard may hold."""
    folder, _, base = member.name.rpartition("/")
    stem, _, kind = base.partition(".")
    reason = ""
    if not member.isreg() or member.issparse() or member.size < 0:
        reason = "is not a regular file"
    elif member.name.startswith("/") or "\\" in member.name or ".." in member.name.split("/"):
        reason = "has a path that leaves the archive"
    elif not stem or kind not in FIELDS:
        reason = f"is none of the fields {', '.join(sorted(FIELDS))}"
    elif member.size > MAX_FIELD_BYTES:
        reason = f"is larger than {MAX_FIELD_BYTES // 2**20} MiB"
    if reason:
        raise DataError(f"{name} was refused: it holds {member.name!r}, which {reason}")
    return f"{folder}/{stem}" if folder else stem, kind


# The index


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard: file name, samples in it, bytes, and SHA-256 of the file in hex.

    Raises:
        TypeError: a value of another type.
        ValueError: a number below 0.
    """

    name: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        for name, text in (("name", self.name), ("sha256", self.sha256)):
            if not isinstance(text, str):
                raise TypeError(f"{name} of a shard is {text!r}, not text")
        for name, number in (("samples", self.samples), ("bytes", self.bytes)):
            if not isinstance(number, int) or isinstance(number, bool):
                raise TypeError(f"{name} of a shard is {number!r}, not a whole number")
            if number < 0:
                raise ValueError(f"{name} of a shard is {number}, below 0")


@dataclass
class Index:
    """What ``index.json`` beside a set of shards says.

    Attributes:
        kind: one of :data:`KINDS`.
        splits: shards by split: ``train``, ``validation``, ``test``.
        about: how the set was made: layout, seed, source, licence, options.
        skipped: inputs that were left out, ``{"key": ..., "reason": ...}`` each.
    """

    kind: str
    splits: dict[str, list[ShardEntry]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def count(self, split: str) -> int:
        """Samples of a split."""
        return sum(shard.samples for shard in self.splits.get(split, []))

    def write(self, folder: str | Path) -> None:
        """Write ``folder/index.json``, whole or not at all."""
        content = {
            "format": FORMAT,
            "kind": self.kind,
            "about": self.about,
            "splits": {
                split: {
                    "samples": self.count(split),
                    "shards": [asdict(shard) for shard in shards],
                }
                for split, shards in sorted(self.splits.items())
            },
            "skipped": self.skipped,
        }
        write_bytes(Path(folder) / INDEX, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: str | Path) -> Index:
        """Read ``folder/index.json``.

        Raises:
            DataError: when it is missing, damaged, or of another format.
        """
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
        for shards in splits.values():
            for shard in shards:
                if Path(shard.name).name != shard.name:
                    raise DataError(
                        f"{path} names the shard {shard.name!r}, which is not beside it"
                    )
        return index


# Writing


def encode(image: Image.Image, form: str) -> bytes:
    """A picture as shards hold it: ``JPEG`` with colour at full resolution, or ``PNG``."""
    options = {"quality": QUALITY, "subsampling": 0} if form == "JPEG" else {}
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


class ShardWriter:
    """Writes one shard aside and renames it when it is whole; used in a ``with`` block.

    The same samples give the same bytes: members are sorted by field, and carry no times or
    owners.

    Args:
        path: the tar file to be.
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
        """Add a sample.

        Raises:
            UsageError: a key or field that a reader would refuse.
        """
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
            self._tar.close()
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                os.replace(self._aside, self.path)
        finally:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._aside.unlink(missing_ok=True)

    def entry(self) -> ShardEntry:
        """What the index says of the finished shard."""
        return describe(self.path, self._samples)


def describe(path: Path, samples: int) -> ShardEntry:
    """The index's entry for a finished shard of ``samples`` samples."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return ShardEntry(path.name, samples, path.stat().st_size, digest.hexdigest())
