"""Reading shards: in order from any stream, or by number, by the offsets of their members.

What is no sample is refused, and so are links, sparse files, endless headers and paths that leave
the archive. So much that cannot be read is passed over, and no more.
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

MAX_FIELD_BYTES = 256 * 2**20
"""Larger members are refused."""

MAX_HEADER_BYTES = 64 * 2**10
"""Larger headers of a member (long names, PAX) are refused, and so are more than a few of them."""

MAX_RATIO = 200
"""Compressed shards that grow by more are refused, once they have grown beyond ``_RATIO_FROM``."""

_RATIO_FROM = 64 * 2**20
_HEADERS = 8
_PART = 2**24
_TAR_BUFFER = 2**16  # tarfile copies what is left of it for each header: more is slower
_COMPRESSED = (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")  # gzip, bzip2, xz, zstd
_OPEN = 160  # shards that a process keeps open: enough for a block of each source of a sample
_GRACE = 100  # what a tolerated share is reckoned of at the least
_log = logging.getLogger("deep_image_compositing")


def read_records(stream: IO[bytes], name: str) -> Iterator[Record]:
    """The samples of one tar file, in order; compressed tars are read too.

    The ``stream`` need not be seekable; messages call it ``name``. ``DataError`` where it is not a
    tar, truncated, or holds anything but samples.
    """
    counted: Any = _Counted(stream)
    with (
        _refusing(name),
        tarfile.open(fileobj=counted, mode="r|*", bufsize=_TAR_BUFFER, tarinfo=_Member) as tar,
    ):
        for key, members in itertools.groupby(_walk(tar), key=lambda found: found[0]):
            fields = {}
            for _, field, member in members:
                fields[field] = b"".join(_parts(tar, member, counted))
                # A stream is never rewound: without this, memory would grow.
                tar.members.clear()  # type: ignore[attr-defined]
            yield Record(key, fields, name)


class Shard:
    """A shard as a table of offsets: samples are read by number, by any thread or process.

    Only headers are read of a tar on disk. What is compressed, or comes from elsewhere and is not
    cached, is unpacked into a file without a name, which goes when the shard does. ``OSError``
    where it cannot be opened, or its transfer fails.
    """

    def __init__(self, url: str, cache: str | Path | None = None) -> None:
        self.name = url
        # Key and fields of each sample; of each field the offset and the bytes.
        self.members: list[tuple[str, dict[str, tuple[int, int]]]] = []
        self.fault = ""  # why there are no more of them, when the tar is damaged
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
        """Sample ``number``, whose fields are read when asked for; DataError if there is none."""
        if number >= len(self.members):
            raise DataError(self.fault or f"{self.name} ends before its sample {number + 1}")
        key, places = self.members[number]
        fields = Lazy(places, lambda _, place: self._read(*place))
        return Record(key, fields, self.name, self._whole.setdefault(number, set()))

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset)
        while len(data) < size:
            more = os.pread(self._file, size - len(data), offset + len(data))
            if not more:
                raise DataError(f"{self.name} was cut short while it was read")
            data += more
        return data

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def _list(self, file: IO[bytes]) -> None:
        """Note what a tar on disk holds; of one that is damaged, all but the last sample."""
        try:
            with (
                _refusing(self.name),
                tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar,
            ):
                for key, field, member in _walk(tar):
                    self._note(key, field, member.offset_data, member.size)
        except DataError as error:
            self.fault = str(error)
            del self.members[-1:]  # whether it is whole, nobody knows

    def _unpack(self, stream: IO[bytes], file: IO[bytes]) -> None:
        try:
            for record in read_records(stream, self.name):
                for field, data in record.fields.items():
                    self._note(record.key, field, file.tell(), len(data))
                    file.write(data)
        except DataError as error:
            self.fault = str(error)
        file.flush()

    def _note(self, key: str, field: str, offset: int, size: int) -> None:
        if not self.members or self.members[-1][0] != key:
            self.members.append((key, {}))
        self.members[-1][1][field] = offset, size


def open_by_number(url: str, cache: str | Path | None = None) -> Shard:
    """A shard by path or URL; those used last stay open, as long as their files stay the same."""
    version = (0, 0)
    if is_local(url):
        status = os.stat(local_path(url))
        version = status.st_size, status.st_mtime_ns
    return _open(url, cache, version)


@lru_cache(maxsize=_OPEN)
def _open(url: str, cache: str | Path | None, version: tuple[int, int]) -> Shard:
    return Shard(url, cache)


# What a shard may hold


def _walk(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, field and member of all that a tar holds, in order."""
    key: str | None = None
    fields: set[str] = set()
    seen: set[str] = set()
    for member in tar:
        found, field = _split(member)
        if found != key:
            if found in seen:
                raise _RefusedError(f"it holds the sample {found!r} twice")
            seen.add(found)
            key, fields = found, set()
        if field in fields:
            raise _RefusedError(f"it holds {member.name!r} twice")
        fields.add(field)
        yield found, field, member
    if not getattr(tar, "has_ended", False):
        raise tarfile.ReadError("the end of the archive is missing")


class _RefusedError(tarfile.TarError):
    """What a tar holds that no shard does, or that could exhaust memory or time."""


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever is wrong with a tar is a DataError that names it."""
    try:
        yield
    except _RefusedError as error:
        raise DataError(f"{name} was refused: {error}") from None
    except (tarfile.TarError, EOFError, ValueError) as error:  # the last of broken numbers
        raise DataError(f"{name} is not a tar file, or a truncated one: {error}") from None


class _Counted:
    """A stream that knows how many bytes were read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data


def _parts(tar: Any, member: tarfile.TarInfo, counted: _Counted) -> Iterator[bytes]:
    """The content of a member in parts, as long as what was compressed does not grow too much."""
    file = tar.extractfile(member)
    while part := file.read(_PART):
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
        raise _RefusedError(f"it holds {member.name!r}, which {reason}")
    return f"{folder}/{stem}" if folder else stem, kind


# How much that cannot be read is passed over

UNREADABLE = (DataError, ImageError, OSError)
"""What reading a damaged sample or shard may raise. Never a mistake in a call or in a program."""


class TooManyError(CompositingError):
    """More could not be read than is tolerated: not to be passed over, so not ``UNREADABLE``."""


@dataclass
class Tolerance:
    """Counts what cannot be read, and ends what meets too much of it.

    What is drawn at random meets more than its share now and then, so three standard deviations
    more are let pass: at 0.01, four among the first hundred.
    """

    what: str  # is counted, in the plural, for messages
    share: float = 0.01  # that may be bad, reckoned of at least 100
    seen: int = 0
    bad: int = 0
    _in_a_row: int = 0

    def passed(self) -> None:
        """Count a good one."""
        self.seen += 1
        self._in_a_row = 0

    def failed(self, reason: object) -> None:
        """Count a bad one, and say so; ``TooManyError`` when there are too many now."""
        self.seen += 1
        self.bad += 1
        self._in_a_row += 1
        said = str(reason) or type(reason).__name__
        expected = self.share * max(self.seen, _GRACE)
        if self.bad > expected + 3 * math.sqrt(expected) or self._in_a_row > _GRACE:
            raise TooManyError(
                f"{self.bad} of {self.seen} {self.what} could not be read, more than the "
                f"tolerated share of {self.share:g}; the last one: {said}"
            )
        _log.warning("passed over (%d of %d %s): %s", self.bad, self.seen, self.what, said)
