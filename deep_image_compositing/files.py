"""Check files before they are opened, and write them atomically."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import CompositingError, ImageError, UsageError, reason_of

_OWN_STREAM = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")

_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def at_home(path: str | os.PathLike[str]) -> Path:
    """Expand ``~`` and ``~name``; an unknown user's name is left unchanged."""
    return Path(os.path.expanduser(path))


def check_regular(path: str | os.PathLike[str], error: type[CompositingError]) -> None:
    """Raise ``error`` for a pipe, a device or a socket, which may never end or block forever.

    Pipes that the process inherits are allowed: ``/dev/stdin``, and the ``/dev/fd/63`` of the
    shell's ``<(command)``. Missing files are left to ``open``.
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
    """Write a file atomically; ``ImageError`` if that fails."""
    write_files([(path, data)])


def write_files(files: Iterable[tuple[str | os.PathLike[str], bytes]]) -> None:
    """Write all files under temporary names, then rename all; ``ImageError`` if that fails."""
    temporary: dict[Path, Path] = {}
    path: str | os.PathLike[str] = ""
    try:
        for path, data in files:
            target = check_target(path)
            part = target.with_name(f".{secrets.token_hex(8)}.part")
            temporary[target] = part
            with open(part, "xb") as file:
                file.write(data)
            if target.exists():
                os.chmod(part, stat.S_IMODE(target.stat().st_mode))
        for path, part in temporary.items():
            os.replace(part, path)
    except OSError as error:
        raise ImageError(f"{path} could not be written: {reason_of(error)}") from error
    finally:
        for part in temporary.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents unless they exist; ``ImageError`` if that fails."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"the folder {path} cannot be made: {reason_of(error)}") from error
    return folder


def real_paths(*sources: Any) -> set[str]:
    """Those of the sources that are paths of files, links resolved."""
    paths = (source for source in sources if isinstance(source, (str, os.PathLike)))
    return {os.path.realpath(path) for path in paths if os.path.isfile(path)}


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files of killed downloads: those that have not grown for an hour."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process may remove it as well
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()


def check_target(path: str | os.PathLike[str]) -> Path:
    """The file that writing to ``path`` replaces, links resolved; ``ImageError`` if it cannot."""
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
    """Add ``paths``, links resolved, to ``taken``; ``UsageError`` if one is in it already."""
    for path in paths:
        real = os.path.realpath(path)
        if real in taken:
            raise UsageError(f"{path} is also an input or another output; give another file name")
        taken.add(real)
