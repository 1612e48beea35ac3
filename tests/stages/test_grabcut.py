"""GrabCut finds what differs from the rim, every time in the same way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deep_image_compositing.registry import create

cv2 = pytest.importorskip("cv2")


def scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A noisy warm disc on a noisy cold ground, and where it is."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = ((y - 0.45 * height) ** 2 + (x - 0.55 * width) ** 2 < (0.3 * height) ** 2)[None, None]
    warm, cold = (torch.tensor(c).view(1, 3, 1, 1) for c in ((0.7, 0.3, 0.1), (0.1, 0.3, 0.6)))
    noise = 0.2 * torch.rand(1, 3, height, width, generator=generator)
    return torch.where(disc, warm, cold) + noise, disc


@pytest.mark.parametrize("size", [320, 40])
def test_finds_the_subject_also_at_a_smaller_size(size: int) -> None:
    image, disc = scene(61, 80)
    mask = create("segmenter", "grabcut", size=size)(image)
    found = mask > 0.5
    assert (found & disc).sum() / (found | disc).sum() > 0.9
    assert bool(((mask > 0) & (mask < 1)).any()) == (size < 80)


def test_the_same_picture_gives_the_same_mask_whatever_came_before() -> None:
    # Patches of any colour have no right answer: the mask hangs on the initial mixtures.
    patches = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    image = patches.repeat_interleave(8, 2).repeat_interleave(8, 3)
    segmenter = create("segmenter", "grabcut", iterations=1, margin=0.15)
    first = segmenter(image)
    cv2.setRNGSeed(123)
    segmenter(image.flip(3))
    assert torch.equal(segmenter(image), first)
    others = [
        create("segmenter", "grabcut", iterations=1, margin=0.15, seed=seed)(image)
        for seed in range(1, 5)
    ]
    assert any(not torch.equal(other, first) for other in others)


def test_the_margin_is_background() -> None:
    image, disc = scene(60, 80)
    inner = torch.zeros(1, 1, 60, 80, dtype=torch.bool)
    inner[..., 12:48, 16:64] = True
    mask = create("segmenter", "grabcut", margin=0.2)(image)
    assert (mask[~inner] == 0).all()
    assert (mask[inner & disc] == 1).any()
    assert (create("segmenter", "grabcut")(torch.rand(1, 3, 2, 50)) == 1).all()  # all rim
