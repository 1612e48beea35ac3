"""The learned fusers beyond their contract: the band, the heads, wrong options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import over
from deep_image_compositing.registry import create
from deep_image_compositing.stages.fusion.multi_stream import band_trimap
from tests.contract.test_stages import inputs


def test_the_band_is_as_wide_as_its_radius() -> None:
    alpha = torch.zeros(1, 1, 3, 20)
    alpha[..., 10:] = 1
    for radius in (1, 3):
        expected = (torch.arange(20) >= 10).float()
        expected[10 - radius : 10 + radius] = 0.5
        assert torch.equal(band_trimap(alpha, radius)[0, 0, 1], expected)


def test_almost_known_alphas_are_known() -> None:
    alpha = torch.tensor([0.0, 0.04, 0.5, 0.96, 1.0]).view(5, 1, 1, 1)
    assert band_trimap(alpha, 1).flatten().tolist() == [0, 0, 0.5, 1, 1]


def test_given_start_before_training_is_alpha_blending() -> None:
    fuser = create("fuser", "multi_stream", widths=(4, 6), radius=3, start="given").eval()
    tensors = inputs("fuser", 2, 16, 40)
    assert torch.allclose(fuser(*tensors.values()), plain(tensors), atol=1e-6)


def plain(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return over(tensors["foreground"], tensors["alpha"], tensors["background"])


def test_single_stream_has_one_encoder() -> None:
    double = create("fuser", "multi_stream", widths=(4, 6))
    single = create("fuser", "single_stream", widths=(4, 6))
    assert hasattr(double.network, "background_encoder")
    assert not hasattr(single.network, "background_encoder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "cmyk"}, "head must be"),
        ({"start": "random"}, "start must be"),
        ({"radius": 0}, "radius"),
        ({"widths": ()}, "number of widths"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create("fuser", "multi_stream", **options)
