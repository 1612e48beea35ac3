"""Reinhard's colour transfer against its formula."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deep_image_compositing.functional.color_transfer import (
    MOST,
    ColorStatistics,
    adapt,
    light_gains,
    to_lab,
    transfer_color,
)
from deep_image_compositing.functional.linear import to_linear


def noise(seed: int, low: float, high: float, shape: tuple[int, int] = (9, 13)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(2, 3, *shape, generator=generator, dtype=torch.float64)


def reference_lab(colors: np.ndarray) -> np.ndarray:
    """The paper's equations 2 to 6 for (N, 3) sRGB colours, linearised first."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    cones = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    l, m, s = np.log10(linear @ cones.T).T  # noqa: E741
    return np.stack(
        [(l + m + s) / np.sqrt(3), (l + m - 2 * s) / np.sqrt(6), (l - m) / np.sqrt(2)], 1
    )


def test_the_space_is_the_papers() -> None:
    picture = noise(0, 0.01, 1)
    expected = reference_lab(picture[1].reshape(3, -1).T.numpy())
    assert np.allclose(to_lab(picture)[1].reshape(3, -1).T.numpy(), expected)


def test_statistics_count_as_the_weights_say() -> None:
    picture, weight = noise(1, 0.1, 0.9), noise(2, 0, 1)[:, :1]
    found = ColorStatistics.of(picture, weight)
    lab = reference_lab(picture[0].reshape(3, -1).T.numpy())
    weights = weight[0].flatten().numpy()
    mean = np.average(lab, axis=0, weights=weights)
    variance = np.average((lab - mean) ** 2, axis=0, weights=weights)
    assert np.allclose(found.mean[0].flatten().numpy(), mean)
    assert np.allclose(found.deviation[0].flatten().numpy(), np.sqrt(variance))


def test_the_subject_takes_the_scene_s_statistics() -> None:
    subject, scene = noise(3, 0.3, 0.5), noise(4, 0.4, 0.7)
    alpha = torch.zeros(2, 1, 9, 13, dtype=torch.float64)
    alpha[..., 2:7, 3:9] = 0.8
    wanted = ColorStatistics.of(scene, 1 - alpha)
    moved = transfer_color(subject, ColorStatistics.of(subject, alpha), wanted)
    found = ColorStatistics.of(moved, alpha)
    assert torch.allclose(found.mean, wanted.mean, atol=1e-6)
    assert torch.allclose(found.deviation, wanted.deviation, atol=1e-6)


def test_flat_subjects_are_shifted_and_hardly_flat_ones_not_blown_up() -> None:
    scene = noise(4, 0.2, 0.8)
    alpha = torch.full((2, 1, 9, 13), 0.5, dtype=torch.float64)
    target = ColorStatistics.of(scene, 1 - alpha)
    flat = torch.full_like(scene, 0.5)
    moved = transfer_color(flat, ColorStatistics.of(flat, alpha), target)
    assert moved.isfinite().all()
    assert float(moved.flatten(2).std(2).max()) < 1e-9
    nearly = flat + 1e-3 * (noise(6, -1, 1))
    before = ColorStatistics.of(nearly, alpha)
    after = ColorStatistics.of(transfer_color(nearly, before, target), alpha)
    assert torch.allclose(after.deviation, MOST * before.deviation, rtol=1e-3)


def test_a_subject_takes_the_scene_s_tint_and_keeps_its_brightness() -> None:
    composite = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :4] = 1
    composite[..., 4:] = torch.tensor([0.6, 0.5, 0.35]).view(3, 1, 1)
    moved = adapt(composite, light_gains(composite, mask))[..., :4]
    linear = [to_linear(picture)[0, :, 0, 0] for picture in (composite, moved, composite[..., 4:])]
    luma = linear[0].new_tensor([0.2126, 0.7152, 0.0722])
    assert torch.isclose(linear[0] @ luma, linear[1] @ luma)
    assert torch.allclose(linear[1] / linear[1].sum(), linear[2] / linear[2].sum(), atol=1e-6)
    same = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    assert torch.allclose(adapt(composite, light_gains(composite, same)), composite)
