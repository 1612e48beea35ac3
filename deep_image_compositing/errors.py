"""The errors a user can cause; everything that raises for bad input raises one of these."""

from __future__ import annotations


class CompositingError(Exception):
    """Work that could not be done: the message names what was wrong and what to do.

    The command line prints the message alone and exits with 1.
    """


class UsageError(CompositingError, ValueError):
    """A call that cannot be right, whatever the files hold: a wrong name, value or shape.

    The command line prints the message alone and exits with 2.
    """


class ImageError(CompositingError):
    """A photograph, mask or output file that could not be read or written."""


class DataError(CompositingError):
    """Training data that could not be read: a shard, a sample in it, or too many of either."""


class WeightsError(CompositingError):
    """A weights or checkpoint file that could not be used."""


class MissingExtraError(CompositingError, ImportError):
    """An optional package that this feature needs and that is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed: "
            f"pip install 'deep-image-compositing[{extra}]'"
        )


def error_text(error: BaseException) -> str:
    """What a record or a table says of an error: the message, with its kind where that is news."""
    known = isinstance(error, CompositingError)
    return str(error) if known and str(error) else f"{type(error).__name__}: {error}".rstrip(": ")


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, which may go on for pages; or its kind."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
