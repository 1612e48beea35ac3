"""Where shards come from: paths, web servers, cloud storage and programs; what goes wrong."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from deep_image_compositing.data.tars import read_records
from deep_image_compositing.data.transfer import expand, find_file, kill_programs, open_shard
from deep_image_compositing.errors import UsageError
from tests.data.trees import write
from tests.runs import has_ended

SAMPLES = {"a": {"image.jpg": b"jpeg a", "mask.png": b"png"}, "sub/b": {"image.jpg": b"b" * 9000}}


def keys(url: str, cache: Path | None = None) -> list[str]:
    with open_shard(str(find_file(url, cache) or url)) as stream:
        return [record.key for record in read_records(stream, url)]


def test_paths_and_pipes(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write(path, SAMPLES)
    assert keys(str(path)) == keys(f"file:{path}") == keys(f"pipe:cat {path}") == list(SAMPLES)
    with pytest.raises(FileNotFoundError):
        keys(str(tmp_path / "absent.tar"))


def test_a_program_that_fails_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "s.tar", SAMPLES)
    with pytest.raises(OSError, match=r"s\.tar; exit 3: the program failed with exit status 3"):
        keys(f"pipe:cat {tmp_path / 's.tar'}; exit 3")


def test_a_stream_may_be_left_in_the_middle(tmp_path: Path) -> None:
    write(tmp_path / "s.tar", {f"k{i}": {"image.jpg": bytes(10**5)} for i in range(20)})
    with open_shard(f"pipe:cat {tmp_path / 's.tar'}") as stream:
        assert next(read_records(stream, "s.tar")).key == "k0"


def test_a_program_ends_with_its_reader(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    url = f"pipe:sleep 1000 & echo $! > {note}; echo begun; wait"
    with contextlib.suppress(KeyboardInterrupt), open_shard(url) as stream:
        assert stream.read(5) == b"begun"
        raise KeyboardInterrupt
    assert has_ended(int(note.read_text()))
    reading = open_shard(url)
    assert reading.__enter__().read(5) == b"begun"
    kill_programs()
    with pytest.raises(OSError, match="exit status -9"):
        reading.__exit__(None, None, None)
    assert has_ended(int(note.read_text()))


@pytest.mark.parametrize("value", ["1", "0"])
def test_programs_can_be_forbidden(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WDS_SECURE", value)
    write(tmp_path / "s.tar", SAMPLES)
    url, note = f"pipe:touch {tmp_path}/ran; cat {tmp_path}/s.tar", tmp_path / "ran"
    for work in (expand, keys):
        with (
            pytest.raises(UsageError, match="would run a program, which WDS_SECURE forbids")
            if value == "1"
            else contextlib.nullcontext()
        ):
            work(url)
    assert note.exists() == (value == "0")


def test_cloud_storage_is_read_by_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    storage = fsspec.filesystem("memory")
    write(tmp_path / "s.tar", SAMPLES)
    storage.pipe("/bucket/s.tar", (tmp_path / "s.tar").read_bytes())
    assert keys("memory://bucket/s.tar") == list(SAMPLES)
    with pytest.raises(OSError, match=r"memory://bucket/absent\.tar"):
        keys("memory://bucket/absent.tar")

    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise RuntimeError("no credentials")

    storage.open = lambda *_, **__: Breaks()
    with pytest.raises(OSError, match=r"memory://bucket/s\.tar: no credentials"):
        keys("memory://bucket/s.tar")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gopher://x/0.tar", "cannot be read: .*gopher"),
        ("s3://", "s3:// names no shard"),
        ("gs://", "gs:// names no shard"),
        ("pipe:", "pipe: names no shard"),
        ("https://", "https:// names no shard"),
        ("gopher://[x/0.tar", r"gopher://\[x/0.tar cannot be read"),
    ],
)
def test_addresses_that_nothing_can_read(url: str, said: str) -> None:
    for work in (expand, keys):
        with pytest.raises(UsageError, match=said):
            work(url)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"s3://b/0\.tar cannot be read: .*s3fs"):
        expand("s3://b/{0..1}.tar")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Address of a local server, and the folder that it serves."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()
        thread.join()


def test_urls_and_their_cache(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    write(folder / "s.tar", SAMPLES)
    url, cache = f"{address}/s.tar", tmp_path / "cache"
    assert keys(url) == list(SAMPLES)
    cache.mkdir()
    killed, running = cache / ".0123456789abcdef.part", cache / ".fedcba9876543210.part"
    for part in (killed, running):
        part.touch()
    os.utime(killed, (1000, 1000))
    assert keys(url, cache) == list(SAMPLES)
    assert not killed.exists()
    running.unlink()
    assert len(list(cache.iterdir())) == 1
    (folder / "s.tar").unlink()
    assert keys(url, cache) == list(SAMPLES)
    for again in (None, tmp_path / "other"):
        with pytest.raises(OSError, match="the program failed with exit status 22"):
            keys(url, again)
    assert os.listdir(tmp_path / "other") == []


def test_patterns(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar"):
        write(tmp_path / name, SAMPLES)
    assert expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert expand("x-{008..010}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar"]
    assert expand("https://h/{a,b}.tar::c.tar") == ["https://h/a.tar", "https://h/b.tar", "c.tar"]
    with pytest.raises(UsageError, match="no shard matches"):
        expand(f"{tmp_path}/c*.tar")
