"""Self-teaching: what a hard triplet holds; that a set repeats, restarts and ignores ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from deep_image_compositing.cli import main
from deep_image_compositing.data import synthesis, teach, triplets
from deep_image_compositing.data.items import Source
from deep_image_compositing.data.loading import raise_sent
from deep_image_compositing.data.shards import INDEX, Index, Record
from deep_image_compositing.data.tars import TooManyError
from deep_image_compositing.data.triplets import Recipe, encode_jpeg, plan
from deep_image_compositing.data.verify import verify
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.functional.compose import over
from deep_image_compositing.stages.fusion import MultiStreamFuser
from deep_image_compositing.stages.segmentation import PyramidSegmenter
from deep_image_compositing.weights import save
from tests.conftest import LayerFuser
from tests.data import trees
from tests.data.trees import contents

SIZE = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mattes, backgrounds and a checkpoint of a tiny fuser."""
    root = tmp_path_factory.mktemp("teach")
    trees.pairs(root / "mattes", "alpha")
    trees.scenes(root / "scenes")
    torch.manual_seed(0)
    fuser = MultiStreamFuser(widths=(4, 6), radius=3)
    with torch.no_grad():
        fuser.network.head.weight.normal_(0, 0.1)
    content = {"state_dict": fuser.state_dict(), "hyper_parameters": dict(fuser.hparams)}
    torch.save(content, root / "v1.ckpt")
    return root


def arguments(root: Path, out: Path, **given: object) -> list[str]:
    """``teach`` with two shards of two and one of one sample, some of it replaced."""
    options: dict[str, object] = {
        "fuser": root / "v1.ckpt", "mattes": root / "mattes", "backgrounds": root / "scenes",
        "out": out, "samples": 5, "shard-samples": 2, "size": SIZE, "batch-size": 2,
        "workers": 0, "accelerator": "cpu",
    }  # fmt: skip
    options |= {name.replace("_", "-"): value for name, value in given.items()}
    pairs = [(f"--{name}", str(value)) for name, value in options.items()]
    return ["teach", *(word for pair in pairs for word in pair)]


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "hard"
    assert main(arguments(root, out)) == 0
    return out


def records(out: Path) -> list[Record]:
    return list(trees.read(out).values())


def picture(record: Record, name: str) -> np.ndarray:
    return np.asarray(trees.picture(record.fields[name])).astype(np.float32) / 255


def test_a_set_is_whole_and_says_how_it_was_made(made: Path) -> None:
    assert verify(made, workers=1) == []
    index = Index.read(made)
    assert index.kind == "triplets"
    assert [(shard.name, shard.samples) for shard in index.splits["train"]] == [
        ("train-000000.tar", 2), ("train-000001.tar", 2), ("train-000002.tar", 1),
    ]  # fmt: skip
    samples = records(made)
    assert [record.key for record in samples] == [f"{i:08d}" for i in range(5)]
    for number, record in enumerate(samples):
        record.check("triplets")
        info = record.info()
        assert info["number"] == number
        assert info["recipe"] == index.about
        assert info["subject"]["key"].startswith("photo")
        new, scene = info["backgrounds"][2], info["backgrounds"][1]
        assert new["key"] != scene["key"]
    assert index.about["fuser"]["file"] == "v1.ckpt"
    assert len(index.about["fuser"]["sha256"]) == 64
    assert index.about["seed"] == 0


def test_a_target_can_be_reached_with_the_alpha_that_is_stored(made: Path) -> None:
    for record in records(made):
        alpha = picture(record, "alpha.png")
        composite = picture(record, "composite.png")
        background = picture(record, "background.jpg")
        photograph = picture(record, "foreground.jpg")
        assert composite.shape == background.shape == photograph.shape == (SIZE, SIZE, 3)
        assert alpha.shape == picture(record, "mask.png").shape == (SIZE, SIZE)
        assert 0 < alpha.mean() < 1
        assert np.array_equal(composite[alpha == 0], background[alpha == 0])
        # Some colour in [0, 1] explains every pixel, to the rounding of the target.
        rest = composite - (1 - alpha[..., None]) * background
        assert (rest > -0.51 / 255).all()
        assert (rest < alpha[..., None] + 0.51 / 255).all()
        # Where the subject is opaque, photograph and target show the same; elsewhere they do not.
        assert np.abs(composite - photograph)[alpha == 1].mean() < 0.03
        assert np.abs(composite - photograph)[alpha == 0].mean() > 0.05


def test_another_seed_makes_other_samples_and_more_keep_the_first(
    root: Path, made: Path, tmp_path: Path
) -> None:
    assert main(arguments(root, tmp_path / "seed", seed=1, samples=1)) == 0
    assert (
        records(tmp_path / "seed")[0].fields["foreground.jpg"]
        != (records(made)[0].fields["foreground.jpg"])
    )
    assert main(arguments(root, tmp_path / "parts", samples=4, shard_samples=1)) == 0
    for ours, theirs in zip(records(tmp_path / "parts"), records(made), strict=False):
        # In a batch of its own the fuser may round otherwise; what goes in is the same.
        assert ours.fields["background.jpg"] == theirs.fields["background.jpg"]
        near = np.abs(picture(ours, "composite.png") - picture(theirs, "composite.png"))
        assert near.max() <= 1 / 255


