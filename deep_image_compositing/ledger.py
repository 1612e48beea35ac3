"""The ledger of a job that can be taken up again: what it is made from, and what is finished.

A file of JSON lines: what the job is made from, then an entry for each piece of finished work, each
with one write, so that processes can share the file. Of several entries of one key the last counts;
a line that a kill has torn does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import ImageError
from deep_image_compositing.files import write_bytes


class Ledger:
    """What a job has finished, by the file at ``path``; ``ImageError`` if it cannot be used.

    ``about`` is what the job is made from, None without a ledger; ``entries`` are by key, as they
    were when the file was last read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.read()

    def read(self) -> None:
        """Read the file again: what other processes have added."""
        self.about: dict[str, Any] | None = None
        self.entries: dict[str, dict[str, Any]] = {}
        try:
            lines = self.path.read_bytes().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read: {error.strerror}") from error
        for line in lines:
            try:
                content = json.loads(line)
                if "about" in content:
                    self.about = dict(content["about"])
                else:
                    self.entries[content["key"]] = dict(content["entry"])
            except (ValueError, KeyError, TypeError):
                continue  # torn, and so not done

    def begin(self, about: Mapping[str, Any]) -> None:
        """Say what the job is made from, before any process adds, and leave one line an entry."""
        self.about = dict(about)
        lines = [_line({"key": key, "entry": entry}) for key, entry in self.entries.items()]
        write_bytes(self.path, b"".join([_line({"about": self.about}), *lines]))

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Note that the work called ``key`` is finished, and how."""
        line = _line({"key": key, "entry": entry})
        try:
            with self._lock, open(self.path, "ab", buffering=0) as file:
                if file.write(line) < len(line):
                    raise OSError(28, os.strerror(28))  # the disk is full
        except OSError as error:
            raise ImageError(f"{self.path} could not be written: {error.strerror}") from error
        self.entries[key] = dict(entry)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two descriptions of a job, as JSON has them: both values by name."""
    now = json.loads(json.dumps(now))
    names = (name for name in {**now, **before} if before.get(name) != now.get(name))
    return {name: (before.get(name), now.get(name)) for name in names}


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"
