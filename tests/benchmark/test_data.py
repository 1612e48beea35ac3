"""``benchmark data``: what it measures is right; how long things take is never a test."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from deep_image_compositing.benchmark import data, made
from deep_image_compositing.cli import main
from deep_image_compositing.data import folders
from deep_image_compositing.data.items import ShardItem, Source
from deep_image_compositing.data.shards import Record
from deep_image_compositing.data.verify import verify


@pytest.mark.parametrize("kind", made.KINDS)
def test_made_shards_are_whole_and_always_the_same(kind: str, tmp_path: Path) -> None:
    samples = made.samples(kind, 5, (48, 64))
    assert samples == made.samples(kind, 5, (48, 64))
    folder = made.write_shards(tmp_path / "shards", kind, samples, shards=2)
    assert verify(folder, workers=1) == []
    for _, fields in samples:
        Record("made", fields).check(kind)
        sizes = {Image.open(io.BytesIO(content)).size for content in fields.values()}
        assert len(sizes) == 1
        assert 48 <= max(sizes.pop()) <= 64


def test_made_photographs_cost_as_many_bits_as_photographs() -> None:
    picture = made.photograph(np.random.default_rng(0), (600, 600))
    bits = 8 * len(made.jpeg(picture)) / (picture.width * picture.height)
    assert 1.2 < bits < 2.6
    mask = made.subject(np.random.default_rng(0), picture.size)
    assert 0.1 < np.asarray(mask).mean() / 255 < 0.7


def test_the_bare_loop_decodes_what_the_data_module_would(tmp_path: Path) -> None:
    ((key, fields),) = made.samples("segmentation", 1, (600, 640))
    for name, content in fields.items():
        (tmp_path / f"{key}.{name}").write_bytes(content)
    item = ShardItem(Source("made"), Record(key, fields))
    box, size = (10.0, 20.0, 590.0, 380.0), data.SIZE
    plan = data._Plan(
        tmp_path / f"{key}.image.jpg", tmp_path / f"{key}.mask.png", item.size(), box, True
    )
    image, mask = data._decode(plan)
    scale = size / min(box[2] - box[0], box[3] - box[1])
    assert scale < 1
    wanted = folders.crop(item.image(scale), box, size, True, item.size())
    np.testing.assert_array_equal(image, np.asarray(wanted))
    np.testing.assert_array_equal(mask, np.asarray(folders.crop(item.label(), box, size, True)))


class Endless(IterableDataset[dict[str, Tensor]]):
    """Two processes' batches in turn, which say that each took 0.4 s of processor time."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        for number in itertools.count():
            usage = torch.tensor([number % 2, (number // 2) * 4 * 10**8, 0])
            yield {data._USAGE: usage}


def test_a_turn_counts_samples_and_the_processor_time_of_each_process() -> None:
    turns = data.Turns(DataLoader(Endless(), batch_size=None), waiting=2)
    for _ in range(2):
        turns.take(4)
    assert len(turns.rates) == 2
    assert turns.rate > 0
    assert turns.cost == pytest.approx(0.4 / data.BATCH, rel=0.2)


def test_ratios_are_taken_within_turns() -> None:
    assert data._ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == 3.0


def test_growth_is_told_from_steps() -> None:
    samples = np.arange(0, 10_000, 10, dtype=np.float64)
    noise = np.random.default_rng(0).normal(0, 1e5, len(samples))
    leak = data.fit_growth(samples, 5e8 + 100 * samples + noise)
    assert leak.slope == pytest.approx(100, abs=3 * leak.error)
    assert not leak.flat
    steady = data.fit_growth(samples, 5e8 + noise)
    assert abs(steady.slope) < 3 * steady.error
    assert steady.flat
    assert data.fit_growth(samples, 5e8 + 8 * samples).flat


def test_memory_of_this_process() -> None:
    before = data.resident()
    assert before is not None
    held = np.ones(64 * 2**20, np.uint8)
    after = data.resident()
    assert after is not None
    assert after - before > held.nbytes // 2
    assert data.usage().tolist()[0] == os.getpid()
    assert data.usage().tolist()[2] == 0
    assert data.usage(memory=True).tolist()[2] > held.nbytes


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--samples", "9"], ["--size", "96"]])
def test_arguments_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    order = [*arguments, "data"] if arguments[0] == "--size" else ["data", *arguments]
    assert main(["benchmark", *order]) == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["--quick", "--device", "cpu", "--workers", "2", "--samples", "100"]
    assert main(["benchmark", "data", *arguments]) == 0
    tables = capsys.readouterr().out
    for row in (
        "bare loop",
        "shards",
        "folder",
        ">= 0.85",
        "1 to 2",
        "easy triplets, 384 x 384, batch 8",
        "over 100 samples",
        "in the training process",
        "in a loader process",
    ):
        assert row in tables, row
