"""Data sets into shards: what is in them, the same every time, whatever happens on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from deep_image_compositing.cli import main
from deep_image_compositing.data import convert as module
from deep_image_compositing.data.convert import assign_splits, convert
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.loading import WorkerLoader, in_order
from deep_image_compositing.data.shards import Index, ShardWriter
from deep_image_compositing.data.verify import verify
from deep_image_compositing.errors import CompositingError, UsageError
from tests.data import published, trees
from tests.data.published import TREES
from tests.data.trees import contents, picture, read

# Python 3.12 and later say so where loader processes are forked, as torch does on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def make(root: Path, out: Path, kind: str = "segmentation", **options: Any) -> Index:
    """Convert folders in this process."""
    return convert(kind, options.pop("layout", "folders"), root, out, workers=1, **options)


def one(root: Path, out: Path, kind: str, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The pictures of the only sample that a folder becomes."""
    make(root, out, kind, **options)
    (record,) = read(out).values()
    return {
        name: np.asarray(picture(data)).astype(int)
        for name, data in record.fields.items()
        if name != "json"
    }


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twelve photographs beside their masks."""
    return trees.pairs(tmp_path / "pairs", kept=10, held_out=2)


# What is in them


@pytest.mark.parametrize("tree", TREES)
def test_every_layout_becomes_valid_shards(tree: str, tmp_path: Path) -> None:
    if tree == "portrait_stylization":
        pytest.importorskip("scipy")
    made, out = published.make(tree, tmp_path / "set"), tmp_path / "out"
    wanted = made.keys
    index = make(tmp_path / "set", out, made.kind, layout=made.layout)
    assert index.skipped == []
    assert sum(index.count(split) for split in index.splits) == sum(map(len, wanted.values()))
    for split in set(wanted) - {""}:
        assert index.count(split) == len(wanted[split])
    assert verify(out, workers=1) == []
    assert set(read(out)) == set().union(*wanted.values())
    assert {path.name for path in out.iterdir()} == {"index.json", *(s.name for s in index.shards)}


def test_a_sample_of_segmentation(pairs: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"source": "my camera", "licence": "CC0"}
    index = make(pairs, tmp_path / "out", validation=0, shard_samples=5, **given)
    assert [shard.samples for shard in index.splits["train"]] == [4, 4, 4]
    assert list(index.splits) == ["train"]
    record = read(tmp_path / "out")["photo1"]
    assert set(record.fields) == {"image.jpg", "mask.png", "json"}
    assert record.fields["image.jpg"] == (pairs / "photo1.jpg").read_bytes()
    mask = picture(record.fields["mask.png"])
    assert mask.mode == "L"
    assert np.array_equal(mask, Image.open(pairs / "photo1.mask.png"))
    files = {"image": "photo1.jpg", "label": "photo1.mask.png"}
    about = {"key": "photo1", "group": "photo1", "files": files, "size": [56, 72]}
    assert record.info() == given | about
    assert (index.about["source"], index.about["licence"]) == ("my camera", "CC0")
    text = (tmp_path / "out" / "index.json").read_text()
    assert str(tmp_path) not in text
    assert set(json.loads(text)["about"]) >= {"layout", "seed", "source", "licence", "validation"}


def test_mattes_of_a_photograph_have_straight_colour(tmp_path: Path) -> None:
    fields = one(trees.pairs(tmp_path / "set", "alpha", 1, 0), tmp_path / "out", "mattes")
    assert list(fields) == ["alpha.png", "foreground.jpg", "image.jpg"]
    alpha, color, image = fields.values()
    rim, inside = (alpha > 80) & (alpha < 170), alpha == 255
    true = image[inside].mean(axis=0)
    assert np.abs(color[rim] - true).mean() < 0.3 * np.abs(image[rim] - true).mean()


def test_cutouts_keep_their_colour(tmp_path: Path) -> None:
    trees.cutouts(tmp_path / "set", kept=1, held_out=0)
    original = np.asarray(Image.open(tmp_path / "set" / "photo0.png")).astype(int)
    given = tmp_path / "set"
    exact = one(given, tmp_path / "png", "mattes", layout="rgba", lossless=True)
    assert list(exact) == ["foreground.png"]
    assert np.array_equal(exact["foreground.png"], original)
    close = one(given, tmp_path / "jpeg", "mattes", layout="rgba")
    seen = original[..., 3] > 0
    assert np.abs(close["foreground.jpg"] - original[..., :3])[seen].mean() < 4
    assert np.array_equal(close["alpha.png"], original[..., 3])


def test_what_is_invisible_does_not_bleed_into_the_outline(tmp_path: Path) -> None:
    pixels = np.zeros((48, 48, 4), np.uint8)
    pixels[20:29, 19:30] = (200, 220, 40, 255)
    (tmp_path / "set").mkdir()
    Image.fromarray(pixels).save(tmp_path / "set" / "bright.png")
    color = one(tmp_path / "set", tmp_path / "out", "mattes", layout="rgba")["foreground.jpg"]
    assert np.abs(color[20:29, 19:30] - (200, 220, 40)).max() <= 3


def test_straight_colour_of_a_set_stays_as_it_is(tmp_path: Path) -> None:
    published.make("adobe", tmp_path / "set")
    make(tmp_path / "set", tmp_path / "out", "mattes", layout="adobe")
    record = read(tmp_path / "out")["Training_set-dog"]
    assert set(record.fields) == {"foreground.jpg", "alpha.png", "json"}
    file = tmp_path / "set/Combined_Dataset/Training_set/Other/fg/dog.jpg"
    assert record.fields["foreground.jpg"] == file.read_bytes()


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="52,31.2N"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def exif(tag: int, value: Any) -> Image.Exif:
    data = Image.Exif()
    data[tag] = value
    return data


@pytest.mark.parametrize(
    ("mode", "options", "size"),
    [
        ("L", {}, (72, 56)),
        ("CMYK", {}, (72, 56)),
        ("RGB", {"exif": exif(0x0112, 6)}, (56, 72)),
        ("RGB", {"exif": exif(0x8825, {1: "N", 2: (1.0, 2.0, 3.0)})}, (72, 56)),
        ("RGB", {"xmp": XMP}, (72, 56)),
        ("RGB", {"icc_profile": SRGB}, (72, 56)),
        ("RGB", {}, (72, 56)),
    ],
    ids=["gray", "cmyk", "turned", "place", "xmp", "profile", "plain"],
)
def test_photographs_become_plain(
    mode: str, options: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "set" / "a.jpg"
    path.parent.mkdir()
    trees.photograph(0)[0].convert(mode).save(path, quality=95, **options)
    make(tmp_path / "set", tmp_path / "out", "backgrounds")
    data = read(tmp_path / "out")["a"].fields["image.jpg"]
    image = picture(data)
    assert (image.mode, image.size) == ("RGB", size)
    copied = mode == "RGB" and size == (72, 56) and "icc_profile" not in options
    assert np.array_equal(image, Image.open(path).convert("RGB")) == copied
    assert (data == path.read_bytes()) == (copied and not options)
    assert not image.getexif()
    assert "icc_profile" not in image.info
    assert b"GPS" not in data


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (b"\xed", b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0b\x1c\x02\x5a\0\x06Berlin\0"),
        (b"\xe1", b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + b"<city>Berlin</city>"),
        (b"\xe1", b"http://ns.adobe.com/xap/1.0/\0<x photoshop:City='Berlin'/>"),
        (b"\xfe", b"Berlin"),
        (b"\xd9", b"a video, taken in Berlin"),
    ],
    ids=["iptc", "extended-xmp", "xmp", "comment", "appended"],
)
def test_no_place_gets_into_a_shard(
    marker: bytes, content: bytes, progressive: bool, tmp_path: Path
) -> None:
    path = tmp_path / "set" / "a.jpg"
    path.parent.mkdir()
    trees.photograph(0)[0].save(path, quality=95, progressive=progressive)
    plain = path.read_bytes()
    if marker == b"\xd9":
        path.write_bytes(plain + content)
    else:
        segment = b"\xff" + marker + (len(content) + 2).to_bytes(2) + content
        path.write_bytes(plain[:2] + segment + plain[2:])
    make(tmp_path / "set", tmp_path / "out", "backgrounds")
    assert read(tmp_path / "out")["a"].fields["image.jpg"] == plain


def test_max_side_shrinks_all_of_a_sample(tmp_path: Path) -> None:
    for tree, layout in ((trees.pairs, "folders"), (trees.cutouts, "rgba")):
        root, out = tmp_path / layout, tmp_path / f"{layout}-out"
        tree(root, **({"kind": "alpha"} if layout == "folders" else {}), kept=1, held_out=0)
        fields = one(root, out, "mattes", max_side=36, layout=layout)
        assert {pixels.shape[:2] for pixels in fields.values()} == {(28, 36)}
        assert next(iter(read(out).values())).info()["size"] == [28, 36]
        assert verify(out, workers=1) == []


# Splits and order


def entries(count: int, **fields: str) -> list[Pair]:
    return [Pair(Path(), key=f"k{i}", **{"group": f"k{i}", **fields}) for i in range(count)]


def test_split_and_order_are_drawn_by_the_seed_and_stay() -> None:
    first = assign_splits(entries(1000), 0, 0.1)
    keys = [entry.key for entry in first["train"]]
    assert keys != sorted(keys)
    assert 70 < len(first["validation"]) < 130
    assert assign_splits(list(reversed(entries(1000))), 0, 0.1) == first
    held_out = {e.key for e in first["validation"]}
    assert {e.key for e in assign_splits(entries(1000), 1, 0.1)["validation"]} != held_out
    assert held_out <= {e.key for e in assign_splits(entries(1200), 0, 0.1)["validation"]}


def test_a_group_is_never_divided() -> None:
    many = [Pair(Path(), key=f"k{i}", group=f"g{i // 10}") for i in range(300)]
    splits = assign_splits(many, 0, 0.3)
    groups = {split: {e.group for e in part} for split, part in splits.items()}
    assert groups["train"] & groups["validation"] == set()
    assert len(splits["validation"]) == 10 * len(groups["validation"]) > 0


def test_small_sets_have_both_splits_unless_told_otherwise() -> None:
    def counts(count: int, share: float) -> tuple[int, int]:
        splits = assign_splits(entries(count), 0, share)
        return len(splits["train"]), len(splits["validation"])

    assert counts(2, 0.01) == counts(2, 0.99) == (1, 1)
    assert counts(5, 0) == (5, 0)
    assert len(assign_splits(entries(20, split="test"), 0, 0.5)["test"]) == 20  # a set's own
    assert sum(counts(1, 0.1)) == 1
    odd = Pair(Path(), key="a", group="caf\udce9")  # as a file's name in Latin-1 is seen
    assert sum(map(len, assign_splits([odd], 0, 0.1).values())) == 1


# The same, every time


def test_the_bytes_do_not_depend_on_the_processes(pairs: Path, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        convert("segmentation", "folders", pairs, tmp_path / name, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    make(pairs, tmp_path / "three", seed=1)
    assert contents(tmp_path / "one") != contents(tmp_path / "three")
    assert verify(tmp_path / "two", workers=2) == []


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in out.glob("*.tar")}


@pytest.fixture
def cut_short(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Path]:
    """Convert ``pairs`` until the given number of samples is made; returns the folder."""

    def run(samples: int) -> Path:
        whole, left = module.make_sample, iter(range(samples))

        def stop(*given: Any) -> dict[str, bytes]:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return whole(*given)

        with monkeypatch.context() as patch:
            patch.setattr(module, "make_sample", stop)
            with pytest.raises(KeyboardInterrupt):
                make(pairs, tmp_path / "out", shard_samples=4)
        return tmp_path / "out"

    return run


def test_a_run_that_was_ended_goes_on(
    cut_short: Callable[[int], Path], pairs: Path, tmp_path: Path
) -> None:
    make(pairs, tmp_path / "whole", shard_samples=4)
    out = cut_short(5)
    before = stamps(out)
    assert len(before) == 1
    assert not (out / "index.json").exists()
    (out / ".train-000001.tar.1234abcd.part").write_bytes(b"of a kill")
    make(pairs, out, shard_samples=4)
    assert before.items() < stamps(out).items()
    assert contents(out) == contents(tmp_path / "whole")


def test_a_shard_without_its_record_is_made_again(
    cut_short: Callable[[int], Path], pairs: Path
) -> None:
    out = cut_short(5)
    (name,) = stamps(out)
    ledger = out / ".ledger.jsonl"
    about, *_ = ledger.read_text().splitlines(True)
    ledger.write_text(about)
    (out / name).write_bytes(b"half")
    make(pairs, out, shard_samples=4)
    assert verify(out, workers=1) == []


def test_a_finished_run_does_nothing_again_but_what_is_missing(pairs: Path, tmp_path: Path) -> None:
    (pairs / "photo1.mask.png").write_bytes(b"")
    make(pairs, tmp_path / "out", shard_samples=4)
    before, kept = contents(tmp_path / "out"), stamps(tmp_path / "out")
    make(pairs, tmp_path / "out", shard_samples=4)
    assert stamps(tmp_path / "out") == kept
    (tmp_path / "out" / "train-000001.tar").unlink()
    make(pairs, tmp_path / "out", shard_samples=4)
    assert contents(tmp_path / "out") == before
    assert stamps(tmp_path / "out")["train-000000.tar"] == kept["train-000000.tar"]


@pytest.mark.parametrize("finished", [True, False])
def test_another_plan_for_the_same_folder_is_refused(
    finished: bool, cut_short: Callable[[int], Path], pairs: Path
) -> None:
    out = cut_short(5)
    if finished:
        make(pairs, out, shard_samples=4)
    before = contents(out)
    with pytest.raises(UsageError, match=r"made with seed 0, now 1; max_side None, now 9: give"):
        make(pairs, out, shard_samples=4, seed=1, max_side=9)
    shutil.copy(pairs / "photo1.jpg", pairs / "more.jpg")
    with pytest.raises(UsageError, match=r"made with entries 12, now 13; files "):
        make(pairs, out, shard_samples=4)
    assert contents(out) == before


def test_a_folder_with_other_shards_is_refused(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.tar").touch()
    with pytest.raises(UsageError, match=r"holds mine\.tar but no index\.json"):
        make(pairs, tmp_path / "out")
    with pytest.raises(UsageError, match="only mattes"):
        make(pairs, tmp_path / "other", lossless=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_leaves_no_processes_and_goes_on(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(400):
        shutil.copy(pairs / "photo1.jpg", pairs / f"more{number}.jpg")
        shutil.copy(pairs / "photo1.mask.png", pairs / f"more{number}.mask.png")
    command = [sys.executable, "-m", "deep_image_compositing", "shards", "segmentation"]
    command += ["--layout", "folders", "--root", str(pairs), "--out", str(out)]
    command += ["--workers", "2", "--shard-samples", "4"]
    reader, writer = os.pipe()  # open in a process and its children for as long as they live
    os.set_inheritable(writer, True)
    run = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    while not list(out.glob("*.tar")):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert os.read(reader, 1) == b""  # all of them have ended
    os.close(reader)
    before = stamps(out)
    assert not (out / "index.json").exists()
    assert main(command[3:]) == 0
    assert sum(stamps(out)[name] == inode for name, inode in before.items()) >= len(before) - 2
    assert verify(out, workers=1) == []


# What cannot be used


@pytest.fixture
def faulty(pairs: Path) -> Path:
    """The pairs, four of them unusable."""
    (pairs / "photo0.mask.png").unlink()
    (pairs / "photo1.jpg").write_bytes((pairs / "photo1.jpg").read_bytes()[:900])
    Image.new("L", (72, 72)).save(pairs / "photo2.mask.png")
    (pairs / "photo3.jpg").write_bytes(b"")
    return pairs


def test_unusable_pairs_are_left_out_with_their_reason(faulty: Path, tmp_path: Path) -> None:
    index = make(faulty, tmp_path / "out", shard_samples=1)
    reasons = {item["key"]: item["reason"] for item in index.skipped}
    assert reasons["photo0"].startswith("photo0.mask.png does not exist")
    assert "truncated" in reasons["photo1"]
    assert reasons["photo2"].endswith("72 x 72 pixels, its photograph 72 x 56: the aspects differ")
    assert reasons["photo3"].startswith("photo3.jpg is empty")
    assert len(reasons) == 4
    assert sum(index.count(split) for split in index.splits) == 8
    assert verify(tmp_path / "out", workers=1) == []  # shards of which nothing was left are gone


def test_mattes_without_a_subject_are_left_out(tmp_path: Path) -> None:
    trees.cutouts(tmp_path / "set", kept=1, held_out=0)
    trees.photograph(0)[0].save(tmp_path / "set" / "opaque.png")
    Image.new("RGBA", (9, 9)).save(tmp_path / "set" / "nothing.png")
    index = make(tmp_path / "set", tmp_path / "out", "mattes", layout="rgba")
    reasons = {item["key"]: item["reason"] for item in index.skipped}
    assert reasons["opaque"].endswith("meant as a cut-out, but it is opaque everywhere")
    assert reasons["nothing"] == "nothing.png shows no subject: its alpha is 0 everywhere"


def run(*arguments: Any) -> int:
    return main(["shards", *map(str, arguments)])


def test_the_exit_code_follows_the_share(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["segmentation", "--layout", "folders", "--root", faulty, "--workers", 1, "--out"]
    assert run(*command, tmp_path / "a") == 1
    assert (tmp_path / "a" / "index.json").exists()
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path / 'a'}: ")
    assert "4 of 12 samples were skipped:" in said.err
    assert "  photo2: photo2.mask.png is 72 x 72" in said.err
    assert run(*command, tmp_path / "b", "--max-skipped", "0.4") == 0
    assert run(*command, tmp_path / "b", "--max-skipped", "0.4") == 0  # nothing to do, same answer
    assert "4 of 12 samples were skipped:" in capsys.readouterr().err
    assert run(*command, tmp_path / "c", "--max-skipped", "1.5") == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layout", "duts"], "does not look like duts"),
        ([], "--layout is missing; the layouts of segmentation are duts,"),
        (["--layout", "folders", "--validation", "1"], "validation is a share"),
        (["--layout", "folders", "--shard-samples", "0"], "shard_samples must be at least 1"),
        (["--layout", "folders", "--max-side", "0"], "max_side must be at least 1"),
        (["--layout", "folders", "--workers", "0"], "workers must be at least 1"),
        (["--layout", "folders", "--lossless"], "unrecognized arguments: --lossless"),
    ],
)
def test_wrong_calls_are_refused(
    options: list[str], said: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segmentation", "--root", pairs, "--out", tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_layouts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("layouts") == 0
    assert capsys.readouterr().out.split().count("mattes") >= 5


def test_the_command_line_page_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mattes", "--help") == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--debug"}
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    section = page[page.index("## shards") : page.index("## fit")]
    assert len(options) == 12
    assert not [option for option in options if f"`{option}`" not in section]


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_process_that_is_killed_is_an_error() -> None:
    with pytest.raises(CompositingError, match="a worker process was killed"):
        list(in_order(die, [1, 2], 2))
    with pytest.raises(CompositingError, match="a worker process was killed"):  # as of ``teach``
        list(WorkerLoader([1, 2], batch_size=None, num_workers=1, collate_fn=die))  # type: ignore


# Verification


@pytest.fixture
def shards(pairs: Path, tmp_path: Path) -> Path:
    make(pairs, tmp_path / "shards", shard_samples=6)
    return tmp_path / "shards"


def test_verify_says_when_all_is_well(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", shards, "--workers", 1) == 0
    assert capsys.readouterr().out.endswith(" validation samples, all as the index says\n")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 700] ^= 255
    path.write_bytes(data)


def add(path: Path) -> None:
    shutil.copy(path, path.with_name("train-000009.tar"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "train-000000.tar: its SHA-256 is "),
        (Path.unlink, "train-000000.tar: the file is missing"),
        (add, "train-000009.tar: not listed in the index"),
        (cut, "train-000000.tar: has 5000 bytes, the index says "),
        (cut, "train-000000.tar: is not a tar file, or a truncated one"),
        (cut, "readable samples, the index says 5"),
    ],
)
def test_verify_finds_damage(
    damage: Callable[[Path], None], said: str, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(shards / "train-000000.tar")
    assert run("verify", shards, "--workers", 1) == 1
    assert said in capsys.readouterr().out


def test_verify_looks_into_the_samples(shards: Path) -> None:
    good = dict(next(iter(read(shards).values())).fields)
    taken = list(read(shards))[-1]
    with ShardWriter(shards / "train-000000.tar") as writer:
        writer.write("whole", good)
        other_size = trees.encode(Image.new("L", (56, 72)), "PNG")
        writer.write("sizes", {**good, "mask.png": other_size})
        writer.write("fields", {"image.jpg": good["image.jpg"], "json": b"{}"})
        writer.write("format", {**good, "image.jpg": good["mask.png"]})
        writer.write("broken", {**good, "mask.png": good["mask.png"][:60]})
        writer.write("record", {**good, "json": b"[]"})
        writer.write(taken, good)
    index = Index.read(shards)
    index.splits["train"][0] = writer.entry()
    index.write(shards)
    problems = verify(shards, workers=1)
    found = "\n".join(problems)
    assert "sizes has pictures of different sizes: image.jpg 72 x 56, mask.png 56 x 72" in found
    assert "fields has image.jpg, json, but segmentation need image.jpg+mask.png" in found
    assert "format.image.jpg is no jpg file" in found
    assert "broken.mask.png: image in memory" in found
    assert "record: its json is not an object" in found
    assert f"{taken} is also in train-000000.tar" in found
    assert "whole" not in found
    assert len(problems) == 6


def test_verify_names_a_shard_that_the_disk_does_not_give(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("deep_image_compositing.data.verify.describe", fail)
    assert any("Permission denied" in problem for problem in verify(shards, workers=1))


def test_verify_refuses_what_is_no_sample(shards: Path) -> None:
    with tarfile.open(shards / "train-000000.tar", "w") as archive:
        info = tarfile.TarInfo("a.model.pkl")
        archive.addfile(info)
    problems = verify(shards, workers=1)
    assert any("was refused: it holds 'a.model.pkl'" in problem for problem in problems)


def test_verify_needs_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", tmp_path) == 1
    assert "index.json cannot be read" in capsys.readouterr().err
