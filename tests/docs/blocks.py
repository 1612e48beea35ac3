"""Extracts the fenced code blocks of README.md and the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = "deep-image-compositing"


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: file name of the page.
        line: number of its first line.
        language: language of the fence, such as ``bash``.
        text: the lines between the fences.
        not_run: why the tests skip it, from the comment ``<!-- not run: why -->`` above it.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def calls(self) -> list[tuple[int, str]]:
        """Return its commands with their line numbers."""
        lines = enumerate(self.text.splitlines(), self.line)
        return [(number, line) for number, line in lines if line and not line.startswith("#")]


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the page's blocks in these languages, in order."""
    text = page.read_text()
    pattern = r"(?:^<!-- not run: (.+?) -->\n)?^```(\w+)\n(.*?)^```$"
    return [
        Block(page.name, text.count("\n", 0, match.start(3)) + 1, match[2], match[3], match[1])
        for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
        if match[2] in languages
    ]
