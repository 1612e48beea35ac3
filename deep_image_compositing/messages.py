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
_JOINERS = "\u200c\u200d"  # invisible, but some scripts and some emoji are written with them
_log = logging.getLogger("deep_image_compositing")


def printable(text: object, *, lines: bool = False) -> str:
    """``str(text)`` with its control characters escaped, ends of lines too unless ``lines``."""
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

    Gives the function to call with a label, to which ``more`` is added, how many are done, and how
    many there are; ``unit`` is what is counted, such as ``photographs``.
    """
    from rich import progress as bars
    from rich.console import Console
    from rich.markup import escape

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> str:
            speed = task.finished_speed or task.speed or 0
            return f"{speed:.{1 if speed >= 1 else 2}f} {unit}/s"

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
            Rate(), bars.TimeRemainingColumn(),
        )  # fmt: skip
        with bars.Progress(*columns, console=console) as bar:
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
