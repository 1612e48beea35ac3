"""The collections that stages log, against plain numpy and the figures of single pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torchmetrics import MetricCollection

from deep_image_compositing.metrics import (
    composites,
    fusion_metrics,
    harmonization_metrics,
    mask_metrics,
)
from tests.metrics.test_composites import noise, square

FIGURES = {
    fusion_metrics: {
        "psnr": composites.picture_psnr,
        "band_psnr": lambda c, t: composites.band_psnr(c, t, ALPHA),
    },
    harmonization_metrics: {
        "psnr": composites.picture_psnr,
        "mse": composites.square_error,
        "fmse": lambda c, t: composites.foreground_error(c, t, ALPHA),
        "ssim": composites.similarity,
    },
}
ALPHA = square(4)
ALPHA[2] = 0  # without a rim, and without a subject


@pytest.mark.parametrize("make", FIGURES)
def test_they_are_means_over_pictures_in_any_batches(make: Callable[[], MetricCollection]) -> None:
    target = noise(4, 3, 40, 40)
    composite = (target + 0.05 * noise(4, 3, 40, 40, seed=1)).clamp(0, 1)
    metrics = make().clone(prefix="test/")
    for part in (slice(0, 1), slice(1, 4)):
        metrics.update(composite[part], target[part], alpha=ALPHA[part], mask=ALPHA[part])
    found = {name: float(value) for name, value in metrics.compute().items()}
    expected = {
        f"test/{name}": float(figure(composite, target).nanmean())
        for name, figure in FIGURES[make].items()
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_mask_metrics_equal_numpy_over_all_batches() -> None:
    masks, truths = noise(5, 1, 9, 13), noise(5, 1, 9, 13, seed=1) ** 2
    masks[0, 0, 0, 0] = 1.0005  # as far out as resampling may lead
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
