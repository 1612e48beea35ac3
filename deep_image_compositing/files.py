"""What is told of files before they are opened; whoever opens one that a user names asks here."""

from __future__ import annotations

import os
import re
import stat

from deep_image_compositing.errors import CompositingError

_OWN_STREAM = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


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
    for found, kind in _KINDS:
        if found(mode):
            raise error(f"{os.fsdecode(path)} is {kind}, not a file; give a file")
