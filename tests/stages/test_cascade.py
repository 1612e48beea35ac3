"""The cascade refiner beyond its contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.registry import create

SMALL: dict[str, Any] = {"backbone": "test_efficientnet", "width": 8}


def test_each_stage_runs_at_its_size_and_takes_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = create("refiner", "cascade", sizes=(32, 48, 640), confidence=3.0, **SMALL).eval()
    seen: list[tuple[tuple[int, ...], float]] = []

    def logits(image: Tensor, mask: Tensor) -> Tensor:
        seen.append((tuple(mask.shape[-2:]), float(mask.mean())))
        return torch.full_like(mask, float(len(seen)))

    monkeypatch.setattr(stage, "logits", logits)
    stage(torch.rand(1, 3, 40, 80), torch.full((1, 1, 40, 80), 0.25))
    assert [size for size, _ in seen] == [(16, 32), (24, 48), (40, 80)]
    means = [0.25, *(3 * torch.tensor([1.0, 2.0])).sigmoid().tolist()]
    assert [mean for _, mean in seen] == pytest.approx(means, abs=1e-5)


def test_confidence_must_be_positive() -> None:
    with pytest.raises(UsageError, match="confidence must be positive, got 0"):
        create("refiner", "cascade", confidence=0.0, **SMALL)


@pytest.mark.parametrize("sizes", [(), (16,), (320, 8)])
def test_sizes_too_small(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="at least 32 pixels"):
        create("refiner", "cascade", sizes=sizes, **SMALL)
