"""Weights files: which file a name means, what is refused, and that writing is whole or not."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from deep_image_compositing import registry, weights
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.stages.base import Segmenter
from deep_image_compositing.stages.making import make_stage


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
    monkeypatch.chdir(tmp_path)
    weights.save(stage, "~own.safetensors")  # a name that is nobody's
    assert torch.equal(Toy(weights="~own.safetensors").conv.weight, stage.conv.weight.half())
    with pytest.raises(WeightsError, match="no weights '~gone"):
        Toy(weights="~gone.pth")
    loaded = Toy(weights="default")
    assert torch.equal(loaded.conv.weight, stage.conv.weight.half().float())
    with pytest.raises(WeightsError, match=r"no weights 'best' for Toy.*'default', 'small'"):
        Toy(weights="best")
    (tmp_path / "toy.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"missing from this installation.*toy\.safetensors"):
        Toy(weights="default")


def test_what_ships_is_small_and_makes_stages() -> None:
    sizes = {path.name: path.stat().st_size for path in weights.FOLDER.glob("*.safetensors")}
    assert sum(sizes.values()) < 25e6
    named = set()
    for entry in registry.list_stages():
        shipped = getattr(entry.factory, "shipped", {})
        assert entry.weights == tuple(shipped)
        for name, file in shipped.items():
            named.add(file)
            stage = make_stage(entry.slot, (entry.name, {"weights": name}))
            assert all(value.isfinite().all() for value in stage.state_dict().values()), file
    assert named == set(sizes)


@pytest.mark.parametrize("name", ["none.safetensors", "none.ckpt"])
def test_a_file_that_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        Toy(weights=str(tmp_path / name))
    with pytest.raises(WeightsError, match=name):
        weights.read_state(tmp_path / name)


def test_saved_as_half_precision_with_hyper_parameters(tmp_path: Path) -> None:
    stage = Toy(channels=3)
    stage.norm.running_var.fill_(1e6)  # more than half precision can hold
    path = tmp_path / "toy.safetensors"
    weights.save(stage, path)
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["stage"] == "Toy"
    assert json.loads(header["hyper_parameters"])["channels"] == 3
    state = weights.read_state(path)
    expected = {k for k in stage.state_dict() if not k.endswith("num_batches_tracked")}
    assert set(state) == expected
    assert {name for name, x in state.items() if x.dtype != torch.float16} == {"norm.running_var"}
    again = Toy(channels=3, weights=str(path))
    assert torch.equal(again.norm.running_var, stage.norm.running_var)
    weights.save(again, path)  # where its weights began, it forgets
    assert weights.read_hyper_parameters(path)["weights"] is None
    with pytest.raises(UsageError, match=r"\.safetensors, not \.ckpt"):
        weights.save(stage, tmp_path / "toy.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["toy.safetensors"]


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
    for content in ([1, 2], {"state_dict": {"a": 1}}):
        torch.save(content, path)
        with pytest.raises(WeightsError, match="holds no state_dict of tensors"):
            weights.read_state(path)


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
    head = {"hyper_parameters": "{broken"}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata=head)
    with pytest.raises(WeightsError, match="is not a readable safetensors file"):
        weights.read_hyper_parameters(path)


def test_other_shapes_and_names_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    weights.save(Toy(channels=3), path)
    said = r"does not fit Toy: the option 'channels' is given as 2, and the file was made with 3$"
    with pytest.raises(WeightsError, match=said):
        Toy(channels=2, weights=str(path))
    state = {**Toy().state_dict(), "conv.weight": torch.zeros(5, 3, 1, 1)}
    safetensors.torch.save_file(state, path)
    said = r"conv\.weight is \(5, 3, 1, 1\) in it, and \(2, 3, 1, 1\) in the stage$"
    with pytest.raises(WeightsError, match=said):
        Toy(weights=str(path))
    safetensors.torch.save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"Toy: it has no conv\.weight, and \d more$"):
        Toy(weights=str(path))
    state = Toy().state_dict()
    del state["norm.num_batches_tracked"]  # counters are not shipped
    Toy().load_state_dict(state)


SMALL: dict[str, Any] = {"widths": (4, 6), "radius": 3}


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("multi_stream", {"widths": (16, 24, 40, 64, 80)}, r"'widths'.*\[16, .*\[24, 40, 64, 80\]"),
        ("multi_stream", {"shuffle": 1, "radius": 5}, "'shuffle' is given as 1, .*with 2; leave"),
        ("single_stream", {"finer_widths": (4,)}, r"'finer_widths'.*\[4\].*\[16, 24, 32\]"),
        ("cascade", {"backbone": "resnet50"}, "'backbone'.*'resnet50'.*'tf_efficientnet_lite0'"),
        ("deep_image_matting", {"skips": False}, "'skips' is given as False, .*with True"),
    ],
)
def test_options_other_than_in_the_file_are_named(
    name: str, given: dict[str, Any], said: str
) -> None:
    slot = "fuser" if name.endswith("stream") else "refiner"
    with pytest.raises(WeightsError, match=said) as caught:
        registry.create(slot, name, weights="default", **given)
    assert "state_dict" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_options_that_no_tensor_depends_on_may_be_other_than_in_the_file() -> None:
    fuser = registry.create(
        "fuser", "multi_stream", weights="default", widths=[24, 40, 64, 80], radius=9
    )
    assert fuser.radius == fuser.hparams["radius"] == 9


# What a file says of itself may be anything

HOSTILE: list[tuple[str, str]] = [
    ('{"widths": [-1, 6]}', "each of widths must lie between 1 and 4096"),
    ('{"widths": [1000000, 6]}', "each of widths must lie between 1 and 4096"),
    ('{"widths": [4096, 4096]}', "does not fit"),
    ('{"widths": "wide"}', "'widths' is a list of whole numbers or null, got 'wide'"),
    ('{"widths": [4, "wide"]}', "'widths' is a list of whole numbers"),
    (f'{{"widths": [{", ".join("4" * 5000)}]}}', "the number of widths"),
    ('{"radius": 1e400, "widths": [4, 6]}', "'radius' is a whole number"),
    ('{"shuffle": 8, "widths": [4, 6]}', "shuffle must be 1, 2 or 4"),
    ('{"backbone": "nothing of timm", "widths": [4, 6]}', "no backbone 'nothing of timm'"),
    ('{"backbone": "test_resnet", "widths": [4, 6]}', "does not fit"),
    ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ('{"widths": ' + "[" * 400 + "]" * 400 + "}", "nested too deeply"),
    ("[1, 2]", "not a dict of values by name"),
    ('"text"', "not a dict of values by name"),
]


@pytest.mark.parametrize(("described", "said"), HOSTILE, ids=lambda text: text[:30])
def test_a_file_that_describes_itself_wrongly(described: str, said: str, tmp_path: Path) -> None:
    state = registry.create("fuser", "multi_stream", **SMALL).state_dict()
    state = {name: value.contiguous() for name, value in state.items()}
    path = tmp_path / "hostile.safetensors"
    safetensors.torch.save_file(state, path, metadata={"hyper_parameters": described})
    options = {"weights": str(path)}
    for make in (
        lambda: registry.create("fuser", "multi_stream", **options),
        lambda: make_stage("fuser", ("multi_stream", options)),
    ):
        with pytest.raises(WeightsError, match=r"hostile\.safetensors.*") as caught:
            make()
        assert said in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("hyper", [[1, 2], "text", None, {1: 2}, {"a": [[[[]]]] * 2}])
def test_hyper_parameters_of_a_checkpoint_may_be_anything(hyper: Any, tmp_path: Path) -> None:
    if isinstance(hyper, dict) and "a" in hyper:
        for _ in range(100):
            hyper = {"a": hyper}
    content = {"state_dict": Toy().state_dict(), "hyper_parameters": hyper}
    torch.save(content, tmp_path / "toy.ckpt")
    with pytest.raises(WeightsError, match=r"toy\.ckpt: its hyper_parameters are"):
        weights.read_hyper_parameters(tmp_path / "toy.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    stage = Toy()
    state = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    state["norm.running_var"][1] = value
    for path in (tmp_path / "toy.ckpt", tmp_path / "toy.safetensors"):
        write = torch.save if path.suffix == ".ckpt" else safetensors.torch.save_file
        write(state, path)
        with pytest.raises(WeightsError, match=r"1 of the 2 values of 'norm\.running_var' are NaN"):
            Toy(weights=str(path))
    stage.load_state_dict(state)
    with pytest.raises(WeightsError, match=r"'norm\.running_var' are NaN"):
        weights.save(stage, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


# Stages by name


def test_a_stage_of_ones_own_is_made_as_its_checkpoint_says(
    own_registry: Any, tmp_path: Path
) -> None:
    class Without(Toy):
        """Leaves the loading to others."""

        shipped: ClassVar[dict[str, str]] = {}

        def __init__(self, channels: int = 2, depth: int = 1) -> None:
            super().__init__(channels)
            self.save_hyperparameters()

    class With(Toy):
        shipped: ClassVar[dict[str, str]] = {}

    for kind in (With, Without):
        name = kind.__name__
        registry.register("segmenter", name, description="")(kind)
        path, stage = str(tmp_path / f"{name}.ckpt"), kind(channels=5)
        content = {"state_dict": stage.state_dict(), "hyper_parameters": dict(stage.hparams)}
        torch.save(content, path)
        made = Compositor(segmenter=(name, {"weights": path}), refiner="none", fuser="alpha")
        assert isinstance(made.segmenter, kind)
        assert torch.equal(made.segmenter.conv.weight, stage.conv.weight)
        with pytest.raises(UsageError, match="takes no option 'width'"):
            make_stage("segmenter", (name, {"weights": path, "width": 1}))
        content["hyper_parameters"]["channels"] = "many"
        torch.save(content, path)
        with pytest.raises(WeightsError, match="'channels' is a whole number, got 'many'"):
            make_stage("segmenter", (name, {"weights": path}))
