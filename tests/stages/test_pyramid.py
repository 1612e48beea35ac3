"""The pyramid segmenter beyond its contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing.functional.boxes import subject_boxes
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.models.segmentation.pyramid import drop_strays
from deep_image_compositing.registry import create

SMALL = {"backbone": "test_efficientnet", "width": 8}


def stage_with_answers(monkeypatch: pytest.MonkeyPatch, answers: list[Tensor], **options: Any):
    """A stage whose looks answer one after the other as told, and the list of what they saw."""
    stage = create("segmenter", "pyramid", size=64, sure=0, **options, **SMALL).eval()
    seen: list[Tensor] = []

    def logits(picture: Tensor) -> Tensor:
        seen.append(picture)
        return answers[len(seen) - 1].expand(len(picture), 1, 64, 64)

    monkeypatch.setattr(stage, "logits", logits)
    return stage, seen


def test_the_second_look_is_closer_and_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    first = torch.full((1, 1, 64, 64), -6.0)
    first[..., 16:48, 32:56] = 6.0  # rows 40 to 120 and columns 80 to 140 of the picture
    second = torch.full((1, 1, 64, 64), -2.0)
    second[..., :32] = 4.0
    stage, seen = stage_with_answers(monkeypatch, [first, second], looks=2, margin=0.25)
    image = torch.rand(2, 3, 160, 160)
    mask = stage(image)
    assert len(seen) == 2
    rows, columns = subject_boxes(resize(first, (160, 160)).sigmoid(), 0.3, 0.25)[0]
    assert (rows.start, rows.stop) == pytest.approx((20, 140), abs=2)
    assert (columns.start, columns.stop) == pytest.approx((60, 160), abs=2)
    closer = resize(image[..., rows, columns].flip(-1), (64, 64)).clamp(0, 1)
    assert torch.allclose(seen[1], closer)
    middle = (rows.start + rows.stop) // 2
    # Mirrored back, the second answer is sure of the right half.
    assert mask[0, 0, middle, columns.stop - 30] > torch.sigmoid(torch.tensor(4.5))
    assert mask[0, 0, middle, columns.start + 5] < torch.sigmoid(torch.tensor(-3.5))
    outside = torch.sigmoid(torch.tensor(-6.0))
    assert torch.allclose(mask[..., columns.stop + 1 :], outside)


def test_a_third_look_counts_as_much_as_each_before(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [torch.tensor(value) for value in (3.0, 6.0, 0.0)]
    stage, seen = stage_with_answers(monkeypatch, answers, looks=3)
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(stage(image), torch.tensor(3.0).sigmoid())
    assert len(seen) == 3
    assert torch.allclose(seen[1], image.flip(-1))
    assert torch.allclose(seen[2], image)
    seen.clear()
    stage.train()(image)  # crops are looked at once
    assert len(seen) == 1


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
        stage = create("segmenter", "pyramid", size=64, looks=1, sure=sure, **SMALL).eval()
        monkeypatch.setattr(stage, "logits", lambda _: logits)
        mask = stage(torch.rand(1, 3, 64, 64))
        assert mask[..., 50:60, 50:60].max() == pytest.approx(left, abs=0.05)
        assert mask[..., 8:40, 8:40].min() > 0.99
