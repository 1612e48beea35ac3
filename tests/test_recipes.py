"""The recipes: each parses, has the numbers that it claims, and trains as its toy twin."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from deep_image_compositing import registry
from deep_image_compositing.cli import main
from deep_image_compositing.networks.pyramid import count_parameters

# Lightning says that loading in the training process may be slow, that the toys log less often
# than they step, and that the folder of a run exists.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]
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


@pytest.mark.parametrize("name", [*NAMES, *DEFAULTS])
def test_a_recipe_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(RECIPES / f"{name}.yaml"), "--print_config"]) == 0
    assert "class_path: deep_image_compositing" in capsys.readouterr().out


def test_a_wrong_key_does_not_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (RECIPES / "fusion_easy.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("blending:", "blendin:"))
    assert main(["fit", "--config", str(tmp_path / "wrong.yaml"), "--print_config"]) == 2
    assert "blendin" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*OTHERS, *FUSION])
def test_the_numbers_of_the_paper(name: str) -> None:
    values = read(name)
    assert values["model.learning_rate"] == 2e-3
    assert values["model.weight_decay"] == 0  # Adam, not AdamW
    assert values["data.batch_size"] * values["trainer.devices"] == 8
    assert values["data.size"] == (384 if name in FUSION else 256)
    if name in FUSION:
        assert values["trainer.max_steps"] == 200_000
        assert (values["model.perceptual"], values["model.perceptual_scale"]) == ("vgg16", 0.8)


def test_the_numbers_of_deep_image_matting() -> None:
    values = read("deep_image_matting")
    assert (values["model.width"], values["data.size"]) == (1.0, 320)
    assert values["model.learning_rate"] == 1e-5
    assert not values["model.skips"]


def test_the_numbers_of_index_net() -> None:
    values = read("index_net")
    assert (values["model.width"], values["model.indexing"]) == (1.0, "m2o")
    assert values["model.learning_rate"] == 1e-2
    assert values["model.encoder_rate"] == 1e-2
    assert (values["data.size"], values["data.batch_size"]) == (320, 16)
    steps = values["data.epoch_length"] // values["data.batch_size"]
    assert values["trainer.max_steps"] == pytest.approx(30 * steps, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("fusion_no_augmentation", {"data.blending", "data.textures"}),
        ("fusion_single_stream", {"model.class_path", "model.widths"}),
        ("no_refinement", {"data.degrade"}),
        ("fusion_hard", {"data.train.1.path", "data.train.1.weight", "model.weights"}),
    ],
)
def test_an_ablation_changes_nothing_else(name: str, changed: set[str]) -> None:
    easy, own = read("fusion_easy"), read(name)
    found = {key for key in easy | own if easy.get(key) != own.get(key)}
    assert found == changed | {"trainer.default_root_dir"}


def test_an_ablation_of_data_and_one_of_masks_say_so() -> None:
    assert read("fusion_no_augmentation")["data.blending"] == 0
    assert read("no_refinement")["data.degrade"] > 1


@pytest.mark.parametrize("name", MODERN)
def test_modern_recipes_see_as_many_samples(name: str) -> None:
    modern, paper = read(name), read(MODERN[name])
    samples = [r["trainer.max_steps"] * r["data.batch_size"] for r in (modern, paper)]
    assert samples[0] == samples[1]
    assert modern["model.compile"]
    assert modern["trainer.precision"] == "bf16-mixed"
    assert modern["model.weight_decay"] > 0


def test_the_modern_fuser_s_rate_is_scaled() -> None:
    modern, paper = read("fusion_modern"), read("fusion_easy")
    ratio = modern["data.batch_size"] / paper["data.batch_size"]
    assert modern["model.learning_rate"] == paper["model.learning_rate"] * ratio**0.5


def test_one_stream_has_as_many_parameters_as_two() -> None:
    counts = [
        count_parameters(registry.create("fuser", stage, widths=read(recipe)["model.widths"]))
        for stage, recipe in (
            ("multi_stream", "fusion_easy"),
            ("single_stream", "fusion_single_stream"),
        )
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


# Training

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


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
    train(
        "fusion_easy",
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=runs/logged",
        "--trainer.default_root_dir=runs/logged",
    )
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
