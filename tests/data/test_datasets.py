"""Datasets of items: what a source holds, each sample where it lies, faults counted."""

from __future__ import annotations

import contextlib
import gc
import gzip
import itertools
import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from deep_image_compositing.data import datasets
from deep_image_compositing.data.datasets import (
    FolderDataset,
    Mixture,
    Reading,
    ShardDataset,
    StreamedDataset,
    open_held_out,
    open_source,
    stream_remote,
)
from deep_image_compositing.data.items import Source
from deep_image_compositing.data.shards import Index
from deep_image_compositing.data.tars import UNREADABLE, Tolerance, TooManyError
from deep_image_compositing.errors import DataError, UsageError
from tests.data import trees

KINDS = ("segmentation", "mattes")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards (12 + 3 samples), one of triplets, and a plain one of pairs (3 + 1)."""
    root = tmp_path_factory.mktemp("datasets")
    trees.shards(root / "mattes", "mattes", 12, 3)
    trees.shards(root / "triplets", "triplets", 2)
    trees.pairs(root / "pairs")
    one = trees.shard(root / "one.tar", "mattes", range(4))
    for suffix, compress in (("gz", gzip.compress), ("xz", lzma.compress)):
        (root / suffix).mkdir()
        (root / suffix / f"0.tar.{suffix}").write_bytes(compress(one.read_bytes()))
    return root


def opened(path: Path | str, **options: Any) -> FolderDataset | ShardDataset:
    return open_source(Source(str(path)), KINDS, Reading(**options))[0]


def keys(dataset: Any) -> list[str]:
    return [item.name.rpartition(" ")[2].rpartition("/")[2] for item in dataset]


# Each sample where it lies


@pytest.mark.parametrize(
    "name", ["mattes/*.tar", "mattes", "gz/*.tar.gz", "xz/*.tar.xz", "pipe:cat ROOT/one.tar"]
)
def test_samples_are_read_by_number(name: str, root: Path) -> None:
    path = name.replace("ROOT", str(root)) if ":" in name else f"{root}/{name}"
    dataset = opened(path)
    assert isinstance(dataset, ShardDataset)
    wanted = {"mattes": 12, "mattes/*.tar": 15}.get(name, 4)
    assert len(dataset) == wanted == sum(dataset.blocks())
    assert keys(dataset) == [f"s{i:04d}" for i in range(wanted)]
    for i in (wanted - 1, 0, 2):
        assert keys([dataset[i]]) == [f"s{i:04d}"]
        assert dataset[i].record.fields["image.jpg"] == trees.sample("mattes", i)["image.jpg"]
    with pytest.raises(IndexError, match=f"has {wanted} samples, not sample {wanted}"):
        dataset[wanted]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same_shards(root: Path) -> None:
    url = f"{root}/mattes/train-{{000000..000002}}.tar"
    theirs = list(webdataset.WebDataset(url, shardshuffle=False))
    gc.collect()
    ours = [item.record for item in opened(url)]
    assert [sample["__key__"] for sample in theirs] == [record.key for record in ours]
    for sample, record in zip(theirs, ours, strict=True):
        assert {name: sample[name] for name in record.fields} == dict(record.fields)


def test_a_mixture_is_its_datasets_in_a_row_by_weight(root: Path) -> None:
    sources = (Source(str(root / "pairs"), 1.0), Source(str(root / "mattes"), 3.0))
    mixture = Mixture([open_source(source, KINDS)[0] for source in sources])
    assert len(mixture) == 15
    last = keys(opened(root / "pairs"))[-1]
    assert keys([mixture[i] for i in (2, 3, 14)]) == [last, "s0000", "s0011"]
    with pytest.raises(IndexError):
        mixture[15]
    assert mixture.weights().tolist() == [0.25, 0.75]
    for dataset in mixture.datasets:
        dataset.source.weight = 0
    with pytest.raises(UsageError, match=r"of .*pairs, .*mattes: the weights must not all be 0"):
        mixture.weights()


# Streams


def streamed(url: str, seed: int = 0, **options: Any) -> Iterator[str]:
    """Keys of what is streamed."""
    (dataset,) = stream_remote(Mixture([opened(url, **options)]), seed).datasets
    assert isinstance(dataset, StreamedDataset)
    while True:
        yield from keys([dataset[0]])


def piped(root: Path) -> str:
    shards = sorted((root / "mattes").glob("train-*.tar"))
    return "::".join(f"pipe:cat {path}" for path in shards)


def test_a_stream_draws_all_in_an_order_of_its_own(root: Path) -> None:
    def take(most: int, seed: int, **options: Any) -> list[str]:
        return list(itertools.islice(streamed(piped(root), seed, **options), most))

    counts = Counter(take(300, 0, shuffle=5))
    assert set(counts) == {f"s{i:04d}" for i in range(12)}
    assert min(counts.values()) > 12
    first, again, other = (take(30, seed, shuffle=5) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    in_order = [int(key[1:]) % 4 for key in take(9, 0, shuffle=0)]
    assert in_order == [i % 4 for i in range(9)]


def test_few_samples_are_held_back_when_they_are_large(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_BUFFER_BYTES", 3 * 5000)
    (dataset,) = stream_remote(Mixture([opened(piped(root), shuffle=10_000)]), 0).datasets
    assert isinstance(dataset, StreamedDataset)
    for _ in range(3):
        dataset[0]
    assert dataset._tolerance.seen < 5  # and not after ten thousand samples


def test_what_is_cached_is_no_stream_and_is_transferred_once(root: Path, tmp_path: Path) -> None:
    copy, log, cache = tmp_path / "copy.tar", tmp_path / "log", str(tmp_path / "cache")
    copy.write_bytes((root / "one.tar").read_bytes())
    url = f"pipe:echo >> {log}; cat {copy}"
    (dataset,) = stream_remote(Mixture([opened(url, cache=cache)]), 0).datasets
    assert isinstance(dataset, ShardDataset)
    before = keys(dataset)
    assert log.read_text() == "\n"
    copy.unlink()
    assert keys(opened(url, cache=cache)) == before
    assert len(list((tmp_path / "cache").iterdir())) == 1


# Sources


def test_what_a_source_holds_out(root: Path) -> None:
    train, held_out = open_source(Source(str(root / "mattes")), KINDS)
    assert held_out is not None
    assert (len(train), len(held_out)) == (12, 3)
    assert keys(held_out) == ["s0012", "s0013", "s0014"]
    train, held_out = open_source(Source(str(root / "pairs")), KINDS)
    assert held_out is not None
    assert not set(keys(train)) & set(keys(held_out))
    assert open_source(Source(f"{root}/mattes/*.tar"), KINDS)[1] is None


def test_a_set_that_has_but_one_split_trains_on_it_or_measures_on_it(tmp_path: Path) -> None:
    folder = trees.shards(tmp_path / "mattes", "mattes", 2, 2)
    index = Index.read(folder)
    del index.splits["train"]
    index.write(folder)
    train, held_out = open_source(Source(str(folder)), KINDS)
    assert (len(train), held_out) == (2, None)  # not the same photographs on both sides
    assert len(open_held_out(Source(str(folder)), KINDS)) == 2


def test_a_folder_may_be_given_as_an_url(root: Path) -> None:
    for name in ("pairs", "mattes"):
        assert len(opened(f"file://{root}/{name}")) == len(opened(root / name))


def test_what_is_named_for_validation_is_read_whole(root: Path) -> None:
    assert len(open_held_out(Source(str(root / "pairs")), KINDS)) == 4
    assert len(open_held_out(Source(str(root / "mattes")), KINDS)) == 3
    assert len(open_held_out(Source(str(root / "triplets")), ("triplets",))) == 2
    assert len(open_held_out(Source(f"{root}/mattes/*.tar"), KINDS)) == 15


def test_nothing_is_trained_on_that_is_held_out(tmp_path: Path) -> None:
    (name,) = trees.names(0, 1)
    path = tmp_path / "one"
    trees.pairs(path, "mask", kept=0, held_out=1)
    train, held_out = open_source(Source(str(path)), KINDS)
    assert held_out is not None
    assert keys(held_out) == [f"{name}.jpg"]
    assert len(train) == 0
    said = (
        r"nothing of .*one is left to train on: hold_out 0.1 keeps .*\{path: .*one, hold_out: 0\}"
    )
    with pytest.raises(UsageError, match=said):
        Mixture([train]).weights()
    # What has no share of the samples needs none.
    none = open_source(Source(str(path), weight=0), KINDS)[0]
    all_, nothing = open_source(Source(str(path), hold_out=0), KINDS)
    assert nothing is None
    assert Mixture([none, all_]).weights().tolist() == [0, 1]
    assert keys(all_) == [f"{name}.jpg"]
    # What is named for validation is read whatever the training would be.
    assert len(open_held_out(Source(str(path)), KINDS)) == 1


def test_a_source_drops_doubtful_masks_and_splits_by_sequence(tmp_path: Path) -> None:
    video = trees.pairs(tmp_path / "video", "mask", kept=0, held_out=1)
    (name,) = trees.names(0, 1)
    for frame in range(3):
        for file in list(video.glob(f"{name}.*")):
            (video / f"{name}_{frame}.{file.name.partition('.')[2]}").write_bytes(file.read_bytes())
    (video / "labels.tsv").write_text(f"name\tdoubt\n{name}_1\t0.5\n{name}\t0.1\n")
    source = Source(str(video), sequences=True, doubt=0.45)
    train, held_out = open_source(source, KINDS)
    assert held_out is not None
    assert keys(held_out) == [f"{n}.jpg" for n in (name, f"{name}_0", f"{name}_2")]
    assert len(train) == 0


def test_wrong_sources_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds shards of triplets, wanted: segmentation or"):
        opened(root / "triplets")
    with pytest.raises(UsageError, match="no folder of training pairs"):
        opened(tmp_path / "none")
    with pytest.raises(UsageError, match="no shard matches"):
        opened(tmp_path / "*.tar")
    (tmp_path / "index.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="damaged"):
        opened(tmp_path)


# Faults


def test_masks_are_no_mattes(tmp_path: Path) -> None:
    trees.pairs(tmp_path / "people", "mask")
    with pytest.raises(UsageError, match=r"holds masks \(photo\d+\.mask\.png\), but mattes"):
        open_source(Source(str(tmp_path / "people")), ("mattes", "triplets"))


def test_missing_and_shortened_shards_are_found_before_the_run(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/{{00..19}}.tar"
    with pytest.raises(DataError, match=r"20 of 20 shards .* are missing .*00\.tar does not exist"):
        open_source(Source(pattern), ("mattes",))
    trees.shards(tmp_path / "cut", "mattes", 6, 0, each=1)
    for shard in (tmp_path / "cut").glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"6 of 6 shards .* bytes, its index says"):
        open_source(Source(str(tmp_path / "cut")), ("mattes",))


def test_a_few_bad_ones_are_passed_over_and_more_are_too_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tolerance = Tolerance("samples of x", 0.01)
    for i in range(4):
        tolerance.failed(f"{i}.jpg: torn")
    assert "passed over (3 of 3 samples of x): 2.jpg: torn" in caplog.text
    with pytest.raises(TooManyError, match=r"5 of 5 samples of x .* share of 0.01; .* b.jpg: torn"):
        tolerance.failed("b.jpg: torn")
    with pytest.raises(TooManyError, match="1 of 1"):
        Tolerance("samples", 0.0).failed(OSError("torn"))


@pytest.mark.parametrize(("true", "ends"), [(0.007, False), (0.03, True)])
def test_chance_does_not_end_a_run_whose_share_is_tolerated(true: float, ends: bool) -> None:
    # As many bad samples as in a folder that has one in 150, or one in 33.
    for seed in range(20):
        bad = np.random.default_rng(seed).random(2000) < true
        tolerance = Tolerance("samples", 0.01)
        with pytest.raises(TooManyError) if ends else contextlib.nullcontext():
            for each in bad:
                tolerance.failed("torn") if each else tolerance.passed()


def test_nothing_but_bad_ones_ends_even_where_all_may_be_bad() -> None:
    tolerance = Tolerance("samples", 1.0)
    with pytest.raises(TooManyError, match="101 of 101"):
        [tolerance.failed("torn") for _ in range(200)]


FAULTS = {
    "missing": "No such file",
    "truncated": "truncated",
    "no tar": "not a tar file",
    "another kind": "has image.jpg, but segmentation or mattes need",
    "empty": "holds no sample",
}


def faulty(folder: Path, fault: str) -> Path:
    """Two shards of which the second cannot be read, or only in part."""
    trees.shard(folder / "0.tar", "mattes", range(4))
    second = trees.shard(folder / "1.tar", "mattes", range(4, 4 if fault == "empty" else 8))
    if fault == "missing":
        second.unlink()
    elif fault == "truncated":
        second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    elif fault == "no tar":
        second.write_bytes(b"<html>404</html>" * 100)
    elif fault == "another kind":
        trees.shard(second, "backgrounds", range(4, 8))
    return second


@pytest.mark.parametrize("fault", [*FAULTS, "program"])
def test_a_stream_passes_over_faults_until_they_are_too_many(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = faulty(tmp_path, fault)
    said = {**FAULTS, "missing": "exit status 1", "program": "exit status 3"}[fault]
    end = "; exit 3" if fault == "program" else ""
    url = f"pipe:cat {tmp_path}/0.tar::pipe:cat {second}{end}"
    with pytest.raises(TooManyError, match=f"tolerated share of 0.01.*{said}"):
        list(itertools.islice(streamed(url, shuffle=2), 1000))
    assert said in caplog.text
    assert "1.tar" in caplog.text
    assert caplog.text.count("passed over") == 4
    assert len(list(itertools.islice(streamed(url, shuffle=2, tolerance=1.0), 50))) == 50


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_shards_without_an_index_are_met_when_they_are_drawn(
    fault: str, tmp_path: Path
) -> None:
    faulty(tmp_path, fault)
    dataset = opened(f"{tmp_path}/{{0,1}}.tar")
    assert dataset.blocks() == [4, 4]
    assert keys([dataset[i] for i in range(4)]) == [f"s{i:04d}" for i in range(4)]
    said = "ends before its sample 4" if fault == "empty" else FAULTS[fault]
    with pytest.raises(UNREADABLE, match=said):
        dataset[7]


def test_samples_of_a_fault_are_missed_one_by_one(tmp_path: Path) -> None:
    trees.shards(tmp_path / "set", "mattes", 12)
    second = tmp_path / "set" / "train-000001.tar"
    data = second.read_bytes()
    second.write_bytes(data[: data.index(b"s0007.image.jpg") + 1000])
    dataset = opened(tmp_path / "set")
    assert keys(dataset[i] for i in range(12) if i != 7) == [
        f"s{i:04d}" for i in range(12) if i != 7
    ]
    with pytest.raises(DataError, match=r"train-000001\.tar is not a tar file, or a truncated one"):
        dataset[7]
    second.unlink()
    assert len(dataset) == 12
    with pytest.raises(FileNotFoundError, match=r"train-000001\.tar"):
        dataset[5]


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    dataset = opened(f"{tmp_path}/nothing.tar", tolerance=1.0)
    with pytest.raises(DataError, match=r"nothing\.tar holds no sample .*: .*No such"):
        Mixture([dataset]).weights()


def test_a_folder_of_backgrounds_is_any_image(tmp_path: Path) -> None:
    trees.scenes(tmp_path / "scenes")
    dataset, held_out = open_source(Source(str(tmp_path / "scenes")), ("backgrounds",))
    assert isinstance(dataset, FolderDataset)
    assert held_out is not None
    assert (len(dataset), len(held_out), dataset.blocks()) == (3, 1, [3])
