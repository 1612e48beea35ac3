"""Loaders: resumed runs see what uninterrupted ones see; evaluations count each sample once."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deep_image_compositing import registry
from deep_image_compositing.data import loading
from deep_image_compositing.data.datasets import Mixture, Reading, open_source, stream_remote
from deep_image_compositing.data.items import Item, Source
from deep_image_compositing.data.loading import Loader, Sample, Samples, pack, unpack
from deep_image_compositing.data.sampler import EvaluationSampler, TrainingSampler
from deep_image_compositing.errors import DataError, UsageError
from tests.data import trees

pytestmark = [
    # Python 3.12 and later say so where loader processes are forked, as torch does on Linux.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # Three loader processes are more than a small machine has cores.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]

EPOCH = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of shards: of 11 samples, of 12, and of 6 of which the third is no picture."""
    root = tmp_path_factory.mktemp("loading")
    trees.shards(root / "mattes", "mattes", 11)
    trees.shards(root / "scenes", "backgrounds", 12)
    trees.shard(root / "broken.tar", "mattes", range(6), broken=(2,))
    return root


def mix(path: Path | str, tolerance: float = 0.01) -> Mixture:
    kinds = ("mattes", "backgrounds")
    dataset, _ = open_source(Source(str(path)), kinds, Reading(3, tolerance))
    return stream_remote(Mixture([dataset]), 0)


def number(item: Item) -> int:
    return int(item.name[-4:])


