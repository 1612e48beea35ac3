"""Renders the templates beside this file: reports, the study's page, and its scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader


def render(template: str, **values: Any) -> str:
    """The page that a template gives for these values; Markdown is not escaped."""
    page = _environment(not template.endswith(".md")).get_template(template).render(**values)
    return page.rstrip() + "\n"


@functools.cache
def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("deep_image_compositing.evaluation"),
        trim_blocks=True, lstrip_blocks=True, autoescape=autoescape,
    )  # fmt: skip
    environment.filters |= {"counted": counted, "escaped": _escaped, "listed": listed}
    environment.filters |= {"line": lambda text: " ".join(text.splitlines()), "capital": capital}
    return environment


def _escaped(text: str) -> str:
    """``text`` with Markdown's special characters escaped."""
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
    """``text`` with its first letter capitalized."""
    return text[:1].upper() + text[1:]
