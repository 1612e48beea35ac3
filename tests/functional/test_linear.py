"""Linear light against an independent implementation."""

from __future__ import annotations

import torch
from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb

from deep_image_compositing.functional.linear import from_linear, to_linear


def test_light_is_decoded_as_the_standard_says() -> None:
    ramp = torch.linspace(0, 1, 256, dtype=torch.float64).expand(1, 3, 1, 256)
    torch.testing.assert_close(to_linear(ramp), rgb_to_linear_rgb(ramp), atol=1e-7, rtol=0)
    torch.testing.assert_close(from_linear(ramp), linear_rgb_to_rgb(ramp), atol=1e-7, rtol=0)
    torch.testing.assert_close(from_linear(to_linear(ramp)), ramp, atol=1e-9, rtol=0)
