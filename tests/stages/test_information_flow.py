"""The refiner around information flow: its trimaps, limits and options."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.errors import MissingExtraError, UsageError

pytest.importorskip("scipy")


def scene(height: int = 37, width: int = 53) -> tuple[Tensor, Tensor, Tensor]:
    """A warm soft-edged disc on a cold textured background: image, trimap and alpha."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = ((y - 0.45 * height) ** 2 + (x - 0.4 * width) ** 2).sqrt() - 0.3 * height
    alpha = (0.5 - distance / 6).clamp(0, 1)[None, None]
    texture = 0.15 * torch.rand(2, 1, 3, height, width, generator=generator)
    front = texture[0] + torch.tensor([0.8, 0.4, 0.1]).view(1, 3, 1, 1)
    back = texture[1] + torch.tensor([0.1, 0.3, 0.7]).view(1, 3, 1, 1)
    trimap = torch.where(distance.abs() < 4, 0.5, (alpha > 0.5).float())
    return back + alpha * (front - back), trimap, alpha


def refiner(**options: Any) -> Any:
    return registry.create("refiner", "information_flow", **options)


def test_better_than_the_mask_it_was_given_and_the_same_each_time() -> None:
    image, _, truth = scene()
    rough = (truth > 0.5).float().roll(1, 3)
    alpha = refiner(band=0.1)(image, rough)
    assert (alpha - truth).abs().mean() < 0.6 * (rough - truth).abs().mean()
    assert torch.equal(refiner(band=0.1)(image, rough), alpha)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (5, 3), (7, 8)])
@pytest.mark.parametrize("flat", [True, False])
def test_hardly_any_pixels(size: tuple[int, int], flat: bool) -> None:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    if flat:
        image = torch.full_like(image, 0.5)
    for value in (0.0, 0.5, 1.0):
        trimap = torch.full((1, 1, *size), value)
        trimap.view(-1)[0], trimap.view(-1)[-1] = 0, 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            alpha = refiner(trimap="given")(image, trimap)
        assert alpha.isfinite().all()
        assert torch.equal(alpha[trimap != 0.5], trimap[trimap != 0.5])


def test_options_reach_the_method() -> None:
    image, trimap, _ = scene()
    opaque = {"trimap": "given", "transparent": False}
    alpha = refiner(**opaque)(image, trimap)
    for option, value in {
        "transparent": True,
        "trim": False,
        "mixture_neighbours": 5,
        "known_neighbours": 2,
        "unknown_neighbours": 1,
        "known_weight": 1.0,
        "unknown_weight": 1.0,
        "spatial_weight": 0.1,
        "epsilon": 1e-2,
    }.items():
        other = refiner(**{**opaque, option: value})(image, trimap)
        assert not torch.equal(other, alpha), option


@pytest.mark.parametrize(
    "option", [{"known_neighbours": 0}, {"spatial_weight": -1}, {"epsilon": 0}]
)
def test_options_are_checked(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="neighbours must be at least 1"):
        refiner(**option)


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(
        MissingExtraError, match=r"information_flow.*deep-image-compositing\[matting"
    ):
        refiner()
