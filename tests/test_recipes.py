"""The recipes: each makes what it names, has the numbers it claims, and trains as its toy twin."""

from __future__ import annotations

import functools
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml
from lightning.pytorch import Trainer
from torch import nn

from deep_image_compositing import registry
from deep_image_compositing.cli import main
from deep_image_compositing.data import tars
from deep_image_compositing.data.sampler import BLOCK
from deep_image_compositing.models.refinement.trained import PAPER_DIM, PAPER_INDEX_NET
from deep_image_compositing.stages.base import Stage
from deep_image_compositing.stages.making import make_stage
from tests import runs
from tests.contract.test_stages import training_batch
from tests.data import trees

# Lightning says that loading in the training process may be slow, that the toys log less often
# than they step, and that the folder of a run exists.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
DEFAULTS = sorted(f"default/{path.stem}" for path in RECIPES.glob("default/*.yaml"))
FUSION = ["fusion_easy", "fusion_hard", "fusion_no_augmentation", "fusion_single_stream"]
FUSION += ["no_refinement"]
OTHERS = ["segmentation_salient", "segmentation_portrait", "refinement"]
MODERN = {"fusion_modern": "fusion_easy", "segmentation_modern": "segmentation_salient"}


def read(name: str) -> dict[str, Any]:
    """A recipe's values by dotted name, ``init_args`` left out; lists of named things too."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(prefix if key == "init_args" else f"{prefix}.{key}".strip("."), inner)
        else:
            flat[prefix] = value

    walk("", yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
    return flat


def test_every_recipe_has_a_toy_twin() -> None:
    assert len(NAMES) >= 10
    assert sorted(path.stem for path in (RECIPES / "toy").glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_twins_differ_in_data_and_sizes_only(name: str) -> None:
    real, toy = read(name), read(f"toy/{name}")
    assert toy.keys() == real.keys()
    classes = [key for key in real if key.endswith("class_path")]
    assert len(classes) >= 4
    for key in [*classes, "trainer.precision", "model.schedule", "model.learning_rate"]:
        assert toy[key] == real[key], key
    for key in real:
        if key.endswith(".path"):
            assert Path(toy[key]).name == Path(real[key]).name


def test_a_wrong_key_does_not_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (RECIPES / "fusion_easy.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("blending:", "blendin:"))
    assert main(["fit", "--config", str(tmp_path / "wrong.yaml"), "--print_config"]) == 2
    assert "blendin" in capsys.readouterr().err


ADAM = {"model.learning_rate": 2e-3, "model.weight_decay": 0}  # not AdamW
FUSED = {**ADAM, "data.size": 384, "trainer.max_steps": 200_000, "model.perceptual": "vgg16"}
NUMBERS = {
    **{name: {**ADAM, "data.size": 256} for name in OTHERS},
    **{name: {**FUSED, "model.perceptual_scale": 0.8} for name in FUSION},
    "deep_image_matting": {"data.size": 320, "model.learning_rate": 1e-5},
    "index_net": {
        "data.size": 320, "data.batch_size": 16, "model.learning_rate": 1e-2,
        "model.encoder_rate": 1e-2,
    },
    "harmonization_iharmony4": {
        **ADAM, "model.learning_rate": 1e-3, "data.batch_size": 16, "model.size": 256,
        "data.size": 256,
    },
}  # fmt: skip
"""What papers say, by recipe."""


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_of_the_papers(name: str) -> None:
    values, numbers = read(name), NUMBERS[name]
    assert {key: values[key] for key in numbers} == numbers
    if name in (*OTHERS, *FUSION):
        assert values["data.batch_size"] * values["trainer.devices"] == 8


def test_the_networks_and_epochs_of_the_papers() -> None:
    for name, paper in (("deep_image_matting", PAPER_DIM), ("index_net", PAPER_INDEX_NET)):
        assert {read(name).get(f"model.{option}") for option in paper} == {None}
        assert paper["width"] == 1.0
    assert not PAPER_DIM["skips"]
    assert PAPER_INDEX_NET["indexing"] == "m2o"
    for name, epochs in (("index_net", 30), ("harmonization_iharmony4", 160)):
        values = read(name)
        steps = epochs * (values["data.epoch_length"] // 16)
        assert values["trainer.max_steps"] == pytest.approx(steps, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("fusion_no_augmentation", {"data.blending", "data.textures"}),
        ("fusion_single_stream", {"model.class_path"}),
        ("no_refinement", {"data.degrade"}),
        (
            "fusion_hard",
            {"data.train.1.path", "data.train.1.weight"} | {"model.weights", "model.head"},
        ),
    ],
)
def test_an_ablation_changes_nothing_else(name: str, changed: set[str]) -> None:
    easy, own = read("fusion_easy"), read(name)
    found = {key for key in easy | own if easy.get(key) != own.get(key)}
    assert found == changed | {"trainer.default_root_dir"}
    assert own["data.blending"] == 0 or name != "fusion_no_augmentation"
    assert own["data.degrade"] > 1 or name != "no_refinement"


@pytest.mark.parametrize("name", MODERN)
def test_modern_recipes_see_as_many_samples(name: str) -> None:
    modern, paper = read(name), read(MODERN[name])
    samples = [r["trainer.max_steps"] * r["data.batch_size"] for r in (modern, paper)]
    assert samples[0] == samples[1]
    assert modern["model.compile"]
    assert modern["trainer.precision"] == "bf16-mixed"
    assert modern["model.weight_decay"] > 0
    if name == "fusion_modern":
        ratio = modern["data.batch_size"] / paper["data.batch_size"]
        assert modern["model.learning_rate"] == paper["model.learning_rate"] * ratio**0.5


def test_one_stream_has_as_many_parameters_as_two() -> None:
    for recipe in ("fusion_easy", "fusion_single_stream"):
        assert read(recipe)["model.widths"] is None
    counts = [
        sum(p.numel() for p in registry.create("fuser", name).parameters())
        for name in ("multi_stream", "single_stream")
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


# The recipes themselves, on made photographs that lie where theirs would

FEATURES = ("resnet50", "convnext_tiny.in12k_ft_in1k", "vgg16", "mobilenetv2_100")
"""Backbones whose weights recipes have timm fetch; they are made here."""

FETCHED = {"deep_image_matting": "vgg16", "index_net": "mobilenetv2_100"}
"""Whose weights a stage begins with where its recipe names no backbone."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with everything that a recipe names, small."""
    folder = tmp_path_factory.mktemp("house")
    make = runpy.run_path(str(RECIPES / "toy" / "make_data.py"))
    make["main"](folder / "shards")
    sources = yaml.safe_load((RECIPES / "default/segmentation.yaml").read_text())["data"]
    for source in sources["init_args"]["train"]:
        if Path(source["path"]).name not in ("mattes", "cutouts"):
            pairs = trees.pairs(folder / source["path"], "mask")
            if "doubt" in source:
                (pairs / "labels.tsv").write_text("name\tdoubt\n")
    trees.pairs(folder / "data/mattes", "alpha")
    trees.cutouts(folder / "data/cutouts")
    for name in ("backgrounds", "photographs"):
        trees.scenes(folder / "data" / name)
    trees.pairs(folder / "runs/self/mattes", "alpha")
    for name in ("own_masks", "own_masks_self"):
        trees.shards(folder / "runs" / name, "triplets", 4, 1)
    easy = registry.create("fuser", "multi_stream")
    content = {"state_dict": easy.state_dict(), "hyper_parameters": dict(easy.hparams)}
    (folder / "runs/fusion_easy/checkpoints").mkdir(parents=True)
    torch.save(content, folder / "runs/fusion_easy/checkpoints/last.ckpt")
    for name in ("tf_efficientnet_lite0", *FEATURES):
        state = timm.create_model(name, features_only=True).state_dict()
        if name == "vgg16":  # as torchvision names them
            state = {key.replace("features_", "features."): v for key, v in state.items()}
        known = {"tf_efficientnet_lite0": "efficientnet_lite0"}.get(name, name)
        halves = {key: v.half() if v.is_floating_point() else v for key, v in state.items()}
        safetensors.torch.save_file(halves, folder / "runs" / f"{known}.safetensors")
    return folder


