"""Test sets: the truth is exact, the bits repeat, and what is wrong is named."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deep_image_compositing.data import items
from deep_image_compositing.data.folders import find_pairs
from deep_image_compositing.errors import CompositingError, DataError, MissingExtraError, UsageError
from deep_image_compositing.evaluation.testsets import (
    Folders,
    Sample,
    SynTest,
    Taught,
    TestSet,
    open_test_set,
    read_pairs,
    syntest,
)
from deep_image_compositing.evaluation.testsets.base import picture_size, unique_names
from deep_image_compositing.functional.compose import over
from tests.conftest import noise
from tests.data import trees

Save = Callable[..., Path]


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Three cut-outs, of which one is held out, and four backgrounds."""
    return {
        "mattes": str(trees.cutouts(tmp_path / "mattes")),
        "backgrounds": str(trees.scenes(tmp_path / "scenes")),
    }


@pytest.fixture
def photographs(data: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same subjects as photographs with an alpha, whose colour must be estimated."""
    return data | {"mattes": str(trees.pairs(tmp_path / "photographs", "alpha", kept=2))}


def digest(sample: Sample) -> str:
    """SHA-256 of everything in a sample."""
    code = hashlib.sha256(sample.name.encode())
    for key, value in {**vars(sample), **sample.masks}.items():
        if isinstance(value, Tensor):
            assert value.dtype == torch.uint8
            code.update(key.encode() + value.numpy().tobytes())
    return code.hexdigest()


def digests(test_set: TestSet) -> dict[str, str]:
    return {sample.name: digest(sample) for sample in test_set}


# syntest


def test_a_sample_s_truth_is_exact(data: dict[str, str]) -> None:
    test_set = SynTest(**data)
    assert len(test_set) == 6
    for s in test_set:
        alpha, color = s.alpha[None] / 255, s.foreground_color[None] / 255
        for made, behind in ((s.foreground, s.old_background), (s.composite, s.background)):
            exact = over(color.double(), alpha.double(), behind[None].double() / 255)[0]
            assert float((made.double() / 255 - exact).abs().max()) <= 0.5 / 255 + 1e-9
            clear = (s.alpha == 0).expand_as(made)
            assert torch.equal(made[clear], behind[clear])
        assert not torch.equal(s.old_background, s.background)
        opaque = (s.alpha == 255).expand_as(s.foreground)
        assert opaque.any()
        assert torch.equal(s.foreground[opaque], s.composite[opaque])
        assert s.foreground_color[clear].max() == 0


def test_masks_are_as_good_as_their_grades_say(data: dict[str, str]) -> None:
    test_set = SynTest(**data, per_subject=3)
    assert test_set.grades == ("exact", "rough", "bad", "none")
    errors: dict[str, list[float]] = {"rough": [], "bad": []}
    for sample in test_set:
        assert torch.equal(sample.masks["exact"], sample.alpha)
        assert sample.masks["none"] is None
        subject = sample.alpha > 127
        for grade, found in errors.items():
            mask = sample.masks[grade]
            found.append(float((mask.float() - sample.alpha).abs().mean()) / 255)
            assert ((mask > 127) & subject).sum() * 3 >= subject.sum()  # it is still there
    assert min(errors["rough"]) > 0
    assert np.mean(errors["bad"]) > 1.5 * np.mean(errors["rough"])


def test_bits_repeat_in_any_order_and_on_any_number_of_threads(data: dict[str, str]) -> None:
    first = digests(SynTest(**data))
    again = SynTest(**data)
    syntest.read_subject.cache_clear()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        for index in (4, 1, 5, 0, 3, 2):
            sample = again[index]
            assert digest(sample) == first[sample.name]
    finally:
        torch.set_num_threads(threads)
    assert digests(SynTest(**data, seed=1)) != first


def test_a_part_of_a_set_has_the_pictures_of_the_whole(data: dict[str, str]) -> None:
    whole = digests(SynTest(**data))
    for options in ({"samples": 2}, {"samples": 5}, {"per_subject": 1}, {"hold_out": 0.1}):
        part = digests(SynTest(**data, **options))
        assert 0 < len(part) < 6
        assert part.items() <= whole.items()
    assert len(SynTest(**data, samples=10)) == 10
    before = digests(SynTest(**data, per_subject=8))
    Image.fromarray(noise(60, 80)).save(Path(data["backgrounds"]) / "another.png")
    after = digests(SynTest(**data, per_subject=8))
    assert 0 < sum(after[name] == before[name] for name in before) < len(before)


def test_only_what_training_has_not_seen_is_used(data: dict[str, str]) -> None:
    (held_out,) = (p.image.stem for p in find_pairs(data["mattes"]) if p.held_out(0.1))
    assert SynTest(**data, hold_out=0.1).names == [f"{held_out}-1", f"{held_out}-2"]
    assert len(SynTest(**data).names) == 6
    both = SynTest(**data, hold_out=0.1, background_hold_out=0.5)
    about = {source["kind"]: source for source in both.about["sources"]}
    assert (about["mattes"]["samples"], about["mattes"]["used"]) == (3, 1)
    assert about["mattes"]["hold_out"] == 0.1
    assert about["backgrounds"]["used"] < about["backgrounds"]["samples"] == 4


def test_subjects_come_from_shards_and_cut_outs_as_for_training(
    tmp_path: Path, data: dict[str, str]
) -> None:
    shards = trees.shards(tmp_path / "shards", "mattes", train=3, held_out=2)
    scenes = trees.shards(tmp_path / "bg", "backgrounds", train=2, held_out=3, each=2)
    test_set = SynTest([str(shards), data["mattes"]], scenes, per_subject=1)
    assert test_set.names[:2] == ["s0003-1", "s0004-1"]
    assert len(test_set) == 5
    alone = SynTest(shards, scenes, per_subject=1)
    assert digests(alone).items() <= digests(test_set).items()
    assert len(SynTest(shards, scenes, split=None, per_subject=1)) == 5
    pattern = str(shards / "{train,validation}-000000.tar")
    assert len(SynTest(pattern, scenes, per_subject=1)) == 5
    with pytest.raises(UsageError, match=r"has no split 'test', it has train, validation"):
        SynTest(shards, scenes, split="test")
    # A cut-out's colour is its own.
    name = trees.names(2, 1)[0]
    own = np.asarray(Image.open(Path(data["mattes"]) / f"{name}.png"))
    sample = test_set[test_set.names.index(f"{name}-1")]
    seen = own[..., 3] > 0
    assert np.array_equal(sample.foreground_color.permute(1, 2, 0).numpy()[seen], own[seen, :3])


def test_the_colour_of_a_photograph_is_estimated_and_the_method_recorded(
    photographs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_pymatting = SynTest(**photographs)

    def missing(*_: object) -> Tensor:
        raise MissingExtraError("multi-level colour", "pymatting", "matting")

    def absent(name: str) -> str:
        raise syntest.importlib.metadata.PackageNotFoundError(name)

    before, mark = digest(with_pymatting[0]), with_pymatting.fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(items, "multilevel_foreground", missing)
        patch.setattr(syntest.importlib.metadata, "version", absent)
        syntest.read_subject.cache_clear()
        without = SynTest(**photographs)
        assert without.about["made_with"]["pymatting"].startswith("none")
        assert without.fingerprint() != mark
        assert digest(without[0]) != before
    syntest.read_subject.cache_clear()


def test_a_matte_is_reduced_by_area_with_colour_weighted_by_opacity() -> None:
    color = np.zeros((2, 4, 3), np.uint8)
    color[:, ::2], color[:, 1::2] = (200, 100, 50), (0, 0, 0)
    alpha = np.array([[255, 0, 255, 255], [255, 0, 255, 255]], np.uint8)
    reduced, opacity = syntest.reduce_matte(color, alpha, (1, 2))
    assert opacity.tolist() == [[128, 255]]
    # The clear pixel's black does not darken the subject; the opaque one's does.
    assert reduced[0].tolist() == [[200, 100, 50], [100, 50, 25]]
    color, alpha = np.full((33, 47, 3), (10, 20, 255), np.uint8), np.full((33, 47), 77, np.uint8)
    for size in ((7, 5), (1, 1), (33, 16)):  # a constant one stays the same
        reduced, opacity = syntest.reduce_matte(color, alpha, size)
        assert opacity.shape == size
        assert (opacity == 77).all()
        assert (reduced == (10, 20, 255)).all()


def test_samples_are_at_most_so_large_and_never_enlarged(data: dict[str, str]) -> None:
    for size, expected in ((36, (28, 36)), (768, (56, 72))):
        test_set = SynTest(**data, size=size, per_subject=1)
        assert {tuple(sample.foreground.shape[1:]) for sample in test_set} == {expected}


def test_without_mattes_a_set_is_made_that_says_what_it_is_worth(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Any] = {"samples": 2, "size": 64}
    with caplog.at_level(logging.WARNING):
        test_set = open_test_set("syntest", **options)
    assert "not which method is good" in caplog.text
    assert "not which method is good" in test_set.about["note"]
    first, again = digests(test_set), open_test_set("syntest", **options)
    assert digests(again) == first
    assert again.fingerprint() == test_set.fingerprint()
    assert all(((s.alpha > 0) & (s.alpha < 255)).any() for s in test_set)
    assert digests(open_test_set("syntest", **options, seed=3)) != first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backgrounds": None}, "there are no backgrounds"),
        ({"mattes": None}, "there are no mattes"),
        ({"hold_out": 0.0001}, "holds out no mattes at the share 0.0001: give a larger one"),
        ({"background_hold_out": 0.0001}, "holds out no backgrounds"),
        ({"hold_out": 1.5}, r"hold_out is a share in [0, 1), got 1.5"),
        ({"hold_out": "some"}, "is a number or null, got 'some'"),
        ({"mattes": "nowhere"}, "no folder of training pairs at nowhere"),
        ({"size": 4}, "size must be at least 16, got 4"),
        ({"samples": 0}, "samples must be"),
        (
            {"per_subject": 1.5},
            "'per_subject' of the test set 'syntest' is a whole number, got 1.5",
        ),
        ({"sample": 2}, "takes no option 'sample'; did you mean 'samples'? There are: background"),
    ],
)
def test_wrong_options_are_named(data: dict[str, str], options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_test_set("syntest", **{**data, **options})
    assert says in str(caught.value)


def test_what_cannot_be_read_is_named_at_once_or_when_it_is_read(
    photographs: dict[str, str], tmp_path: Path
) -> None:
    path = sorted(Path(photographs["mattes"]).glob("*.jpg"))[1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # only decoding can tell
    test_set = SynTest(**photographs, per_subject=1)
    with pytest.raises(CompositingError) as caught:
        digests(test_set)
    assert path.name in str(caught.value)
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=path.name):
        SynTest(**photographs)
    scenes = trees.scenes(tmp_path / "one", kept=1, held_out=0)
    path.write_bytes(whole)
    with pytest.raises(UsageError, match="two backgrounds or more"):
        SynTest(photographs["mattes"], scenes)


def test_the_description_makes_the_set_again_and_the_fingerprint_tells_sets_apart(
    data: dict[str, str],
) -> None:
    test_set = SynTest(**data, hold_out=0.1, seed=7)
    assert digests(pickle.loads(pickle.dumps(test_set))) == digests(test_set)
    about = test_set.about
    assert json.loads(json.dumps(about)) == about
    assert (about["kind"], about["seed"], about["size"]) == ("syntest", 7, 768)
    assert [sample["name"] for sample in about["samples"]] == test_set.names
    first = about["samples"][0]
    assert first["subject"].endswith(".png")
    assert len(set(first["backgrounds"])) == 2
    mark = test_set.fingerprint()
    assert SynTest(**data, hold_out=0.1, seed=7).fingerprint() == mark
    assert SynTest(**data, hold_out=0.1, seed=8).fingerprint() != mark
    assert SynTest(**data, hold_out=0.1, seed=7, size=64).fingerprint() != mark
    os.utime(first["backgrounds"][0], ns=(1, 1))
    assert SynTest(**data, hold_out=0.1, seed=7).fingerprint() != mark


# taught


def test_taught_triplets_are_read_as_they_were_written(tmp_path: Path) -> None:
    shards = trees.shards(tmp_path / "hard", "triplets", train=2, held_out=3, each=2)
    test_set = open_test_set("taught", triplets=str(shards))
    assert isinstance(test_set, Taught)
    assert test_set.names == ["s0002", "s0003", "s0004"]
    assert test_set.grades == ("exact", "rough", "none")
    sample = test_set[1]
    fields = trees.sample("triplets", 3)
    for field, value in (
        ("composite.png", sample.composite), ("alpha.png", sample.alpha),
        ("mask.png", sample.masks["rough"]), ("foreground.jpg", sample.foreground),
        ("background.jpg", sample.background),
    ):  # fmt: skip
        wanted = np.asarray(Image.open(io.BytesIO(fields[field])))
        assert np.array_equal(value.permute(1, 2, 0).squeeze(-1).numpy(), wanted)
    assert sample.old_background is None
    assert sample.foreground_color is None
    assert sample.masks["none"] is None
    assert test_set.about["samples"][1]["key"] == "s0003"
    assert len(open_test_set("taught", triplets=str(shards), split=None, samples=4)) == 4
    mark = test_set.fingerprint()
    assert open_test_set("taught", triplets=str(shards)).fingerprint() == mark
    assert open_test_set("taught", triplets=str(shards), split="train").fingerprint() != mark


def test_shards_of_another_kind_and_damaged_ones_are_named(tmp_path: Path) -> None:
    mattes = trees.shards(tmp_path / "mattes", "mattes", train=1)
    with pytest.raises(UsageError, match="wanted: triplets"):
        open_test_set("taught", triplets=str(mattes))
    with pytest.raises(UsageError, match="needs the option 'triplets'"):
        open_test_set("taught")
    triplets = trees.shards(tmp_path / "hard", "triplets", train=0, held_out=2)
    tar = triplets / "validation-000000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"validation-000000\.tar"):
        open_test_set("taught", triplets=str(triplets))
    trees.shard(tmp_path / "broken.tar", "triplets", range(2), broken=(1,))
    test_set = open_test_set("taught", triplets=str(tmp_path / "broken.tar"))
    with pytest.raises(DataError, match=r"broken\.tar: s0001"):
        test_set[1]


# folders


@pytest.fixture
def own(save: Save, tmp_path: Path) -> Path:
    """Two pairs with masks, of which one has a truth."""
    for seed, name in enumerate(("cat", "dog")):
        save(f"own/foreground/{name}.png", noise(24, 32, seed))
        save(f"own/background/{name}.png", noise(40, 40, seed + 5))
        save(f"own/mask/{name}.png", noise(24, 32, seed + 9)[..., 0])
    save("own/composite/cat.png", noise(24, 32, 20))
    save("own/alpha/cat.png", noise(24, 32, 21)[..., 0])
    return tmp_path / "own"


def test_one_s_own_pictures_are_taken_as_they_are(own: Path) -> None:
    test_set = open_test_set("folders", folder=str(own))
    assert isinstance(test_set, Folders)
    assert test_set.names == ["cat", "dog"]
    assert test_set.grades == ("given", "none")
    cat, dog = test_set
    for picture, seed in ((cat.foreground, 0), (cat.composite, 20)):
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), noise(24, 32, seed))
    for picture, seed in ((cat.alpha, 21), (cat.masks["given"], 9)):
        assert np.array_equal(picture[0].numpy(), noise(24, 32, seed)[..., 0])
    assert cat.masks["none"] is None
    assert cat.background.shape == cat.foreground.shape  # there is a truth
    assert dog.composite is dog.alpha is None
    assert dog.background.shape == (3, 40, 40)
    mark, about = test_set.fingerprint(), test_set.about
    assert json.loads(json.dumps(about)) == about
    (own / "composite/cat.png").unlink()
    assert Folders(own).fingerprint() != mark


def test_one_background_may_serve_all_and_masks_may_be_missing(own: Path, save: Save) -> None:
    for path in (*(own / "background").iterdir(), *(own / "mask").iterdir()):
        path.unlink()
    save("own/background.jpg", noise(40, 40))
    assert Folders(own).grades == ("none",)
    assert {pair.background.name for pair in read_pairs(own)} == {"background.jpg"}
    save("own/background/dog.png", noise(8, 8))
    pairs = read_pairs(own)
    assert [pair.name for pair in pairs] == ["cat", "dog"]
    assert [pair.background.name for pair in pairs] == ["background.jpg", "dog.png"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"composite/cat.png": (24, 31)}, "cat.png is 31 x 24 pixels, its photograph"),
        ({"alpha/cat.png": (48, 64)}, "alpha/cat.png is 64 x 48 pixels"),
        ({"background/cat.png": None}, "background holds nothing for cat.png"),
        ({"mask/cat.png": None}, "mask holds nothing for cat.png"),
        ({"background/cow.png": (8, 8)}, "background/cow.png belongs to no photograph"),
        ({"alpha/cow.png": (8, 8)}, "alpha/cow.png belongs to no photograph"),
        ({"foreground/cat.jpg": (24, 32)}, "have one name"),
        (
            {"foreground/cat.png": None, "foreground/dog.png": None},
            "foreground holds no photographs; expected foreground/",
        ),
    ],
)
def test_what_does_not_belong_together_is_named(
    own: Path, save: Save, change: dict[str, tuple[int, int] | None], says: str
) -> None:
    for name, size in change.items():
        if size is None:
            (own / name).unlink()
        else:
            save(f"own/{name}", noise(*size))
    with pytest.raises(UsageError) as caught:
        Folders(own)
    assert says in str(caught.value)


def test_a_file_that_is_no_picture_is_named(own: Path, tmp_path: Path) -> None:
    (own / "background/cat.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"background/cat\.png"):
        Folders(own)
    with pytest.raises(UsageError, match="there is no folder"):
        Folders(tmp_path / "nowhere")


def test_sizes_are_those_of_upright_pictures(save: Save) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save("turned.jpg", noise(10, 20), exif=exif)
    assert picture_size(path) == (20, 10)


# Lists of pairs


def test_pairs_are_listed_in_a_table(own: Path) -> None:
    table = own / "pairs.tsv"
    table.write_text(
        "foreground\tbackground\tmask\n"
        "foreground/cat.png\tbackground/cat.png\tmask/cat.png\n"
        "foreground/cat.png\tbackground/dog.png\t\n"
        "foreground/dog.png\tbackground/dog.png\t\n"
    )
    pairs = read_pairs(table)
    assert [pair.name for pair in pairs] == ["cat-cat", "cat-dog", "dog"]
    assert pairs[0].mask == own / "mask/cat.png"
    assert pairs[1].mask is None
    assert pairs[2].foreground == own / "foreground/dog.png"
    named = own / "pairs.csv"
    named.write_text(
        '\ufeffname, background,foreground\n"one, two",background/cat.png,foreground/cat.png\n'
    )
    (pair,) = read_pairs(named)
    assert (pair.name, pair.background) == ("one_two", own / "background/cat.png")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "neither a folder nor"),
        ("foreground,mask\n", "has the columns foreground, mask, but needs"),
        ("", "has the columns none"),
        ("foreground,background\n", "lists no pairs"),
        ("foreground,background\nforeground/cat.png,gone\n", "line 2: there is no background gone"),
        ("foreground,background\nforeground/cat.png\n", "line 2: there is no background given"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused(own: Path, text: str | None, says: str) -> None:
    table = own / ("pairs.csv" if text is not None else "foreground/cat.png")
    if text is not None:
        table.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_pairs(table)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"foreground,background\nb\xe4r.jpg,b.jpg\n", b'"' + b"x" * 200_000 + b'",b\n']
)
def test_a_table_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_bytes(content)
    with pytest.raises(UsageError, match=r"pairs\.csv cannot be read as a table in UTF-8"):
        read_pairs(table)


def test_another_test_set_is_refused() -> None:
    with pytest.raises(UsageError, match="there are: syntest, taught, folders"):
        open_test_set("composition1k")


def test_names_fit_for_files_and_differ_without_regard_to_case() -> None:
    long = unique_names(["x" * 200, "x" * 200 + "y"])
    assert all(len(name) == 80 for name in long)
    assert long[0] != long[1]
    assert unique_names(["a/b", "a-b", "A-B", "..", "ä ö", ".x"]) == [
        "a-b", "a-b-2", "A-B-3", "_", "ä_ö", "x",
    ]  # fmt: skip
