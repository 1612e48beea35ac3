"""Terminal output of the commands: messages, safe printing of file names, and progress bars."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

PROGRAM = "deep-image-compositing"

_BETWEEN_LINES = 60.0  # seconds
_JOINERS = "\u200c\u200d"  # invisible, but some scripts and emoji need them
_log = logging.getLogger("deep_image_compositing")


def printable(text: object, *, lines: bool = False) -> str:
    """Escape control characters, which file names may contain; line ends too unless ``lines``."""
    allowed = _JOINERS + ("\n" if lines else "")
    return "".join(
        char if char.isprintable() or char in allowed else ascii(char)[1:-1] for char in str(text)
    )


def show(text: object, *, file: TextIO | None = None, lines: bool = False) -> None:
    """Print to ``file``, by default standard output, through ``printable``."""
    print(printable(text, lines=lines), file=file or sys.stdout)


def say(message: object, *, lines: bool = False) -> None:
    """Print a message to standard error, prefixed with the program's name."""
    show(f"{PROGRAM}: {message}", file=sys.stderr, lines=lines)


@contextlib.contextmanager
def progress(
    label: str, total: int, show: bool, unit: str = "samples"
) -> Iterator[Callable[[int], None]]:
    """Report the progress of one task if ``show``; yields a function to advance it by some steps.

    See ``reporting``.
    """
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
    """Report progress: a bar with rate and remaining time on a terminal, log lines elsewhere.

    Yields a function of a label, the number done, and the total. ``unit`` is what is counted, such
    as ``photographs``; ``more`` is appended to the label.
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
    last_label, last_time = "", time.monotonic()

    def log(label: str, done: int, total: int) -> None:
        nonlocal last_label, last_time
        now = time.monotonic()
        if label != last_label or done >= total or now - last_time >= _BETWEEN_LINES:
            last_label, last_time = label, now
            _log.info("%s: %d of %d are done%s", label, done, total, more)

    yield log
