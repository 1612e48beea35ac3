"""The metrics against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from deep_image_compositing.metrics import BandPSNR, band_psnr, fusion_metrics, mask_metrics


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def square(batch: int = 1, side: int = 40) -> Tensor:
    """A square subject with a rim of one soft pixel, bigger for each item."""
    alpha = torch.zeros(batch, 1, side, side)
    for i in range(batch):
        alpha[i, :, 8 : 20 + i, 8 : 20 + i] = 0.5
        alpha[i, :, 9 : 19 + i, 9 : 19 + i] = 1
    return alpha


def reference(composite: np.ndarray, target: np.ndarray, alpha: np.ndarray, radius: int) -> float:
    """PSNR over pixels that have a rim pixel within ``radius``, pixel by pixel."""
    height, width = alpha.shape
    near = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            window = alpha[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            low, high = alpha[y, x] <= 0.02, alpha[y, x] >= 0.98
            hard = (low and (window >= 0.98).any()) or (high and (window <= 0.02).any())
            if not (low or high) or hard:
                near[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = 1
    if not near.any():
        return math.nan
    mse = ((composite - target) ** 2)[:, near].mean()
    return float(-10 * np.log10(max(mse, (0.5 / 255) ** 2)))


@pytest.mark.parametrize("radius", [0, 2, 11])
@pytest.mark.parametrize("hard", [False, True])
def test_band_psnr_equals_the_reference(radius: int, hard: bool) -> None:
    alpha = (square(3) > 0.5).float() if hard else square(3)
    target = noise(3, 3, 40, 40)
    composite = (target + 0.1 * noise(3, 3, 40, 40, seed=1)).clamp(0, 1)
    values = band_psnr(composite, target, alpha, radius)
    for i in range(3):
        expected = reference(composite[i].numpy(), target[i].numpy(), alpha[i, 0].numpy(), radius)
        assert values[i] == pytest.approx(expected, abs=1e-3)


def test_band_psnr_of_equal_pictures_and_of_pictures_without_a_rim() -> None:
    target = noise(2, 3, 40, 40)
    alpha = square(2)
    alpha[1] = 1
    values = band_psnr(target, target, alpha)
    assert values[0] == pytest.approx(20 * math.log10(510), abs=1e-3)
    assert values[1].isnan()


def test_the_metric_is_the_mean_over_pictures_in_any_batches() -> None:
    target = noise(4, 3, 40, 40)
    composite = (target + 0.05 * noise(4, 3, 40, 40, seed=1)).clamp(0, 1)
    alpha = square(4)
    alpha[2] = 0
    values = band_psnr(composite, target, alpha)
    together, apart = BandPSNR(), BandPSNR()
    together.update(composite, target, alpha)
    for part in (slice(0, 1), slice(1, 4)):
        apart.update(composite[part], target[part], alpha[part])
    assert together.compute() == pytest.approx(float(values.nanmean()), abs=1e-4)
    assert apart.compute() == pytest.approx(float(values.nanmean()), abs=1e-4)
    assert BandPSNR.higher_is_better
    both = fusion_metrics()
    both.update(composite, target, alpha=alpha)
    result = both.compute()
    each = peak_signal_noise_ratio(composite, target, data_range=1.0, dim=(1, 2, 3))
    assert result["psnr"] == pytest.approx(float(each), abs=1e-3)
    assert result["band_psnr"] == together.compute()


def test_mask_metrics_equal_numpy_over_all_batches() -> None:
    masks, truths = noise(5, 1, 9, 13), noise(5, 1, 9, 13, seed=1) ** 2
    metrics = mask_metrics()
    metrics.update(masks[:2], truths[:2])
    metrics.update(masks[2:], truths[2:])
    result = metrics.compute()
    a, b = masks.numpy() > 0.5, truths.numpy() > 0.5
    both, either = (a & b).sum(), (a | b).sum()
    assert result["iou"] == pytest.approx(both / either, abs=1e-6)
    assert result["f1"] == pytest.approx(2 * both / (a.sum() + b.sum()), abs=1e-6)
    error = np.abs(masks.numpy() - truths.numpy()).mean()
    assert result["mae"] == pytest.approx(float(error), abs=1e-6)
