"""Composites' errors against torchmetrics, scikit-image and plain numpy, and against known ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import dilate, erode
from deep_image_compositing.metrics.composites import (
    band_psnr,
    color_error,
    exactness,
    foreground_error,
    halo,
    picture_psnr,
    rim_band,
    similarity,
    square_error,
    ssim_map,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def square(batch: int = 1, side: int = 40) -> Tensor:
    """A square subject with a rim of one soft pixel, bigger for each item."""
    alpha = torch.zeros(batch, 1, side, side)
    for i in range(batch):
        alpha[i, :, 8 : 20 + i, 8 : 20 + i] = 0.5
        alpha[i, :, 9 : 19 + i, 9 : 19 + i] = 1
    return alpha


# Of batches


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
    mse = ((composite - target) ** 2)[:, near].mean()
    return float(-10 * np.log10(max(mse, (0.5 / 255) ** 2)))


@pytest.mark.parametrize("radius", [0, 2, 11])
@pytest.mark.parametrize("hard", [False, True])
def test_band_psnr_equals_the_reference(radius: int, hard: bool) -> None:
    alpha = (square(2) > 0.5).float() if hard else square(2)
    target = noise(2, 3, 40, 40)
    composite = (target + 0.1 * noise(2, 3, 40, 40, seed=1)).clamp(0, 1)
    values = band_psnr(composite, target, alpha, radius)
    for i in range(2):
        expected = reference(composite[i].numpy(), target[i].numpy(), alpha[i, 0].numpy(), radius)
        assert values[i] == pytest.approx(expected, abs=1e-3)


def test_band_psnr_of_equal_pictures_and_of_pictures_without_a_rim() -> None:
    target, alpha = noise(2, 3, 40, 40), square(2)
    alpha[1] = 1
    values = band_psnr(target, target, alpha)
    assert values[0] == pytest.approx(20 * math.log10(510), abs=1e-3)
    assert values[1].isnan()


def test_errors_of_whole_pictures_and_under_masks() -> None:
    truth, composite = ((255 * noise(3, 3, 24, 33, seed=i)).round() / 255 for i in (0, 1))
    mask = noise(3, 1, 24, 33, seed=2)
    mask[2] *= 0.5  # nowhere above one half
    found = foreground_error(composite, truth, mask)
    assert found[2].isnan()
    for i in range(2):
        made, true = (x[i].permute(1, 2, 0).double().numpy() * 255 for x in (composite, truth))
        expected = mean_squared_error(true, made)
        assert float(square_error(composite, truth)[i]) == pytest.approx(expected, rel=1e-5)
        expected = peak_signal_noise_ratio(true, made, data_range=255)
        assert float(picture_psnr(composite, truth)[i]) == pytest.approx(expected, abs=1e-4)
        # As published scripts have it: MSE of what is under the mask, times pixels by its pixels.
        inside = mask[i, 0].numpy() > 0.5
        under = (((made - true) * inside[..., None]) ** 2).mean()
        assert float(found[i]) == pytest.approx(under * inside.size / inside.sum(), rel=1e-5)
    maps = [ssim_map(*pair).mean() for pair in zip(composite, truth, strict=True)]
    assert similarity(composite, truth).tolist() == maps
    assert similarity(truth[..., :5], truth[..., :5]).isnan().all()


# Of one picture


@dataclass
class Scene:
    """A soft disc before two backgrounds, all of them noisy: what a test set's sample holds."""

    alpha: Tensor
    color: Tensor
    old: Tensor
    new: Tensor

    @property
    def photograph(self) -> Tensor:
        return self.alpha * self.color + (1 - self.alpha) * self.old

    @property
    def truth(self) -> Tensor:
        return self.alpha * self.color + (1 - self.alpha) * self.new

    def pasted(self, opacity: Tensor | float) -> Tensor:
        """The photograph, old background and all, over the new background."""
        return opacity * self.photograph + (1 - opacity) * self.new

    def halo_of(self, composite: Tensor, known: bool = True) -> tuple[float, float]:
        color = self.color if known else None
        return tuple(halo(composite, self.truth, self.alpha, self.new, self.old, color))


def scene(side: int = 96, seed: int = 0) -> Scene:
    y = torch.arange(side).view(-1, 1) - side / 2
    x = torch.arange(side).view(1, -1) - side / 2
    alpha = ((side / 4 - torch.hypot(y, x)) / 4 + 0.5).clamp(0, 1)[None]
    tints = noise(3, 3, 1, 1, seed=seed)
    pictures = [0.6 * t + 0.4 * noise(3, side, side, seed=seed + i) for i, t in enumerate(tints)]
    return Scene(alpha, *pictures)


@pytest.mark.parametrize("size", [(6, 6), (7, 40), (33, 18)])
def test_ssim_equals_torchmetrics(size: tuple[int, int]) -> None:
    truth = noise(3, *size)
    composite = (truth + 0.2 * noise(3, *size, seed=1)).clamp(0, 1)
    value, full = structural_similarity_index_measure(
        composite[None], truth[None], data_range=1.0, return_full_image=True
    )
    found = ssim_map(composite, truth)
    torch.testing.assert_close(found, full[0], atol=1e-4, rtol=0)
    assert float(found.mean()) == pytest.approx(float(value), abs=1e-5)
    assert float(ssim_map(truth, truth).mean()) == pytest.approx(1, abs=1e-6)
    assert ssim_map(noise(3, 5, 30), noise(3, 5, 30)).isnan().all()


