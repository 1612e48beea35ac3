"""Weights files: which file a name means, what is refused, and that writing is whole or not."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from deep_image_compositing import registry, weights
from deep_image_compositing.errors import ImageError, UsageError, WeightsError
from deep_image_compositing.stages.base import Segmenter


class Toy(Segmenter):
    """One convolution and one batch norm, with weights that ship."""

    shipped: ClassVar[dict[str, str]] = {"default": "toy.safetensors", "small": "small.safetensors"}

    def __init__(self, channels: int = 2, weights: str | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv = nn.Conv2d(3, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.load_weights(weights)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image)).mean(1, keepdim=True).sigmoid()


class Evil:
    """Unpickling it calls ``os.system``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_shipped_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    stage = Toy()
    weights.save(stage, tmp_path / "toy.safetensors")
    weights.save(stage, tmp_path / "small.safetensors")
    assert weights.resolve(stage, "default") == tmp_path / "toy.safetensors"
    assert weights.resolve(stage, "small") == tmp_path / "small.safetensors"
    own = tmp_path / "own.safetensors"
    weights.save(stage, own)
    assert weights.resolve(stage, own) == own
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.resolve(stage, "~/own.safetensors") == own
    loaded = Toy(weights="default")
    assert torch.equal(loaded.conv.weight, stage.conv.weight.half().float())


def test_unknown_names_list_what_ships() -> None:
    with pytest.raises(WeightsError, match=r"no weights 'best' for Toy.*'default', 'small'"):
        Toy(weights="best")


def test_what_ships_is_small_and_makes_stages() -> None:
    from deep_image_compositing.stages.making import make_stage

    sizes = {path.name: path.stat().st_size for path in weights.FOLDER.glob("*.safetensors")}
    assert sum(sizes.values()) < 20e6
    named = set()
    for entry in registry.list_stages():
        shipped = getattr(entry.factory, "shipped", {})
        assert entry.weights == tuple(shipped)
        for name, file in shipped.items():
            named.add(file)
            stage = make_stage(entry.slot, (entry.name, {"weights": name}))
            assert all(value.isfinite().all() for value in stage.state_dict().values()), file
    assert named == set(sizes)


def test_a_shipped_file_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(WeightsError, match=r"missing from this installation.*toy\.safetensors"):
        Toy(weights="default")


@pytest.mark.parametrize("name", ["none.safetensors", "none.ckpt"])
def test_a_file_that_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        Toy(weights=str(tmp_path / name))
    with pytest.raises(WeightsError, match=name):
        weights.read_state(tmp_path / name)


def test_saved_as_half_precision_with_hyper_parameters(tmp_path: Path) -> None:
    stage = Toy(channels=3)
    path = tmp_path / "toy.safetensors"
    weights.save(stage, path)
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["stage"] == "Toy"
    assert json.loads(header["hyper_parameters"])["channels"] == 3
    state = weights.read_state(path)
    expected = {k for k in stage.state_dict() if not k.endswith("num_batches_tracked")}
    assert set(state) == expected
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_saving_replaces_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "toy.safetensors"
    weights.save(Toy(), path)
    before = path.read_bytes()

    def fail(aside: Path, target: Path) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(ImageError, match="no space"):
            weights.save(Toy(channels=3), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["toy.safetensors"]
    weights.save(Toy(channels=3), path)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["toy.safetensors"]


def test_only_safetensors_are_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.safetensors, not \.ckpt"):
        weights.save(Toy(), tmp_path / "toy.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lightning", [False, True])
def test_checkpoints_of_plain_tensors_load(tmp_path: Path, lightning: bool) -> None:
    stage, other = Toy(), Toy()
    state = stage.state_dict()
    content = {"state_dict": state, "hyper_parameters": {"channels": 2}} if lightning else state
    torch.save(content, tmp_path / "toy.ckpt")
    weights.load(other, tmp_path / "toy.ckpt")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_numpy_beside_the_tensors_do_no_harm(tmp_path: Path, module: bytes) -> None:
    stage, path = Toy(), tmp_path / "toy.ckpt"
    measured = {"sad": [np.float64(45.8), np.float32(0.5), np.int64(3)]}
    content = {"state_dict": stage.state_dict(), "measure": measured}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    own = np.float64(0).__reduce__()[0].__module__.encode()
    assert own in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(own + b"\n", module + b"\n"))
    assert weights.read_state(path).keys() == stage.state_dict().keys()
    assert weights.read_hyper_parameters(path) == {}


@pytest.mark.parametrize("zipped", [False, True])
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "evil.ckpt"
    content = {"state_dict": {"conv.weight": Evil(trace)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"could run code: it calls \w+\.system") as caught:
        Toy(weights=str(path))
    assert not trace.exists()
    assert "\n" not in str(caught.value)
    torch.load(path, weights_only=False)
    assert trace.exists()  # so the file was a real threat


def test_damaged_checkpoints(tmp_path: Path) -> None:
    torch.save(Toy().state_dict(), tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    files = {
        "text": b"this is not a checkpoint",
        "empty": b"",
        "picture": b"\xff\xd8\xff\xe0" + bytes(100),
        "truncated": whole[: len(whole) // 2],
        "pickle": b"\x80\x05abc",
        "newer": pickle.dumps({"a": 1}, protocol=5),
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name}\.ckpt is not a checkpoint") as caught:
            weights.read_state(path)
        assert "\n" not in str(caught.value)


def test_checkpoints_without_tensors(tmp_path: Path) -> None:
    for name, content in {"list": [1, 2], "numbers": {"state_dict": {"a": 1}}}.items():
        torch.save(content, tmp_path / f"{name}.ckpt")
        with pytest.raises(WeightsError, match="holds no state_dict of tensors"):
            weights.read_state(tmp_path / f"{name}.ckpt")


def test_damaged_safetensors(tmp_path: Path) -> None:
    weights.save(Toy(), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    torch.save(Toy().state_dict(), tmp_path / "renamed.ckpt")
    files = {
        "truncated": whole[:-4],
        "header": whole[:20],
        "empty": b"",
        "length": struct.pack("<Q", 2**62) + whole[8:],
        "renamed": (tmp_path / "renamed.ckpt").read_bytes(),
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name}\.safetensors is not a readable"):
            Toy(weights=str(path))


def test_a_head_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    safetensors.torch.save_file(
        {"a": torch.zeros(1)}, path, metadata={"hyper_parameters": "{broken"}
    )
    with pytest.raises(WeightsError, match="is not a readable safetensors file"):
        weights.read_hyper_parameters(path)


def test_other_shapes_and_names_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    weights.save(Toy(channels=3), path)
    with pytest.raises(WeightsError, match=r"does not fit Toy.*conv\.(weight|bias)"):
        Toy(channels=2, weights=str(path))
    safetensors.torch.save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"does not fit Toy.*[Mm]issing.*conv\.weight"):
        Toy(weights=str(path))


def test_counters_of_batch_norms_may_be_missing_but_nothing_else() -> None:
    stage = Toy()
    state = dict(stage.state_dict())
    del state["norm.num_batches_tracked"]
    stage.load_state_dict(state)
    del state["norm.running_mean"]
    with pytest.raises(RuntimeError, match="running_mean"):
        stage.load_state_dict(state)
