"""Training: the recipes through the command line on made data, and that stages learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from deep_image_compositing import registry, weights
from deep_image_compositing.cli import main
from deep_image_compositing.errors import WeightsError
from deep_image_compositing.stages.base import Stage
from tests.contract.test_stages import training_batch
from tests.data import trees

# Lightning says that one loader process may be slow, that the made runs log less often than
# they step, and that the folder of the run exists.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

RECIPES = Path(__file__).parents[1] / "recipes" / "default"
SMALL = {
    "segmentation": ["--model.init_args.backbone=test_efficientnet", "--model.init_args.width=8"],
    "refinement": ["--model.init_args.backbone=test_efficientnet", "--model.init_args.width=8"],
    "fusion": ["--model.init_args.widths=[4,6]", "--model.init_args.radius=3"],
}
ENTRY = {
    "segmentation": ("segmenter", "pyramid"),
    "refinement": ("refiner", "cascade"),
    "fusion": ("fuser", "multi_stream"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, mattes, cut-outs and backgrounds."""
    root = tmp_path_factory.mktemp("data")
    trees.pairs(root / "people")
    trees.pairs(root / "mattes", "alpha")
    trees.cutouts(root / "cutouts")
    trees.scenes(root / "scenes")
    return root


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Weights for the tiny backbone, as somebody may have downloaded them."""
    path = tmp_path / "backbone.safetensors"
    model = timm.create_model("test_efficientnet", pretrained=False)
    safetensors.torch.save_file(model.state_dict(), path)
    return str(path)


def arguments(recipe: str, data: Path, out: Path, steps: int = 2) -> list[str]:
    """``fit`` with the recipe, made small and pointed at made data."""
    folders = ["mattes", "cutouts"] if recipe == "fusion" else ["people", "mattes", "cutouts"]
    sources = [{"path": str(data / name), "weight": 1.0, "paste": 0.5} for name in folders]
    given = [
        "fit",
        f"--config={RECIPES / recipe}.yaml",
        f"--data.init_args.sources={sources}",
        f"--data.init_args.backgrounds=[{data / 'scenes'}]",
        "--data.init_args.size=32",
        "--data.init_args.batch_size=2",
        "--data.init_args.epoch_length=8",
        "--data.init_args.validation_length=2",
        "--data.init_args.num_workers=0",
        "--model.init_args.picture_every=1",
        f"--trainer.max_steps={steps}",
        f"--trainer.val_check_interval={steps}",
        f"--trainer.default_root_dir={out}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.log_every_n_steps=1",
        "--trainer.callbacks=[{'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint', "
        f"'init_args': {{'every_n_train_steps': {steps}, 'save_last': true}}}}]",
        *SMALL[recipe],
    ]
    if recipe == "fusion":
        given.append(f"--data.init_args.textures=[{data / 'people'}]")
        given.append("--model.init_args.perceptual=null")
    else:
        given.append("--model.init_args.pretrained=null")
    return given


def scalars(out: Path) -> dict[str, list[float]]:
    """Everything that the run logged, by name; pictures count as their number."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in out.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    found = {
        tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    pictures = {tag: [float(len(events.Images(tag)))] for tag in events.Tags()["images"]}
    return {**found, **pictures}


def test_there_is_a_recipe_for_every_stage_that_ships() -> None:
    shipping = {(entry.slot, entry.name) for entry in registry.list_stages() if entry.weights}
    assert shipping == set(ENTRY.values())
    assert {path.stem for path in RECIPES.glob("*.yaml")} >= set(ENTRY)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(ENTRY))
