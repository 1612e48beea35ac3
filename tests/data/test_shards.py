"""The shard format: what is written is read back, and nothing else is ever read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from deep_image_compositing.data import tars
from deep_image_compositing.data.shards import (
    Index,
    Record,
    ShardEntry,
    ShardWriter,
    describe,
)
from deep_image_compositing.data.tars import read_records
from deep_image_compositing.errors import DataError, UsageError
from tests.data.trees import write

SAMPLES = {
    "a": {"image.jpg": b"jpeg a", "mask.png": b"png", "json": b'{"key": "a"}'},
    "sub/b": {"image.jpg": b"jpeg b" * 1000},
    "ünï": {"foreground.png": b""},
}


def read(data: bytes) -> list[Record]:
    return list(read_records(io.BytesIO(data), "s.tar"))


def tar(*members: str | tarfile.TarInfo) -> bytes:
    """A tar of small files with these names, or of these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = 2 if info.isreg() else 0
            archive.addfile(info, io.BytesIO(b"{}") if info.isreg() else None)
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


# Writing and reading


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    entry = write(tmp_path / "s.tar", SAMPLES)
    records = read((tmp_path / "s.tar").read_bytes())
    assert {record.key: dict(record.fields) for record in records} == SAMPLES
    assert [record.name for record in records] == ["s.tar: a", "s.tar: sub/b", "s.tar: ünï"]
    assert records[0].info() == {"key": "a"}
    assert records[1].info() == {}
    assert (entry.name, entry.samples) == ("s.tar", 3)
    assert entry == describe(tmp_path / "s.tar", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


def test_equal_samples_are_equal_bytes_and_nobody_s(tmp_path: Path) -> None:
    backwards = {key: dict(reversed(fields.items())) for key, fields in SAMPLES.items()}
    assert write(tmp_path / "1.tar", SAMPLES).sha256 == write(tmp_path / "2.tar", backwards).sha256
    with tarfile.open(tmp_path / "1.tar") as archive:
        member = archive.getmembers()[0]
    assert (member.mtime, member.uname, member.gname, member.mode) == (0, "", "", 0o644)


def test_a_shard_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"of before")
    with pytest.raises(UsageError), ShardWriter(tmp_path / "s.tar") as writer:
        writer.write("a", {**SAMPLES["a"], "x.pkl": b""})
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]
    assert (tmp_path / "s.tar").read_bytes() == b"of before"


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar") as writer:
        for key in ("", "a.b", "../a", "/a", "a\\b", "a/"):
            with pytest.raises(UsageError, match="the key"):
                writer.write(key, SAMPLES["a"])
        for fields in ({}, {"x.pkl": b""}):
            with pytest.raises(UsageError, match="fields"):
                writer.write("a", fields)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tar(special("a.json", tarfile.SYMTYPE, "/etc/passwd")), "'a.json', which is not a reg"),
        (tar(special("a.json", tarfile.LNKTYPE, "b.json")), "'a.json', which is not a regular"),
        (tar(special("a.json", tarfile.FIFOTYPE)), "'a.json', which is not a regular file"),
        (tar(special("a", tarfile.DIRTYPE)), "'a', which is not a regular file"),
        (tar("/etc/a.json"), "'/etc/a.json', which has a path that leaves"),
        (tar("../a.json"), r"'\.\./a.json', which has a path that leaves"),
        (tar("b/../../a.json"), "which has a path that leaves"),
        (tar("b\\a.json"), "which has a path that leaves"),
        (tar("a.json", "a.x.pkl"), "'a.x.pkl', which is none of the fields"),
        (tar("a.pickle"), "'a.pickle', which is none of the fields"),
        (tar("notes"), "'notes', which is none of the fields"),
        (tar(".json"), "'.json', which is none of the fields"),
        (tar("a.json", "a.json"), "'a.json' twice"),
        (tar("a.json", "b.json", "a.mask.png"), "the sample 'a' twice"),
        (b"not a tar", "not a tar file"),
        (b"", "not a tar file"),
        (b"x" * 4096, "not a tar file"),
    ],
)
def test_anything_else_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"^s\.tar .*{said}"):
        read(data)


def test_a_member_too_large_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_FIELD_BYTES", 1)
    with pytest.raises(DataError, match=r"'a\.json', which is larger than"):
        read(tar("a.json"))


def header(kind: bytes, size: int) -> bytes:
    info = special("a.json", kind)
    info.size = size
    return info.tobuf()


def sparse() -> bytes:
    """A member whose PAX header announces a map of holes, as long as its content goes on."""
    version = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.json"}
    info = tarfile.TarInfo("a.json")
    info.pax_headers = version
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("start", "rest", "said"),
    [
        # 30 MiB are asked for by one header, and by a chain of them.
        (header(tarfile.XHDTYPE, 30 * 2**20), b"9 a=bcde\n", "header of 31,457,280 bytes"),
        (header(tarfile.XGLTYPE, 30 * 2**20), b"9 a=bcde\n", "header of 31,457,280 bytes"),
        (header(tarfile.GNUTYPE_LONGNAME, 30 * 2**20), b"a", "header of 31,457,280 bytes"),
        (b"", header(tarfile.GNUTYPE_LONGNAME, 512) + b"a" * 512, "more than 8 headers"),
        (b"", header(tarfile.XGLTYPE, 0), "more than 8 headers"),
        (header(tarfile.GNUTYPE_SPARSE, 0), b"", "'a.json', which is a sparse file"),
        (sparse(), b"1", "'a.json', which is a sparse file"),
    ],
)
def test_headers_that_would_fill_memory_are_refused(start: bytes, rest: bytes, said: str) -> None:
    stream = Endless(start, rest)
    with pytest.raises(DataError, match=rf"^s\.tar was refused: .*{said}"):
        list(read_records(stream, "s.tar"))
    assert stream.given < 2**20


