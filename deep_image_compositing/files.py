"""Files as a whole: what is told of them before they are opened, and the one way to write them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from deep_image_compositing.errors import CompositingError, ImageError, UsageError

_OWN_STREAM = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")

_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def at_home(path: str | os.PathLike[str]) -> Path:
    """The path, ``~`` and ``~name`` as home folders; as it is where nobody has that name."""
    return Path(os.path.expanduser(path))


def check_regular(path: str | os.PathLike[str], error: type[CompositingError]) -> None:
    """Raise ``error`` for a pipe, a device or a socket, which may have no end or never answer.

    What the process has been handed itself is taken: ``/dev/stdin``, and the ``/dev/fd/63`` of
    the shell's ``<(command)``. That nothing is there, opening it will tell.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISFIFO(mode) and _OWN_STREAM.fullmatch(os.path.abspath(os.fsdecode(path))):
        return
    if kind := _KINDS.get(stat.S_IFMT(mode)):
        raise error(f"{os.fsdecode(path)} is {kind}, not a file; give a file")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: aside in the same folder, then renamed; ``ImageError``."""
    write_files([(path, data)])


def write_files(files: Iterable[tuple[str | os.PathLike[str], bytes]]) -> None:
    """Write each aside, then rename all; nothing is left when anything fails before that."""
    asides: dict[Path, Path] = {}
    path: str | os.PathLike[str] = ""
    try:
        for path, data in files:
            target = check_target(path)
            aside = target.with_name(f".{secrets.token_hex(8)}.part")
            asides[target] = aside
            with open(aside, "xb") as file:
                file.write(data)
            if target.exists():
                os.chmod(aside, stat.S_IMODE(target.stat().st_mode))
        for path, aside in asides.items():
            os.replace(aside, path)
    except OSError as error:
        raise ImageError(f"{path} could not be written: {reason_of(error)}") from error
    finally:
        for aside in asides.values():
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def check_target(path: str | os.PathLike[str]) -> Path:
    """The file that writing to ``path`` would replace, links resolved, after the checks."""
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise ImageError(f"{path} is a folder; give a file name to write to")
        check_regular(path, ImageError)
        if not target.parent.is_dir():
            raise ImageError(f"{path} cannot be written: the folder {target.parent} does not exist")
        writable = os.access(target if target.exists() else target.parent, os.W_OK)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be written: {reason_of(error)}") from error
    if not writable:
        raise ImageError(f"{path} cannot be written: permission denied")
    return target


def take(paths: Iterable[str | os.PathLike[str]], taken: set[str]) -> None:
    """Add what is to be written to the files ``taken``, links resolved; ``UsageError`` if it is."""
    for path in paths:
        real = os.path.realpath(path)
        if real in taken:
            raise UsageError(f"{path} is also an input or another output; give another file name")
        taken.add(real)


def reason_of(error: BaseException) -> str:
    """The error in a few words: the operating system's, else its message, else its type."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