def numbers(rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
    """Which samples were drawn, and a number of the sample's own."""
    drawn = [number(item) for item in items.values()]
    return {"drawn": torch.tensor(drawn), "own": torch.tensor(rng.random())}


def pictures(rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
    """The same, of samples that must be readable."""
    items["subject"].image()
    return numbers(rng, items, held_out)


def loader(
    mixtures: Mapping[str, Mixture],
    make: Callable[..., Sample],
    batch_size: int,
    length: int,
    workers: int = 0,
    tolerance: float = 0.01,
    **options: Any,
) -> Loader:
    """Training batches."""
    sampler = TrainingSampler(mixtures, batch_size, length, **options)
    return Loader(Samples(mixtures, make, tolerance=tolerance), sampler, workers, timeout=60)


def evaluation(
    mixtures: Mapping[str, Mixture], make: Callable[..., Sample], batch_size: int, **options: Any
) -> Loader:
    """The batches of an evaluation."""
    workers, tolerance = options.pop("workers", 0), options.pop("tolerance", 0.01)
    sampler = EvaluationSampler(mixtures, batch_size, **options)
    samples = Samples(mixtures, make, held_out=True, tolerance=tolerance)
    return Loader(samples, sampler, workers, timeout=60)


def training(
    root: Path, workers: int = 0, start: int = 0, rank: int = 0, ranks: int = 1
) -> Iterator[Sample]:
    """The batches of a run from a position on, epoch after epoch."""
    mixtures = {"subject": mix(root / "mattes"), "scene": mix(root / "scenes")}
    done = start
    given = {"seed": 5, "rank": rank, "ranks": ranks, "position": lambda: done}
    batches = loader(mixtures, numbers, 2, EPOCH, workers, **given)
    assert len(batches) == EPOCH
    while True:
        for batch in batches:
            done += 1
            yield batch


def text(batch: Sample) -> str:
    return str(sorted((key, value.tolist()) for key, value in batch.items()))


def texts(batches: Iterator[Sample], most: int) -> list[str]:
    return [text(batch) for batch in itertools.islice(batches, most)]


# Training


def test_a_run_that_starts_anywhere_sees_what_is_there(root: Path) -> None:
    whole = texts(training(root), 2 * EPOCH + 2)
    assert len(set(whole)) == len(whole)
    # The number of loader processes changes nothing.
    for start, workers in ((1, 0), (EPOCH - 1, 1), (EPOCH, 2), (EPOCH + 3, 0), (0, 3)):
        rest = texts(training(root, workers, start), len(whole) - start)
        assert rest == whole[start:], start


def test_ranks_differ(root: Path) -> None:
    ranks = [texts(training(root, 0, rank=rank, ranks=3), EPOCH) for rank in range(3)]
    assert len({*ranks[0], *ranks[1], *ranks[2]}) == 3 * EPOCH


@pytest.mark.parametrize("batch_size", [1, 4])
def test_bad_samples_do_not_shift_the_others(batch_size: int, root: Path, tmp_path: Path) -> None:
    # The same shard, once whole.
    whole = trees.shard(tmp_path / "whole.tar", "mattes", range(6))
    good, torn = (
        list(loader({"subject": mix(path)}, pictures, batch_size, 30, tolerance=1.0))
        for path in (whole, root / "broken.tar")
    )
    bad = 0
    for expected, batch in zip(good, torn, strict=True):
        assert torch.equal(batch["seed"], expected["seed"])
        fine = expected["drawn"][:, 0] != 2
        bad += int((~fine).sum())
        assert torch.equal(batch["drawn"][fine], expected["drawn"][fine])
        assert torch.equal(batch["own"][fine], expected["own"][fine])
        assert 2 not in batch["drawn"]
    assert bad > 3


def test_what_stands_in_does_not_depend_on_what_came_before(root: Path) -> None:
    def run(start: int) -> list[str]:
        mixtures = {"subject": mix(root / "broken.tar")}
        batches = loader(mixtures, pictures, 1, 30, tolerance=1.0, position=lambda: start)
        return texts(iter(batches), 30)

    whole = run(0)
    assert all(run(start) == whole[start:] for start in range(0, 30, 3))


def test_a_batch_is_its_samples_in_a_row() -> None:
    # Of an odd number of bytes, so that what follows would not be aligned; one is for one of them.
    there = torch.arange(27, dtype=torch.uint8).view(3, 3, 3)
    samples = [
        {"own": there + i, "valid": torch.tensor(i == 0), "at": torch.tensor([0.5, i]),
         "seed": torch.tensor(2**60), **({"some": there} if i == 1 else {})}
        for i in range(3)
    ]  # fmt: skip
    batch = unpack(pack(samples))
    assert set(batch) == set(samples[1])
    for name, value in batch.items():
        lacking = torch.zeros_like(samples[1][name])
        expected = torch.stack([sample.get(name, lacking) for sample in samples])
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected), name


def test_an_item_that_a_sample_does_not_use_is_not_read(root: Path, tmp_path: Path) -> None:
    trees.shards(tmp_path / "scenes", "backgrounds", 4)
    mixtures = {"subject": mix(root / "mattes"), "scene": mix(tmp_path / "scenes", 0.0)}
    len(mixtures["scene"])
    shutil.rmtree(tmp_path / "scenes")

    def draw(rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        return {"drawn": torch.tensor(number(items["subject"]))}

    assert len(list(loader(mixtures, draw, 2, 5, tolerance=0.0))) == 5


def test_what_changes_the_order_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    def make(name: str, **about: int) -> Loader:
        mixtures = {"subject": mix(name)}
        sampler = TrainingSampler(mixtures, 2, 30)
        return Loader(Samples(mixtures, numbers), sampler, 2, about=about)

    name = str(root / "mattes")
    state = make(name, seed=1, batch_size=2).state_dict()
    make(name, seed=1, batch_size=2).load_state_dict(state)
    assert not caplog.text
    make(name, seed=1, batch_size=4).load_state_dict(state)
    assert "will see other samples: batch_size was 2 and is 4" in caplog.text
    url = f"pipe:cat {root}/broken.tar"
    make(url, seed=1, batch_size=2).load_state_dict(state)
    assert f"will see other samples: {url} is streamed" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [UsageError("wrong"), ValueError("wrong")])
def test_a_mistake_ends_a_run_and_is_no_damaged_sample(
    root: Path, error: Exception, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    def draw(rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
        raise error

    mixtures = {"subject": mix(root / "mattes")}
    for batches in (
        loader(mixtures, draw, 2, 30, workers, tolerance=1.0),
        evaluation(mixtures, draw, 2, workers=workers, tolerance=1.0),
    ):
        said = "^wrong$" if isinstance(error, UsageError) else "wrong"  # without a traceback
        with pytest.raises(type(error), match=said):
            list(batches)
    assert "passed over" not in caplog.text


def die(rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def late(rng: np.random.Generator, items: Mapping[str, Item], held_out: bool) -> Sample:
    time.sleep(1.5)
    return numbers(rng, items, held_out)


def test_an_epoch_cut_short_is_followed_by_the_next_however_slow(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_TICK", 1)  # less than what a batch takes
    batches = loader({"subject": mix(root / "mattes")}, late, 1, 4, 1)
    assert len([next(iter(batches)) for _ in range(2)]) == 2


def test_a_loader_process_that_is_killed_is_said(root: Path) -> None:
    with pytest.raises(DataError, match=r"loader process was killed.*(exited|signal)"):
        list(loader({"subject": mix(root / "mattes")}, die, 2, 30, 1))


@pytest.mark.parametrize("package", ["", "pymatting"])
def test_loader_processes_outlive_what_stops_a_run(package: str, root: Path) -> None:
    if package:  # whose threads begin anew in a process that is forked from one that used them
        pytest.importorskip(package)
        refiner = registry.create("refiner", "closed_form")
        refiner(torch.rand(1, 3, 48, 48), (torch.rand(1, 1, 48, 48) > 0.5).float())
    before = set(multiprocessing.active_children())
    batches = training(root, 2)
    next(batches), next(batches)  # now both have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    pids = [str(worker.pid) for worker in workers]
    for name in ("TERM", "USR1", "INT", "TERM"):  # from another process, as all of them are
        subprocess.run(["kill", f"-{name}", *pids], check=True)
    assert texts(batches, 3 * EPOCH) == texts(training(root, 2, 2), 3 * EPOCH)
    assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.terminate()  # by the trainer itself
        worker.join(60)
        assert worker.exitcode == 0


# Evaluation


ALONE = [(ranks, 0, total) for ranks in (1, 2, 3, 4) for total in (1, 5, 11)]


@pytest.mark.parametrize(("ranks", "workers", "total"), [*ALONE, (1, 2, 7), (2, 1, 1), (3, 2, 11)])
def test_each_sample_counts_once_on_any_number_of_ranks(
    ranks: int, workers: int, total: int, root: Path, tmp_path: Path
) -> None:
    trees.shard(tmp_path / "0.tar", "mattes", range(min(3, total)))
    trees.shard(tmp_path / "1.tar", "mattes", range(3, total)) if total > 3 else None
    mixtures = {"subject": mix(f"{tmp_path}/*.tar"), "scene": mix(root / "scenes")}
    seen: dict[int, tuple[int, float, int]] = {}
    lengths = []
    for rank in range(ranks):
        loading = evaluation(mixtures, numbers, 2, workers=workers, rank=rank, ranks=ranks)
        batches = list(loading)
        assert len(batches) == len(loading)
        lengths.append([len(batch["valid"]) for batch in batches])
        for batch in batches:
            for i in batch["valid"].nonzero().view(-1):
                first, second = batch["drawn"][i].tolist()
                assert first not in seen
                seen[first] = second, float(batch["own"][i]), int(batch["seed"][i])
    assert sorted(seen) == list(range(total))
    assert all(length == lengths[0] for length in lengths)  # none waits for another
    # What a sample is made of depends on its place alone.
    for i, batch in enumerate(evaluation(mixtures, numbers, 1)):
        assert seen[i] == (int(batch["drawn"][0, 1]), float(batch["own"]), int(batch["seed"]))


@pytest.mark.parametrize("ranks", [1, 2])
def test_repeats_are_crops_of_their_own(ranks: int, root: Path) -> None:
    seen = []
    for rank in range(ranks):
        mixtures = {"subject": mix(root / "mattes")}
        for batch in evaluation(mixtures, numbers, 4, repeats=3, rank=rank, ranks=ranks):
            own = batch["own"][batch["valid"]].tolist()
            seen += zip(batch["drawn"][batch["valid"], 0].tolist(), own, strict=True)
    assert [drawn for drawn, _ in seen] == [i // 3 for i in range(33)]
    assert len({own for _, own in seen}) == 33


def test_a_bad_sample_is_padding(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = list(evaluation({"subject": mix(root / "broken.tar")}, pictures, 3))
    assert [batch["valid"].tolist() for batch in batches] == [[True, True, False], [True] * 3]
    assert "broken.tar: s0002" in caplog.text
    nothing = trees.shard(root / "nothing.tar", "mattes", range(2), broken=(0, 1))
    with pytest.raises(DataError, match=r"5 of 5 samples could not be read.*nothing\.tar"):
        list(evaluation({"subject": mix(nothing)}, pictures, 3))


# Faults in the middle of an epoch


SERVER = """
import http.server, pathlib, sys

class Vanishing(http.server.BaseHTTPRequestHandler):
    served = 0
    def do_GET(self):
        content = pathlib.Path(sys.argv[1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        Vanishing.served += 1
        self.wfile.write(content if Vanishing.served <= 6 else content[: len(content) // 2])
        if Vanishing.served > 6:
            sys.exit()
    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Vanishing)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""Serves a shard six times, three for each of two loader processes; then breaks off and is gone."""


@pytest.fixture
def vanishing(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    shard = root / "mattes" / "train-000000.tar"
    # A process of its own: forked loader processes would keep a socket of this one open.
    command = [sys.executable, "-c", SERVER, str(shard)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/s.tar"
        server.kill()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """What is logged, by loader processes too."""
    handler = logging.FileHandler(tmp_path / "log")
    logger = logging.getLogger("deep_image_compositing")
    logger.addHandler(handler)
    yield tmp_path / "log"
    logger.removeHandler(handler)
    handler.close()


FAULTS = {
    "corrupt image": "no image of a known format",
    "missing shard": "No such file",
    "truncated tar": "truncated",
    "failing program": "exit status 3",
}


def faulty(fault: str, tmp_path: Path) -> str:
    """Ten shards, the last of which is not as it should be."""
    for i in range(10):
        broken = (39, 38) if fault == "corrupt image" else ()
        trees.shard(tmp_path / f"{i}.tar", "mattes", range(4 * i, 4 * i + 4), broken)
    last = tmp_path / "9.tar"
    if fault == "missing shard":
        last.unlink()
    elif fault == "truncated tar":
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    if fault == "failing program":
        return "::".join(f"pipe:cat {tmp_path}/{i}.tar; exit {3 * (i // 9)}" for i in range(10))
    return f"{tmp_path}/{{0..9}}.tar"


@pytest.mark.parametrize(
    ("fault", "workers"),
    [("corrupt image", 0), ("missing shard", 0), ("truncated tar", 2), ("failing program", 0)],
)
def test_a_fault_in_the_middle_is_named_and_counted_and_at_last_an_error(
    fault: str, workers: int, tmp_path: Path, log: Path
) -> None:
    url = faulty(fault, tmp_path)

    def run(tolerance: float) -> int:
        mixtures = {"subject": mix(url, tolerance)}
        done = 0
        try:
            for _ in loader(mixtures, pictures, 2, 150, workers, tolerance):
                done += 1
        except DataError as error:
            assert FAULTS[fault] in str(error)  # noqa: PT017
            assert "more than the tolerated share of 0.01" in str(error)  # noqa: PT017
        return done

    assert 2 < run(0.01) < 150
    said = log.read_text()
    assert FAULTS[fault] in said
    assert "passed over (4 of " in said
    assert run(0.5) == 150


@pytest.mark.skipif(shutil.which("curl") is None, reason="URLs are read by curl")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_vanishes_in_the_middle(workers: int, vanishing: str, log: Path) -> None:
    batches = iter(loader({"subject": mix(vanishing)}, pictures, 1, 1000, workers))
    assert next(batches)["drawn"] < 4
    with pytest.raises(DataError, match=r"shards of http.*tolerated share.*http"):
        list(batches)
    assert "s.tar" in log.read_text()
