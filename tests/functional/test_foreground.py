"""Box filter and blur fusion."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.foreground import (
    blur_fusion_foreground,
    box_filter,
    multilevel_foreground,
    multilevel_layers,
)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    radius=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_box_filter_is_the_naive_mean(height: int, width: int, radius: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 2, height, width, generator=generator, dtype=torch.float64)
    expected = torch.empty_like(x)
    for row in range(height):
        for column in range(width):
            window = x[
                ...,
                max(0, row - radius) : row + radius + 1,
                max(0, column - radius) : column + radius + 1,
            ]
            expected[..., row, column] = window.mean((-2, -1))
    assert torch.allclose(box_filter(x, radius), expected, atol=1e-13)


def test_box_filter_keeps_its_precision_at_large_radii() -> None:
    x = torch.rand(1, 1, 500, 700, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1000
    error = box_filter(x, 90).double() - box_filter(x.double(), 90)
    assert error.abs().max() < 3e-4  # five units in the last place


def test_box_filter_dtypes_gradient_and_errors() -> None:
    assert box_filter(torch.ones(1, 1, 9, 9, dtype=torch.float16), 90).dtype == torch.float16
    assert box_filter(torch.ones(1, 1, 400, 400, dtype=torch.float16), 190).eq(1).all()
    x = torch.rand(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: box_filter(t, 2), x)


def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A warm disc with a soft rim before a cold background: subject, background, alpha, photo."""
    rows, columns = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    distance = ((rows - 100) ** 2 + (columns - 100) ** 2).sqrt()
    alpha = ((65 - distance) / 12).clamp(0, 1)[None, None]
    wave = 0.08 * (columns / 17).sin() * (rows / 23).cos()
    subject = torch.stack((0.85 + wave, 0.4 + wave, 0.2 + wave))[None]
    surroundings = torch.stack((0.1 + wave, 0.5 - wave, 0.8 + wave))[None]
    return subject, surroundings, alpha, over(subject, alpha, surroundings)


def test_blur_fusion_recovers_the_true_colours_and_keeps_what_is_certain() -> None:
    subject, surroundings, alpha, photograph = scene()
    color, background = blur_fusion_foreground(photograph, alpha)
    rim = ((alpha > 0.1) & (alpha < 0.9)).float()

    def error(estimate: Tensor, truth: Tensor) -> float:
        return float(((estimate - truth).abs() * rim).sum() / (3 * rim.sum()))

    assert error(photograph, subject) > 0.15
    assert error(color, subject) < 0.04
    assert error(background, surroundings) < 0.04
    opaque, clear = (alpha == 1).expand_as(color), (alpha == 0).expand_as(color)
    assert opaque.any()
    assert torch.equal(color[opaque], photograph[opaque])
    assert torch.equal(background[clear], photograph[clear])


def test_multilevel_colour_is_pymattings() -> None:
    pymatting = pytest.importorskip("pymatting")
    _, _, alpha, photograph = scene()
    expected = pymatting.estimate_foreground_ml(
        photograph[0].permute(1, 2, 0).double().numpy(), alpha[0, 0].double().numpy()
    )
    expected = torch.from_numpy(expected).permute(2, 0, 1)[None]
    color = multilevel_foreground(torch.cat((photograph, 0 * photograph)), alpha.repeat(2, 1, 1, 1))
    assert torch.allclose(color[:1], torch.where(alpha == 1, photograph, expected), atol=1e-6)
    assert torch.equal(color[1:], torch.zeros_like(photograph))


@pytest.mark.slow
def test_pymatting_leaves_torch_its_threads() -> None:
    pytest.importorskip("pymatting")
    code = """
import torch
from deep_image_compositing.functional.foreground import multilevel_foreground
torch.set_num_threads(1)
multilevel_foreground(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))
print(torch.get_num_threads())
"""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_NUM_THREADS"}
    made = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert made.stdout.split() == ["1"]


def test_multilevel_layers_recovers_the_true_colours() -> None:
    color, old, alpha, image = scene()
    new = torch.rand(old.shape, generator=torch.Generator().manual_seed(5))
    truth = over(color, alpha, new)

    def error(estimate: Tensor) -> float:
        return float((over(estimate, alpha, new) - truth).abs().mean())

    subject, surroundings = multilevel_layers(image, alpha)
    assert error(subject) < error(blur_fusion_foreground(image, alpha)[0])
    assert error(subject) <= error(multilevel_foreground(image, alpha))
    assert ((subject * alpha + surroundings * (1 - alpha)) - image).abs().max() < 0.02
    assert torch.equal(subject[alpha.expand_as(subject) == 1], image[alpha.expand_as(image) == 1])
    outside = alpha.expand_as(image) == 0
    assert torch.equal(surroundings[outside], image[outside])


def test_multilevel_layers_converges_to_what_pymatting_does() -> None:
    _, _, alpha, image = scene()
    published = multilevel_foreground(image, alpha)
    ours, _ = multilevel_layers(image, alpha, smoothness=1.0, iterations=4)
    inside = (alpha > 0.1).expand_as(image)
    assert (ours - published)[inside].abs().mean() < 0.01