def test_color_error_counts_8_bit_steps_where_it_is_asked() -> None:
    truth = torch.zeros(3, 4, 4)
    composite = truth.clone()
    composite[0, 0, 0] = 30 / 255
    composite[:, 3, 3] = 1
    where = torch.zeros(1, 4, 4, dtype=torch.bool)
    where[0, 0] = True
    assert color_error(composite, truth, where) == pytest.approx(30 / 12)
    assert math.isnan(color_error(composite, truth, torch.zeros_like(where)))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("share", [-0.2, 0.0, 0.1, 0.5, 1.0])
def test_a_known_share_of_the_old_background_is_found(share: float, known: bool) -> None:
    s = scene()
    left = (1 - s.alpha) * (s.old - s.new)
    found, lost = s.halo_of(s.truth + share * left, known)
    assert found == pytest.approx(share, abs=1e-5)
    assert lost == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_a_photograph_pasted_with_one_opacity_gives_that_opacity(opacity: float) -> None:
    s = scene()
    found, lost = s.halo_of(s.pasted(opacity))
    assert found == pytest.approx(opacity, abs=1e-5)
    assert lost == pytest.approx(1 - opacity, abs=1e-5)


def test_wide_masks_leave_a_halo_and_narrow_ones_lose_the_subject() -> None:
    s = scene()
    hard = (s.alpha > 0.5).float()[None]
    away = ~rim_band(s.alpha[None])[0]
    assert s.halo_of(s.truth) == s.halo_of(torch.where(away, s.old, s.truth)) == (0, 0)
    assert 0.01 < s.halo_of(s.pasted(s.alpha))[0] < 0.2  # blended, its colour not cleaned
    found = [s.halo_of(s.pasted(dilate(hard, radius)[0])) for radius in (0, 1, 2, 5)]
    shares = [share for share, _ in found]
    assert shares == sorted(shares)
    assert shares[0] > 0.01
    assert shares[1] > 0.05
    assert shares[3] > 0.9
    assert all(abs(lost) < 0.05 for _, lost in found[1:])
    share, lost = s.halo_of(s.pasted(erode(hard, 5)[0]))
    assert abs(share) < 0.05
    assert lost > 0.7


@pytest.mark.parametrize("known", [True, False])
def test_noise_and_other_colours_do_not_move_it(known: bool) -> None:
    s = scene(side=192)
    left = (1 - s.alpha) * (s.old - s.new)
    for share in (0.0, 0.3):
        composite = s.truth + share * left + 0.2 * (noise(3, 192, 192, seed=9) - 0.5)
        assert s.halo_of(composite, known)[0] == pytest.approx(share, abs=0.02)


def test_halo_is_undefined_where_there_is_nothing_to_see() -> None:
    s = scene()
    s.old = s.new
    assert all(math.isnan(x) for x in s.halo_of(s.truth + 0.1))
    s = scene()
    s.alpha = torch.ones_like(s.alpha)
    assert all(math.isnan(x) for x in s.halo_of(s.truth))


def test_what_cannot_be_told_apart_counts_as_halo() -> None:
    """With one alpha, plain colours and F = 2·B2 − B1, both errors look the same."""
    s = scene()
    s.alpha = torch.full_like(s.alpha, 0.5)
    s.old, s.new = torch.full_like(s.old, 0.2), torch.full_like(s.new, 0.4)
    s.color = torch.full_like(s.color, 0.6)
    share, lost = s.halo_of(s.truth + 0.25 * (1 - s.alpha) * (s.old - s.new))
    assert share == pytest.approx(0.25, abs=1e-5)
    assert math.isnan(lost)


def bits(picture: Tensor) -> Tensor:
    return (picture * 255).round().byte()


def test_exactness_by_side() -> None:
    s = scene()
    photograph, new = bits(s.photograph), bits(s.new)
    away = ~rim_band(s.alpha[None])[0]
    subject, ground = (s.alpha == 1) & away, (s.alpha == 0) & away
    right = torch.where(s.alpha > 0.5, photograph, new)
    assert tuple(exactness(right, s.alpha, photograph, new)) == (1, 1, 1, 0)
    spot = subject[0].nonzero()[0]
    wrong = right.clone()
    wrong[1, spot[0], spot[1]] ^= 7
    found = exactness(wrong, s.alpha, photograph, new)
    inside, outside = int(subject.sum()), int(ground.sum())
    assert found.subject == pytest.approx(1 - 1 / inside)
    assert found.background == 1
    assert found.share == pytest.approx(1 - 1 / (inside + outside))
    change = int(wrong.int().sub(right.int()).abs().max())
    assert found.worst == change > 0
    # In the band anything goes; the old background where the new one should be does not.
    assert exactness(torch.where(away, right, 0), s.alpha, photograph, new).share == 1
    assert exactness(photograph, s.alpha, photograph, new).subject == 1
    assert exactness(photograph, s.alpha, photograph, new).background < 0.01
    whole = exactness(photograph, torch.ones_like(s.alpha), photograph, new)
    assert whole[:2] == (1, 1)
    assert math.isnan(whole.background)
    nowhere = exactness(photograph, torch.full_like(s.alpha, 0.5), photograph, new)
    assert all(math.isnan(x) for x in nowhere)


def test_wrong_shapes_and_kinds_are_named() -> None:
    picture, alpha = noise(3, 8, 8), torch.ones(1, 8, 8)
    with pytest.raises(UsageError, match=r"\(3, 8, 8\) and \(3, 8, 9\)"):
        halo(picture, noise(3, 8, 9), alpha, picture, picture)
    with pytest.raises(UsageError, match=r"alpha must be \(1, H, W\)"):
        halo(picture, picture, alpha[0], picture, picture)
    with pytest.raises(UsageError, match="uint8"):
        exactness(picture, alpha, picture, picture)
    with pytest.raises(UsageError, match="same size"):
        color_error(picture, picture[:1], alpha > 0)
