"""Feeds: what they draw is decided by an rng, each sample is read once, and faults are counted."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deep_image_compositing.data.feeds import (
    Feed,
    FolderFeed,
    Mix,
    Reading,
    ShardFeed,
    Tolerance,
    TooManyError,
    open_held_out,
    open_source,
)
from deep_image_compositing.data.items import Source
from deep_image_compositing.errors import DataError, UsageError
from tests.data import trees

KINDS = ("segmentation", "mattes")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards (12 + 3 samples), one of triplets, and a plain one of pairs (3 + 1)."""
    root = tmp_path_factory.mktemp("feeds")
    trees.shards(root / "mattes", "mattes", 12, 3)
    trees.shards(root / "triplets", "triplets", 2)
    trees.pairs(root / "pairs")
    return root


def opened(path: Path | str, **options: int) -> Feed:
    return open_source(Source(str(path)), KINDS, Reading(**options))[0]


def keys(items: object) -> list[str]:
    return [name.rpartition(" ")[2].rpartition("/")[2] for name in names(items)]


def names(items: object) -> list[str]:
    return ["-" if item is None else item.name for item in items]  # type: ignore[attr-defined]


def drawn(feed: Feed | Mix, number: int, seed: int = 0) -> list[str]:
    return keys(itertools.islice(feed.draw(np.random.default_rng(seed)), number))


# Drawing