def fetched(name: str) -> list[str]:
    """Options that name files in the place of what a recipe has timm fetch."""
    values, more = read(name), []
    for option, backbone in (("pretrained", "backbone"), ("perceptual_weights", "perceptual")):
        if values.get(f"model.{option}") == "pretrained":
            of = values.get(f"model.{backbone}") or FETCHED[name]
            more.append(f"--model.{option}=runs/{of}.safetensors")
    return more


def unused(stage: Stage, batch: dict[str, torch.Tensor]) -> list[str]:
    """Parameters that wait for a gradient and get none in one step."""
    stage.train()
    step = stage.loss(batch)
    assert step.loss.isfinite()
    step.loss.backward()
    return [name for name, p in stage.named_parameters() if p.requires_grad and p.grad is None]


ONWARD = ["fusion_easy", "fusion_single_stream", "default/segmentation", "default/refinement"]
"""Recipes that the docs have go on from the shipped weights; others do so by themselves."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        *[(name, []) for name in (*NAMES, *DEFAULTS)],
        *[(name, ["--model.weights=default"]) for name in ONWARD],
    ],
)
def test_a_recipe_makes_its_stage_and_batches_that_train_all_of_it(
    name: str, more: list[str], house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(house)
    made: list[Any] = []

    @functools.wraps(Trainer.fit)  # whose parameters the command line asks for
    def keep(trainer: Trainer, model: Any, datamodule: Any, **_: Any) -> None:
        made.extend((model, datamodule))

    monkeypatch.setattr(Trainer, "fit", keep)
    given = [f"--config={RECIPES / name}.yaml", *fetched(name), "--trainer.accelerator=cpu"]
    given += ["--trainer.precision=32-true", f"--trainer.default_root_dir={tmp_path}", *more]
    assert main(["fit", *given]) == 0
    stage, data = made
    values = read(name)
    assert (data.size, data.batch_size) == (values["data.size"], values["data.batch_size"])
    data.size, data.batch_size, data.num_workers = 64, 2, 0
    stage.setup("fit")
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert unused(stage, batch) == []


SHIPPED = [(entry.slot, entry.name) for entry in registry.list_stages() if entry.weights]


@pytest.mark.parametrize(("slot", "name"), SHIPPED)
def test_a_shipped_stage_trains_all_that_it_has(slot: str, name: str) -> None:
    stage = make_stage(slot, name)
    assert unused(stage, training_batch(slot, 2, 64)) == []


@pytest.mark.slow
def test_two_steps_from_the_shipped_weights_by_two_processes(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(house)
    name = next(name for name in NAMES if read(name).get("model.weights") == "default")
    given = ["fit", f"--config={RECIPES / name}.yaml", *fetched(name), *QUIET]
    data = {"size": 64, "batch_size": 2, "epoch_length": 8, "num_workers": 0}
    trainer = {"max_steps": 2, "accelerator": "cpu", "val_check_interval": 1.0, "devices": 2}
    trainer |= {"limit_val_batches": 0, "default_root_dir": tmp_path / "run", "strategy": "ddp"}
    given += [f"--data.{key}={value}" for key, value in data.items()]
    given += [f"--trainer.{key}={value}" for key, value in trainer.items()]
    callback = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}
    runs.run_two([*given, f"--trainer.callbacks=[{json.dumps(callback)}]"])
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2


# The toys


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the data of the toy recipes."""
    folder = tmp_path_factory.mktemp("toys")
    make = runpy.run_path(str(RECIPES / "toy" / "make_data.py"))
    make["main"](folder / make["FOLDER"])
    return folder


