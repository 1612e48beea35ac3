"""Training: every learned stage through the command line on made data, and that stages learn."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deep_image_compositing import registry, weights
from deep_image_compositing.cli import main
from deep_image_compositing.conventions import set_checks
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.images import read_image
from deep_image_compositing.stages.base import Segmenter, Stage, Step
from deep_image_compositing.stages.segmentation import PyramidSegmenter
from tests import runs
from tests.contract.test_stages import training_batch
from tests.data import trees

# Lightning says that the made runs log less often than they step; the rest is what its command line
# says of others, see pyproject.toml.
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")

STAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # Class path of the stage and of its data, and what makes the network small.
    "segmenter/pyramid": ("segmentation.PyramidSegmenter", "SegmentationData", runs.TINY),
    "refiner/cascade": ("refinement.CascadeRefiner", "RefinementData", runs.TINY),
    "fuser/multi_stream": (
        "fusion.MultiStreamFuser",
        "FusionData",
        {"widths": [4, 6], "radius": 3, "perceptual": None},
    ),
    "harmonizer/color_map": (
        "harmonization.ColorMapHarmonizer",
        "HarmonizationData",
        {**runs.TINY, "width": 16, "size": 32},
    ),
}

METRICS = {"fuser": "val/band_psnr", "harmonizer": "val/fmse"}
"""What a validation logs, by slot; ``val/iou`` for the others."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, mattes, cut-outs and backgrounds."""
    root = tmp_path_factory.mktemp("data")
    trees.pairs(root / "people")
    trees.pairs(root / "mattes", "alpha")
    trees.cutouts(root / "cutouts")
    trees.scenes(root / "scenes")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Train a stage for two steps, once; gives the run's folder.

    The segmenter begins, and the fuser's perceptual term looks, with weights for the tiny backbone
    that somebody may have downloaded, and that are gone afterwards.
    """
    root = tmp_path_factory.mktemp("runs")

    @functools.cache
    def train(stage: str) -> Path:
        out, path = root / stage.replace("/", "-"), root / "backbone.safetensors"
        model = timm.create_model("test_efficientnet", pretrained=False)
        safetensors.torch.save_file(model.state_dict(), path)
        files: dict[str, dict[str, Any]] = {
            "segmenter/pyramid": {"pretrained": str(path)},
            "fuser/multi_stream": {
                "perceptual": "test_efficientnet", "perceptual_weights": str(path),
            },
        }  # fmt: skip
        assert not main(arguments(stage, data, out, **files.get(stage, {})))
        path.unlink()
        return out

    return train


def arguments(stage: str, data: Path, out: Path, **settings: Any) -> list[str]:
    """``fit`` of a small network for two steps on made data; ``settings`` are the network's."""
    model, module, small = STAGES[stage]
    folders = ["mattes", "cutouts"] if stage.startswith("fuser") else ["people", "mattes"]
    train = [{"path": str(data / name), "paste": 0.5} for name in folders]
    textures = {"textures": str(data / "people")} if stage.startswith("fuser") else {}
    given = {
        "train": train, "backgrounds": str(data / "scenes"), **textures, "size": 32,
        "batch_size": 2, "epoch_length": 8, "validation_crops": 2, "num_workers": 0,
    }  # fmt: skip
    network = {"picture_every": 1, **small, **settings}
    saving = {"every_n_train_steps": 2, "save_last": True}
    return runs.fit(out, model, network, module, given, saving, max_steps=2, val_check_interval=2)


