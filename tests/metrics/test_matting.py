"""The matting errors against the benchmark's script, written out in numpy, and by hand."""

from __future__ import annotations

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from torch import Tensor

from deep_image_compositing.errors import MissingExtraError, UsageError
from deep_image_compositing.metrics.matting import connectivity_error, gradient_error, mse, sad

ALL = (sad, mse, gradient_error, connectivity_error)
Plane = NDArray[np.float64]


def matte(height: int, width: int, seed: int) -> Tensor:
    """A soft matte (1, H, W) of several regions, in steps of 1/255, with runs of 0 and 1."""
    rough = np.random.default_rng(seed).normal(size=(height, width))
    smooth = ndimage.gaussian_filter(rough, 2, mode="nearest")
    smooth = 0.5 + 0.6 * smooth / max(smooth.std(), 1e-9)
    return torch.from_numpy((smooth.clip(0, 1) * 255).round().astype(np.uint8))[None] / 255


def trimap_of(alpha: Tensor) -> Tensor:
    return torch.where((alpha > 0.2) & (alpha < 0.8), 0.5, (alpha > 0.5).float())


def plane(alpha: Tensor) -> Plane:
    return alpha[0].double().numpy()


def kernel() -> Plane:
    """The 9 x 9 derivative filter of the benchmark's gaussgradient."""
    x = np.arange(-4, 5)
    bell = np.exp(-(x**2) / (2 * 1.4**2))
    made = np.outer(bell, -x * bell)
    return made / np.sqrt((made**2).sum())


def reference_gradient(alpha: Plane, truth: Plane, unknown: NDArray[np.bool_]) -> float:
    magnitudes = []
    for picture in (alpha, truth):
        x = ndimage.convolve(picture, kernel(), mode="nearest")
        y = ndimage.convolve(picture, kernel().T, mode="nearest")
        magnitudes.append(np.sqrt(x**2 + y**2))
    return float(((magnitudes[0] - magnitudes[1]) ** 2)[unknown].sum() / 1000)


def reference_connectivity(alpha: Plane, truth: Plane, unknown: NDArray[np.bool_]) -> float:
    levels = -np.ones(alpha.shape)
    thresholds = [k / 10 for k in range(11)]
    for before, level in pairwise(thresholds):
        regions = label((alpha >= level) & (truth >= level), connectivity=1)
        largest = np.zeros(alpha.shape, bool)
        if regions.max():
            sizes = [(regions == number).sum() for number in range(1, regions.max() + 1)]
            largest = regions == 1 + int(np.argmax(sizes))
        levels[(levels == -1) & ~largest] = before
    levels[levels == -1] = 1
    degrees = []
    for picture in (alpha, truth):
        distance = picture - levels
        degrees.append(1 - distance * (distance >= 0.15))
    return float(np.abs(degrees[0] - degrees[1])[unknown].sum() / 1000)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 999),
    given=st.booleans(),
)
def test_all_four_equal_the_reference(height: int, width: int, seed: int, given: bool) -> None:
    alpha, truth = matte(height, width, seed), matte(height, width, seed + 1)
    truth = torch.where(truth > 0.7, alpha, truth)  # alike in parts, as mattes are
    trimap = trimap_of(truth) if given else None
    unknown = plane(trimap) == 0.5 if trimap is not None else np.ones((height, width), bool)
    a, t = plane(alpha), plane(truth)
    values = [measure(alpha, truth, trimap) for measure in ALL]
    assert values[0] == pytest.approx(np.abs(a - t)[unknown].sum() / 1000, abs=1e-9)
    assert values[2] == pytest.approx(reference_gradient(a, t, unknown), abs=1e-9)
    assert values[3] == pytest.approx(reference_connectivity(a, t, unknown), abs=1e-9)
    if unknown.any():
        assert values[1] == pytest.approx(((a - t)[unknown] ** 2).mean(), abs=1e-9)
    else:
        assert math.isnan(values[1])


def test_eight_bit_levels_count_as_reached() -> None:
    """102/255 is 0.4: in single precision it must not fall below its level."""
    for level in (51, 102, 153, 204, 255):
        truth = torch.full((1, 3, 3), level) / 255
        assert connectivity_error(truth + 0.1, truth) == 0


@pytest.mark.parametrize("measure", ALL)
def test_shapes_must_agree(measure: object) -> None:
    alpha = torch.zeros(1, 4, 5)
    with pytest.raises(UsageError, match=r"\(1, 4, 5\) and \(1, 5, 4\)"):
        measure(alpha, torch.zeros(1, 5, 4))  # type: ignore[operator]
    with pytest.raises(UsageError, match="trimap must have the shape"):
        measure(alpha, alpha, torch.zeros(1, 1, 4, 5))  # type: ignore[operator]


def test_connectivity_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match="Connectivity needs scipy"):
        connectivity_error(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
