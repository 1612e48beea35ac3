"""Shards: tar files of samples as WebDataset has them; their index; strict reading and writing.

A sample is a run of tar members that share a key: ``KEY.image.jpg``, ``KEY.mask.png``,
``KEY.json``. Only the fields of :data:`FIELDS` are known; anything else in a tar, a link or a path
that climbs out of it included, is refused by name. Nothing is ever unpickled.

The readers (:mod:`~deep_image_compositing.data.feeds`) and the writers (``convert``, ``teach``) of
training data meet here.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import secrets
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from PIL import Image

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.images import write_bytes

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
        except ValueError as error:
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
    try:
        with tarfile.open(fileobj=stream, mode="r|*", bufsize=_TAR_BUFFER, tarinfo=_Member) as tar:
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
                fields[kind] = file.read()
                # A stream is never rewound: without this, memory would grow.
                tar.members.clear()  # type: ignore[attr-defined]
            if not getattr(tar, "has_ended", False):
                raise tarfile.ReadError("the end of the archive is missing")
    except (tarfile.TarError, EOFError, ValueError) as error:  # the last of broken numbers
        raise DataError(f"{name} is not a tar file, or a truncated one: {error}") from None
    if key is not None:
        yield Record(key, fields, name)


class _Member(tarfile.TarInfo):
    """A member that notes the end mark, without which a tar cut between members looks whole."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.has_ended = True
            raise


def _split(member: tarfile.TarInfo, name: str) -> tuple[str, str]:
    """Key and field of a member, which must be what a shard may hold."""
    folder, _, base = member.name.rpartition("/")
    stem, _, kind = base.partition(".")
    reason = ""
    if not member.isreg():
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


@contextlib.contextmanager
def open_shard(url: str, cache: str | Path | None = None) -> Iterator[IO[bytes]]:
    """Open a shard by path or URL.

    ``https://`` is read by curl, which gives up on a stalled transfer after a minute; ``s3://``,
    ``gs://``, ``pipe:`` and the others as WebDataset opens them, by their own programs.

    Args:
        url: a path, or a URL.
        cache: folder in which shards from elsewhere are kept.

    Raises:
        OSError: when it cannot be opened, or its transfer fails.
        UsageError: when nothing is known that reads such URLs.
    """
    if is_local(url):
        with open(local_path(url), "rb") as file:
            yield file
        return
    if cache is not None:
        with open(_fetch(url, Path(cache)), "rb") as file:
            yield file
        return
    stream = _open_url(url)
    try:
        yield stream
    except BaseException as error:
        if isinstance(error, DataError) and not stream.read(1):
            stream.close()  # it was cut short: if the program failed, that is the reason
        # Left in the middle: that the program behind it then complains says nothing.
        with contextlib.suppress(OSError):
            stream.close()
        raise
    stream.close()  # raises when the program failed


def is_local(url: str) -> bool:
    """Whether ``url`` is a path (or ``file:``) rather than something that is transferred."""
    return urlsplit(url).scheme in ("", "file") or bool(re.match(r"[A-Za-z]:[\\/]", url))


def local_path(url: str) -> Path:
    """The path of a local shard."""
    return Path(urlsplit(url).path if url.startswith("file:") else url)


def _open_url(url: str) -> Any:
    from webdataset.gopen import Pipe, gopen

    if urlsplit(url).scheme in ("http", "https"):
        # gopen's own curl waits forever on a server that has stopped sending.
        patience = ["--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "60"]
        # Only what fails at once, as a busy server does, is asked for again: after a transfer that
        # stalled, curl would write the file from its start behind what it has written already.
        again = ["--retry", "3", "--retry-max-time", "15"]
        command = ["curl", "-fsSL", *again, *patience, "--", url]
        try:
            return Pipe(command, mode="rb", ignore_status=[23])
        except FileNotFoundError:
            raise OSError(f"{url} needs the program curl, which is not installed") from None
    try:
        return gopen(url, "rb")
    except ValueError as error:
        raise UsageError(f"{url} cannot be read: {error}") from None


def _fetch(url: str, cache: Path) -> Path:
    """The copy of ``url`` in ``cache``, transferred if it is not there yet."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    tail = re.sub(r"[^\w.-]", "_", url.rsplit("/", 1)[-1])[-60:]
    target = cache / f"{digest}-{tail}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with open_shard(url) as stream, open(aside, "wb") as file:
                while chunk := stream.read(_CHUNK):
                    file.write(chunk)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    return target


def expand(pattern: str) -> list[str]:
    """Shards that a pattern names: braces as in ``{000..009}``, ``::`` between several, globs.

    Raises:
        UsageError: when a pattern with ``*`` or ``?`` matches no file.
    """
    from webdataset.shardlists import expand_urls

    found: list[str] = []
    for url in expand_urls(pattern):
        if is_local(url) and re.search(r"[*?]", url):
            matches = sorted(glob.glob(str(local_path(url))))
            if not matches:
                raise UsageError(f"no shard matches {url}")
            found.extend(matches)
        else:
            found.append(url)
    return found


# The index


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard: file name, samples in it, bytes, and SHA-256 of the file in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


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
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
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