def scalars(out: Path) -> dict[str, list[float]]:
    """Everything that the run logged, by name; pictures count as their number."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out))
    events.Reload()
    found = {
        tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    pictures = {tag: [float(len(events.Images(tag)))] for tag in events.Tags()["images"]}
    return {**found, **pictures}


SHEETS = [("train", 0), ("train", 1), ("val", 0), ("val", 2)]  # and the steps they show


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_trains_through_the_command_line(
    stage: str,
    trained: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = trained(stage)
    assert not [record for record in caplog.records if record.name.startswith("lightning")]
    logged = scalars(out)
    losses = logged["train/loss"]
    assert len(losses) == 2
    assert torch.tensor(losses).isfinite().all()
    metric = METRICS.get(stage.partition("/")[0], "val/iou")
    assert torch.tensor(logged[metric]).isfinite().all()
    if stage.startswith("fuser"):
        assert {"train/l1", "train/alpha", "train/alpha_laplacian", "train/color"} <= set(logged)
        assert min(logged["train/perceptual"]) > 0

    # One folder holds all that a run leaves behind, pictures in the log and as files.
    assert logged["val/sheet"] == logged["train/sheet"] == [2]
    sheets = {path.name: read_image(path).pixels for path in (out / "sheets").iterdir()}
    assert sorted(sheets) == [f"{split}-000000{i}.png" for split, i in SHEETS]
    assert all(sheet.std() > 10 for sheet in sheets.values())
    others = {path.name.partition(".")[0] for path in out.iterdir()}
    assert others == {"checkpoints", "config", "events", "hparams", "sheets"}
    config = (out / "config.yaml").read_text()
    assert "val_check_interval: 2" in config
    assert "shuffle: 200" in config  # a default that nobody wrote down

    path = out / "checkpoints" / "last.ckpt"
    slot, name = stage.split("/")
    factory = registry.get(slot, name).factory
    loaded = factory.load_from_checkpoint(path, weights_only=True)
    assert isinstance(loaded, factory)
    assert loaded.hparams.get("pretrained") is None  # which is gone
    # The frozen features belong to the loss, not to the stage and its files.
    assert not [key for key in weights.read_state(path) if "perceptual" in key]
    exported = tmp_path / "stage.safetensors"
    assert not main(["export-weights", str(path), "-o", str(exported), "--stage", stage])
    state = weights.read_state(exported)
    for key, value in state.items():
        assert torch.equal(value, loaded.state_dict()[key].half()), key


@pytest.mark.slow
def test_a_run_repeats_and_its_seed_matters(
    data: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    losses = [scalars(trained("refiner/cascade"))["train/loss"]]
    for name, given in (("b", []), ("c", ["--data.seed=1"])):
        main([*arguments("refiner/cascade", data, tmp_path / name), *given])
        losses.append(scalars(tmp_path / name)["train/loss"])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


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
    "refiner": ("refiner", "cascade", {"backbone": "test_efficientnet", "width": 8}, 0.8),
    "layers": ("fuser", "multi_stream", {"widths": (8, 12), "radius": 3}, 0.8),
    "rgb": ("fuser", "multi_stream", {"widths": (8, 12), "head": "rgb"}, 0.5),
    "single": ("fuser", "single_stream", {"widths": (8, 12), "radius": 3}, 0.8),
    "color map": (
        "harmonizer",
        "color_map",
        {"backbone": "test_efficientnet", "width": 16, "size": 32},
        0.8,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_the_loss_of_one_batch_falls(name: str) -> None:
    slot, entry, options, factor = LEARNED[name]
    torch.manual_seed(0)
    stage: Stage = registry.create(slot, entry, learning_rate=5e-3, **options)
    batch = training_batch(slot, batch=2)
    if slot == "harmonizer":  # colours that can be brought back
        batch["composite"] = batch["image"] + batch["mask"] * (0.5 - 0.5 * batch["image"])
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


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"schedule": "linear"}, "schedule must be 'constant' or 'cosine', got 'linear'"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        ({"warmup_steps": -5}, "warmup_steps must be at least 0, got -5"),
    ],
)
def test_rates_that_cannot_be_are_refused_at_once(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Plain(**wrong)


def test_a_run_without_end_may_warm_up_but_has_no_cosine() -> None:
    class Endless:
        estimated_stepping_batches = float("inf")

    for schedule, fits in (("constant", True), ("cosine", False)):
        stage = Plain(schedule=schedule, warmup_steps=2)
        stage._fabric, stage._trainer = None, Endless()  # type: ignore[assignment]
        with contextlib.nullcontext() if fits else pytest.raises(UsageError, match="max_steps"):
            rates = stage.configure_optimizers()["lr_scheduler"]["scheduler"].get_last_lr()
            assert rates[0] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("--data.sizes=3", r"data: there is no option 'sizes'"),
        ("--data.size=many", r"size: many is not of type int"),
        ("--data.train=[{path: a, wieght: 3}]", r"there is no option 'wieght'"),
        ("--model.nokey=3", r"model: there is no option 'nokey'"),
        ("--model.head=both", r"head: invalid value both"),
        ("--config=nowhere.yaml", r"File does not exist: '.*nowhere.yaml'"),
        ("--trainer.precision=abc", r"trainer.precision: invalid value abc"),
        ("--model=my_broken_stages.Fuser",
         "my_broken_stages.Fuser cannot be used: .*No module named 'nothing_of_that_name'"),
        ("--model=deep_image_compositing.stages.fusion.Fuzer", r"Fuzer cannot be used: .*Fuzer"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    wrong: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "my_broken_stages.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Path(__file__).parents[1] / "recipes" / "fusion_easy.yaml"
    assert main(["fit", f"--config={recipe}", wrong]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(sentence, said)


# Steps


class Plain(Segmenter):
    """One convolution; keeps the pictures that were to be logged."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = nn.Conv2d(3, 1, 1)
        self.sheets: list[tuple[str, int]] = []

    def forward(self, image: Tensor) -> Tensor:
        return self.logits(image).sigmoid()

    def logits(self, image: Tensor) -> Tensor:
        return self.network(image)

    def loss(self, batch: dict[str, Tensor]) -> Step:
        step = super().loss(batch)
        self(batch["image"])  # as losses may that want the answer as it is
        return step

    def _log_pictures(self, split: str, pictures: dict[str, Tensor]) -> None:
        self.sheets.append((split, self.global_step))


