"""The pyramid segmenter beyond its contract."""

from __future__ import annotations

import pytest
import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.registry import create

SMALL = {"backbone": "test_efficientnet", "width": 8}


def test_a_second_look_of_the_same_size_makes_it_symmetric() -> None:
    torch.manual_seed(0)
    stage = create("segmenter", "pyramid", size=64, second_look=1.0, **SMALL).eval()
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(stage(image.flip(-1)), stage(image).flip(-1), atol=1e-5)
    stage.second_look = 0.0
    assert not torch.allclose(stage(image.flip(-1)), stage(image).flip(-1), atol=1e-5)


def test_the_second_look_is_of_the_mirror_image_at_a_larger_size() -> None:
    torch.manual_seed(0)
    stage = create("segmenter", "pyramid", size=64, **SMALL).eval()
    image = torch.rand(2, 3, 50, 80)
    seen = []
    logits = stage.logits
    stage.logits = lambda picture: seen.append(picture) or logits(picture)
    stage(image)
    assert [tuple(picture.shape) for picture in seen] == [(2, 3, 64, 64), (2, 3, 96, 96)]
    mirrored = resize(image.flip(-1), (96, 96)).clamp(0, 1)
    assert torch.allclose(seen[1], mirrored)
    seen.clear()
    stage.train()(image)  # training crops are looked at once
    assert len(seen) == 1


def test_a_second_look_is_no_negative_factor() -> None:
    with pytest.raises(UsageError, match="second_look is a factor of at least 0, got -1"):
        create("segmenter", "pyramid", size=64, second_look=-1, **SMALL)


def test_a_side_too_small() -> None:
    with pytest.raises(UsageError, match="at least 32 pixels, got 16"):
        create("segmenter", "pyramid", size=16, **SMALL)
