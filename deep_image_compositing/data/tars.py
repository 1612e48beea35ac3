"""Read shards: in order from any stream, or by number from the offsets of their members.

Anything but samples is refused: links, sparse files, huge headers, paths that leave the archive.
``Tolerance`` limits how much unreadable data is skipped.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from deep_image_compositing.data.shards import FIELDS, Lazy, Record
from deep_image_compositing.data.transfer import find_file, is_local, local_path, open_shard
from deep_image_compositing.errors import CompositingError, DataError, ImageError

# Larger or more than these is refused:
MAX_FIELD_BYTES = 256 * 2**20  # of a member
MAX_HEADER_BYTES = 64 * 2**10  # of a header (long name, PAX)
MAX_RATIO = 200  # expansion of a compressed shard, once it exceeds ``_RATIO_FROM`` bytes
_RATIO_FROM = 64 * 2**20
_HEADERS = 8  # per member

_CHUNK = 2**24
_TAR_BUFFER = 2**16  # tarfile copies the rest of it for each header: more is slower
_COMPRESSED = (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")  # gzip, bzip2, xz, zstd
_OPEN = 160  # open shards per process: enough for a block of each source of a sample
_GRACE = 100  # the tolerated share is computed of at least this many
_log = logging.getLogger("deep_image_compositing")


def read_records(stream: IO[bytes], name: str) -> Iterator[Record]:
    """The samples of one tar file, in order; it may be compressed.

    The ``stream`` need not be seekable; ``name`` is for messages. ``DataError`` if it is not a
    tar, truncated, or holds anything but samples.
    """
    counted: Any = _Counted(stream)
    with (
        _refusing(name),
        tarfile.open(fileobj=counted, mode="r|*", bufsize=_TAR_BUFFER, tarinfo=_Member) as tar,
    ):
        for key, members in itertools.groupby(_walk(tar), key=lambda entry: entry[0]):
            fields = {}
            for _, field, member in members:
                fields[field] = b"".join(_chunks(tar, member, counted))
                # tarfile keeps all members for seeking, which a stream never does.
                tar.members.clear()  # type: ignore[attr-defined]
            yield Record(key, fields, name)


class Shard:
    """A shard as a table of offsets, so that any thread or process can read samples by number.

    Of a tar on disk only headers are read. A compressed shard, or a remote one that is not cached,
    is unpacked into an anonymous temporary file. ``OSError`` if it cannot be opened, or its
    transfer fails.
    """

    def __init__(self, url: str, cache: str | Path | None = None) -> None:
        self.name = url
        # Key of each sample, and offset and size in bytes of each of its fields.
        self.members: list[tuple[str, dict[str, tuple[int, int]]]] = []
        self.fault = ""  # what ends the list early if the tar is damaged
        self._whole: dict[int, set[str]] = {}
        if (path := find_file(url, cache)) is not None:
            with open(path, "rb") as file:
                if file.read(2) not in _COMPRESSED:
                    self._file = os.dup(file.fileno())
                    file.seek(0)
                    self._list(file)
                    return
        with tempfile.TemporaryFile() as unpacked, open_shard(str(path or url)) as stream:
            self._file = os.dup(unpacked.fileno())
            self._unpack(stream, unpacked)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> Record:
        """Sample ``number``, whose fields are read on first access; DataError if there is none."""
        if number >= len(self.members):
            raise DataError(self.fault or f"{self.name} ends before its sample {number + 1}")
        key, spans = self.members[number]
        fields = Lazy(spans, lambda _, span: self._read(*span))
        return Record(key, fields, self.name, self._whole.setdefault(number, set()))

    def _read(self, offset: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = os.pread(self._file, size - len(data), offset + len(data))
            if not chunk:
                raise DataError(f"{self.name} was cut short while it was read")
            data += chunk
        return data

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def _list(self, file: IO[bytes]) -> None:
        """List the members of a tar on disk; of a damaged one, all but the last sample."""
        try:
            with (
                _refusing(self.name),
                tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar,
            ):
                for key, field, member in _walk(tar):
                    self._add(key, field, member.offset_data, member.size)
        except DataError as error:
            self.fault = str(error)
            del self.members[-1:]  # it may be incomplete

    def _unpack(self, stream: IO[bytes], file: IO[bytes]) -> None:
        try:
            for record in read_records(stream, self.name):
                for field, data in record.fields.items():
                    self._add(record.key, field, file.tell(), len(data))
                    file.write(data)
        except DataError as error:
            self.fault = str(error)
        file.flush()

    def _add(self, key: str, field: str, offset: int, size: int) -> None:
        if not self.members or self.members[-1][0] != key:
            self.members.append((key, {}))
        self.members[-1][1][field] = offset, size


def open_by_number(url: str, cache: str | Path | None = None) -> Shard:
    """A shard by path or URL; recently used shards stay open while their files do not change."""
    version = (0, 0)
    if is_local(url):
        status = os.stat(local_path(url))
        version = status.st_size, status.st_mtime_ns
    return _open(url, cache, version)


@lru_cache(maxsize=_OPEN)
def _open(url: str, cache: str | Path | None, version: tuple[int, int]) -> Shard:
    return Shard(url, cache)


# Checks of a tar's contents


def _walk(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, field and member of everything in a tar, in order."""
    current: str | None = None
    fields: set[str] = set()
    seen: set[str] = set()
    for member in tar:
        key, field = _split(member)
        if key != current:
            if key in seen:
                raise _RefusedError(f"it holds the sample {key!r} twice")
            seen.add(key)
            current, fields = key, set()
        if field in fields:
            raise _RefusedError(f"it holds {member.name!r} twice")
        fields.add(field)
        yield key, field, member
    if not getattr(tar, "has_ended", False):
        raise tarfile.ReadError("the end of the archive is missing")


