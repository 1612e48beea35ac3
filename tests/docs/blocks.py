"""The fenced blocks of README.md and the pages of the documentation, as they stand there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = "deep-image-compositing"


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Attributes:
        page: file name of the page.
        line: number of the line after the opening fence.
        language: what the fence says, such as ``bash``.
        text: the lines between the fences.
        not_run: why the tests do not run it: the comment ``<!-- not run: why -->`` above it.
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
        """Its lines that call something, with their numbers."""
        lines = enumerate(self.text.splitlines(), self.line)
        return [(number, line) for number, line in lines if line and not line.startswith("#")]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's fenced blocks of these languages, in order."""
    text = page.read_text()
    pattern = r"(?:^<!-- not run: (.+?) -->\n)?^```(\w+)\n(.*?)^```$"
    return [
        Block(page.name, text.count("\n", 0, found.start(3)) + 1, found[2], found[3], found[1])
        for found in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
        if found[2] in languages
    ]
