"""Contact sheets: where they look, and what they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing.evaluation import sheets
from deep_image_compositing.evaluation.sheets import CELL, Row, choose_crops, choose_zoom, draw
from deep_image_compositing.images import write_image
from tests.evaluation.tiny import SIDE, Tiny


def result(folder: Path, name: str, composite: Tensor, alpha: Tensor, **record: Any) -> Row:
    """A method's result on disk."""
    write_image(folder / f"{name}.composite.png", composite.permute(1, 2, 0).numpy())
    write_image(folder / f"{name}.alpha.png", alpha[0].numpy())
    return Row(name, folder / name, {"measures": {"band_psnr": 20.0, "seconds": 1.0}, **record})


def changed(picture: Tensor, by: int, where: tuple[slice, slice]) -> Tensor:
    """A copy that differs in some place."""
    copy = picture.clone()
    copy[:, *where] = (copy[:, *where].int() + by).clamp(0, 255).byte()
    return copy


# Crops


@pytest.mark.parametrize(("side", "zoom"), [(64, 9), (384, 6), (768, 3), (1200, 2), (4000, 1)])
def test_crops_show_an_eighth_of_the_picture(side: int, zoom: int) -> None:
    assert choose_zoom(side, 2 * side) == zoom


def holds(box: sheets.Box, top: int, left: int, side: int) -> bool:
    return box[0] <= top and box[1] <= left and box[2] >= top + side and box[3] >= left + side


def test_crops_lie_where_there_is_something_to_see_and_apart() -> None:
    interest, places = torch.zeros(1, 1, 200, 300), [(20, 30), (150, 250), (100, 140)]
    for i, (y, x) in enumerate(places):
        interest[0, 0, y : y + 8, x : x + 8] = 3 - i
    boxes = choose_crops(interest, (200, 300), 40)
    for box, place in zip(boxes, places, strict=True):
        assert holds(box, *place, 8)
        assert (box[2] - box[0], box[3] - box[1]) == (40, 40)
        assert 0 <= box[0] < box[2] <= 200
        assert 0 <= box[1] < box[3] <= 300
    (box,) = choose_crops(interest, (2000, 3000), 400, count=1)  # of the picture at another scale
    assert holds(box, 200, 300, 80)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (50, 50)])
def test_pictures_smaller_than_a_crop_are_shown_whole_one_way(size: tuple[int, int]) -> None:
    for value in (0.0, 1.0):
        boxes = choose_crops(torch.full((1, 1, *size), value), size, 60)
        assert boxes
        for top, left, bottom, right in boxes:
            assert bottom - top == min(60, size[0])
            assert right - left == min(60, size[1])


def test_with_a_truth_the_methods_do_not_move_the_crops(tmp_path: Path) -> None:
    sample = Tiny()[0]
    there = (slice(60, 70), slice(0, 10))
    row = result(tmp_path, "a", changed(sample.composite, 90, there), sample.alpha)
    assert torch.equal(sheets.interest(sample, [row]), sheets.interest(sample, []))


def test_without_a_truth_crops_lie_where_the_methods_differ(tmp_path: Path) -> None:
    truth = Tiny()[0]
    sample = Tiny(truth=False)[0]
    soft = torch.full((1, SIDE, SIDE), 128, dtype=torch.uint8)
    there = (slice(50, 60), slice(5, 15))
    rows = [
        result(tmp_path, "a", truth.composite, soft),
        result(tmp_path, "b", changed(truth.composite, 40, there), soft),
    ]
    found = sheets.interest(sample, rows)
    assert float(found[0, 0][there].min()) > 0
    found[0, 0][there] = 0
    assert not found.any()
    alone = sheets.interest(sample, rows[:1])
    assert float(alone.min()) > 0.9  # one method differs from nothing: its softness


# Sheets


def test_a_sheet_has_a_column_for_everything(tmp_path: Path) -> None:
    sample = Tiny()[0]
    rows = [result(tmp_path, name, sample.composite, sample.alpha) for name in ("a", "b")]
    sheets = [
        draw(sample, "exact", rows[:1]),
        draw(sample, "exact", rows),
        draw(replace(sample, composite=None), "exact", rows),  # no column for the truth
    ]
    widths = [sheet.shape[2] for sheet in sheets]
    assert CELL < widths[1] - widths[0] < CELL + 10
    assert widths[2] == widths[0]
    assert len({sheet.shape[1] for sheet in sheets}) == 1
    assert all(0 <= float(sheet.min()) <= float(sheet.max()) <= 1 for sheet in sheets)


def test_errors_are_shown_where_they_are_and_as_bright_as_said(tmp_path: Path) -> None:
    sample = Tiny()[0]
    flat = replace(sample, composite=torch.full_like(sample.composite, 100))
    there = (slice(0, SIDE), slice(0, SIDE // 2))
    row = result(tmp_path, "a", changed(flat.composite, 30, there), sample.alpha)
    error = draw(flat, "exact", [row])[:, -CELL:, -CELL:] * 255
    middle = CELL // 2
    assert float((error[..., 20 : middle - 20] - 30 * sheets.GAIN).abs().max()) <= 1
    assert float(error[..., middle + 20 :].max()) <= 1


def test_a_failure_is_a_column_that_says_so(tmp_path: Path) -> None:
    sample = Tiny()[0]
    row = Row("a", tmp_path / "a", {"error": "out of\nmemory"})
    assert row.caption() == "a: out of memory"
    assert draw(sample, "exact", [row]).shape[2] > 4 * CELL
    good = Row("b", tmp_path / "b", {"measures": {"band_psnr": 20.123, "halo": 0.5}})
    assert good.caption() == "b  band PSNR 20.12 dB  halo 0.500"


@pytest.mark.parametrize("size", [(1, 1), (5, 90)])
def test_sheets_of_odd_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    sample = Tiny()[0]

    def cut(picture: Tensor | None) -> Tensor:
        return picture.repeat(1, 1, 2)[:, : size[0], : size[1]]

    small = replace(
        sample,
        masks={"none": None},
        **{n: cut(getattr(sample, n)) for n in ("foreground", "background", "composite", "alpha")},
    )
    row = result(tmp_path, "a", small.composite, small.alpha)
    assert draw(small, "none", [row]).shape[2] > 4 * CELL