def test_a_recipe_trains_through_the_command_line(recipe: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert not main(arguments(recipe, data, out))
    logged = scalars(out)
    losses = logged["train/loss"]
    assert len(losses) == 2
    assert torch.tensor(losses).isfinite().all()
    assert len(logged["val/sheet"]) == 1
    assert logged["train/sheet"][0] >= 1
    metric = "val/band_psnr" if recipe == "fusion" else "val/iou"
    assert torch.tensor(logged[metric]).isfinite().all()
    if recipe == "fusion":
        assert {"train/l1", "train/alpha", "train/alpha_laplacian", "train/color"} <= set(logged)

    (path,) = out.rglob("last.ckpt")
    factory = registry.get(*ENTRY[recipe]).factory
    stage = factory.load_from_checkpoint(path, weights_only=True)
    assert isinstance(stage, factory)
    exported = tmp_path / "stage.safetensors"
    slot, name = ENTRY[recipe]
    where = [str(path), "-o", str(exported)]
    assert not main(["export-weights", *where, "--stage", f"{slot}/{name}"])
    state = weights.read_state(exported)
    for key, value in state.items():
        assert torch.equal(value, stage.state_dict()[key].half()), key


@pytest.mark.slow
def test_a_run_repeats(data: Path, tmp_path: Path) -> None:
    losses = []
    for name in ("a", "b"):
        main(arguments("segmentation", data, tmp_path / name))
        losses.append(scalars(tmp_path / name)["train/loss"])
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_the_perceptual_term_with_local_weights(
    data: Path, tmp_path: Path, checkpoint: str
) -> None:
    given = [
        *arguments("fusion", data, tmp_path / "run", 2),
        "--model.init_args.perceptual=test_efficientnet",
        f"--model.init_args.perceptual_weights={checkpoint}",
    ]
    assert not main(given)
    logged = scalars(tmp_path / "run")
    assert min(logged["train/perceptual"]) > 0
    (path,) = (tmp_path / "run").rglob("last.ckpt")
    # The frozen features belong to the loss, not to the stage and its files.
    assert not [key for key in weights.read_state(path) if "perceptual" in key]


@pytest.mark.slow
def test_a_checkpoint_loads_after_the_files_it_began_from_are_gone(
    data: Path, tmp_path: Path, checkpoint: str
) -> None:
    given = [
        *arguments("segmentation", data, tmp_path / "run"),
        f"--model.init_args.pretrained={checkpoint}",
    ]
    assert not main(given)
    Path(checkpoint).unlink()
    (path,) = (tmp_path / "run").rglob("last.ckpt")
    stage = registry.get("segmenter", "pyramid").factory.load_from_checkpoint(
        path, weights_only=True
    )
    assert stage.hparams["pretrained"] is None
    assert stage.hparams["backbone"] == "test_efficientnet"


def test_perceptual_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no route to host")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    fuser = registry.create("fuser", "multi_stream", widths=(4, 6), perceptual="test_efficientnet")
    fuser.setup("test")  # nothing is needed to run it
    with pytest.raises(WeightsError, match=r"could not be fetched \(no route to host\)"):
        fuser.setup("fit")


LEARNED: dict[str, tuple[str, str, dict[str, Any], float]] = {
    # By what factor the loss on one batch falls at least, in forty steps.
    "segmenter": ("segmenter", "pyramid", {"backbone": "test_efficientnet", "width": 8}, 0.5),
    "refiner": ("refiner", "cascade", {"backbone": "test_efficientnet", "width": 8}, 0.5),
    "layers": ("fuser", "multi_stream", {"widths": (8, 12), "radius": 3}, 0.8),
    "rgb": ("fuser", "multi_stream", {"widths": (8, 12), "head": "rgb"}, 0.5),
    "single": ("fuser", "single_stream", {"widths": (8, 12), "radius": 3}, 0.8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_the_loss_of_one_batch_falls(name: str) -> None:
    slot, entry, options, factor = LEARNED[name]
    torch.manual_seed(0)
    stage: Stage = registry.create(slot, entry, learning_rate=5e-3, **options)
    batch = training_batch(slot, batch=2)
    optimizer = stage.configure_optimizers()
    losses: list[Tensor] = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(stage.loss(batch).loss)
        losses[-1].backward()
        optimizer.step()
    values = torch.stack(losses).detach()
    assert values.isfinite().all()
    assert values[-5:].mean() < factor * values[0]


def test_norms_and_biases_are_not_decayed() -> None:
    stage = registry.create(
        "segmenter", "pyramid", backbone="test_efficientnet", width=8, weight_decay=0.1
    )
    decayed, plain = stage.configure_optimizers().param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0)
    assert {p.ndim for p in plain["params"]} == {1}
    assert min(p.ndim for p in decayed["params"]) > 1
    assert len(decayed["params"]) + len(plain["params"]) == len(list(stage.parameters()))


def test_the_learning_rate_rises_and_falls() -> None:
    stage = registry.create("fuser", "multi_stream", widths=(4,), schedule="cosine", warmup_steps=4)
    rates = [stage._rate(step, 104) for step in range(105)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[54] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    flat = registry.create("fuser", "multi_stream", widths=(4,), warmup_steps=2)
    assert [flat._rate(step, 9) for step in range(4)] == pytest.approx([0.5, 1, 1, 1])
