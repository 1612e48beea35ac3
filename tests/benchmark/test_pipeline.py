"""The benchmark: what it measures is right; how long things take is never a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deep_image_compositing.benchmark import pipeline as benchmark
from deep_image_compositing.benchmark.fullsize import reset_peak
from deep_image_compositing.cli import main
from deep_image_compositing.functional.compose import over


def test_the_made_pair_has_a_soft_subject_and_a_true_trimap() -> None:
    pair = benchmark.make_pair(96)
    soft = (pair.alpha > 0) & (pair.alpha < 1)
    assert 0.1 < float((pair.alpha == 1).float().mean()) < 0.6
    assert 0.02 < float(soft.float().mean()) < 0.4
    assert set(pair.trimap.unique().tolist()) == {0.0, 0.5, 1.0}
    assert pair.alpha[pair.trimap == 1].min() > 0.5
    assert pair.alpha[pair.trimap == 0].max() < 0.5
    assert torch.equal(pair.foreground, benchmark.make_pair(96).foreground)
    assert not torch.equal(pair.foreground, benchmark.make_pair(96, seed=1).foreground)


def test_the_competitors_make_composites() -> None:
    pytest.importorskip("pymatting")
    pytest.importorskip("cv2")
    pair = benchmark.make_pair(96)
    plain = over(pair.foreground, pair.alpha, pair.background)[0].permute(1, 2, 0).numpy()
    closed_form = benchmark._closed_form(pair)()
    assert np.abs(closed_form - plain).mean() < 0.03
    blend = benchmark._opencv_blend(pair)()
    assert blend.shape == plain.shape
    assert np.abs(blend - plain).mean() < 0.1
    same = benchmark.Pair(*[pair.foreground] * 2, *[pair.alpha] * 3)
    np.testing.assert_allclose(
        benchmark._opencv_blend(same)(), benchmark._array(pair.foreground), atol=1e-5
    )


@pytest.mark.parametrize(
    ("package", "method", "extra"),
    [
        ("pymatting", benchmark._closed_form, "matting"),
        ("cv2", benchmark._opencv_blend, "opencv"),
    ],
)
def test_a_missing_extra_is_a_row_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str, method: Callable[..., object], extra: str
) -> None:
    from rich.table import Table

    monkeypatch.setitem(sys.modules, package, None)
    table = Table("what", "seconds", "ratio", "to")
    assert benchmark._try_row(table, "other", method, benchmark.make_pair(64), 1) is None
    (cell,) = list(table.columns[3].cells)
    assert f"pip install 'deep-image-compositing[{extra}]'" in str(cell)


def test_values_are_reduced_to_their_median() -> None:
    values = iter([3.0, 1.0, 2.0])
    assert benchmark._median(lambda: next(values), 3, value=True) == 2.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="Linux can start anew")
def test_the_peak_is_what_was_held_since_it_began_anew() -> None:
    before = reset_peak()
    held = np.ones(40_000_000)
    peak = benchmark.peak_memory()
    assert before is not None
    assert peak is not None
    assert peak > before + 0.9 * held.nbytes
    del held
    after = reset_peak()
    assert after is not None
    assert after < peak - 0.7 * 40_000_000 * 8


@pytest.mark.parametrize("arguments", [["--size", "8"], ["--threads", "0"]])
def test_arguments_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--quick"]) == 0
    tables = capsys.readouterr().out
    for row in (
        "import deep_image_compositing",
        "closed form",
        "OpenCV pyramid blend",
        "the whole default pipeline",
        "fuser laplacian",
        "default pipeline, 96 x 96",
    ):
        assert row in tables
