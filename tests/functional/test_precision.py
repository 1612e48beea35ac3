"""Precision of tensors on devices that lack some types."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from deep_image_compositing.functional.precision import double


def test_double_precision_of_a_device_without_it_is_that_of_the_cpu() -> None:
    x = torch.tensor([0.1, 0.2])
    assert torch.equal(double(x), x.double())
    on_mps: Any = SimpleNamespace(device=torch.device("mps"), cpu=lambda: x)  # no double()
    assert torch.equal(double(on_mps), x.double())
