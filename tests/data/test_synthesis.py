"""Samples made on the device: exact where they promise it, in range, and repeatable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from deep_image_compositing.data import synthesis
from deep_image_compositing.data.modules.labelled import trust_map


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=Generator().manual_seed(seed))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def parts(batch: int = 2, height: int = 19, width: int = 26) -> tuple[Tensor, ...]:
    color, old, new = (noise(batch, 3, height, width, seed=i) for i in range(3))
    alpha = noise(batch, 1, height, width, seed=3)
    alpha = torch.where(alpha < 0.2, 0.0, torch.where(alpha > 0.8, 1.0, alpha))
    return color, alpha, old, new


def test_a_triplet_without_effects_is_the_equation() -> None:
    color, alpha, old, new = parts()
    triplet = synthesis.easy_triplet(color, alpha, old, new, seeded(), strength=0)
    assert torch.allclose(triplet["foreground"], alpha * color + (1 - alpha) * old, atol=1e-6)
    assert torch.allclose(triplet["composite"], alpha * color + (1 - alpha) * new, atol=1e-6)
    assert torch.allclose(triplet["background"], new, atol=1e-6)
    assert torch.allclose(triplet["foreground_color"], color, atol=1e-6)


def test_a_triplet_with_effects_keeps_the_equation_of_the_composite() -> None:
    color, alpha, old, new = parts()
    triplet = synthesis.easy_triplet(color, alpha, old, new, seeded())
    subject, scene = triplet["foreground_color"], triplet["background"]
    expected = alpha * subject + (1 - alpha) * scene
    assert torch.allclose(triplet["composite"], expected, atol=1e-6)
    assert torch.equal(triplet["alpha"], alpha)
    # The truth separates, it does not clean: where alpha is 1 it is the photograph.
    opaque = (alpha == 1).expand_as(color)
    assert torch.allclose(subject[opaque], triplet["foreground"][opaque], atol=1e-6)
    assert not torch.allclose(triplet["foreground"], alpha * color + (1 - alpha) * old, atol=0.01)
    for name, tensor in triplet.items():
        assert tensor.min() >= 0, name
        assert tensor.max() <= 1, name


EFFECTS: list[Callable[..., Tensor]] = [synthesis.jitter_color, synthesis.camera]


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (24, 16)])
def test_effects_stay_in_range_repeat_and_leave_their_input(
    effect: Callable[..., Tensor], size: tuple[int, int]
) -> None:
    image = noise(6, 3, *size)
    before = image.clone()
    results = [effect(image, seeded(seed)) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(image, before)
    assert results[0].shape == image.shape
    assert results[0].min() >= 0
    assert results[0].max() <= 1


@pytest.mark.parametrize("effect", EFFECTS)
def test_no_strength_no_effect(effect: Callable[..., Tensor]) -> None:
    image = noise(2, 3, 9, 9)
    assert torch.allclose(effect(image, seeded(), 0.0), image, atol=1e-6)


def test_uniform_and_chance() -> None:
    draws = synthesis.uniform(500, 2.0, 3.0, seeded())
    assert draws.shape == (500, 1, 1, 1)
    assert 2 <= draws.min() < 2.1
    assert 2.9 < draws.max() < 3
    hits = synthesis.chance(500, 0.3, seeded())
    assert set(hits.unique().tolist()) == {0.0, 1.0}
    assert 0.2 < hits.mean() < 0.4


def test_paste_replaces_the_scene_of_chosen_pictures() -> None:
    image, scene = noise(2, 3, 20, 20), noise(2, 3, 20, 20, seed=1)
    mask = torch.zeros(2, 1, 20, 20)
    mask[..., 5:15, 5:15] = 1
    share = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    pasted = synthesis.paste(image, mask, scene, share, seeded())
    assert torch.equal(pasted[0], image[0])
    assert torch.equal(pasted[1, :, 7:13, 7:13], image[1, :, 7:13, 7:13])
    outside = (mask[1] == 0).expand(3, -1, -1)
    assert not torch.isclose(pasted[1][outside], image[1][outside], atol=1e-4).all(0).any()


def test_shrink_makes_half_of_the_chosen_pictures_smaller_and_nothing_else() -> None:
    image = noise(40, 3, 32, 32)
    mask = torch.zeros(40, 1, 32, 32)
    mask[..., 4:28, 4:28] = 1
    share = (torch.arange(40) < 30).float().view(-1, 1, 1, 1)
    small, smaller = synthesis.shrink(image, mask, share, seeded(), least=0.4)
    areas = smaller.sum((1, 2, 3)) / mask.sum((1, 2, 3))
    changed = areas < 0.999
    assert 8 <= int(changed.sum()) <= 22
    assert not changed[30:].any()
    assert torch.equal(small[~changed], image[~changed])
    assert torch.equal(smaller[~changed], mask[~changed])
    assert areas[changed].min() > 0.4**2 * 0.8
    # Subject and mask go together, and stay whole inside the frame.
    paint = mask.expand(-1, 3, -1, -1)
    painted, again = synthesis.shrink(paint, mask, share, seeded(), least=0.4)
    assert torch.allclose(painted, again.expand(-1, 3, -1, -1), atol=1e-5)
    assert torch.allclose(smaller[changed].amax((1, 2, 3)), torch.ones(int(changed.sum())))


def test_accompany_sets_a_smaller_subject_onto_another_and_both_are_subject() -> None:
    image, mask = torch.zeros(12, 3, 48, 48), torch.zeros(12, 1, 48, 48)
    mask[:, :, 8:40, 12:36] = 1
    image[::2] += mask[::2]  # every second subject is white, the others are black
    mask[11] = 0  # this one has none to give and none to set it on
    seen, both = synthesis.accompany(image, mask, 1.0, seeded())
    given = (both - mask).abs().flatten(1).amax(1) > 0
    painted = (seen - image).abs().flatten(1).amax(1) > 0.5
    assert not painted[11]
    assert not painted[0]
    assert int(painted.sum()) == 10
    assert given[:11].any()
    assert bool((both >= mask).all())
    for before, after, where in zip(image[1:11], seen[1:11], mask[1:11], strict=True):
        changed = ((before - after).abs() > 0.5).any(0)
        assert 0.02 < float(changed.sum() / where.sum()) < 0.6
        assert bool((changed & (where[0] > 0)).any())  # it touches the subject
    none = synthesis.accompany(image, mask, 0.0, seeded())
    assert torch.equal(none[0], image)
    assert torch.equal(none[1], mask)


def test_gaps_are_closed_in_a_share_of_the_masks() -> None:
    alpha = torch.zeros(40, 1, 50, 50)
    alpha[..., 10:40, 10:24], alpha[..., 10:40, 25:40] = 1, 1  # a gap of one pixel
    rough = alpha.clone()
    rough[..., 38:, :] = 0.3
    before = rough.clone()
    closed = synthesis.close_gaps(rough, alpha, 0.5, seeded())
    assert torch.equal(rough, before)
    changed = (closed != before).flatten(1).any(1)
    assert 10 < changed.sum() < 30
    assert closed[changed][..., 12:36, 24].min() == 1
    # Only the gap is filled; the subject stays at least as whole as both were.
    assert torch.equal(closed[changed], torch.maximum(closed[changed], before[changed]))
    assert closed[..., :10, :].max() == 0
    assert closed[..., 40:, :].max() == pytest.approx(0.3)
    assert torch.equal(synthesis.close_gaps(rough, alpha, 0.0, seeded()), rough)


def test_trust_map_distrusts_the_outline_alone() -> None:
    mask = torch.zeros(3, 1, 9, 20)
    mask[..., 10:] = 1
    trust = trust_map(mask, torch.tensor([0, 1, 3]))
    for item, radius in enumerate((0, 1, 3)):
        expected = torch.ones(20)
        expected[10 - radius : 10 + radius] = 0
        assert torch.equal(trust[item, 0, 4], expected)
