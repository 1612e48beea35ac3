import pytest
import torch

from deep_image_compositing.functional.boxes import (
    bounding_box,
    edges,
    grow,
    subject_boxes,
)


def test_the_bounding_box_holds_all_and_no_more() -> None:
    inside = torch.zeros(9, 12, dtype=torch.bool)
    assert bounding_box(inside) is None
    inside[1, 4] = inside[5, 6] = True
    box = bounding_box(inside)
    assert box == (slice(1, 6), slice(4, 7))
    assert edges(box) == (1, 6, 4, 7)


@pytest.mark.parametrize(
    ("margin", "grown"),
    [
        (0, (slice(1, 6), slice(4, 7))),
        (2, (slice(0, 8), slice(2, 9))),
        (50, (slice(0, 9), slice(0, 12))),
    ],
)
def test_a_box_grows_as_far_as_the_picture_goes(margin: int, grown: tuple[slice, slice]) -> None:
    assert grow((slice(1, 6), slice(4, 7)), margin, (9, 12)) == grown


def test_boxes_take_in_a_margin_and_stay_inside() -> None:
    mask = torch.zeros(3, 1, 50, 60)
    mask[0, :, 10:30, 2:42] = 0.4
    mask[1, :, 49, 59] = 0.4
    boxes = subject_boxes(mask, 0.3, 0.1)
    # A tenth of the longer side on every side.
    assert boxes[0] == (slice(6, 34), slice(0, 46))
    assert boxes[1] == (slice(48, 50), slice(58, 60))
    assert boxes[2] == (slice(0, 50), slice(0, 60))
    assert subject_boxes(mask, 0.4, 0.1)[0] == boxes[2]
