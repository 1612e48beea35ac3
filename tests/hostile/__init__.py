"""Hostile cases for ``tests.fuzz``: valid files and requests that are damaged at random.

Each reader in ``TURNS`` makes a case from a random generator and an empty folder, and returns a
function that reads it.
"""

from __future__ import annotations

import os

from tests.cases import Reader
from tests.hostile.pictures import masks, photographs, pictures
from tests.hostile.requests import requests, sound_study
from tests.hostile.shards import shards, sound_shards
from tests.hostile.stages import configs, options, sound_stages, weights

TURNS: tuple[Reader, ...] = (
    *[photographs] * 8, *[masks] * 3, *[shards] * 4, *[weights] * 4, configs, *[options] * 2,
    *[requests] * 3,
)  # fmt: skip
"""The readers of the cases, in turn; quick ones have more turns."""


def warm() -> None:
    """Import and create what the cases share, so that it does not count towards their limits."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from deep_image_compositing import registry, training

    assert training
    pictures(), sound_shards(), sound_stages(), sound_study()
    for name in ("closed_form", "knn", "information_flow"):
        registry.create("refiner", name)
