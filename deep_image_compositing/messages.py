"""What the commands say: every line that people read in a terminal goes through here.

Names of files may hold any character. One that would move the cursor, colour the screen or begin
a line of its own is shown by its number, as Python writes it.
"""

from __future__ import annotations

import sys
from typing import TextIO

PROGRAM = "deep-image-compositing"

_JOINERS = "\u200c\u200d"
"""Invisible, but letters of some scripts and some emoji are written with them."""


def printable(text: object, *, lines: bool = False) -> str:
    """``text`` with its control characters escaped, the ends of lines among them.

    Args:
        text: of which ``str`` is taken.
        lines: leave the ends of lines as they are: for tracebacks.
    """
    kept = _JOINERS + ("\n" if lines else "")
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in shown
    )


def show(text: object, *, file: TextIO | None = None, lines: bool = False) -> None:
    """Print a line, on standard output unless told otherwise; see ``printable``."""
    print(printable(text, lines=lines), file=file or sys.stdout)


def say(message: object, *, lines: bool = False) -> None:
    """Print a message of the program on standard error."""
    show(f"{PROGRAM}: {message}", file=sys.stderr, lines=lines)
