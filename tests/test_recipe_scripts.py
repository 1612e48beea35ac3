"""The recipes that are scripts: each runs, on a few made photographs, and writes what it says."""

from __future__ import annotations

import itertools
import json
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deep_image_compositing import registry, weights
from deep_image_compositing.data.datasets import open_source
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import ShardItem, Source
from tests.photographs import disk, scene

RECIPES = Path(__file__).parents[1] / "recipes"
SIZE = (176, 208)
STAGES = {"segmenter": "pyramid", "refiner": "cascade", "fuser": "multi_stream"}


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.syspath_prepend(RECIPES)  # where Python finds what a script there imports
    runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of sets as the recipes expect them; a bright disk is the subject of each picture."""
    root = tmp_path_factory.mktemp("data")
    matte = disk(*SIZE)
    alpha = matte[..., None] / 255
    for folder in ("people", "cats", "subjects", "mattes", "backgrounds", "cutouts"):
        (root / folder).mkdir()
        for number in range(9):
            behind = scene(*SIZE, seed=number) // 2
            if folder == "backgrounds":
                Image.fromarray(behind).save(root / folder / f"{number}.png")
                continue
            if folder == "cutouts":
                cutout = np.dstack([255 - behind, matte])
                Image.fromarray(cutout).save(root / folder / f"{number}.png")
                continue
            subject = 255 - scene(*SIZE, seed=50 + number) // 3
            picture = np.round(alpha * subject + (1 - alpha) * behind).astype(np.uint8)
            Image.fromarray(picture).save(root / folder / f"{number}.jpg", quality=95)
            fine = folder == "mattes"
            label = matte if fine else np.where(matte > 127, 255, 0).astype(np.uint8)
            name = f"{number}.alpha.png" if fine else f"{number}.mask.png"
            Image.fromarray(label).save(root / folder / name)
    return root


@pytest.fixture(scope="module")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that takes for the subject whatever is bright."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    real, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["picture"], ["mask"], axes=[1])],
        "brightness",
        [helper.make_tensor_value_info("picture", real, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("mask", real, [1, 1, 64, 64])],
    )
    path = tmp_path_factory.mktemp("onnx") / "brightness.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    return path


def labels_of(shard: Path, count: int) -> list[NDArray[np.uint8]]:
    """Masks of the first samples of a shard."""
    dataset, _ = open_source(Source(str(shard)), ("segmentation",))
    return [np.asarray(dataset[number].label()) for number in range(count)]


def held_out(path: Path, share: float) -> int:
    """How many of the pictures in ``path`` are kept from training."""
    _, dataset = open_source(Source(str(path), hold_out=share), ("segmentation",))
    return 0 if dataset is None else len(dataset)


def scaled(path: Path, factor: float) -> Path:
    """Weights of a small segmenter, all of them times ``factor``."""
    stage = registry.create("segmenter", "pyramid", backbone="test_efficientnet")
    with torch.no_grad():
        for number, parameter in enumerate(stage.parameters()):
            parameter.fill_(factor * (number + 1))
    weights.save(stage, path)
    return path


def test_mixed_weights_are_the_weighted_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, earlier = scaled(tmp_path / "a.safetensors", 1), scaled(tmp_path / "b.safetensors", 5)
    out = tmp_path / "mixed.safetensors"
    run(monkeypatch, "mix_weights", "segmenter/pyramid", later, earlier, "0.75", "-o", out)
    mixed = registry.create("segmenter", "pyramid", weights=str(out))
    for number, parameter in enumerate(mixed.parameters()):
        expected = torch.full_like(parameter, 2.0 * (number + 1))  # 0.75 of 1 and 0.25 of 5
        torch.testing.assert_close(parameter, expected)


def test_what_cannot_be_mixed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, wide = scaled(tmp_path / "a.safetensors", 1), tmp_path / "b.safetensors"
    network = registry.create("segmenter", "pyramid", backbone="test_efficientnet", width=24)
    weights.save(network, wide)
    out = tmp_path / "mixed.safetensors"
    for given, message in (
        ((first, wide, "1.5"), "2"),
        ((first, wide, "0.5"), "error: the files hold different networks: they differ in"),
        (("nowhere", wide, "0.5"), "error: no weights 'nowhere'"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, "mix_weights", "segmenter/pyramid", *given, "-o", out)
    assert "the share must lie in [0, 1], got 1.5" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["own_masks", "self_mattes"])
def test_what_is_there_is_not_mixed_with_what_is_new(
    name: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "left.txt").write_text("from an earlier run")
    with pytest.raises(SystemExit):
        run(monkeypatch, name, data, tmp_path)
    assert f"{tmp_path} is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_self_taught_mattes_train_like_measured_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "self_mattes", data, tmp_path / "self")
    source = Source(str(tmp_path / "self/mattes"), hold_out=0)
    dataset, _ = open_source(source, ("mattes",))
    expected = 0
    for name in ("people", "cats", "subjects"):
        expected += 9 - held_out(data / name, 0.1)
    assert dataset is not None
    assert len(dataset) == expected
    for path in (tmp_path / "self/mattes").glob("*.alpha.png"):
        found, truth = np.asarray(Image.open(path)) > 127, disk(*SIZE) > 127
        assert (found & truth).sum() > 0.7 * (found | truth).sum()  # its edge is very soft
    assert len(list((tmp_path / "self/backgrounds").glob("*.png"))) == 9


@pytest.mark.slow
def test_own_masks_are_triplets_with_the_mask_that_was_found(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "own"
    run(monkeypatch, "own_masks", data, out, "--per-subject", "1", "--size", "96")
    dataset, _ = open_source(Source(str(out)), ("triplets",))
    assert len(dataset) == 9 - held_out(data / "mattes", 0.2)
    for number in range(len(dataset)):
        item = dataset[number]
        assert isinstance(item, ShardItem)
        assert {"foreground.jpg", "background.jpg", "composite.png", "alpha.png", "mask.png"} <= (
            set(item.record.fields)
        )


@pytest.mark.slow
def test_masks_are_measured_on_what_is_held_out(
    data: Path,
    brightness: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data/open").mkdir(parents=True)
    for folder in data.iterdir():
        (tmp_path / "data" / folder.name).symlink_to(folder)
    # Of frames whose names share what is before the last _, all are held out, or none.
    davis = tmp_path / "data/open/davis"
    davis.mkdir()
    for name in ("6_1", "6_2", "0_6"):
        for kind in (".jpg", ".mask.png"):
            (davis / f"{name}{kind}").write_bytes((data / f"people/6{kind}").read_bytes())
    (davis / "labels.tsv").write_text("name\tdoubt\n6_1\t0.1\n6_2\t0.6\n")
    out, sheet = tmp_path / "masks.json", tmp_path / "worst.png"
    sets = "people,davis,pasted,animals pasted"
    arguments = ["--segmenter", f"bright=onnx(path={brightness})", "--sets", sets]
    arguments += ["--refiner", "cascade", "--list", "--sheet", str(sheet), "--worst", "3"]
    run(monkeypatch, "measure_masks", tmp_path / "data", "--out", out, *arguments)
    said = capsys.readouterr().out
    records = json.loads(out.read_text())
    seen = {(record["set"], record["picture"]) for record in records}
    names = {str(n) for n in range(9) if Pair(Path(f"{n}.jpg"), None).held_out(0.1)}
    few = {str(n) for n in range(9) if Pair(Path(f"{n}.png"), None).held_out(0.4)}
    expected = {(name, n) for name in ("people", "animals pasted") for n in names}
    assert seen == {*expected, ("davis", "6_1"), *(("pasted", f"{n} 0") for n in few)}
    for record in records:
        assert 0 <= record["mask_iou"] <= 1
        assert record["refined_distance"] >= 0
        assert record["seconds"] > 0
        assert record["set"] in said
    bright = [record for record in records if record["segmenter"] == "bright"]
    good = [record["doubt"] > 0.5 for record in bright if record["mask_iou"] >= 0.8]
    bad = [record["doubt"] > 0.5 for record in bright if record["mask_iou"] < 0.6]
    assert f"bright: warns of doubt for {sum(good)} of {len(good)} masks" in said
    assert f"and for {sum(bad)} of {len(bad)} below 0.6" in said
    assert sum(line.count(" bright ") for line in said.splitlines()[-3:]) == 3  # the worst
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 256
        assert picture.height > 3 * 256


@pytest.mark.slow
def test_harmonizers_are_measured_on_what_is_held_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    arguments = ["--methods", "none", "--method", "half=white_balance(strength=0.5)"]
    arguments += ["--accelerator", "cpu", "--sheets", "1"]
    run(monkeypatch, "measure_harmonization", data, "--out", out, *arguments)
    said = capsys.readouterr().out
    assert "Published elsewhere" in said
    assert "Given photographs as they are" in said
    report = json.loads((out / "report.json").read_text())
    shares = {"people": 0.1, "cats": 0.1, "mixed": 0.1, "mattes": 0.2}
    folders = {"mixed": "subjects"}
    expected = {
        group: held_out(data / folders.get(group, group), share) for group, share in shares.items()
    }
    found = [
        record["groups"]["photographs"]
        for record in report["records"]
        if record["method"] == "half" and record["grade"] == "untouched"
    ]
    assert {group: found.count(group) for group in shares} == expected
    assert len(found) == sum(expected.values())
    arguments = ["--out", out, "--methods", "none", "--method", "a=reinhart"]
    with pytest.raises(SystemExit, match="error: there is no harmonizer called 'reinhart'"):
        run(monkeypatch, "measure_harmonization", data, *arguments)


def test_a_stage_that_the_sheet_cannot_have_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="error: there is no segmenter called 'grabcat'"):
        run(monkeypatch, "held_out_sheet", tmp_path, "--out", tmp_path, "--segmenter", "grabcat")


@pytest.mark.slow
def test_the_sheet_shows_held_out_composites(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "held_out_sheet", data, "--out", tmp_path / "sheet", "--segmenter", "grabcut")
    shares = {"people": 0.1, "cats": 0.1, "subjects": 0.1, "mattes": 0.2}
    counts = {name: held_out(data / name, share) for name, share in shares.items()}
    expected = sum(counts.values()) + counts["mattes"]
    made = sorted((tmp_path / "sheet").glob("[0-9]*.png"))
    assert len(made) == expected == len(capsys.readouterr().out.splitlines())
    assert (tmp_path / "sheet" / "sheet_1.png").is_file()
    with Image.open(made[0]) as picture:
        assert picture.size == (SIZE[1], SIZE[0])


@pytest.mark.slow
def test_what_is_packed_trains_a_stage_of_each_slot(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out"
    run(monkeypatch, "default/pack", data, packed, "--megabytes", "2")
    for kind, name, share in (
        ("segmentation", "people", 0.1),
        ("segmentation", "mattes", 0.2),
        ("mattes", "mattes", 0.2),
        ("backgrounds", "backgrounds", 0.1),
    ):
        dataset, _ = open_source(Source(f"{packed}/{kind}/{name}.tar"), (kind,))
        pairs = [Pair(Path(f"{n}.jpg"), None) for n in range(9)]
        assert len(dataset) == sum(not pair.held_out(share) for pair in pairs)
    (soft,) = labels_of(packed / "segmentation/mattes.tar", 1)
    assert 3 < len(np.unique(soft)) <= 16
    assert sum(path.stat().st_size for path in packed.rglob("*.tar")) < 2e6

    # A clock that goes on when it is looked at: so many steps, however fast the machine is.
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 7.0 * next(ticks))
    tiny = "weights=null,backbone=test_efficientnet,width=8"
    run(
        monkeypatch,
        "default/train",
        *(packed, out, "--device", "cpu", "--minutes", "10", "--batch", "2", "--workers", "0"),
        *("--segmenter", f"pyramid({tiny},size=32)", "--refiner", f"cascade({tiny})"),
        *("--harmonizer", f"color_map({tiny},size=32)"),
        *("--fuser", "multi_stream(weights=null,widths=[4,8],finer_widths=[4],two_sizes=0.5)"),
    )
    said = capsys.readouterr().out
    for slot, name in {**STAGES, "harmonizer": "color_map"}.items():
        assert f"{slot}: " in said
        stage = registry.create(slot, name, weights=str(out / f"{slot}.safetensors"))
        assert all(value.isfinite().all() for value in stage.state_dict().values())


def test_steps_and_learning_rate_fit_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = runpy.run_path(str(RECIPES / "default/train.py"))["Budget"]("segmenter", 100.0, 4)
    clock = [50.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    group = {"lr": 0.1}
    trainer = SimpleNamespace(
        global_step=0,
        should_stop=False,
        optimizers=[SimpleNamespace(param_groups=[group])],
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        callback_metrics={"train/loss": torch.tensor(0.5)},
    )
    budget.on_train_start(trainer, None)
    rates = []
    while not trainer.should_stop:
        budget.on_train_batch_start(trainer)
        rates.append(group["lr"])
        clock[0] += 0.1 if trainer.global_step else 5.0  # the first step takes longer
        trainer.global_step += 1
        budget.on_train_batch_end(trainer)
    assert 95 < clock[0] - 50 < 100
    highest = int(np.argmax(rates))
    assert rates[highest] == pytest.approx(0.1, rel=0.01)
    assert 40 < highest < 60  # a tenth of the time
    assert (np.diff(rates[highest:]) <= 0).all()
    assert rates[-1] == pytest.approx(0.001, rel=0.1)