class _RefusedError(tarfile.TarError):
    """Content that is not allowed in a shard, or that could exhaust memory or time."""


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Raise any error of a tar as a DataError that names it."""
    try:
        yield
    except _RefusedError as error:
        raise DataError(f"{name} was refused: {error}") from None
    except (tarfile.TarError, EOFError, ValueError) as error:  # ValueError for broken numbers
        raise DataError(f"{name} is not a tar file, or a truncated one: {error}") from None


class _Counted:
    """A stream that counts the bytes read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data


def _chunks(tar: Any, member: tarfile.TarInfo, counted: _Counted) -> Iterator[bytes]:
    """The content of a member in chunks; refused if the tar expands by more than ``MAX_RATIO``."""
    file = tar.extractfile(member)
    while chunk := file.read(_CHUNK):
        yield chunk
        expanded = tar.fileobj.tell()
        if expanded > max(_RATIO_FROM, MAX_RATIO * counted.count):
            raise _RefusedError(
                f"its first {counted.count:,} bytes decompress to {expanded:,}, as no pictures do"
            )


class _Member(tarfile.TarInfo):
    """A member of a tar that limits size and number of its headers, which tarfile does not.

    It also records the end mark: without it, a tar cut between members would look complete.
    """

    def _proc_member(self, tar: Any) -> Any:
        tar.headers = getattr(tar, "headers", 0) + 1
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._proc_gnusparse_10(self)
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
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and field of a member; refuse one that is not allowed in a shard."""
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
        raise _RefusedError(f"it holds {member.name!r}, which {reason}")
    return f"{folder}/{stem}" if folder else stem, kind


# Skipping unreadable data

UNREADABLE = (DataError, ImageError, OSError)
"""Errors of a damaged sample or shard, as opposed to wrong usage and bugs."""


class TooManyError(CompositingError):
    """More was unreadable than is tolerated: ends the run, so it is not ``UNREADABLE``."""


@dataclass
class Tolerance:
    """Counts unreadable samples or shards, and raises ``TooManyError`` when there are too many.

    Random draws may exceed the share by chance, so three standard deviations more are accepted:
    at 0.01, four among the first hundred.
    """

    what: str  # name of what is counted, in the plural, for messages
    share: float = 0.01  # tolerated share, computed of at least 100
    seen: int = 0
    bad: int = 0
    _in_a_row: int = 0

    def passed(self) -> None:
        """Count a readable one."""
        self.seen += 1
        self._in_a_row = 0

    def failed(self, reason: object) -> None:
        """Count an unreadable one and log a warning, or raise ``TooManyError``."""
        self.seen += 1
        self.bad += 1
        self._in_a_row += 1
        message = str(reason) or type(reason).__name__
        expected = self.share * max(self.seen, _GRACE)
        if self.bad > expected + 3 * math.sqrt(expected) or self._in_a_row > _GRACE:
            raise TooManyError(
                f"{self.bad} of {self.seen} {self.what} could not be read, more than the "
                f"tolerated share of {self.share:g}; the last one: {message}"
            )
        _log.warning("passed over (%d of %d %s): %s", self.bad, self.seen, self.what, message)
