"""Made pictures cost what photographs do, and are always the same."""

from __future__ import annotations

import numpy as np

from deep_image_compositing import noise


def test_made_photographs_cost_as_many_bits_as_photographs() -> None:
    picture = noise.photograph(np.random.default_rng(0), (600, 600))
    assert max(picture.size) == 600
    assert 1.2 < 8 * len(noise.jpeg(picture)) / (picture.width * picture.height) < 2.6
    mask = noise.subject(np.random.default_rng(0), picture.size)
    assert 0.1 < np.asarray(mask).mean() / 255 < 0.7


def test_made_cutouts_are_soft_and_always_the_same() -> None:
    one, same, other = (noise.matte(np.random.default_rng(seed), (200, 200)) for seed in (0, 0, 1))
    assert noise.png(one) == noise.png(same) != noise.png(other)
    alpha = np.asarray(one)[..., 3]
    assert 0.1 < (alpha == 255).mean() < 0.7
    assert 0.01 < ((alpha > 0) & (alpha < 255)).mean() < 0.5
