"""Options of stages: what is refused before a constructor sees it, and in which words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from deep_image_compositing import registry
from deep_image_compositing.errors import UsageError
from deep_image_compositing.options import accepted_options, check_options
from tests.conftest import DiscSegmenter


def taker(
    count: int = 1,
    share: float = 0.5,
    name: str | None = None,
    sure: bool = False,
    sizes: Sequence[int] = (1,),
    widths: tuple[float, ...] = (),
    pair: tuple[int, str] = (1, ""),
    flags: tuple[bool, ...] = (),
    head: Literal["layers", "rgb"] = "rgb",
    limits: tuple[int, ...] | None = None,
    call: Callable[[], None] | None = None,
    table: Mapping[str, int] | None = None,
    free=None,  # type: ignore[no-untyped-def]
) -> None: ...


GOOD: list[dict[str, Any]] = [
    {"count": 3, "share": 1, "name": "a", "sure": True},
    {"name": None, "limits": [1, 2]},
    {"limits": None},
    {"name": Path("file.safetensors"), "sizes": [640], "widths": [1, 2.5], "pair": [1, "a"]},
    {"head": "layers", "call": print, "table": {"a": 1}, "free": object()},
]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"count": 2.5}, "'count' of the refiner 'taker' is a whole number, got 2.5"),
    ({"count": True}, "a whole number, got True"),
    ({"share": "wide"}, "'share' of the refiner 'taker' is a number, got 'wide'"),
    ({"share": 10**20}, "is a number, got 1000"),
    ({"share": math.nan}, "is a number, got nan"),
    ({"widths": [1, math.inf]}, r"is a list of numbers, got \[1, inf\]"),
    ({"name": 3}, "is text or null, got 3"),
    ({"sure": "yes"}, "is true or false, got 'yes'"),
    ({"sizes": 640}, "is a list of whole numbers, got 640"),
    ({"sizes": [640, "big"]}, r"is a list of whole numbers, got \[640, 'big'\]"),
    ({"widths": "1,2"}, "is a list of numbers, got '1,2'"),
    ({"pair": [1]}, r"is a list of 2: a whole number, text, got \[1\]"),
    ({"flags": [1]}, r"is a list, each item true or false, got \[1\]"),
    ({"head": "both"}, "is 'layers' or 'rgb', got 'both'"),
    ({"limits": 1}, "is a list of whole numbers or null, got 1"),
]


@pytest.mark.parametrize("options", GOOD)
def test_what_fits(options: dict[str, Any]) -> None:
    check_options("refiner", "taker", taker, options)


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_does_not_fit_is_said_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_options("refiner", "taker", taker, options)


def test_options_of_bases_are_known_and_of_free_factories_not_asked() -> None:
    taken = accepted_options(DiscSegmenter)
    assert taken is not None
    assert {"softness", "learning_rate", "picture_every"} <= taken[0]

    def factory(**kwargs: object) -> None: ...

    assert accepted_options(factory) is None


ENTRIES = [(entry.slot, entry.name) for entry in registry.list_stages()]


@pytest.mark.parametrize(("slot", "name"), ENTRIES)
def test_no_option_of_a_stage_takes_just_anything(slot: str, name: str) -> None:
    accepted = accepted_options(registry.get(slot, name).factory)
    assert accepted is not None
    options, needed = accepted
    given = dict.fromkeys(needed, "text")
    for option in options:
        with pytest.raises(UsageError, match=f"the option '{option}' of the {slot} '{name}' is"):
            registry.create(slot, name, **{**given, option: object()})
