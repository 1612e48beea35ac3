"""The pyramid segmenter beyond its contract."""

from __future__ import annotations

import pytest
import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.registry import create

SMALL = {"backbone": "test_efficientnet", "width": 8}


def test_flipping_makes_it_symmetric() -> None:
    torch.manual_seed(0)
    stage = create("segmenter", "pyramid", size=32, flip=True, **SMALL).eval()
    image = torch.rand(1, 3, 32, 32)
    assert torch.allclose(stage(image.flip(-1)), stage(image).flip(-1), atol=1e-5)
    stage.flip = False
    assert not torch.allclose(stage(image.flip(-1)), stage(image).flip(-1), atol=1e-5)


def test_a_side_too_small() -> None:
    with pytest.raises(UsageError, match="at least 32 pixels, got 16"):
        create("segmenter", "pyramid", size=16, **SMALL)
