"""The benchmark of large photographs: its truth is exact, and it sees what it should see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deep_image_compositing.benchmark import fullsize, resolution, scenes
from deep_image_compositing.benchmark.scenes import Scene, write_scene
from deep_image_compositing.cli import main
from deep_image_compositing.fullsize import to_bytes
from deep_image_compositing.functional.compose import over
from deep_image_compositing.images import read_image
from deep_image_compositing.metrics import band_psnr
from deep_image_compositing.registry import create
from tests.conftest import disc, noise


def planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def text(table: Table) -> str:
    console = Console(width=240)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


# Truth


def test_the_truth_is_exact(tmp_path: Path) -> None:
    scene = Scene.of(0.05)
    files = write_scene(scene, tmp_path)
    parts = list(zip(*scene.bands(), strict=True))
    alpha, color, old, new = (np.concatenate(part) for part in parts[1:])
    assert [rows.start for rows in parts[0]] == list(range(0, scene.height, 128))
    assert alpha.shape == (scene.height, scene.width)
    for path, behind in ((files.photograph, old), (None, new)):
        layers = [planes(x)[None] / 255 for x in (color, alpha[..., None], behind)]
        pixels = files.array("truth") if path is None else read_image(path).pixels
        assert torch.equal(planes(pixels), to_bytes(over(*layers)[0]))
    assert np.array_equal(files.array("alpha"), alpha)
    assert np.array_equal(read_image(files.background).pixels, new)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "alpha.npy", "background.png", "mask.npy", "photograph.png", "truth.npy",
    ]  # fmt: skip


def test_every_size_shows_the_same_subject() -> None:
    small, large = Scene.of(0.05), Scene.of(0.8)
    assert (large.height, large.width) == (776, 1032)
    pictures = []
    for scene in (small, large):
        alpha = np.concatenate([band[1] for band in scene.bands()])
        pictures.append(torch.from_numpy(alpha).float()[None, None] / 255)
    shrunk = torch.nn.functional.interpolate(
        pictures[1], pictures[0].shape[-2:], mode="bilinear", antialias=True
    )
    assert float((shrunk - pictures[0]).abs().mean()) < 0.01
    share = [float((x == 1).float().mean()) for x in pictures]
    assert 0.1 < share[0] < share[1] < 0.5


def test_the_same_pixels_lie_in_the_middle_of_a_larger_picture() -> None:
    small, large = Scene(80, 120, 80, 0.2), Scene(160, 200, 80, 0.2)
    one, other = (
        [np.concatenate(part) for part in list(zip(*scene.bands(), strict=True))[1:]]
        for scene in (small, large)
    )
    for a, b in zip(one, other, strict=True):
        assert np.abs(a.astype(int) - b[40:120, 40:160].astype(int)).max() <= 1


def test_strands_are_drawn_and_faint_below_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(750, 1000, 750, 0.25)
    whole = np.concatenate([band[1] for band in scene.bands()]).astype(int)
    monkeypatch.setattr(scenes, "STRANDS", 0)
    bare = Scene(750, 1000, 750, 0.25)
    plain = np.concatenate([band[1] for band in bare.bands()])
    added = whole - plain
    assert added.min() == 0
    assert 0.0005 < (added > 20).mean() < 0.02
    assert np.median(added[added > 20]) < 200


# What is measured


def test_band_figures_are_those_of_the_metrics() -> None:
    alpha = to_bytes(disc(600, 500, 0.05)[0, 0])
    truth, made = planes(noise(600, 500)), planes(noise(600, 500, seed=1))
    expected = band_psnr(made[None] / 255, truth[None] / 255, alpha[None, None] / 255)
    assert fullsize.band_decibels(made, truth, alpha) == pytest.approx(float(expected), abs=1e-4)
    assert fullsize.band_decibels(truth, truth, alpha) == pytest.approx(54.15, abs=0.01)


def test_the_outline_of_a_circle_has_its_length() -> None:
    y, x = np.mgrid[:400, :400] - 199.5
    alpha = torch.from_numpy((255 * (np.hypot(x, y) < 150)).astype(np.uint8))
    assert fullsize.outline_length(alpha) == pytest.approx(2 * np.pi * 150, rel=0.01)


def test_a_seam_is_seen() -> None:
    alpha = to_bytes(disc(600, 700, 0.3)[0, 0])
    ramp = torch.linspace(60, 180, 700).expand(3, 600, 700) + torch.rand(3, 600, 700) * 4
    clean = ramp.byte()
    assert fullsize.seam_ratio(clean, alpha) == pytest.approx(1, abs=0.1)
    rows, columns = (torch.arange(n) // 96 % 2 for n in (600, 700))
    seamed = clean + 6 * ((rows[:, None] + columns) % 2).byte()
    assert fullsize.seam_ratio(seamed, alpha) > 2
    elsewhere = clean + 6 * ((torch.arange(700) + 48) // 96 % 2).byte()
    assert fullsize.seam_ratio(elsewhere, alpha) < 1.1


def test_the_rough_mask_is_near_the_truth_and_soft() -> None:
    alpha = disc(300, 400, 0.05)
    rough = fullsize.rough_mask(alpha, (150, 200))
    assert rough.shape == (1, 1, 150, 200)
    assert 0.001 < float(((rough > 0) & (rough < 1)).float().mean()) < 0.1
    small = torch.nn.functional.interpolate(alpha, (150, 200), mode="bilinear", antialias=True)
    assert float(((rough > 0.5) == (small > 0.5)).float().mean()) > 0.99


def test_one_scene_gives_all_figures(tmp_path: Path) -> None:
    files = write_scene(Scene.of(0.1), tmp_path)
    found = fullsize.measure(
        files,
        {
            "device": "cpu", "repeats": 1, "work_side": 128,
            "parts": ["quality", "whole", "floor", "profile"],
        },
    )  # fmt: skip
    json.dumps(found)
    assert 0 < found["tiles"][0] <= found["tiles"][1]
    assert found["total"] == pytest.approx(
        found["segmentation"] + found["refinement"] + found["fusion"]
    )
    assert found["gain"] == pytest.approx(found["psnr"] - found["enlarged_psnr"])
    assert found["difference_999"] <= found["difference"] <= 3
    assert 15 < found["plain_psnr"] < 54
    assert {"networks", "lifting", "alpha and colour solves"} <= set(found["profile"])
    assert not (tmp_path / "composite.png").exists()
    rows = {0.6: found, 12: {**found, "difference": "needs 9 GB", "memory": None}}
    shown = [
        text(table)
        for table in (
            resolution.size_table(rows),
            resolution.quality_table(rows),
            resolution.others_table(rows),
            resolution.profile_table(12, found["profile"]),
            resolution.aim_table(rows),
            resolution.outline_table(12, [found, {**found, "outline": 1.0, "total": 2.0}]),
        )
    ]
    assert "needs 9 GB" in shown[1]
    assert "< 20" in shown[4]
    assert "R²" in shown[5]


def test_inner_work_is_not_counted_twice() -> None:
    watch = fullsize.Stopwatch(torch.device("cpu"))
    now = iter([0.0, 1.0, 4.0, 6.0])
    watch._now = lambda: next(now)  # type: ignore[method-assign]
    inner = watch.wrapped("inner", lambda: None)
    watch.wrapped("outer", inner)()
    assert watch.seconds == {"outer": 3.0, "inner": 3.0}


def test_a_line_through_points_on_a_line() -> None:
    slope, intercept, fit = resolution.line_through([1, 2, 4], [5.0, 7.0, 11.0])
    assert (slope, intercept, fit) == pytest.approx((2, 3, 1))


# Tables


def test_blends_beside_others_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kornia.geometry.transform", None)
    shown = text(resolution.blend_table(64, 1))
    assert "kornia is not installed" in shown
    assert "fuser laplacian" in shown


def test_kornia_s_blend_is_a_blend() -> None:
    pytest.importorskip("kornia")
    pair = resolution.make_pair(96)
    blend = resolution.kornia_blend(pair)()
    plain = over(pair.foreground, pair.alpha, pair.background)
    assert blend.shape == plain.shape
    assert float((blend - plain).abs().mean()) < 0.1


def test_batches_of_pairs_run_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small networks: processors without bfloat16 of their own take minutes for the shipped ones.
    small = {
        "segmenter": {"backbone": "test_efficientnet", "width": 8, "size": 32},
        "refiner": {"backbone": "test_efficientnet", "width": 8, "sizes": (32,)},
        "fuser": {"widths": (4, 6), "radius": 3},
    }
    monkeypatch.setattr(resolution, "_stage", lambda slot, name: create(slot, name, **small[slot]))
    shown = text(resolution.batch_table(torch.device("cpu"), 64, 1, 2, compiled=False))
    assert "fp32" in shown
    assert "bf16" in shown


def test_batches_without_a_gpu_are_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "resolution", "--parts", "batches"]) == 0
    assert "skipped on cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--megapixels", "0"], "numbers from 0.01"),
        (["--megapixels", "a"], "a list such as"),
        (["--parts", "speed"], "--parts takes some of"),
        (["--threads", "0"], "--threads"),
        (["--size", "96"], "--size"),
    ],
)
def test_arguments_that_cannot_be(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "resolution", *arguments]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "resolution", "--quick", "--parts", "sizes,outline,blends"]) == 0
    tables = capsys.readouterr().out
    for title in ("One subject", "In the rim band", "Beside others", "Aims", "twice the area"):
        assert title in tables
