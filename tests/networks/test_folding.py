"""Folded networks answer as before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deep_image_compositing import Compositor, Segmenter, registry
from deep_image_compositing.networks.folding import fold_norms
from deep_image_compositing.stages.making import make_stage

LEARNED = [(one.slot, one.name) for one in registry.list_stages() if one.weights]


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


@pytest.mark.parametrize(("slot", "name"), LEARNED)
def test_a_folded_stage_answers_as_before(slot: str, name: str) -> None:
    plain = registry.get(slot, name).make({"weights": "default"}, model=True).eval()
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    assert norms(folded) <= norms(plain) // 3
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(1, 3, 70, 90, generator=generator) for _ in range(2)]
    edge = ((torch.arange(90) - 40) / 8 + 0.5).clamp(0, 1).expand(1, 1, 70, 90)
    given = {"segmenter": pictures[:1], "refiner": [pictures[0], edge], "fuser": [*pictures, edge]}
    given["harmonizer"] = given["refiner"]
    with torch.inference_mode():
        torch.testing.assert_close(folded(*given[slot]), plain(*given[slot]), atol=1e-4, rtol=0)


def test_a_compositor_folds_what_it_makes_and_nothing_else() -> None:
    own = registry.create("refiner", "cascade", weights="default")
    before = norms(own)
    compositor = Compositor(refiner=own, device="cpu")
    assert norms(compositor.segmenter) < 10  # type: ignore[arg-type]
    assert norms(own) == before


def test_norms_whose_order_is_not_known_stay() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.convolution(x)

    module = Parallel().eval()
    fold_norms(module)
    assert norms(module) == 1


def test_stages_of_others_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tapped(Segmenter):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layers[0](image).sigmoid()

    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.register("segmenter", "tapped", description="looks into its layers")(Tapped)
    assert norms(make_stage("segmenter", "tapped", model=True)) == 1  # type: ignore[arg-type]
