"""Byte streams of shards, from paths, web servers, cloud storage and programs."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.files import remove_abandoned

SECURE_VARIABLE = "WDS_SECURE"
"""Environment variable of WebDataset that forbids ``pipe:`` when set to 1."""

_CHUNK = 2**20
_SIGPIPE = 13
_SUCCESS = (0, 128 + _SIGPIPE, -_SIGPIPE)
"""Exit statuses of success, including that of a program whose output is no longer read."""


def is_local(url: str) -> bool:
    """Whether ``url`` is a path or a ``file:`` URL, which need no transfer."""
    scheme = re.match(r"([A-Za-z][\w+.-]+):", url)  # a single letter is a Windows drive
    return scheme is None or scheme[1] == "file"


def local_path(url: str) -> Path:
    """The path of a local ``url``."""
    return Path(urlsplit(url).path if url.startswith("file:") else url)


def expand(pattern: str) -> list[str]:
    """Expand a pattern into shards: braces as in ``{000..009}``, globs, ``::`` as a separator.

    ``UsageError`` for a glob that matches no file, and as in ``check_url``.
    """
    from webdataset.shardlists import expand_urls

    shards: list[str] = []
    for url in expand_urls(pattern):
        if not is_local(url):
            check_url(url)
            shards.append(url)
        elif re.search(r"[*?]", url):
            matches = sorted(glob.glob(str(local_path(url))))
            if not matches:
                raise UsageError(f"no shard matches {url}")
            shards.extend(matches)
        else:
            shards.append(url)
    return shards


def check_url(url: str) -> None:
    """Raise ``UsageError`` for a URL that cannot be read, or a program that is forbidden."""
    scheme, _, rest = url.partition(":")
    if not rest.strip("/"):
        raise UsageError(f"{url} names no shard: expected {url.rstrip('/:')}://... up to .tar")
    if scheme == "pipe":
        if os.environ.get(SECURE_VARIABLE, "0") not in ("", "0"):
            raise UsageError(f"{url} would run a program, which {SECURE_VARIABLE} forbids")
    elif scheme not in ("http", "https"):
        import fsspec

        try:
            fsspec.get_filesystem_class(scheme)
        except (ImportError, ValueError) as error:  # names the package to install
            raise UsageError(f"{url} cannot be read: {error}") from None


@contextlib.contextmanager
def open_shard(url: str) -> Iterator[IO[bytes]]:
    """Open a shard by path or URL.

    curl reads ``http://`` and ``https://``, and gives up on a transfer that stalls for a minute;
    ``pipe:`` runs the rest of the URL as a shell command and reads its output; fsspec reads
    ``s3://``, ``gs://`` and the others, with the package that it requires for each. ``OSError`` if
    the shard cannot be opened or its transfer fails.
    """
    if is_local(url):
        with open(local_path(url), "rb") as file:
            yield file
        return
    stream: Any = _open_url(url)
    try:
        yield stream
    except BaseException as error:
        if isinstance(error, DataError) and not stream.read(1):
            stream.close()  # a failure of the program explains why the stream was cut short
        # The stream was not read to its end, so an error of the program means nothing.
        stream.abandon()
        raise
    stream.close()  # raises if the program failed


def _open_url(url: str) -> _Program | _Remote:
    check_url(url)
    scheme = url.partition(":")[0]
    if scheme == "pipe":
        return _Program(url, url.removeprefix("pipe:"))
    if scheme not in ("http", "https"):
        return _Remote(url)
    timeouts = ["--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "60"]
    # Retry only what fails at once, as a busy server does: after a stalled transfer, curl would
    # append the whole file to what it has already written.
    retries = ["--retry", "3", "--retry-max-time", "15"]
    try:
        # 23: curl could not write because the output is no longer read.
        return _Program(url, ["curl", "-fsSL", *retries, *timeouts, "--", url], 23)
    except FileNotFoundError:
        raise OSError(f"{url} needs the program curl, which is not installed") from None


class _Program:
    """The output of a program; exit status ``allowed`` counts as success, too."""

    def __init__(self, url: str, command: str | list[str], allowed: int = 0) -> None:
        self._url, self._allowed = url, allowed
        # In a new session, Ctrl-C does not reach the program, so that training can finish its
        # batch; and all that a shell starts can be killed together.
        self._process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self.read = self._output.read
        _running.add(self)

    def close(self) -> None:
        """Wait for the program; OSError if it failed."""
        try:
            self._output.close()
            status = self._process.wait()
        finally:
            self.kill()
        if status not in (*_SUCCESS, self._allowed):
            raise OSError(f"{self._url}: the program failed with exit status {status}")

    def abandon(self) -> None:
        """Kill the program and wait for its end."""
        self.kill()
        self._output.close()
        self._process.wait()

    def kill(self) -> None:
        """Kill the program and its children, without waiting for them."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


_running: weakref.WeakSet[_Program] = weakref.WeakSet()


def kill_programs() -> None:
    """Kill all programs that this process reads from, before it exits."""
    for program in list(_running):
        program.kill()


class _Remote:
    """A file read by fsspec; any exception of its packages becomes an OSError."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url
        file = self._call(lambda: fsspec.open(url, "rb").open())
        self.close = self.abandon = file.close
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._call(lambda: self._read(size))
        return data

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            raise OSError(f"{self._url}: {str(error) or type(error).__name__}") from error


def find_file(url: str, cache: str | Path | None) -> Path | None:
    """A shard's file, or its copy in the folder ``cache``; None if it has to be streamed."""
    if is_local(url):
        return local_path(url)
    return None if cache is None else _fetch(url, Path(cache))


def _fetch(url: str, cache: Path) -> Path:
    """The copy of ``url`` in ``cache``, downloaded if it does not exist yet."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    tail = re.sub(r"[^\w.-]", "_", url.rsplit("/", 1)[-1])[-60:]
    target = cache / f"{digest}-{tail}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        remove_abandoned(cache)
        partial = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with open_shard(url) as stream, open(partial, "wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return target