def test_a_restart_makes_what_is_missing_and_touches_nothing_else(
    root: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hard"
    out.mkdir()
    before = contents(made)
    for name in ("train-000000.tar", "train-000002.tar"):
        (out / name).write_bytes(before[name])
    (out / ".train-000001.tar.abcd.part").write_bytes(b"half")
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert main(arguments(root, out)) == 0
    assert contents(out) == before
    assert all((out / name).stat().st_mtime_ns == time for name, time in times.items())
    assert main(arguments(root, out)) == 0  # nothing is left to do
    assert contents(out) == before
    assert main(arguments(root, out, seed=3)) == 2
    assert "was made with seed 0, now 3" in capsys.readouterr().err
    (out / INDEX).unlink()
    assert main(arguments(root, out, degrade=2)) == 2
    assert "degrade 1.0, now 2.0" in capsys.readouterr().err
    (out / "mine.tar").write_bytes(b"")
    assert main(arguments(root, out)) == 2
    assert "mine.tar" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one(root: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "hard"
    given = arguments(root, out, devices=2)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "deep_image_compositing", *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 of 2" in done.stderr
    assert done.stdout.count("5 train triplets") == 1
    assert contents(out) == contents(made)


def test_some_shards_are_made_of_what_is_held_out(root: Path, tmp_path: Path) -> None:
    (held_out,) = set(trees.names(3, 1)) - set(trees.names(3, 0))
    assert main(arguments(root, tmp_path / "hard", validation=0.4)) == 0
    index = Index.read(tmp_path / "hard")
    assert (index.count("train"), index.count("validation")) == (4, 1)
    subjects = [(r.info()["split"], r.info()["subject"]["key"]) for r in records(tmp_path / "hard")]
    assert all((split == "validation") == (key == f"{held_out}.jpg") for split, key in subjects)


@pytest.mark.parametrize("error", [TooManyError("wrong"), UsageError("wrong"), ValueError("wrong")])
def test_what_must_not_be_passed_over_is_not_drawn_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = (Source("x"),)
    recipe = Recipe(sources, sources, {}, samples=4)
    batches, draw = triplets.Batches(recipe, plan(recipe), {}), mock.Mock(side_effect=error)
    monkeypatch.setattr(batches, "_draw", draw)
    with pytest.raises(
        DataError if isinstance(error, TooManyError) else type(error), match="wrong"
    ):
        raise_sent(batches[0])
    assert draw.call_count == 1


def test_sources_of_which_nothing_can_be_drawn(root: Path, tmp_path: Path) -> None:
    scenes = Source(str(root / "scenes"))
    mattes = Source(str(root / "mattes"), weight=0)
    with pytest.raises(UsageError, match=r"of .*mattes: the weights must not all be 0"):
        teach.open_mixtures(Recipe((mattes,), (scenes,), {}))
    one = Source(str(trees.pairs(tmp_path / "one", "alpha", kept=0, held_out=1)))
    with pytest.raises(UsageError, match=r"nothing of .*one is left to train on"):
        teach.open_mixtures(Recipe((one,), (scenes,), {}))


def test_sources_may_be_urls_of_folders(root: Path) -> None:
    kinds = ("mattes", "scenes")
    found = []
    for scheme in ("", "file://"):
        mattes, scenes = (Source(f"{scheme}{root / kind}") for kind in kinds)
        mixtures = teach.open_mixtures(Recipe((mattes,), (scenes,), {}))
        sample = triplets.Batches(Recipe((mattes,), (scenes,), {}, size=SIZE), [], mixtures)
        found.append((teach._fingerprint(mixtures), sample._sample("train", 0)["info"]["subject"]))
    assert found[0][0] == found[1][0]
    assert found[0][1]["key"] == found[1][1]["key"]


def test_without_anything_held_out_there_is_no_validation_split(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mattes = trees.pairs(tmp_path / "mattes", "alpha", kept=2, held_out=0)
    assert main(arguments(root, tmp_path / "hard", validation=0.4, mattes=mattes)) == 0
    assert "hold nothing out" in capsys.readouterr().err
    assert set(Index.read(tmp_path / "hard").splits) == {"train"}


def test_shards_and_licences_go_in_and_a_sheet_comes_out(root: Path, tmp_path: Path) -> None:
    kinds = (("mattes", root / "mattes"), ("backgrounds", root / "scenes"))
    for kind, folder in kinds:
        given = ["--layout", "folders", "--root", str(folder), "--out", str(tmp_path / kind)]
        assert main(["shards", kind, *given, "--licence", "CC0", "--workers", "1"]) == 0
    sheet = tmp_path / "sheet.png"
    inputs = {kind: tmp_path / kind for kind, _ in kinds}
    assert main(arguments(root, tmp_path / "hard", samples=2, sheet=sheet, **inputs)) == 0
    info = records(tmp_path / "hard")[0].info()
    assert {item["licence"] for item in (info["subject"], *info["backgrounds"])} == {"CC0"}
    with Image.open(sheet) as drawn:
        assert drawn.width > 5 * 256


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({"fuser": "none.ckpt"}, 1, "no weights 'none.ckpt' for the fuser"),
        ({"stage": "segmenter/pyramid"}, 2, "only a fuser can teach, not a segmenter"),
        ({"stage": "fuser"}, 2, "a slot and a name"),
        ({"size": 400}, 1, "error: none of 100 draws fits --size 400, which needs mattes and"),
        ({"size": 400, "workers": 1}, 1, "error: none of 100 draws fits --size 400"),
        ({"samples": 0}, 2, "samples must be at least 1, got 0"),
        ({"validation": 1}, 2, "validation is a share"),
        ({"validation": 0.5, "shard_samples": 9}, 2, "give fewer --shard-samples"),
        ({"mattes": "nowhere"}, 2, "nowhere"),
        ({"workers": -1}, 2, "workers must be at least 0"),
        ({"accelerator": "abacus"}, 2, "--accelerator"),
    ],
)
def test_errors_say_what_to_do(
    root: Path, tmp_path: Path, capsys: Any, given: dict[str, object], code: int, message: str
) -> None:
    assert main(arguments(root, tmp_path / "hard", **given)) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("hard/*.tar"))


