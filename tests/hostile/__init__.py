"""Hostile cases for ``tests.fuzz``: sound files and requests, and what is done to them.

Each of ``TURNS`` makes one case out of a random generator and an empty folder, and returns what
reads it.
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
"""Who reads the cases, one after another; some are quicker than others."""


def warm() -> None:
    """Import and make what the cases share, so that none of them has to wait for it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from deep_image_compositing import registry, training

    assert training
    pictures(), sound_shards(), sound_stages(), sound_study()
    for name in ("closed_form", "knn", "information_flow"):
        registry.create("refiner", name)
