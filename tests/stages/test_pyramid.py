"""The pyramid segmenter beyond its contract."""

from __future__ import annotations

import pytest
import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.registry import create
from deep_image_compositing.stages.segmentation.pyramid import drop_strays

SMALL = {"backbone": "test_efficientnet", "width": 8}


def test_a_second_look_of_the_same_size_makes_it_symmetric() -> None:
    torch.manual_seed(0)
    stage = create("segmenter", "pyramid", size=64, second_look=1.0, **SMALL).eval()
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(stage(image.flip(-1)), stage(image).flip(-1), atol=1e-5)
    stage.second_look = 0.0
    assert not torch.allclose(stage(image.flip(-1)), stage(image).flip(-1), atol=1e-5)


def test_the_second_look_may_be_of_a_larger_mirror_image() -> None:
    torch.manual_seed(0)
    stage = create("segmenter", "pyramid", size=64, second_look=1.4, **SMALL).eval()
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


def test_patches_that_are_sure_nowhere_are_dropped() -> None:
    mask = torch.zeros(2, 1, 200, 320)
    mask[:, :, 50:150, 40:120] = 0.97  # the subject, with a soft edge
    mask[:, :, 50:150, 120:130] = 0.4
    mask[:, :, 60:90, 220:260] = 0.7  # a patch in doubt
    mask[:, :, 120:150, 220:260] = 0.7  # one that is sure in its middle
    mask[:, :, 130:140, 235:245] = 0.95
    mask[1] *= 0.6  # nothing of this one is sure
    found = drop_strays(mask, 0.9)
    assert found[0, :, 60:90, 220:260].max() == 0
    left = mask[0].clone()
    left[:, 60:90, 220:260] = 0
    assert torch.equal(found[0], left)
    assert torch.equal(found[1], mask[1])


def test_a_segmenter_may_keep_all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((1, 1, 64, 64), -8.0)
    logits[..., 8:40, 8:40], logits[..., 50:60, 50:60] = 8.0, 0.5
    for sure, left in ((0.9, 0.0), (0.0, 0.6)):
        stage = create("segmenter", "pyramid", size=64, second_look=0, sure=sure, **SMALL).eval()
        monkeypatch.setattr(stage, "logits", lambda _: logits)
        mask = stage(torch.rand(1, 3, 64, 64))
        assert mask[..., 50:60, 50:60].max() == pytest.approx(left, abs=0.05)
        assert mask[..., 8:40, 8:40].min() > 0.99
    with pytest.raises(UsageError, match=r"sure is a belief in \[0, 1\), got 1"):
        create("segmenter", "pyramid", size=64, sure=1, **SMALL)


def test_a_side_too_small() -> None:
    with pytest.raises(UsageError, match="at least 32 pixels, got 16"):
        create("segmenter", "pyramid", size=16, **SMALL)
