"""All measures of one picture: which there are, in which units, and which are absent when."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.measures import (
    MEASURES,
    measure_alpha,
    measure_colors,
    measure_composite,
    measure_mask,
)
from deep_image_compositing.evaluation.testsets import Sample
from deep_image_compositing.functional.compose import over
from deep_image_compositing.metrics import composites
from deep_image_compositing.metrics.lpips import LPIPS
from tests.metrics.test_composites import noise
from tests.metrics.test_lpips import alexnet

AWAY = ["exact", "exact_subject", "exact_background", "worst"]
BAND = ["band_psnr", "band_ssim", "band_error"]


def bits(picture: Tensor) -> Tensor:
    return (picture * 255).round().byte()


def sample(height: int = 70, width: int = 90) -> dict[str, Tensor]:
    """A soft square before two backgrounds, as a test set's sample holds it, in 8 bits."""
    alpha = torch.zeros(1, height, width)
    alpha[:, height // 4 : -height // 4, width // 4 : -width // 4] = 0.5
    alpha[:, height // 4 + 1 : -height // 4 - 1, width // 4 + 1 : -width // 4 - 1] = 1
    color, old, new = (noise(3, height, width, seed=i) for i in range(3))
    return {
        "truth": bits(over(color[None], alpha[None], new[None])[0]),
        "alpha": bits(alpha),
        "foreground": bits(over(color[None], alpha[None], old[None])[0]),
        "background": bits(new),
        "old_background": bits(old),
        "foreground_color": bits(color),
    }


def measured(
    composite: Tensor, truth: Tensor, lpips: LPIPS | None = None, **pictures: Tensor
) -> dict[str, float]:
    return measure_composite(composite, Sample("a", composite=truth, **pictures), lpips)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    """LPIPS over an AlexNet of small random weights."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alexnet(), path)
    return LPIPS(path)


def test_every_measure_but_the_costs_is_made(network: LPIPS) -> None:
    s = sample()
    found = measured(s["foreground"], **s, lpips=network)
    colors = measure_colors(s["truth"], s["truth"], s["alpha"], s["foreground"])
    colors |= measure_colors(s["truth"], s["truth"], s["alpha"], s["truth"])
    found |= {key: colors[key] for key in MEASURES if key in colors and key not in found}
    found |= measure_alpha(s["alpha"], s["alpha"]) | measure_mask(s["alpha"], s["alpha"])
    costs = [key for key, measure in MEASURES.items() if measure.group == "cost"]
    # The share that is left of an error is that of a whole set.
    assert [*found, *costs] == [key for key in MEASURES if key != "fmse_share"]
    assert all(math.isfinite(value) and type(value) is float for value in found.values())


def test_the_truth_is_perfect(network: LPIPS) -> None:
    s = sample()
    found = measured(s["truth"], **s, lpips=network)
    best = 20 * math.log10(510)
    zeros = ["lpips", "band_lpips", "band_error", "worst"]
    assert [found[key] for key in zeros] == [0] * len(zeros)
    assert [found[key] for key in AWAY[:3]] == [100] * 3
    assert found["psnr"] == found["band_psnr"] == pytest.approx(best, abs=1e-3)
    assert found["ssim"] == pytest.approx(1)
    assert found["band_ssim"] == pytest.approx(1)
    assert found["halo"] == pytest.approx(0, abs=1e-6)
    assert found["lost"] == pytest.approx(0, abs=1e-6)


def test_the_photograph_is_all_halo_and_the_background_all_loss() -> None:
    s = sample()
    photograph = measured(s["foreground"], **s)
    assert photograph["halo"] == pytest.approx(1, abs=0.01)
    assert photograph["lost"] == pytest.approx(0, abs=0.01)
    assert photograph["exact_subject"] == 100
    assert photograph["exact_background"] < 1
    background = measured(s["background"], **s)
    assert background["halo"] == pytest.approx(0, abs=0.01)
    assert background["lost"] == pytest.approx(1, abs=0.01)
    assert background["exact_background"] == 100


def test_taking_too_much_away_is_no_better_than_leaving_it() -> None:
    s = {key: picture.float() / 255 for key, picture in sample().items()}
    left = 0.2 * (1 - s["alpha"]) * (s["old_background"] - s["background"])
    more, less = (measured(s["truth"] + way * left, **s)["halo"] for way in (1, -1))
    assert more == pytest.approx(0.2, abs=0.01)
    assert less == pytest.approx(more, abs=0.02)


def test_figures_are_those_of_the_metrics() -> None:
    s = sample()
    f = {key: picture.float() / 255 for key, picture in s.items()}
    composite = bits((f["truth"] + 0.1 * noise(3, 70, 90, seed=7)).clamp(0, 1))
    c = composite.float() / 255
    found = measured(composite, **s)
    band = composites.rim_band(f["alpha"][None])[0]
    similarity = composites.ssim_map(c, f["truth"])
    expected = {
        "psnr": composites.picture_psnr(c[None], f["truth"][None]),
        "ssim": similarity.mean(),
        "band_psnr": composites.band_psnr(c[None], f["truth"][None], f["alpha"][None]),
        "band_ssim": similarity[:, band[0]].mean(),
        "band_error": composites.color_error(c, f["truth"], band),
        "worst": composites.exactness(
            composite, f["alpha"], s["foreground"], s["background"]
        ).worst,
    }
    assert {key: found[key] for key in expected} == pytest.approx(
        {key: float(value) for key, value in expected.items()}, rel=1e-5
    )


def test_floats_and_bytes_give_the_same(network: LPIPS) -> None:
    s = sample()
    f = {key: picture.float() / 255 for key, picture in s.items()}
    whole = measured(s["foreground"], **s, lpips=network)
    assert measured(f["foreground"], **f, lpips=network) == whole
    mask = bits(noise(1, 70, 90))
    assert measure_alpha(mask / 255, f["alpha"]) == measure_alpha(mask, s["alpha"])
    assert measure_mask(mask / 255, f["alpha"]) == measure_mask(mask, s["alpha"])


def test_what_is_not_known_leaves_its_measures_out(network: LPIPS) -> None:
    s = sample()
    without = s | {"alpha": None, "old_background": None, "foreground_color": None}
    assert list(measured(s["truth"], **without)) == ["psnr", "ssim"]
    assert list(measured(s["truth"], **without, lpips=network)) == [
        "psnr",
        "ssim",
        "lpips",
    ]
    without["alpha"] = s["alpha"]
    assert list(measured(s["truth"], **without)) == ["psnr", "ssim", *BAND, *AWAY]
    s["old_background"] = s["background"]
    assert "halo" not in measured(s["truth"], **s)


def test_pictures_without_a_rim_have_no_band() -> None:
    s = sample()
    s["alpha"] = torch.full_like(s["alpha"], 255)
    found = measured(s["foreground"], **s)
    assert list(found) == ["psnr", "ssim", "exact", "exact_subject", "worst"]
    assert found["exact"] == 100


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (63, 70)])
def test_small_pictures_have_what_can_be_had(size: tuple[int, int], network: LPIPS) -> None:
    pixels = {key: picture[:, : size[0], : size[1]] for key, picture in sample().items()}
    found = measured(pixels["truth"], **pixels, lpips=network)
    assert found["psnr"] > 54
    assert ("ssim" in found) == (min(size) > 5)
    assert "lpips" not in found
    assert measure_alpha(pixels["alpha"], pixels["alpha"])["gradient"] == 0
    assert measure_mask(pixels["alpha"], pixels["alpha"])["outline"] == 0


def test_errors_of_alphas_are_those_of_the_whole_picture() -> None:
    truth = sample()["alpha"]
    alpha = truth.clone()
    alpha[0, 0, 0] = 255
    assert measure_alpha(alpha, truth)["sad"] == pytest.approx(1e-3)


def test_outlines_are_measured_at_640() -> None:
    mask, truth = torch.zeros(1, 100, 320), torch.zeros(1, 100, 320)
    mask[..., 103:], truth[..., 100:] = 1, 1
    found = measure_mask(mask, truth)
    assert found["outline"] == pytest.approx(6)
    assert found["mae"] == pytest.approx(3 / 320)
    assert found["iou"] == pytest.approx(217 / 220)
    assert "max_f" not in measure_mask(mask, torch.zeros_like(mask))


def test_a_composite_that_is_left_as_it_was_gains_nothing() -> None:
    s = sample()
    given, truth, mask = s["foreground"], s["truth"], s["alpha"]
    figures = measure_colors(given, truth, mask, given)
    assert figures["gain"] == figures["outside"] == 0
    assert "change" not in figures
    subject = composites.ssim_map(given / 255, truth / 255)[:, mask[0] > 127]
    assert figures["foreground_ssim"] == pytest.approx(float(subject.mean()))
    perfect = measure_colors(truth, truth, mask, given)
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


def test_shapes_must_agree() -> None:
    s = sample()
    with pytest.raises(UsageError, match=r"\(3, 70, 80\) and \(3, 70, 90\)"):
        measured(s["truth"][..., :80], **s)
    s["alpha"] = s["alpha"][..., :80]
    with pytest.raises(UsageError, match=r"\(1, 70, 80\) for \(3, 70, 90\)"):
        measured(s["truth"], **s)
    picture, mask = torch.zeros(3, 8, 8), torch.zeros(1, 8, 9)
    for given in ((mask, picture), (mask[..., :8], torch.zeros(3, 9, 8))):
        with pytest.raises(UsageError):
            measure_colors(picture, picture, *given)


def test_the_page_defines_every_measure() -> None:
    page = (Path(__file__).parents[2] / "docs" / "measures.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (higher|lower) \| \S", page, re.MULTILINE)
    defined = {name: better for names, better in rows for name in names.split(", ")}
    shown = {measure.name: measure.better for measure in MEASURES.values()}
    assert defined == shown
    assert len(shown) == len(MEASURES)
    assert all(measure.about.endswith(".") for measure in MEASURES.values())