def plain_steps(batches: list[dict[str, Tensor]], accumulate: int = 1) -> Plain:
    """A stage that has been trained on the batches."""
    stage = Plain(picture_every=2)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(stage, loader, loader)  # without one, Lightning warns
    return stage


def test_a_step_of_several_batches_is_drawn_once() -> None:
    stage = plain_steps([training_batch("segmenter", 1, 8)] * 12, accumulate=4)
    assert stage.sheets == [("train", 0), ("train", 2)]


def test_training_looks_at_the_first_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, aminmax = [], torch.aminmax

    def look(tensor: Tensor) -> Any:
        looks.append(tensor.shape[1])
        return aminmax(tensor)

    monkeypatch.setattr(torch, "aminmax", look)
    good = {name: training_batch("segmenter", 1, 8)[name] for name in ("image", "mask")}
    bad = {**good, "image": good["image"] * 255}
    stage = plain_steps([good, good, bad])
    assert looks == [3, 1]
    with pytest.raises(UsageError, match="image must lie in"):
        stage(bad["image"])
    with pytest.raises(UsageError, match="image must lie in"):
        plain_steps([bad, good])
    before = set_checks(False)
    try:
        plain_steps([bad])
    finally:
        set_checks(before)


def test_composites_are_measured_without_a_true_alpha() -> None:
    batch = training_batch("fuser", 2, 32)
    fuser = registry.create("fuser", "alpha")
    answers = []
    for kept in (
        {**batch, "alpha": batch["mask"]},
        {k: v for k, v in batch.items() if k != "alpha"},
    ):
        metrics = fuser.make_metrics()
        fuser.measure(metrics, batch["foreground"], kept)
        answers.append({name: float(value) for name, value in metrics.compute().items()})
    assert answers[0] == answers[1]
    assert 0 < answers[0]["band_psnr"] < 40


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00\x80" * 100, r"given\.yaml is not UTF-8 text"),
        (b"a: \x00", "control characters are not allowed"),
        (BOMB.encode(), r"at most 10,000 values, aliases counted .* \('a0: &a0"),
        (b"model: &a [*a]", "at most 10,000 values"),
        (b"model: " + b"[" * 100 + b"]" * 100, "and 50 levels"),
        (b"model: " + b"[" * 10**5, "nesting|and 50 levels"),
    ],
)
def test_a_configuration_that_is_none_is_refused_at_once(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "given.yaml"
    path.write_bytes(content)
    assert main(["fit", f"--config={path}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(said, lines[0])


def test_sources_are_no_files_of_options(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments("segmenter/pyramid", data, tmp_path / "run")
    note = tmp_path / "note.txt"
    note.write_text("secret: text")
    for source, said in (
        ("s3://", "s3:// names no shard"),
        ("gopher://x/0.tar", "gopher://x/0.tar cannot be read"),
        (f"file://{note}", "no folder of training pairs"),
        ("pipe:echo", "pipe:echo would run a program, which WDS_SECURE forbids"),
    ):
        monkeypatch.setenv("WDS_SECURE", "1")
        assert main([*given, "--data.train", source]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "secret" not in error
    assert main([*given, "--data.train=memory://x/{0..3}.tar", "--print_config"]) == 0
    assert "train: memory://x/{0..3}.tar" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_run_keeps_its_end_and_needs_no_log(data: Path, tmp_path: Path) -> None:
    given = [
        *arguments("segmenter/pyramid", data, tmp_path / "run"),
        "--trainer.max_steps=3",
        "--trainer.limit_train_batches=2",
        "--trainer.val_check_interval=1.0",
        "--trainer.logger=false",
        "--trainer.callbacks+=LearningRateMonitor",
    ]
    assert main(given) == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3  # though one is written every two steps
    epochs = last["loops"]["fit_loop"]["epoch_progress"]["total"]
    assert epochs["started"] == 2  # of two batches each, of the four that there are
    assert not (tmp_path / "run" / "sheets").exists()


def test_an_epoch_shorter_than_what_lies_between_validations(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments("segmenter/pyramid", data, tmp_path / "run")
    more = ["--data.epoch_length=8", "--data.batch_size=2", "--trainer.val_check_interval=5"]
    assert main([*given, *more]) == 2
    assert "an epoch has 4 batches" in capsys.readouterr().err
    more = ["--trainer.limit_train_batches=1", "--trainer.val_check_interval=2"]
    assert main([*given, *more]) == 2
    assert "an epoch has 1 batches" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "give a recipe: --config recipes/NAME.yaml" in capsys.readouterr().err


OWN = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from deep_image_compositing.stages.base import Step
from deep_image_compositing.stages.segmentation import PyramidSegmenter


class Squares(LightningDataModule):
    def train_dataloader(self):
        mask = torch.zeros(1, 64, 64)
        mask[:, 16:48, 16:48] = 1
        return DataLoader([{"image": mask.expand(3, -1, -1), "mask": mask}] * 4, batch_size=2)


class Dice(PyramidSegmenter):
    def loss(self, batch):
        found, true = self.logits(batch["image"]).sigmoid(), batch["mask"]
        return Step(1 - 2 * (found * true).sum() / (found + true).sum())


def squares(output, target):
    return (output - target).square().mean()
"""


SMALL = {"backbone": "test_efficientnet", "width": 8}


@pytest.fixture
def fit_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Train a stage on one's own data with a recipe; gives the checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_training", raising=False)
    Path("my_training.py").write_text(OWN)

    def fit(stage: str, options: dict[str, Any], epochs: int, **more: Any) -> dict[str, Any]:
        recipe = {
            "model": {"class_path": stage, "init_args": {**SMALL, **options}},
            "data": {"class_path": "my_training.Squares"},
            "trainer": {"max_epochs": epochs, "accelerator": "cpu", "log_every_n_steps": 1},
        }
        Path("mine.yaml").write_text(json.dumps({**recipe, **more}))
        assert main(["fit", "--config", "mine.yaml"]) == 0
        (path,) = Path("runs/run/checkpoints").glob("epoch*.ckpt")
        return {"path": path, **torch.load(path, weights_only=True)}

    return fit


def test_data_loss_and_optimizer_can_be_ones_own(fit_mine: Callable[..., dict[str, Any]]) -> None:
    rate = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.1}}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    found = fit_mine(
        "my_training.Dice", {"picture_every": 0}, 2, optimizer=optimizer, lr_scheduler=rate
    )
    group = found["optimizer_states"][0]["param_groups"][0]
    assert "momentum" in group  # as SGD has it, and Adam has not
    assert group["lr"] == pytest.approx(0.005)
    assert found["hyper_parameters"]["width"] == 8
    weights.load(registry.create("segmenter", "pyramid", picture_every=0, **SMALL), found["path"])


@pytest.mark.parametrize("given", ["torch.nn.L1Loss", "my_training.squares"])
def test_a_criterion_takes_the_place_of_the_loss(
    given: str, fit_mine: Callable[..., dict[str, Any]]
) -> None:
    stage = "deep_image_compositing.stages.segmentation.PyramidSegmenter"
    found = fit_mine(stage, {"picture_every": 1, "criterion": given}, 1)
    assert "criterion" not in found["hyper_parameters"]
    assert PyramidSegmenter.load_from_checkpoint(found["path"]).hparams["width"] == 8


@pytest.mark.parametrize("slot", ["segmenter", "refiner", "fuser", "harmonizer"])
def test_a_criterion_sees_what_a_stage_makes(slot: str) -> None:
    seen = []

    def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((output, target))
        return (output - target).abs().mean()

    names = {"segmenter": "pyramid", "refiner": "cascade", "fuser": "multi_stream"}
    name = names.get(slot, "color_map")
    small = {"pyramid": {"backbone": "test_efficientnet", "width": 8}}.get(name, {})
    stage = registry.create(slot, name, criterion=criterion, picture_every=0, **small)
    stage.log = lambda *args, **kwargs: None
    names = {"image": 3, "foreground": 3, "background": 3, "composite": 3, "mask": 1, "alpha": 1}
    batch = {name: torch.rand(2, channels, 64, 64) for name, channels in names.items()}
    loss = stage.training_step(batch, 0)
    ((output, target),) = seen
    assert torch.equal(target, stage.target(batch))
    assert output.shape == target.shape
    assert ((output >= 0) & (output <= 1)).all()
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.parameters())