def train(name: str, *more: str) -> None:
    """Train a toy in the working folder."""
    assert main(["fit", "--config", str(RECIPES / "toy" / f"{name}.yaml"), *QUIET, *more]) == 0


def beginning(name: str) -> str | None:
    """The toy that another one goes on from."""
    weights = read(f"toy/{name}")["model.weights"]
    return None if weights is None else Path(weights).parts[-3]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_toy_trains(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    first = beginning(name)
    if first is not None and not Path("runs", "toy", first).exists():
        train(first)
    if not Path("runs", "toy", name).exists():  # unless it is where another one began
        train(name)
    run = Path("runs", "toy", name)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == read(f"toy/{name}")["trainer.max_steps"]
    floats = [v for v in checkpoint["state_dict"].values() if v.is_floating_point()]
    assert all(bool(value.isfinite().all()) for value in floats)
    assert ("averaging_state" in checkpoint) == name.endswith("_modern")
    assert (run / "config.yaml").is_file()
    assert {path.name[:3] for path in (run / "sheets").iterdir()} == {"tra", "val"}


@pytest.mark.parametrize("name", FUSION)
def test_the_shards_that_a_recipe_draws_from_stay_open(name: str) -> None:
    # Each one that does not is opened again for nearly every sample, by reading all of its headers.
    init = yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))["data"]["init_args"]
    train, scenes, more = (len(init[key] or ()) for key in ("train", "backgrounds", "textures"))
    old = texture = more + scenes
    assert (train + scenes + old + texture) * BLOCK <= tars._OPEN


def test_a_recipe_that_goes_on_from_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(RECIPES / "toy" / "fusion_hard.yaml"), *QUIET]) == 1
    said = capsys.readouterr().err
    assert "error: no weights 'runs/toy/fusion_easy/checkpoints/last.ckpt'" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_checkpoints_stay_in_the_run_with_any_logger(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    logger = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs/logged")
    train("fusion_easy", *logger, "--trainer.default_root_dir=runs/logged", "--trainer.max_steps=2")
    assert (place / "runs/logged/checkpoints/last.ckpt").is_file()
    assert len(list((place / "runs/logged").rglob("metrics.csv"))) == 1
    assert not list((place / "runs/logged").rglob("events.out*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODERN)
def test_modern_networks_compile_whole(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    original = nn.Module.compile
    # Traced as always, but run as it is, which needs no C++ compiler; a break is an error.
    monkeypatch.setattr(
        nn.Module, "compile", lambda self: original(self, backend=backend, fullgraph=True)
    )
    monkeypatch.chdir(place)
    train(
        name,
        "--model.compile=true",
        "--trainer.max_steps=1",
        f"--trainer.default_root_dir=runs/compiled/{name}",
    )
    assert graphs
