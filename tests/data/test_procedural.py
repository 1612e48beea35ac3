"""Alphas drawn from rules."""

from __future__ import annotations

import numpy as np
import pytest

from deep_image_compositing.data.procedural import KINDS, draw_alpha
from deep_image_compositing.errors import UsageError


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_an_outline_with_something_fine(kind: str) -> None:
    soft, crossing = [], 0
    for seed in range(8):
        alpha = np.asarray(draw_alpha(np.random.default_rng(seed), 64, kind), np.float32) / 255
        assert alpha.shape == (64, 64)
        soft.append(((alpha > 0.05) & (alpha < 0.95)).mean())
        crossing += bool((alpha > 0.5).any() and (alpha < 0.05).any())
    assert crossing >= 6
    # A plain anti-aliased outline across the picture would be soft in about 1.5 % of it.
    assert np.mean(soft) > 0.025


def test_the_same_seed_draws_the_same_alpha() -> None:
    first, again, other = (draw_alpha(np.random.default_rng(seed), 48) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_all_kinds_are_drawn_and_the_shares_add_up() -> None:
    assert sum(share for _, share in KINDS.values()) == pytest.approx(1)


@pytest.mark.parametrize(("size", "kind"), [(7, None), (64, "feathers")])
def test_what_cannot_be_drawn_is_named(size: int, kind: str | None) -> None:
    with pytest.raises(UsageError, match="at least 8, got 7" if kind is None else "feathers"):
        draw_alpha(np.random.default_rng(0), size, kind)
