"""Trimaps from levels, their resizing, and what they lack."""

from __future__ import annotations

import pytest
import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.trimap import (
    missing_class,
    pixels_of_share,
    resize_trimap,
    trimap_from_levels,
)


def test_shares_of_the_long_side_are_whole_pixels() -> None:
    assert pixels_of_share(0.02, (512, 300)) == 10
    assert pixels_of_share(0.02, (300, 1024)) == 20
    assert pixels_of_share(0.02, (1, 7)) == 1
    assert pixels_of_share(0, (512, 300)) == 0
    with pytest.raises(UsageError, match=r"lies in \[0, 1\], got -0.1"):
        pixels_of_share(-0.1, (5, 5))


def test_levels_of_eight_bit_files_become_a_trimap() -> None:
    gray = torch.tensor([0.0, 25, 26, 127, 128, 229, 230, 255]).view(1, 1, 1, 8) / 255
    expected = [0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1]
    assert trimap_from_levels(gray).flatten().tolist() == expected
    assert trimap_from_levels(gray.half()).dtype == torch.float16


def test_resizing_leaves_only_three_values_and_mixes_to_unknown() -> None:
    trimap = torch.zeros(1, 1, 12, 20)
    trimap[..., 9:] = 1
    small = resize_trimap(trimap, (6, 10))
    assert set(small.unique().tolist()) == {0, 0.5, 1}
    assert (small[..., :3] == 0).all()
    assert (small[..., 7:] == 1).all()


def test_missing_classes_are_named() -> None:
    assert missing_class(torch.tensor([[0.0, 0.5, 1.0]])) == ""
    assert missing_class(torch.tensor([[0.0, 0.5]])) == "known subject"
    assert missing_class(torch.tensor([[1.0, 0.5]])) == "known background"
    assert missing_class(torch.tensor([[0.5]])) == "known pixel"
