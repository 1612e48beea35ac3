"""Where shards come from: paths, web servers, cloud storage and programs, all as byte streams."""

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

SECURE_VARIABLE = "WDS_SECURE"
"""Environment variable that, when it is set to 1, forbids ``pipe:``; WebDataset's own."""

_CHUNK = 2**20
_BROKEN_PIPE = 13
_LEFT = (0, 128 + _BROKEN_PIPE, -_BROKEN_PIPE)
"""How a program ends whose output was read as far as it was wanted."""


def is_local(url: str) -> bool:
    """Whether ``url`` is a path (or ``file:``) rather than something that is transferred."""
    scheme = re.match(r"([A-Za-z][\w+.-]+):", url)  # one letter is a drive of Windows
    return scheme is None or scheme[1] == "file"


def local_path(url: str) -> Path:
    """The path of a local shard."""
    return Path(urlsplit(url).path if url.startswith("file:") else url)


def expand(pattern: str) -> list[str]:
    """Shards that a pattern names: braces as in ``{000..009}``, ``::`` between several, globs.

    ``UsageError`` for a glob that matches no file, or as ``check_url``.
    """
    from webdataset.shardlists import expand_urls

    found: list[str] = []
    for url in expand_urls(pattern):
        if not is_local(url):
            check_url(url)
            found.append(url)
        elif re.search(r"[*?]", url):
            matches = sorted(glob.glob(str(local_path(url))))
            if not matches:
                raise UsageError(f"no shard matches {url}")
            found.extend(matches)
        else:
            found.append(url)
    return found


def check_url(url: str) -> None:
    """Raise ``UsageError`` for a URL that nothing reads, or that may not run its program."""
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
        except (ImportError, ValueError) as error:  # it names the package to install
            raise UsageError(f"{url} cannot be read: {error}") from None


@contextlib.contextmanager
def open_shard(url: str) -> Iterator[IO[bytes]]:
    """Open a shard by path or URL.

    ``https://`` is read by curl, which gives up on a stalled transfer after a minute; ``pipe:``
    runs the rest as a shell command and reads what it prints; ``s3://``, ``gs://`` and the others
    are read by fsspec, by way of the package that it names for them. ``OSError`` where it cannot be
    opened, or its transfer fails.
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
            stream.close()  # it was cut short: if the program failed, that is the reason
        # Left in the middle: that the program behind it then complains says nothing.
        stream.abandon()
        raise
    stream.close()  # raises when the program failed


def _open_url(url: str) -> _Program | _Remote:
    check_url(url)
    scheme = url.partition(":")[0]
    if scheme == "pipe":
        return _Program(url, url.removeprefix("pipe:"))
    if scheme not in ("http", "https"):
        return _Remote(url)
    patience = ["--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "60"]
    # Only what fails at once, as a busy server does, is asked for again: after a transfer that
    # stalled, curl would write the file from its start behind what it has written already.
    again = ["--retry", "3", "--retry-max-time", "15"]
    try:
        # 23: curl could not write, because nobody reads any more.
        return _Program(url, ["curl", "-fsSL", *again, *patience, "--", url], 23)
    except FileNotFoundError:
        raise OSError(f"{url} needs the program curl, which is not installed") from None


class _Program:
    """What a program prints; its exit status may be 0, that of a broken pipe, or ``fine``."""

    def __init__(self, url: str, command: str | list[str], fine: int = 0) -> None:
        self._url, self._fine = url, fine
        # A session of its own: Ctrl-C stops the training, which first finishes its batch; and
        # whatever a shell starts can be ended together with it.
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
        """Wait for the program; OSError when it failed."""
        try:
            self._output.close()
            status = self._process.wait()
        finally:
            self.kill()
        if status not in (*_LEFT, self._fine):
            raise OSError(f"{self._url}: the program failed with exit status {status}")

    def abandon(self) -> None:
        """End the program, whatever it is at."""
        self.kill()
        self._output.close()
        self._process.wait()

    def kill(self) -> None:
        """End the program and what it has started, without waiting for them."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


_running: weakref.WeakSet[_Program] = weakref.WeakSet()


def kill_programs() -> None:
    """End all programs that this process reads from; for one that is about to end itself."""
    for program in list(_running):
        program.kill()


class _Remote:
    """A file that fsspec reads; whatever its packages raise is an OSError."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url
        file = self._named(lambda: fsspec.open(url, "rb").open())
        self.close = self.abandon = file.close
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._named(lambda: self._read(size))
        return data

    def _named(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            raise OSError(f"{self._url}: {str(error) or type(error).__name__}") from error


def find_file(url: str, cache: str | Path | None) -> Path | None:
    """The file of a shard, or its copy in the folder ``cache``; None where it is to be streamed."""
    if is_local(url):
        return local_path(url)
    return None if cache is None else _fetch(url, Path(cache))


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
                shutil.copyfileobj(stream, file, _CHUNK)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    return target
