"""Metrics of harmonised composites against numpy and scikit-image, as the literature uses these."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.measures import measure_colors
from deep_image_compositing.metrics import (
    foreground_error,
    harmonization_metrics,
    picture_psnr,
    similarity,
    square_error,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor, Tensor]:
    """Three composites, their truths and masks, of which the last is nowhere above one half."""
    truth = (255 * noise(3, 3, 24, 33)).round() / 255
    mask = (noise(3, 1, 24, 33, seed=1) + torch.linspace(-0.4, 0.4, 33)).clamp(0, 1)
    mask[2] *= 0.5
    moved = (truth * torch.tensor([0.7, 1.1, 0.9]).view(1, 3, 1, 1) + 0.05).clamp(0, 1)
    composite = (255 * torch.lerp(truth, moved, mask)).round() / 255
    return composite, truth, mask


def levels(picture: Tensor) -> NDArray[np.float64]:
    """One picture as 8-bit values, (H, W, C)."""
    return picture.permute(1, 2, 0).double().numpy() * 255


def test_errors_are_those_of_scikit_image(pictures: tuple[Tensor, Tensor, Tensor]) -> None:
    composite, truth, _ = pictures
    for i in range(len(truth)):
        made, true = levels(composite[i]), levels(truth[i])
        expected = mean_squared_error(true, made)
        assert float(square_error(composite, truth)[i]) == pytest.approx(expected, rel=1e-5)
        expected = peak_signal_noise_ratio(true, made, data_range=255)
        assert float(picture_psnr(composite, truth)[i]) == pytest.approx(expected, abs=1e-4)


def test_the_foreground_s_error_is_the_whole_one_by_the_subject_s_share(
    pictures: tuple[Tensor, Tensor, Tensor],
) -> None:
    """As published scripts have it: MSE of what is under the mask, times pixels by its pixels."""
    composite, truth, mask = pictures
    found = foreground_error(composite, truth, mask)
    for i in range(2):
        inside = mask[i, 0].numpy() > 0.5
        under = (levels(composite[i]) - levels(truth[i])) * inside[..., None]
        expected = (under**2).mean() * inside.size / inside.sum()
        assert float(found[i]) == pytest.approx(expected, rel=1e-5)
    assert found[2].isnan()


def similarity_map(made: Tensor, true: Tensor) -> NDArray[np.float64]:
    """scikit-image's SSIM at every pixel and channel, by Wang's window."""
    _, full = structural_similarity(
        levels(true), levels(made), data_range=255, channel_axis=-1, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    return full


def test_similarity_is_that_of_scikit_image(pictures: tuple[Tensor, Tensor, Tensor]) -> None:
    composite, truth, mask = pictures
    # Both mirror the border, but not about the same pixel: five of them differ.
    inner = (slice(5, -5), slice(5, -5))
    for i in range(2):
        full = similarity_map(composite[i], truth[i])
        figures = measure_colors(composite[i], truth[i], mask[i], composite[i])
        whole = torch.zeros_like(mask[i])
        whole[(0, *inner)] = 1
        middle = measure_colors(composite[i], truth[i], whole, composite[i])
        assert middle["foreground_ssim"] == pytest.approx(full[inner].mean(), abs=1e-4)
        assert figures["ssim"] == pytest.approx(full.mean(), abs=0.01)
        expected = full[mask[i, 0].numpy() > 0.5].mean()
        assert figures["foreground_ssim"] == pytest.approx(expected, abs=0.01)
        assert figures["ssim"] == pytest.approx(float(similarity(composite, truth)[i]))
    assert similarity(truth, truth).tolist() == pytest.approx([1, 1, 1])
    assert similarity(truth[..., :5], truth[..., :5]).isnan().all()


def test_the_collection_averages_over_pictures_in_any_batches(
    pictures: tuple[Tensor, Tensor, Tensor],
) -> None:
    composite, truth, mask = pictures
    metrics = harmonization_metrics()
    for part in (slice(0, 1), slice(1, 3)):
        metrics.update(composite[part], truth[part], mask=mask[part])
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == pytest.approx(
        {
            "psnr": float(picture_psnr(composite, truth).mean()),
            "mse": float(square_error(composite, truth).mean()),
            "fmse": float(foreground_error(composite, truth, mask).nanmean()),
            "ssim": float(similarity(composite, truth).mean()),
        },
        rel=1e-5,
    )


# All measures of one picture


def test_a_composite_that_is_left_as_it_was_gains_nothing(
    pictures: tuple[Tensor, Tensor, Tensor],
) -> None:
    composite, truth, mask = (picture[0] for picture in pictures)
    figures = measure_colors(composite, truth, mask, composite)
    assert figures["gain"] == figures["outside"] == 0
    assert "change" not in figures
    perfect = measure_colors(truth, truth, mask, composite)
    assert perfect["fmse"] == perfect["square_error"] == 0
    assert perfect["gain"] == pytest.approx(perfect["psnr"] - figures["psnr"])


def test_what_changes_a_photograph_is_counted_in_8_bit_steps() -> None:
    photograph = torch.full((3, 12, 12), 0.5)
    mask = torch.zeros(1, 12, 12)
    mask[:, :6] = 1
    made = photograph.clone()
    made[0, :3] += 12 / 255  # a channel of half the subject
    made[2, 11, 11] -= 7 / 255
    figures = measure_colors(made, photograph, mask, photograph)
    assert figures["change"] == pytest.approx(12 / 6, abs=1e-3)
    assert figures["outside"] == pytest.approx(7, abs=1e-3)
    assert "gain" not in figures


def test_pictures_of_other_sizes_are_refused() -> None:
    picture, mask = torch.zeros(3, 8, 8), torch.zeros(1, 8, 9)
    with pytest.raises(UsageError):
        measure_colors(picture, picture, mask, picture)
    with pytest.raises(UsageError):
        measure_colors(picture, picture, mask[..., :8], torch.zeros(3, 9, 8))
