"""What several commands ask of their arguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import UsageError
from deep_image_compositing.files import take

TRANSPARENT = ("cutout", "shadow", "shadowed")
"""What ``Composite.save`` writes with an alpha."""


def slot_and_name(stage: str) -> tuple[str, str]:
    """The parts of ``--stage SLOT/NAME``."""
    slot, _, name = stage.partition("/")
    if not name:
        raise UsageError(f"--stage is a slot and a name, as in segmenter/pyramid: {stage!r}")
    return slot, name


def launched(variable: str, given: int | None) -> int:
    """The number of devices or nodes: as given, else as torchrun says, else 1."""
    return int(os.environ.get(variable, "1")) if given is None else given


def real_paths(*given: Any) -> set[str]:
    """The files themselves, whatever links lead to them; what is no path names none."""
    return {os.path.realpath(path) for path in given if isinstance(path, (str, os.PathLike))}


def check_outputs(outputs: dict[str, Path], taken: set[str]) -> None:
    """Find before the slow work what would stop the outputs from being written.

    ``taken`` are the files that must not be overwritten; the outputs join them. Raises
    ``UsageError`` or ``ImageError``, as ``Composite.save`` would.
    """
    from deep_image_compositing.images import check_writable

    for key, path in outputs.items():
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give a file name to write to")
        check_writable(path, alpha=key in TRANSPARENT)
    take(outputs.values(), taken)