def test_a_segmenter_cannot_teach(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "segmenter.safetensors"
    save(PyramidSegmenter(backbone="test_efficientnet", width=8, pretrained=None), path)
    assert main(arguments(root, tmp_path / "hard", fuser=path)) == 1
    assert "does not fit MultiStreamFuser" in capsys.readouterr().err


def test_a_weights_file_teaches_with_its_own_hyper_parameters(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "v1.safetensors"
    save(MultiStreamFuser(head="rgb", widths=(5, 7)), path)
    assert main(arguments(root, tmp_path / "hard", fuser=path, samples=1)) == 0
    (record,) = records(tmp_path / "hard")
    assert json.loads(record.fields["json"])["recipe"]["fuser"]["file"] == "v1.safetensors"


# The parts


def parts() -> tuple[Tensor, ...]:
    noise = torch.rand((4, 3, 24, 32), generator=Generator().manual_seed(0))
    color, old, scene, new = noise.split(1)
    alpha = (torch.rand((1, 1, 24, 32), generator=Generator().manual_seed(1)) * 1.5).clamp(0, 1)
    return color, alpha, old, scene, new


def test_photograph_and_scene_are_seen_by_one_camera() -> None:
    color, alpha, old, _, _ = parts()
    first, second = synthesis.one_camera([old, old.clone()], Generator().manual_seed(3))
    assert torch.equal(first, second)
    assert not torch.equal(first, old)
    empty = torch.zeros_like(alpha)
    photograph, scene, mask = triplets.make_easy(
        color, empty, old, old, Generator().manual_seed(3), degrade=0
    )
    assert photograph.shape == scene.shape == color.shape
    assert torch.equal(mask, empty)
    # Without effects the photograph is the compositing equation.
    plain, scene, _ = triplets.make_easy(color, alpha, old, old, Generator(), augment=0)
    assert torch.allclose(plain, over(color, alpha, old), atol=1e-6)
    assert torch.allclose(scene, old, atol=1e-6)


def test_a_fuser_in_layers_sets_one_subject_before_both_scenes() -> None:
    color, alpha, old, scene, new = parts()
    photograph = over(color, alpha, old)
    fuser = LayerFuser()
    hard, target, stored = triplets.make_hard(fuser, photograph, alpha, scene, new, alpha)
    assert torch.equal(stored, (alpha.sqrt() * 255).round() / 255)
    subject = 0.5 * photograph + 0.25
    assert torch.equal(hard, over(subject, stored, scene))
    assert torch.equal(target, over(subject, stored, new))


def test_a_fuser_without_layers_is_asked_twice() -> None:
    color, alpha, _, scene, new = parts()
    fuser = MultiStreamFuser(head="rgb", widths=(4, 6)).eval()
    with torch.no_grad():
        hard, target, stored = triplets.make_hard(fuser, color, alpha, scene, new, alpha)
        assert torch.equal(hard, fuser(color, scene, alpha))
        assert torch.equal(target, fuser(color, new, alpha))
    assert torch.equal(stored, (alpha * 255).round() / 255)


def test_only_fusers_teach(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a Linear"):
        teach.teach(torch.nn.Linear(1, 1), {}, "a", "b", tmp_path)  # type: ignore[arg-type]


def test_pictures_are_rounded_half_up_as_everywhere() -> None:
    halves = (torch.arange(255) + 0.5) / 255
    given = halves.repeat(3, 8, 1)
    up = torch.arange(1, 256, dtype=torch.uint8).repeat(3, 8, 1)
    assert encode_jpeg(given) == encode_jpeg(up)
