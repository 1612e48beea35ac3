"""``benchmark train``: recipes run as they are but for data, length and what is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deep_image_compositing.benchmark import train
from deep_image_compositing.cli import main
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.losses import PerceptualLoss

RECIPES = Path(__file__).parents[2] / "recipes"


def bench(root: Path, device: str = "cpu", **options: Any) -> train.Bench:
    given = {"workers": None, "compile": False, **options}
    amounts = train.Amounts(photographs=4, sides=(48, 64), warmup=1)
    return train.Bench(root, torch.device(device), amounts, steps=2, **given)


def overrides(name: str, tmp_path: Path, **options: Any) -> dict[str, Any]:
    recipe = train.read_recipe(str(RECIPES / f"{name}.yaml"))
    given = bench(tmp_path, **options).overrides(name, recipe, tmp_path, tmp_path / "report")
    return {key: yaml.safe_load(value) for key, value in (x[2:].split("=", 1) for x in given)}


def test_a_recipe_keeps_what_costs_time_and_loses_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.Bench, "_features", lambda self, name: f"random {name}")
    changed = overrides("fusion_modern", tmp_path)
    assert changed["data.init_args.train"] == str(tmp_path / "mattes")
    assert (tmp_path / "backgrounds" / "index.json").is_file()
    assert changed["data.init_args.textures"] is None
    assert changed["model.init_args.perceptual_weights"] == "random vgg16"
    assert changed["model.init_args.compile"] is False
    names = [entry["class_path"].rpartition(".")[2] for entry in changed["trainer.callbacks"]]
    assert names == ["LearningRateMonitor", "EMAWeightAveraging", "Meter"]
    recipe = train.read_recipe(str(RECIPES / "fusion_modern.yaml"))
    waiting = 2 * recipe["data"]["init_args"]["num_workers"]
    assert changed["trainer.limit_train_batches"] == 1 + waiting + 2
    kept = ("trainer.precision", "data.init_args.batch_size", "data.init_args.size")
    assert not set(kept) & set(changed)


def test_a_gpu_compiles_and_a_cpu_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.Bench, "_features", lambda self, name: name)
    for options in ({"device": "cuda:1"}, {"compile": True}):
        changed = overrides("fusion_modern", tmp_path, **options)
        assert "model.init_args.compile" not in changed
        on_gpu = "device" in options
        assert changed["trainer.accelerator"] == ("gpu" if on_gpu else "cpu")
        assert changed["trainer.devices"] == ([1] if on_gpu else 1)


def test_segmentation_gets_its_own_kind_and_fetches_nothing(tmp_path: Path) -> None:
    changed = overrides("segmentation_salient", tmp_path, workers=0)
    assert changed["data.init_args.train"] == str(tmp_path / "segmentation")
    assert changed["model.init_args.pretrained"] is None
    assert changed["data.init_args.num_workers"] == 0


def test_random_features_are_of_the_backbone_that_is_asked_for(tmp_path: Path) -> None:
    path = bench(tmp_path)._features("test_efficientnet")
    loss = PerceptualLoss("test_efficientnet", str(path))
    assert float(loss(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64))) > 0
    with pytest.raises(WeightsError, match="test_efficientnet"):
        PerceptualLoss("test_convnext", str(path))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_built_in_set_pairs_each_slot_with_its_modern_self(device: str) -> None:
    recipes = train.built_in(torch.device(device))
    names = list(recipes)
    assert names == [f"{s}, {k}" for s in ("segmentation", "refinement", "fusion")
                     for k in ("paper", "modern")]  # fmt: skip
    for paper, modern in zip(names[::2], names[1::2], strict=True):
        a, b = (recipes[name]["data"]["init_args"] for name in (paper, modern))
        assert a["batch_size"] == 8
        assert b["batch_size"] > 8
        assert a["size"] == b["size"]
        assert train.slot_of(paper, recipes[paper]) == train.slot_of(modern, recipes[modern])
        train.kind_of(paper, recipes[paper])


def timing(rate: float, **options: Any) -> train.Timing:
    given = {"batches": 10, "batch_size": 8, "size": 256, "seconds": 80 / rate, "waiting": 1.0}
    given |= {"peak": 10**9, "precision": "32-true", "compiled": False, "workers": 2}
    return train.Timing(**{**given, "device": "cpu", **options})


def test_ratios_are_to_the_first_recipe_of_the_slot() -> None:
    recipes = train.built_in(torch.device("cpu"))
    names = list(recipes)
    timings = {name: timing(10.0 * (i + 1)) for i, name in enumerate(names) if i != 4}
    table = train.make_table(recipes, timings)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["ratio"][:4] == ["", "2.00", "", "1.33"]
    assert columns["to"][1] == names[0]
    assert columns["waiting"][0] == "12.5%"
    assert columns["crops"][4] == "failed"
    assert columns["ratio"][5] == ""  # what it would be measured by has failed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read"),
        ("model: [", "cannot be read"),
        ("a", "no model.class_path"),
        ("{model: {class_path: torch.nn.Linear}}", "no data.class_path"),
    ],
)
def test_files_that_are_no_recipes(text: str | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=reason):
        train.read_recipe(str(path))


def test_classes_that_are_not_there_or_take_other_data() -> None:
    recipe = {"model": {"class_path": "nothing.Here"}, "data": {"class_path": "torch.nn.Linear"}}
    with pytest.raises(UsageError, match="is no class"):
        train.slot_of("mine", recipe)
    with pytest.raises(UsageError, match="takes none of"):
        train.kind_of("mine", recipe)


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--workers", "-1"], ["missing.yaml"]])
def test_arguments_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "train", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_built_in_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["benchmark", "train", "--quick", "--device", "cpu", "--workers", "0"]) == 0
    table = capsys.readouterr().out
    for text in ("fusion, paper", "fusion, modern", "32-true", "bf16-mixed", "only speed"):
        assert text in table, text


@pytest.mark.slow
def test_recipes_by_name_and_one_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    toy = RECIPES / "toy" / "fusion_hard.yaml"
    broken = yaml.safe_load(toy.read_text())
    broken["model"]["init_args"]["widths"] = []
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(broken))
    given = [str(toy), str(path)]
    assert main(["benchmark", "train", *given, "--quick", "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "fusion_hard.yaml" in said.out
    assert "failed" in said.out
    assert "broken.yaml failed: " in said.err
    assert "1 of 2 recipes failed" in said.err
