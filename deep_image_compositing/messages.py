"""What the commands say: every line that people read in a terminal goes through here.

Names of files may hold any character. One that would move the cursor, colour the screen or begin
a line of its own is shown by its number, as Python writes it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

PROGRAM = "deep-image-compositing"

_BETWEEN_LINES = 60.0  # seconds
_log = logging.getLogger("deep_image_compositing")

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


@contextlib.contextmanager
def progress(
    label: str, total: int, show: bool, unit: str = "samples"
) -> Iterator[Callable[[int], None]]:
    """Show how far a single job is, as ``reporting`` does; gives the function that moves it."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        report(label, done, total)

    with reporting(unit) if show else contextlib.nullcontext(lambda *_: None) as report:
        advance(0)
        yield advance


@contextlib.contextmanager
def reporting(unit: str, more: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Show what is being done: a bar with rate and time left on a terminal, elsewhere log lines.

    Args:
        unit: what is counted, such as ``photographs``.
        more: added to each label.

    Yields:
        The function to call with a label, how many are done, and how many there are.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed or 0
            return Text(f"{speed:.{1 if speed >= 1 else 2}f} {unit}/s")

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=None)
            yield lambda label, done, total: bar.update(
                task, description=escape(printable(label + more)), completed=done, total=total
            )
        return
    last, when = "", time.monotonic()

    def line(label: str, done: int, total: int) -> None:
        nonlocal last, when
        if label != last or done >= total or time.monotonic() - when >= _BETWEEN_LINES:
            last, when = label, time.monotonic()
            _log.info("%s: %d of %d are done%s", label, done, total, more)

    yield line
