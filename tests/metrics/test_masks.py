"""Mask measures against plain loops, and outlines whose distance is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_jaccard_index

from deep_image_compositing.errors import UsageError
from deep_image_compositing.metrics.masks import iou, max_f_measure, outline_distance


def disc(radius: float, side: int = 96, shift: tuple[float, float] = (0, 0)) -> Tensor:
    """A disc whose outline is known to a fraction of a pixel, (1, H, W)."""
    y = torch.arange(side).view(-1, 1) - side / 2 - shift[0]
    x = torch.arange(side).view(1, -1) - side / 2 - shift[1]
    return (radius - torch.hypot(y, x) + 0.5).clamp(0, 1)[None]


def half(edge: int, side: int = 32) -> Tensor:
    mask = torch.zeros(1, side, side)
    mask[..., edge:] = 1
    return mask


def test_iou_by_hand_and_by_torchmetrics() -> None:
    assert iou(half(8), half(16)) == pytest.approx(16 / 24)
    assert iou(half(8), half(8)) == 1
    assert iou(half(32), half(16)) == 0
    assert iou(half(32), half(32)) == 1  # nothing in either: they agree
    assert iou(torch.full((1, 2, 2), 0.5), torch.ones(1, 2, 2)) == 0
    found = binary_jaccard_index(disc(20), disc(22, shift=(1, 3)) > 0.5)
    assert iou(disc(20), disc(22, shift=(1, 3))) == pytest.approx(float(found))


def test_max_f_measure_equals_a_loop_over_thresholds() -> None:
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 256, (20, 30))
    truth = generator.random((20, 30)) * 0.7 + 0.3 * levels / 255 > 0.6
    best = 0.0
    for threshold in range(256):
        taken = levels >= threshold
        hits = (taken & truth).sum()
        if hits:
            precision, recall = hits / taken.sum(), hits / truth.sum()
            best = max(best, 1.3 * precision * recall / (0.3 * precision + recall))
    mask = torch.from_numpy(levels)[None].float() / 255
    assert max_f_measure(mask, torch.from_numpy(truth)[None].float()) == pytest.approx(best)


def test_max_f_measure_at_its_ends() -> None:
    assert max_f_measure(half(8), half(8)) == pytest.approx(1)
    assert max_f_measure(half(8) * 0.1, half(8)) == pytest.approx(1)  # some threshold finds it
    share = 0.5  # an empty mask takes the whole picture at the lowest threshold
    assert max_f_measure(half(32), half(16)) == pytest.approx(1.3 * share / (0.3 * share + 1))
    assert math.isnan(max_f_measure(half(8), half(32)))


@pytest.mark.parametrize("distance", [0, 1, 3])
def test_straight_outlines(distance: int) -> None:
    assert outline_distance(half(10 + distance), half(10)) == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize("distance", [0.0, 0.2, 0.5, 1.0, 2.5])
def test_round_outlines_to_a_fraction_of_a_pixel(distance: float) -> None:
    assert outline_distance(disc(20 + distance), disc(20)) == pytest.approx(distance, abs=0.03)
    # Shifted by d, the outlines' mean distance is that of d·|cos|: 2 d / π.
    shifted = outline_distance(disc(30, shift=(0, distance)), disc(30))
    assert shifted == pytest.approx(2 * distance / math.pi, abs=0.05)


def test_outlines_that_are_there_only_once_or_not_at_all() -> None:
    nothing, everything = torch.zeros(1, 30, 40), torch.ones(1, 30, 40)
    one = nothing.clone()
    one[0, 0, 0] = 1
    patchy = disc(20)
    patchy[:, :4, :4] = 1
    there, back = outline_distance(patchy, disc(20)), outline_distance(disc(20), patchy)
    assert there == pytest.approx(back)
    assert there > 0.5
    assert outline_distance(nothing, everything) == 0
    assert outline_distance(one, everything) == pytest.approx(50)
    assert outline_distance(nothing, one) == pytest.approx(50)
    edge = torch.tensor([[[0.0, 1.0]]])
    assert outline_distance(edge, edge) == 0
    assert outline_distance(torch.tensor([[[0.25, 1.0]]]), edge) == pytest.approx(0.5 - 1 / 3)


@pytest.mark.parametrize("measure", [iou, max_f_measure, outline_distance])
def test_shapes_must_agree(measure: object) -> None:
    with pytest.raises(UsageError, match=r"\(1, 4, 5\) and \(1, 5, 4\)"):
        measure(torch.zeros(1, 4, 5), torch.zeros(1, 5, 4))  # type: ignore[operator]
