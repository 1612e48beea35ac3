"""Stages in folders and on the Hub: the same answers after loading, and nothing but safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deep_image_compositing import Compositor, Segmenter, hub
from deep_image_compositing.errors import ImageError, UsageError, WeightsError
from deep_image_compositing.models.segmentation.pyramid import PyramidModel
from deep_image_compositing.stages.making import describe_stages
from deep_image_compositing.stages.refinement import CascadeRefiner
from deep_image_compositing.stages.segmentation import PyramidSegmenter

SMALL = {"size": 64, "width": 16, "looks": 1}


class Bright(Segmenter):
    """A stage of somebody's own, which is not registered."""

    def __init__(self, width: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image).sigmoid()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[PyramidSegmenter, Path]:
    torch.manual_seed(0)
    stage = PyramidSegmenter(**SMALL).eval()
    stage.load_state_dict({k: v.half().to(v.dtype) for k, v in stage.state_dict().items()})
    return stage, stage.save_pretrained(tmp_path_factory.mktemp("hub") / "segmenter")


def test_a_folder_gives_the_stage_back(saved: tuple[PyramidSegmenter, Path]) -> None:
    stage, folder = saved
    assert {path.name for path in folder.iterdir()} == {hub.WEIGHTS, hub.CONFIG, hub.CARD}
    image = torch.rand(1, 3, 48, 40)
    loaded = PyramidSegmenter.from_pretrained(folder).eval()
    assert type(loaded) is PyramidSegmenter
    torch.testing.assert_close(loaded(image), stage(image), rtol=0, atol=0)
    assert type(Segmenter.from_pretrained(folder)) is PyramidSegmenter
    assert PyramidSegmenter.from_pretrained(folder, looks=2).looks == 2


def test_a_folder_on_the_hub_fills_a_slot(
    saved: tuple[PyramidSegmenter, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    made = Compositor(segmenter="hf://somebody/segmenter", device="cpu").segmenter
    assert type(made) is PyramidModel
    assert made.size == 64
    assert asked[0][0] == "somebody/segmenter"
    assert asked[0][1]["allow_patterns"] == [hub.WEIGHTS, hub.CONFIG, hub.CARD]
    # And the record of a folder of composites knows it.
    described = describe_stages({"segmenter": ("hf://somebody/segmenter", {})})["segmenter"]
    assert described["name"].endswith("PyramidSegmenter")
    assert len(described["sha256"]["weights"]) == 64


def test_a_class_that_is_not_registered_loads_its_own(tmp_path: Path) -> None:
    folder = Bright(width=3).save_pretrained(tmp_path / "bright")
    assert Bright.from_pretrained(folder).hparams["width"] == 3
    with pytest.raises(UsageError, match="which is not registered"):
        Segmenter.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "holds no config.json"),
        ("[]", "does not describe a stage"),
        ("{", "cannot be read"),
        ('{"slot": "shader", "class_path": "a.B", "options": {}}', "no slot 'shader'"),
    ],
)
def test_a_folder_that_is_no_stage_is_told(tmp_path: Path, config: str, message: str) -> None:
    if config is not None:
        (tmp_path / hub.CONFIG).write_text(config)
    with pytest.raises(WeightsError, match=message):
        Segmenter.from_pretrained(tmp_path)


def test_what_cannot_be_loaded_is_told(
    saved: tuple[PyramidSegmenter, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, folder = saved
    with pytest.raises(UsageError, match="not a CascadeRefiner"):
        CascadeRefiner.from_pretrained(folder)
    with pytest.raises(UsageError, match="neither a folder nor a repository"):
        Segmenter.from_pretrained("no/such/folder")
    shutil.copytree(folder, tmp_path / "pickled")  # which is not read
    (tmp_path / "pickled" / hub.WEIGHTS).unlink()
    torch.save(stage.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        PyramidSegmenter.from_pretrained(tmp_path / "pickled")

    def snapshot_download(name: str, **options: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(WeightsError, match="could not be fetched from the Hub: no route to host"):
        Segmenter.from_pretrained("somebody/segmenter")


def test_push_uploads_three_files(
    saved: tuple[PyramidSegmenter, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            sent["token"] = token

        def create_repo(self, name: str, **options: Any) -> None:
            sent["repository"] = name

        def upload_folder(self, repo_id: str, folder_path: str, revision: str | None) -> None:
            sent["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            sent["config"] = json.loads(Path(folder_path, hub.CONFIG).read_text())

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    address = saved[0].push_to_hub("somebody/segmenter", token="secret")
    assert address == "https://huggingface.co/somebody/segmenter"
    assert sent["files"] == [hub.CARD, hub.CONFIG, hub.WEIGHTS]
    assert sent["config"]["name"] == "pyramid"
    assert sent["config"]["options"]["size"] == 64


def test_the_card_tells_what_the_run_tells(
    saved: tuple[PyramidSegmenter, Path], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("data: {train: my/pairs}\ntrainer: {max_steps: 300}\n")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as log:
        for step, value in enumerate((0.5, 0.75)):
            log.add_scalar("val/iou", value, step)
    card = hub.model_card(saved[0], tmp_path)
    assert "train: my/pairs" in card
    assert "300 steps" in card
    assert "| val/iou | 0.75 |" in card
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UsageError, match="is not the folder of a run: its config"):
        hub.model_card(saved[0], tmp_path)


def test_a_card_does_not_tell_where_weights_were_on_this_machine(
    saved: tuple[PyramidSegmenter, Path],
) -> None:
    file = str(saved[1] / hub.WEIGHTS)
    assert file not in hub.model_card(PyramidSegmenter(**SMALL, weights=file))


def test_what_cannot_be_saved_is_told(saved: tuple[PyramidSegmenter, Path], tmp_path: Path) -> None:
    made: Any = Compositor(device="cpu").segmenter
    with pytest.raises(WeightsError, match=r"made only to run.*deep_image_compositing\.create"):
        hub.save_pretrained(made, tmp_path / "segmenter")
    assert not (tmp_path / "segmenter").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot be made"):
        saved[0].save_pretrained(tmp_path / "file")
