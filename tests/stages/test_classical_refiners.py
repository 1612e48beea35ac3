"""Refiners without training against the library or the formula they come from."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.functional.matting import guided_filter

pytest.importorskip("pymatting")

NAMES = ["closed_form", "knn", "guided_filter", "information_flow"]


def scene(height: int = 37, width: int = 53) -> tuple[Tensor, Tensor, Tensor]:
    """A warm soft-edged disc on a cold textured background: image, trimap and alpha."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = ((y - 0.45 * height) ** 2 + (x - 0.4 * width) ** 2).sqrt()
    alpha = ((0.3 * height - distance) / 5 + 0.5).clamp(0, 1)[None, None]
    texture = 0.15 * torch.rand(2, 1, 3, height, width, generator=generator)
    front = texture[0] + torch.tensor([0.8, 0.4, 0.1]).view(1, 3, 1, 1)
    back = texture[1] + torch.tensor([0.1, 0.3, 0.7]).view(1, 3, 1, 1)
    image = back + alpha * (front - back)
    trimap = torch.where((distance - 0.3 * height).abs() < 5, 0.5, (alpha > 0.5).float())
    return image, trimap, alpha


def estimate(name: str, image: Tensor, trimap: Tensor) -> Tensor:
    """What pymatting answers for the whole picture, where the trimap is unknown."""
    import pymatting

    function = {"closed_form": "estimate_alpha_cf", "knn": "estimate_alpha_knn"}[name]
    arrays = image[0].permute(1, 2, 0).double().numpy(), trimap[0, 0].double().numpy()
    alpha = torch.from_numpy(getattr(pymatting, function)(*arrays)).to(image)[None, None]
    return torch.where(trimap == 0.5, alpha, trimap)


@pytest.mark.parametrize("name", ["closed_form", "knn"])
def test_equals_pymatting_on_the_whole_picture(name: str) -> None:
    image, trimap, truth = scene()
    alpha = registry.create("refiner", name, trimap="given")(image, trimap)
    assert (alpha - estimate(name, image, trimap)).abs().max() < 1e-4
    assert (alpha - truth).abs().mean() < (trimap - truth).abs().mean() / 2


def test_the_region_changes_nothing() -> None:
    image, trimap, _ = scene()
    for radius in (1, 2):
        part, whole = (
            registry.create("refiner", "closed_form", trimap="given", radius=radius)
            for _ in range(2)
        )
        whole.reach = None
        assert (part(image, trimap) - whole(image, trimap)).abs().max() < 1e-5


def test_without_a_bounded_factor_closed_form_still_converges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, trimap, _ = scene(20, 24)
    refiner = registry.create("refiner", "closed_form", trimap="given", epsilon=1e-4)
    expected = refiner(image, trimap)
    monkeypatch.setattr("deep_image_compositing.models.refinement.classical._FACTOR", -100)
    assert (refiner(image, trimap) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (5, 3), (7, 8)])
def test_hardly_any_pixels(name: str, size: tuple[int, int]) -> None:
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(noise, 0.5)
    for image, value in ((noise, 0.0), (noise, 0.5), (noise, 1.0), (flat, 0.5)):
        trimap = torch.full((1, 1, *size), value)
        trimap.view(-1)[0], trimap.view(-1)[-1] = 0, 1
        with warnings.catch_warnings():
            # One pixel is known subject and nothing else.
            warnings.simplefilter("error" if size != (1, 1) else "ignore")
            alpha = registry.create("refiner", name, trimap="given")(image, trimap)
        assert alpha.shape == trimap.shape
        assert alpha.isfinite().all()
        assert torch.equal(alpha[trimap != 0.5], trimap[trimap != 0.5])


@pytest.mark.parametrize("name", NAMES)
def test_better_than_the_mask_it_was_given(name: str) -> None:
    image, _, truth = scene()
    rough = (truth > 0.5).float().roll(1, 3)
    alpha = registry.create("refiner", name, band=0.1)(image, rough)
    assert (alpha - truth).abs().mean() < 0.6 * (rough - truth).abs().mean()


def test_the_guided_filter_s_windows_are_a_share_of_the_long_side() -> None:
    image, trimap, _ = scene(17, 25)
    mask = (trimap > 0).float()
    refiner = registry.create("refiner", "guided_filter", radius=0.08, epsilon=1e-3, band=0.2)
    unknown = refiner.make_trimap(mask) == 0.5
    assert unknown.any()
    expected = guided_filter(image.double(), mask.double(), 2, 1e-3).clamp(0, 1)
    assert (refiner(image, mask) - expected)[unknown].abs().max() < 1e-6


def test_options_of_information_flow_reach_the_method() -> None:
    image, trimap, _ = scene()
    opaque = {"trimap": "given", "transparent": False}
    alpha = registry.create("refiner", "information_flow", **opaque)(image, trimap)
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
        other = registry.create("refiner", "information_flow", **{**opaque, option: value})
        assert not torch.equal(other(image, trimap), alpha), option
