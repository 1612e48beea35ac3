"""Strokes spread over what they mean, on made pictures and on a real photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from deep_image_compositing.functional.strokes import REACH, SIDE, spread_strokes


def picture(height: int = 60, width: int = 80) -> Tensor:
    """A gray ground with a red square and, apart from it, a blue one."""
    image = torch.full((1, 3, height, width), 0.5)
    image[..., 10:40, 10:40] = torch.tensor([0.8, 0.1, 0.1]).view(3, 1, 1)
    image[..., 20:40, 50:70] = torch.tensor([0.1, 0.1, 0.8]).view(3, 1, 1)
    return image


def marked(sign: int, rows: slice, columns: slice) -> Tensor:
    strokes = torch.zeros(1, 1, 60, 80)
    strokes[..., rows, columns] = sign
    return strokes


RED, BLUE = (slice(10, 40), slice(10, 40)), (slice(20, 40), slice(50, 70))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_stroke_brings_what_it_touches_and_no_more(sign: int) -> None:
    spread = spread_strokes(picture(), marked(sign, slice(20, 23), slice(15, 30)))
    expected = torch.zeros(1, 1, 60, 80)
    expected[..., *RED] = sign
    assert torch.equal(spread, expected)
    assert torch.equal(
        spread, spread_strokes(picture(), marked(sign, slice(20, 23), slice(15, 30)))
    )


def test_where_both_kinds_reach_the_nearer_one_has_it() -> None:
    strokes = marked(1, slice(25, 27), slice(0, 80)) + marked(-1, slice(55, 58), slice(0, 80))
    spread = spread_strokes(torch.full((1, 3, 60, 80), 0.5), strokes)[0, 0]
    assert (spread[:40] == 1).all()
    assert (spread[42:] == -1).all()


def test_a_hole_that_strokes_enclose_belongs_unless_one_says_otherwise() -> None:
    image = picture()
    image[..., 20:25, 20:25] = 1.0
    ring = marked(1, slice(12, 14), slice(12, 38))
    spread = spread_strokes(image, ring)
    assert (spread[..., *RED] == 1).all()
    spread = spread_strokes(image, ring + marked(-1, slice(22, 23), slice(21, 24)))
    assert (spread[..., 20:25, 20:25] == -1).all()
    assert (spread[..., *BLUE] == 0).all()


def test_a_stroke_reaches_only_so_far() -> None:
    image, strokes = torch.full((1, 3, 20, SIDE), 0.5), torch.zeros(1, 1, 20, SIDE)
    strokes[..., :2] = 1
    reached = int((spread_strokes(image, strokes)[0, 0, 10] == 1).sum())
    assert reached == pytest.approx(REACH + 2, abs=1)


def test_no_stroke_says_nothing() -> None:
    assert not spread_strokes(picture(), torch.zeros(1, 1, 60, 80)).any()


def test_a_stroke_on_the_astronaut_s_helmet_brings_the_helmet() -> None:
    skimage = pytest.importorskip("skimage")
    path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    with Image.open(path) as photograph:
        pixels = np.array(photograph.resize((SIDE, SIDE), Image.Resampling.BOX))
    drawn = Image.new("L", (SIDE, SIDE))
    line = [(206, 268), (243, 250), (287, 234)]  # across the visor and the white rim
    ImageDraw.Draw(drawn).line(line, fill=255, width=9, joint="curve")
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    strokes = torch.from_numpy(np.array(drawn) > 0)[None, None].float()
    spread = spread_strokes(image, strokes)[0, 0]
    for x, y in ((200, 240), (220, 295), (275, 230), (285, 255), (235, 250)):
        assert spread[y, x] == 1, f"the helmet has {x}, {y}"
    for x, y in ((100, 250), (160, 200), (290, 190), (250, 190), (60, 300), (145, 80)):
        assert spread[y, x] == 0, f"suit, table and all else have {x}, {y}"
