"""``benchmark``: what it measures is right; how long things take is never a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from deep_image_compositing import noise
from deep_image_compositing.benchmark import composites, measuring, training
from deep_image_compositing.cli import main
from deep_image_compositing.data.verify import verify
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.images import read_mask

CPU = torch.device("cpu")


def test_a_fresh_process_tells_its_own_memory_and_how_it_ended() -> None:
    held = np.ones(50_000_000)  # of this process, which counts for nothing
    small, large = (
        measuring.fresh("-c", f"held = b'1' * {size}; print('made')") for size in (1, 150_000_000)
    )
    assert small[1] < 100 < held.nbytes / 1e6
    assert 140 < large[1] - small[1] < 200
    assert small[0] > 0
    assert small[2] == "made"
    assert measuring.fresh("-c", "raise SystemExit(2)", code=2)[2] == ""
    with pytest.raises(CompositingError, match=r"ended with 1: ValueError: too bad"):
        measuring.fresh("-c", "raise ValueError('too bad')")


@pytest.mark.parametrize(("repeats", "calls"), [(1, 1), (3, 4)])
def test_the_first_call_of_several_does_not_count(repeats: int, calls: int) -> None:
    done: list[int] = []
    assert measuring.median(lambda: done.append(1), repeats) >= 0
    assert len(done) == calls


def test_every_size_shows_the_same_subject(tmp_path: Path) -> None:
    masks = []
    for name, width, height in (("small", 128, 96), ("large", 512, 384)):
        measuring.write_scene(tmp_path / name, width, height)
        for part in ("photograph", "background"):
            with Image.open(tmp_path / name / f"{part}.jpg") as picture:
                assert picture.size == (width, height)
        mask = read_mask(tmp_path / name / "mask.png")
        masks.append(np.asarray(Image.fromarray(mask).resize((64, 48), Image.Resampling.BOX)))
    assert 0.1 < masks[0].mean() < 0.6
    assert np.abs(masks[0] - masks[1]).mean() < 0.03


@pytest.mark.slow
def test_made_shards_are_whole(tmp_path: Path) -> None:
    assert verify(measuring.write_shards(tmp_path, "mattes", 3, (48, 64)), workers=1) == []


def test_the_bare_loop_crops_within_the_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = noise.photograph(rng, (600, 640))
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    (tmp_path / "images/a.jpg").write_bytes(noise.jpeg(picture))
    (tmp_path / "masks/a.png").write_bytes(noise.png(noise.subject(rng, picture.size)))
    plans = training.draw_crops(tmp_path, 20)
    assert len({box for *_, box in plans}) == 20
    for plan in plans:
        training.decode(plan)
        box = plan[-1]
        assert min(box) >= 0
        assert box[2] <= picture.width
        assert box[3] <= picture.height


class Line(LightningModule):
    """The smallest thing that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.batches = 0

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.batches += 1
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


def test_the_meter_counts_batches_and_waiting(tmp_path: Path) -> None:
    line, meter = Line(), training.Meter(2, 3)
    data = DataLoader(TensorDataset(torch.zeros(20, 1)))
    training.fit(line, data, CPU, meter, default_root_dir=tmp_path)
    assert line.batches == 5
    assert meter.rate > 0
    assert 0 < meter.waiting < 1
    assert not list(tmp_path.iterdir())


def test_a_scene_gives_all_figures(tmp_path: Path) -> None:
    measuring.write_scene(tmp_path, 160, 120)
    found = composites.measure_scene(tmp_path, "cpu", 128, 1)
    parts = [found[part] for part in ("segmentation", "refinement", "fusion")]
    assert found["all"] == pytest.approx(sum(parts))
    assert 0 < found["tiles"][0] <= found["tiles"][1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["resolution", "--megapixels", "0"], "must be 0.01 to 250"),
        (["resolution", "--megapixels", "a"], "must be 0.01 to 250"),
        (["data", "--workers", "0"], "at least 1, got '0'"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["data", "--megapixels", "2"], "an option of benchmark resolution"),
        (["pipeline", "--workers", "2"], "an option of benchmark data, train and gpu"),
        (["speed"], "invalid choice"),
    ],
)
def test_arguments_that_cannot_be(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *arguments]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rows"),
    [
        ([], ["import torch", "--fuser laplacian", "the default pipeline", "fuser laplacian"]),
        (["resolution"], ["0.02", "0.1", "peak MB"]),
        (["data", "--workers", "1"], ["bare loop", "shards"]),
        (
            ["gpu", "--workers", "1", "--device", "cpu"],
            ["Batches of 1", "fusion, bf16, gloo"],
        ),
    ],
)
def test_the_whole_benchmark(
    what: list[str],
    rows: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["benchmark", "--quick", *what]) == 0
    tables = capsys.readouterr().out
    for row in rows:
        assert row in tables, row
