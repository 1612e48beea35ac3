"""Exceptions raised for invalid input and for work that cannot be done."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class CompositingError(Exception):
    """Base class; the message says what is wrong and what to do.

    The command line prints only the message and exits with status 1.
    """


class UsageError(CompositingError, ValueError):
    """An invalid argument: a wrong name, value, type or shape, whatever the files contain.

    The command line prints only the message and exits with status 2.
    """


class ImageError(CompositingError):
    """A photograph, mask or output file cannot be read or written."""


class DataError(CompositingError):
    """Training data cannot be read: a shard, a sample in it, or too many of either."""


class WeightsError(CompositingError):
    """A weights or checkpoint file cannot be used."""


class MissingExtraError(CompositingError, ImportError):
    """A feature needs an optional package that is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed: "
            f"pip install 'deep-image-compositing[{extra}]'"
        )


def error_text(error: BaseException) -> str:
    """The message for a log or table, prefixed with the class name unless it is one of ours."""
    message = str(error)
    if message and isinstance(error, CompositingError):
        return message
    return f"{type(error).__name__}: {message}".rstrip(": ")


def choices(name: str, names: Sequence[str]) -> str:
    """How the message about an unknown name ends: with the closest of ``names``, and with all."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    start = f"did you mean {near[0]!r}? There are" if near else "there are"
    return f"{start}: {', '.join(names) or 'none'}"


def reason_of(error: BaseException) -> str:
    """The operating system's text, else the first line of the message, else the class name."""
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return text or type(error).__name__