@pytest.mark.parametrize("name", ["mattes", "pairs"])
def test_an_rng_decides_what_is_drawn(name: str, root: Path) -> None:
    first, again, other = (drawn(opened(root / name), 30, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_all_of_a_source_is_drawn_in_an_order_of_its_own(root: Path) -> None:
    counts = Counter(drawn(opened(root / "mattes", shuffle=5), 600))
    assert set(counts) == {f"s{i:04d}" for i in range(12)}
    assert min(counts.values()) > 25
    # As they lie in the shards, from anywhere in the first one on.
    in_order = [int(key[1:]) % 4 for key in drawn(opened(root / "mattes", shuffle=0), 9)]
    assert in_order == [(in_order[0] + i) % 4 for i in range(9)]
    shuffled = drawn(opened(root / "mattes", shuffle=5), 40)
    together = sum(int(b[1:]) - int(a[1:]) == 1 for a, b in itertools.pairwise(shuffled))
    assert together < 12


def test_few_samples_are_held_back_when_they_are_large(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = opened(root / "mattes", shuffle=10_000)
    monkeypatch.setattr("deep_image_compositing.data.feeds._BUFFER_BYTES", 3 * 5000)
    items = itertools.islice(feed.draw(np.random.default_rng(0)), 3)
    assert len(list(items)) == 3  # and not after ten thousand samples
    assert isinstance(feed, ShardFeed)
    assert feed._samples.seen < 20


def test_a_mix_draws_by_weight(root: Path) -> None:
    sources = (Source(str(root / "mattes"), 3.0), Source(str(root / "pairs"), 1.0))
    mix = Mix([open_source(source, KINDS, Reading())[0] for source in sources])
    share = np.mean([key.endswith(".jpg") for key in drawn(mix, 1000)])
    assert 0.2 < share < 0.3
    mix.feeds[0].source.weight = 0
    assert all(key.endswith(".jpg") for key in drawn(mix, 20))
    assert mix.shares().tolist() == [0, 1]
    mix.feeds[1].source.weight = 0
    with pytest.raises(UsageError, match=r"of .*mattes, .*pairs: the weights must not all be 0"):
        drawn(mix, 1)


def test_a_source_draws_the_same_whatever_the_others_are(root: Path) -> None:
    one, two = opened(root / "mattes"), opened(root / "pairs")
    alone = drawn(Mix([one]), 40)
    both = [key for key in drawn(Mix([one, two]), 60) if not key.endswith(".jpg")]
    assert both == alone[: len(both)]


# Reading each once


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (0, 1), (3, 5), (4, 8), (11, 12), (5, 5)])
def test_a_range_of_samples_over_several_shards(start: int, stop: int, root: Path) -> None:
    feed = opened(root / "mattes")
    assert len(feed) == 12
    assert keys(feed.read(start, stop)) == [f"s{i:04d}" for i in range(start, stop)]


def test_ranges_of_a_mix_run_from_source_to_source(root: Path) -> None:
    mix = Mix([opened(root / "pairs"), opened(root / "mattes")])
    assert len(mix) == 15
    whole = keys(mix.read(0, 15))
    assert len(set(whole)) == 15
    assert keys(mix.read(2, 5)) == whole[2:5]
    assert [key[0] for key in keys(mix.pool(4))] == ["p", "p", "s", "s"]


@pytest.mark.parametrize("url", ["pipe:cat ROOT/train-000001.tar", "ROOT/train-00000{1,2}.tar"])
def test_shards_without_an_index_are_counted(url: str, root: Path, tmp_path: Path) -> None:
    for path in (root / "mattes").glob("*.tar"):
        (tmp_path / path.name).symlink_to(path)
    feed = opened(url.replace("ROOT", str(tmp_path)))
    assert len(feed) == 4 * (feed.shards() or 0)
    # A program that is not read to its end is no fault.
    assert keys(feed.read(1, 3)) == ["s0005", "s0006"]


def test_patterns_know_their_counts_from_the_index_beside_them(root: Path) -> None:
    feed = opened(f"{root}/mattes/train-{{000000..000002}}.tar")
    assert isinstance(feed, ShardFeed)
    assert feed.counts == [4, 4, 4]
    assert feed.shards() == 3


# Sources


def test_what_a_source_holds_out(root: Path) -> None:
    train, held_out = open_source(Source(str(root / "mattes")), KINDS, Reading())
    assert held_out is not None
    assert (len(train), len(held_out)) == (12, 3)
    assert keys(held_out.read(0, 3)) == ["s0012", "s0013", "s0014"]
    train, held_out = open_source(Source(str(root / "pairs")), KINDS, Reading())
    assert held_out is not None
    assert not set(keys(train.read(0, 9))) & set(keys(held_out.read(0, 9)))
    assert open_source(Source(f"{root}/mattes/*.tar"), KINDS, Reading())[1] is None


def test_a_folder_may_be_given_as_an_url(root: Path) -> None:
    for name in ("pairs", "mattes"):
        assert len(opened(f"file://{root}/{name}")) == len(opened(root / name))


def test_what_is_named_for_validation_is_read_whole(root: Path) -> None:
    assert len(open_held_out(Source(str(root / "pairs")), KINDS, Reading())) == 4
    assert len(open_held_out(Source(str(root / "mattes")), KINDS, Reading())) == 3
    assert len(open_held_out(Source(str(root / "triplets")), ("triplets",), Reading())) == 2
    assert len(open_held_out(Source(f"{root}/mattes/*.tar"), KINDS, Reading())) == 15


def test_nothing_is_trained_on_that_is_held_out(tmp_path: Path) -> None:
    (name,) = trees.names(0, 1)
    path = tmp_path / "one"
    trees.pairs(path, "mask", kept=0, held_out=1)
    train, held_out = open_source(Source(str(path)), KINDS, Reading())
    assert held_out is not None
    assert keys(held_out.read(0, 9)) == [f"{name}.jpg"]
    assert len(train) == 0
    said = (
        r"nothing of .*one is left to train on: hold_out 0.1 keeps .*\{path: .*one, hold_out: 0\}"
    )
    for draw in (train.draw, Mix([train]).draw):
        with pytest.raises(UsageError, match=said):
            next(draw(np.random.default_rng(0)))
    # What has no share of the samples needs none.
    none = open_source(Source(str(path), weight=0), KINDS, Reading())[0]
    all_, nothing = open_source(Source(str(path), hold_out=0), KINDS, Reading())
    assert nothing is None
    assert drawn(Mix([none, all_]), 3) == [f"{name}.jpg"] * 3
    # What is named for validation is read whatever the training would be.
    assert len(open_held_out(Source(str(path)), KINDS, Reading())) == 1


def test_a_source_drops_doubtful_masks_and_splits_by_sequence(tmp_path: Path) -> None:
    video = trees.pairs(tmp_path / "video", "mask", kept=0, held_out=1)
    (name,) = trees.names(0, 1)
    for frame in range(3):
        for file in list(video.glob(f"{name}.*")):
            (video / f"{name}_{frame}.{file.name.partition('.')[2]}").write_bytes(file.read_bytes())
    (video / "labels.tsv").write_text(f"name\tdoubt\n{name}_1\t0.5\n{name}\t0.1\n")
    source = Source(str(video), sequences=True, doubt=0.45)
    train, held_out = open_source(source, KINDS, Reading())
    assert held_out is not None
    assert keys(held_out.read(0, 9)) == [f"{n}.jpg" for n in (name, f"{name}_0", f"{name}_2")]
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
        open_source(Source(str(tmp_path / "people")), ("mattes", "triplets"), Reading())


def test_missing_and_shortened_shards_are_found_before_the_run(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/{{00..19}}.tar"
    with pytest.raises(DataError, match=r"20 of 20 shards .* are missing .*00\.tar does not exist"):
        open_source(Source(pattern), ("mattes",), Reading())
    trees.shards(tmp_path / "cut", "mattes", 6, 0, each=1)
    for shard in (tmp_path / "cut").glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"6 of 6 shards .* bytes, its index says"):
        open_source(Source(str(tmp_path / "cut")), ("mattes",), Reading())


def test_a_few_bad_ones_are_passed_over_and_more_are_too_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tolerance = Tolerance("samples of x", 0.01)
    for i in range(4):
        tolerance.failed(f"{i}.jpg", OSError("torn"))
    assert "passed over (3 of 3 samples of x): 2.jpg: torn" in caplog.text
    with pytest.raises(TooManyError, match=r"5 of 5 samples of x .* share of 0.01; .* b.jpg: torn"):
        tolerance.failed("b.jpg", OSError("torn"))
    with pytest.raises(TooManyError, match="1 of 1"):
        Tolerance("samples", 0.0).failed("b.jpg", OSError("torn"))


@pytest.mark.parametrize(("true", "ends"), [(0.007, False), (0.03, True)])
def test_chance_does_not_end_a_run_whose_share_is_tolerated(true: float, ends: bool) -> None:
    # As many bad samples as in a folder that has one in 150, or one in 33.
    for seed in range(20):
        bad = np.random.default_rng(seed).random(2000) < true
        tolerance = Tolerance("samples", 0.01)
        with pytest.raises(TooManyError) if ends else contextlib.nullcontext():
            for each in bad:
                tolerance.failed("x", "torn") if each else tolerance.passed()


def test_nothing_but_bad_ones_ends_even_where_all_may_be_bad() -> None:
    tolerance = Tolerance("samples", 1.0)
    with pytest.raises(TooManyError, match="101 of 101"):
        [tolerance.failed("x", "torn") for _ in range(200)]


def faulty(path: Path, fault: str) -> str:
    """Two shards of which the second cannot be read, or only in part."""
    trees.shard(path / "0.tar", "mattes", range(4))
    trees.shard(path / "1.tar", "mattes", range(4, 8))
    second = path / "1.tar"
    if fault == "missing":
        second.unlink()
    elif fault == "truncated":
        second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    elif fault == "no tar":
        second.write_bytes(b"<html>404</html>" * 100)
    elif fault == "another kind":
        trees.shard(second, "backgrounds", range(4, 8))
    elif fault == "program":
        return f"pipe:cat {path}/0.tar::pipe:cat {path}/1.tar; exit 3"
    return f"{path}/{{0,1}}.tar"


FAULTS = {
    "missing": "No such file",
    "truncated": "truncated",
    "no tar": "not a tar file",
    "another kind": "has image.jpg, but segmentation or mattes need",
    "program": "exit status 3",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_passed_over_until_it_is_too_many(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feed = opened(faulty(tmp_path, fault), shuffle=2)
    with pytest.raises(TooManyError, match=f"tolerated share of 0.01.*{FAULTS[fault]}"):
        drawn(feed, 1000)
    assert FAULTS[fault] in caplog.text
    assert "1.tar" in caplog.text
    assert caplog.text.count("passed over") in (4, 5)  # the samples of a wrong shard, and itself

    assert drawn(opened(faulty(tmp_path, fault), shuffle=2, tolerance=1.0), 50)


def test_samples_of_a_fault_count_as_missing_in_an_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trees.shards(tmp_path / "set", "mattes", 12)
    second = tmp_path / "set" / "train-000001.tar"
    data = second.read_bytes()
    second.write_bytes(data[: data.index(b"s0007.image.jpg") + 1000])
    expected = [f"s{i:04d}" if i != 7 else "-" for i in range(12)]
    assert keys(opened(tmp_path / "set").read(0, 12)) == expected
    assert "truncated" in caplog.text
    second.unlink()
    expected[4:8] = ["-"] * 4
    feed = opened(tmp_path / "set")
    assert keys(feed.read(0, 12)) == expected
    with pytest.raises(TooManyError, match=r"train-000001\.tar"):
        [list(feed.read(5, 6)) for _ in range(4)]


def test_all_bad_is_an_error_and_no_endless_search(tmp_path: Path) -> None:
    with pytest.raises(TooManyError, match=r"nothing\.tar"):
        drawn(opened(f"{tmp_path}/nothing.tar", tolerance=1.0), 1)


def test_an_empty_shard_is_a_fault(tmp_path: Path) -> None:
    trees.shard(tmp_path / "0.tar", "mattes", range(0))
    with pytest.raises(TooManyError, match=r"0\.tar"):
        drawn(opened(f"{tmp_path}/0.tar"), 1)


def test_a_cache_is_filled_once_and_read_when_the_source_is_gone(
    root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.tar"
    copy.write_bytes((root / "mattes" / "train-000000.tar").read_bytes())
    log = tmp_path / "log"
    url = f"pipe:echo >> {log}; cat {copy}"
    reading = Reading(shuffle=2, cache=str(tmp_path / "cache"))
    feed, _ = open_source(Source(url), KINDS, reading)
    before = drawn(feed, 20)
    assert log.read_text() == "\n"
    copy.unlink()
    assert drawn(feed, 20) == before
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_folder_feed_of_backgrounds_is_any_image(tmp_path: Path) -> None:
    trees.scenes(tmp_path / "scenes")
    feed, held_out = open_source(Source(str(tmp_path / "scenes")), ("backgrounds",), Reading())
    assert isinstance(feed, FolderFeed)
    assert held_out is not None
    assert (len(feed), len(held_out), feed.shards()) == (3, 1, None)
