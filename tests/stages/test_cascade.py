"""The cascade refiner beyond its contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing.functional.resize import resize
from deep_image_compositing.models.refinement.cascade import BELIEF
from deep_image_compositing.registry import create
from tests.functional.test_exactness import rough, strands

SMALL: dict[str, Any] = {"backbone": "test_efficientnet", "width": 8}


def test_each_stage_runs_at_its_size_and_takes_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = create(
        "refiner", "cascade", sizes=(32, 48, 640), confidence=3.0, trust=1, zoom=1, **SMALL
    ).eval()
    seen: list[tuple[tuple[int, ...], float]] = []

    def logits(image: Tensor, mask: Tensor) -> Tensor:
        seen.append((tuple(mask.shape[-2:]), float(mask.mean())))
        return torch.full_like(mask, float(len(seen)))

    monkeypatch.setattr(stage, "logits", logits)
    stage(torch.rand(1, 3, 40, 80), torch.full((1, 1, 40, 80), 0.25))
    assert [size for size, _ in seen] == [(16, 32), (24, 48), (40, 80)]
    means = [0.25, *(3 * torch.tensor([1.0, 2.0])).sigmoid().tolist()]
    assert [mean for _, mean in seen] == pytest.approx(means, abs=1e-5)


def test_the_surroundings_of_the_subject_are_seen_enlarged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = create("refiner", "cascade", sizes=(64,), margin=0.25, zoom=1.5, **SMALL).eval()
    seen: list[Tensor] = []
    monkeypatch.setattr(
        stage, "logits", lambda image, mask: seen.append(image) or torch.full_like(mask, 9.0)
    )
    image, mask = torch.rand(2, 3, 100, 120), torch.zeros(2, 1, 100, 120)
    mask[0, :, 20:40, 30:70] = 1  # with a quarter of 40 around it 40 x 60
    mask[1] = 1  # fills the picture
    alpha = stage(image, mask)
    assert [tuple(part.shape[-2:]) for part in seen] == [(43, 64), (53, 64)]
    assert torch.allclose(seen[0], resize(image[:1, :, 10:50, 20:80], (43, 64)).clamp(0, 1))
    assert alpha[0, :, 10:50, 20:80].min() > 0.98
    assert alpha[0].sum() == alpha[0, :, 10:50, 20:80].sum()
    assert alpha[1].min() > 0.98
    seen.clear()
    stage.zoom = 1.0  # 40 x 60 pixels are then not magnified to 64
    stage(image[:1], mask[:1])
    assert tuple(seen[0].shape[-2:]) == (40, 60)


def test_trust_strengthens_the_given_mask_at_test() -> None:
    torch.manual_seed(0)
    options = {"sizes": (48,), "confidence": 1.0, **SMALL}
    stage = create("refiner", "cascade", trust=2.0, **options).eval()
    image, mask = torch.rand(1, 3, 48, 48), torch.rand(1, 1, 48, 48)
    # Untrained, the network adds nothing: what is left is the belief in the mask.
    wanted = (2 * BELIEF * (2 * mask - 1)).sigmoid()
    assert torch.allclose(stage(image, mask), wanted, atol=1e-5)
    assert torch.allclose(stage.logits(image, mask), BELIEF * (2 * mask - 1), atol=1e-5)


def test_a_good_alpha_is_not_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph, alpha = strands()
    stage = create("refiner", "cascade", sizes=(64,), **SMALL).eval()
    monkeypatch.setattr(stage, "logits", lambda image, mask: torch.full_like(mask, -9.0))
    assert torch.equal(stage(photograph, alpha), alpha)
    both = stage(photograph.repeat(2, 1, 1, 1), torch.cat([alpha, rough(alpha)]))
    assert torch.equal(both[:1], alpha)
    assert both[1].max() < 0.01
    stage.keep_good = False
    assert stage(photograph, alpha).max() < 0.01
