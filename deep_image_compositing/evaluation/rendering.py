"""Pages from the templates beside this file: reports, the study's page, and its scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader


def render(template: str, **values: Any) -> str:
    """A page made from one of the templates."""
    return (
        _environment(not template.endswith(".md")).get_template(template).render(**values).rstrip()
        + "\n"
    )


@functools.cache
def _environment(autoescape: bool) -> Environment:
    pages = Environment(
        loader=PackageLoader("deep_image_compositing.evaluation"),
        trim_blocks=True, lstrip_blocks=True, autoescape=autoescape,
    )  # fmt: skip
    pages.filters |= {"counted": counted, "escaped": _escaped, "listed": listed}
    pages.filters |= {"line": lambda text: " ".join(text.splitlines()), "capital": capital}
    return pages


def _escaped(text: str) -> str:
    """``text`` without what Markdown takes for its own."""
    for character in "\\|*_<>[]`":
        text = text.replace(character, f"\\{character}")
    return text


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 person``, ``2 people``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(parts: Sequence[str]) -> str:
    """``one, two and three``."""
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def capital(text: str) -> str:
    """The same with its first letter as a capital one."""
    return text[:1].upper() + text[1:]
