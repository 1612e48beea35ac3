"""The ledger of a resumable job: its settings and its finished work.

A file of JSON lines: the settings, then an entry for each piece of finished work. Each line is a
single write, so processes can share the file. The last entry of a key counts; incomplete lines are
ignored.
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
    """The finished work of a job, recorded at ``path``; ``ImageError`` if that cannot be read.

    ``about`` holds the job's settings, None without a file; ``entries`` the finished work by key,
    as of the last ``read``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.read()

    def read(self) -> None:
        """Read the file, with the entries that other processes have added."""
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
                continue  # incomplete: the work is repeated

    def begin(self, about: Mapping[str, Any]) -> None:
        """Rewrite the file with new settings and one line per entry, before any process adds."""
        self.about = dict(about)
        lines = [_line({"key": key, "entry": entry}) for key, entry in self.entries.items()]
        write_bytes(self.path, b"".join([_line({"about": self.about}), *lines]))

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Record the finished work ``key``; ``ImageError`` if that fails."""
        line = _line({"key": key, "entry": entry})
        try:
            with self._lock, open(self.path, "ab", buffering=0) as file:
                if file.write(line) < len(line):
                    raise OSError(28, os.strerror(28))  # the disk is full
        except OSError as error:
            raise ImageError(f"{self.path} could not be written: {error.strerror}") from error
        self.entries[key] = dict(entry)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings of a job that differ, after conversion to JSON types: old and new by name."""
    now = json.loads(json.dumps(now))
    names = (name for name in {**now, **before} if before.get(name) != now.get(name))
    return {name: (before.get(name), now.get(name)) for name in names}


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"
