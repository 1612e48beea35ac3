"""Contact sheets."""

from __future__ import annotations

import pytest
import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.sheets import NEUTRAL, contact_sheet

MAGENTA = torch.tensor([1.0, 0.0, 1.0])


def test_columns_and_rows() -> None:
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(2, 3, 40, 40)
    sheet = contact_sheet({"image": red, "alpha": torch.full((1, 1, 90, 90), 0.25)}, cell=64)
    header = sheet.shape[1] - 2 * 64 - 2
    assert sheet.dtype == torch.float32
    assert sheet.shape == (3, header + 2 * 64 + 2, 2 * 64 + 2)
    assert 10 < header < 30
    assert sheet[:, header + 32, 32].tolist() == [1, 0, 0]
    assert sheet[:, header + 66 + 32, 32].tolist() == [1, 0, 0]
    assert torch.allclose(sheet[:, header + 32, 66 + 32], torch.tensor(0.25))
    assert (sheet[:, header + 66 + 32, 66 + 32] == NEUTRAL).all()  # the batch is shorter
    for left in (0, 66):  # both labels are drawn, dark on white
        assert sheet[:, :header, left : left + 64].min() < 0.3
        assert sheet[:, :header, left : left + 64].max() == 1


def test_the_aspect_is_kept_on_neutral_grey() -> None:
    sheet = contact_sheet({"wide": torch.ones(1, 1, 100, 400)}, cell=64)
    column = sheet[0, -64:, 32]
    assert torch.allclose(column[24:40], torch.tensor(1.0))
    assert (column[:24] == NEUTRAL).all()
    assert (column[40:] == NEUTRAL).all()


@pytest.mark.parametrize("side", [4, 50, 900])
def test_nan_is_magenta_whatever_the_scale(side: int) -> None:
    picture = torch.zeros(1, 3, side, side)
    picture[0, 1, side // 2, side // 2] = float("nan")
    sheet = contact_sheet({"broken": picture}, cell=64)[:, -64:]
    magenta = (sheet == MAGENTA.view(3, 1, 1)).all(0)
    assert 1 <= magenta.sum() <= 64 * 64 / 9


def test_values_are_clamped_and_any_dtype_is_shown() -> None:
    wild = torch.tensor([-3.0, 7.0, float("inf"), -float("inf")]).view(1, 1, 1, 4)
    pictures = {
        "wild": wild,
        "half": torch.rand(1, 3, 5, 9).half(),
        "boolean": torch.ones(1, 1, 3, 3, dtype=torch.bool),
        "gradient": torch.rand(1, 1, 3, 3, requires_grad=True),
    }
    sheet = contact_sheet(pictures, cell=32)
    assert sheet.min() == 0
    assert sheet.max() == 1
    assert not sheet.requires_grad


def test_long_labels_do_not_spill() -> None:
    one = torch.zeros(1, 1, 8, 8)
    sheet = contact_sheet({"x" * 200: one, "": one}, cell=48)
    header = sheet.shape[1] - 48
    assert sheet[:, :header, 48:].min() == 1


def test_bad_input_is_named() -> None:
    with pytest.raises(UsageError, match="at least one picture"):
        contact_sheet({})
    with pytest.raises(UsageError, match=r"'flow' must have shape .* got \(1, 2, 4, 4\)"):
        contact_sheet({"flow": torch.zeros(1, 2, 4, 4)})
    with pytest.raises(UsageError, match="'none' must have shape"):
        contact_sheet({"none": torch.zeros(0, 1, 4, 4)})
    with pytest.raises(UsageError, match="at least 8 pixels wide, got 2"):
        contact_sheet({"a": torch.zeros(1, 1, 4, 4)}, cell=2)