class Endless(io.RawIOBase):
    """A stream that begins in some way, and then repeats something, or zeros."""

    def __init__(self, start: bytes, rest: bytes) -> None:
        self.waiting, self.rest, self.given = start, rest or bytes(512), 0

    def read(self, size: int = -1) -> bytes:
        self.given += size
        if size > len(self.waiting):
            self.waiting += self.rest * (size // len(self.rest) + 1)
        data, self.waiting = self.waiting[:size], self.waiting[size:]
        return data


def test_a_compressed_shard_that_grows_without_end_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tars, "_RATIO_FROM", 2**20)
    zeros = gzip.compress(header(tarfile.REGTYPE, 20 * 2**20) + bytes(20 * 2**20))
    with pytest.raises(DataError, match=r"^s\.tar was refused: .* to 1\d,\d{3},\d{3}, as no"):
        read(zeros)
    # What is merely empty is none of it.
    assert len(read(gzip.compress(tar(*(f"s{i}.json" for i in range(2000)))))) == 2000


def test_a_tar_cut_anywhere_is_a_truncated_one() -> None:
    data = tar("a.json", "b.json")  # two blocks of 512 bytes each, then zeros
    for end in (1, 512, 513, 514, 1000, 1024, 1025, 1536, 1537, 2000, 2048):
        with pytest.raises(DataError, match="truncated"):
            read(data[:end])
    assert len(read(data[: 2048 + 512])) == 2


def test_samples_before_a_fault_are_given() -> None:
    records = read_records(io.BytesIO(tar("a.json", "b.json", "c.pkl")), "s.tar")
    assert next(records).key == "a"
    with pytest.raises(DataError, match=r"'c\.pkl'"):
        list(records)


def test_compressed_tars_are_read_and_cut_ones_are_not() -> None:
    data = gzip.compress(tar("a.json"))
    assert read(data)[0].key == "a"
    with pytest.raises(DataError, match=r"^s\.tar is not a tar file, or a truncated one"):
        read(data[:-20])
    with pytest.raises(DataError, match=r"^s\.tar is not a tar file, or a truncated one"):
        read(data[:40] + bytes(20) + data[60:])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read"),
        (b"[]", "not an object"),
        (b"[" * 100_000, "cannot be read: .*recursion"),
    ],
)
def test_a_wrong_json_is_named(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=f"^s.tar: a: .*{said}"):
        Record("a", {"json": content}, "s.tar").info()


def test_what_a_kind_needs() -> None:
    Record("a", dict.fromkeys(("image.jpg", "mask.png", "json"), b"")).check("segmentation")
    Record("a", {"foreground.png": b""}).check("mattes")
    with pytest.raises(DataError, match=r"^a has image.jpg, but mattes need alpha.png\+foreground"):
        Record("a", {"image.jpg": b""}).check("mattes")


# The index

SHARD: dict[str, object] = {"name": "a.tar", "samples": 1, "bytes": 1, "sha256": ""}


def test_the_index_is_read_back(tmp_path: Path) -> None:
    entry = write(tmp_path / "train-000000.tar", SAMPLES)
    index = Index("mattes", {"train": [entry]}, {"seed": 1}, [{"key": "x", "reason": "broken"}])
    index.write(tmp_path)
    assert Index.read(tmp_path) == index
    assert (index.count("train"), index.count("test")) == (3, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "has format 2, this version reads format 1"),
        ({"kind": "films"}, "of an unknown kind, 'films'"),
        ({"splits": {"train": {"shards": [{"name": "a.tar"}]}}}, "not an index of shards"),
        ({"splits": []}, "not an index of shards"),
        ({"skipped": [{"reason": "too small"}]}, "not an index of shards"),
        (
            {"splits": {"train": {"shards": [SHARD | {"samples": "x"}]}}},
            "samples .* 'x', not a whole number",
        ),
        ({"splits": {"train": {"shards": [SHARD | {"bytes": -1}]}}}, "bytes .* -1, below 0"),
        ({"splits": {"train": {"shards": [SHARD | {"name": 3}]}}}, "name .* 3, not text"),
        ({"about": []}, "about is an object"),
    ],
)
def test_a_wrong_index_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    Index("mattes").write(tmp_path)
    path = tmp_path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=f"index.json .*{said}"):
        Index.read(tmp_path)


def test_no_index_a_broken_one_and_one_that_points_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Index.read(tmp_path)
    for content in ("{", "[" * 100_000):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(DataError, match="not an index of shards"):
            Index.read(tmp_path)
    Index("mattes", {"train": [ShardEntry("../a.tar", 1, 1, "")]}).write(tmp_path)
    with pytest.raises(DataError, match=r"names the shard '\.\./a\.tar', which is not beside it"):
        Index.read(tmp_path)
