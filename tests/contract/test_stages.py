"""Every registered stage through the same checks: the contract of the four slots."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing import registry, weights
from deep_image_compositing.conventions import CHANNELS, set_checks
from deep_image_compositing.errors import MissingExtraError, UsageError
from deep_image_compositing.functional.compose import unknown_band
from deep_image_compositing.stages.base import Stage
from deep_image_compositing.stages.making import make_stage

SIZES = [(1, 1), (1, 7), (17, 31), (40, 24)]

TAKES = {
    "segmenter": ("image",),
    "refiner": ("image", "mask"),
    "fuser": ("foreground", "background", "alpha"),
    "harmonizer": ("composite", "mask"),
}
GIVES = {"segmenter": "mask", "refiner": "alpha", "fuser": "composite", "harmonizer": "composite"}


@dataclass(frozen=True)
class Case:
    """How to make a small instance of one entry, and what its definition promises."""

    options: dict[str, Any] = field(default_factory=dict)
    untouched: bool = True  # far from the rim, pixels are the photographs' own
    learned: bool = False  # it has parameters to train


def learned(untouched: bool = True, **options: Any) -> Case:
    return Case(options, untouched, learned=True)


PYRAMID: dict[str, Any] = {"backbone": "test_efficientnet", "width": 8, "size": 32}
CASCADE: dict[str, Any] = {"backbone": "test_efficientnet", "width": 8}
INDEX_NET: dict[str, Any] = {"width": 0.2, "band": 0.1}
DIM: dict[str, Any] = {"width": 0.1, "band": 0.1}
LAYERS: dict[str, Any] = {"widths": (4, 6), "radius": 3}
COLOR_MAP: dict[str, Any] = {"backbone": "test_efficientnet", "width": 16, "size": 32}

CASES: dict[tuple[str, str, str], Case] = {
    ("segmenter", "pyramid", ""): learned(**PYRAMID),
    ("segmenter", "pyramid", "one look"): learned(**PYRAMID, looks=1),
    ("segmenter", "pyramid", "three looks"): learned(**PYRAMID, looks=3),
    ("segmenter", "onnx", ""): Case({"path": "made below"}),
    ("segmenter", "grabcut", ""): Case(),
    ("refiner", "none", ""): Case(),
    ("refiner", "onnx", ""): Case({"path": "made below", "sizes": (32,)}),
    ("refiner", "cascade", ""): learned(**CASCADE, sizes=(32, 48)),
    ("refiner", "cascade", "frozen"): learned(**CASCADE, sizes=(32,), freeze_stride=4),
    ("refiner", "closed_form", ""): Case({"band": 0.1}),
    ("refiner", "closed_form", "given"): Case({"trimap": "given"}),
    ("refiner", "knn", ""): Case({"band": 0.1}),
    ("refiner", "guided_filter", ""): Case({"band": 0.1}),
    ("refiner", "information_flow", ""): Case({"band": 0.1}),
    ("refiner", "index_net", ""): learned(**INDEX_NET),
    ("refiner", "index_net", "one to one"): learned(width=0.2, indexing="o2o", trimap="given"),
    ("refiner", "index_net", "holistic"): learned(**INDEX_NET, indexing="holistic", context=False),
    ("refiner", "deep_image_matting", ""): learned(**DIM),
    ("refiner", "deep_image_matting", "norm"): learned(**DIM, batch_norm=True, skips=True),
    ("refiner", "deep_image_matting", "raw"): learned(width=0.1, refine=False, trimap="given"),
    ("fuser", "copy_paste", ""): Case(),
    ("fuser", "feather", ""): Case(),
    ("fuser", "alpha", ""): Case(),
    ("fuser", "alpha", "blur fusion"): Case({"foreground_color": "blur_fusion"}),
    ("fuser", "alpha", "multilevel"): Case({"foreground_color": "multilevel"}),
    ("fuser", "laplacian", ""): Case(),
    ("fuser", "poisson", ""): Case(untouched=False),
    ("fuser", "poisson", "mixed"): Case({"mode": "mixed"}, untouched=False),
    ("fuser", "multi_stream", ""): learned(**LAYERS),
    ("fuser", "multi_stream", "two sizes"): learned(
        **LAYERS, shuffle=2, finer_widths=(4, 6), two_sizes=0.5
    ),
    ("fuser", "multi_stream", "given"): learned(**LAYERS, start="given"),
    ("fuser", "multi_stream", "rgb"): learned(False, widths=(4, 6), head="rgb"),
    ("fuser", "single_stream", ""): learned(**LAYERS),
    ("harmonizer", "none", ""): Case(),
    ("harmonizer", "reinhard", ""): Case(),
    ("harmonizer", "reinhard", "all the way"): Case({"strength": 1.0}),
    ("harmonizer", "white_balance", ""): Case(),
    ("harmonizer", "color_map", ""): learned(**COLOR_MAP),
    ("harmonizer", "color_map", "free norms"): learned(**COLOR_MAP, freeze_norms=False),
}


def test_every_registered_stage_has_a_case() -> None:
    # Published models are the segmenter "onnx" with other options: tests/test_published.py.
    entries = {(e.slot, e.name) for e in registry.list_stages() if e.published is None}
    assert entries == {key[:2] for key in CASES}


def picture(*shape: int, seed: int = 0) -> Tensor:
    """8-bit noise in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator).float() / 255


def soft_alpha(batch: int, height: int, width: int) -> Tensor:
    """Soft vertical edges (B, 1, H, W), in another place for every item."""
    x = torch.arange(width).float().view(1, 1, 1, -1)
    edge = width * (torch.arange(batch).float().view(-1, 1, 1, 1) + 1) / (batch + 1)
    return ((x - edge) / 4 + 0.5).clamp(0, 1).expand(batch, 1, height, width).clone()


def inputs(slot: str, batch: int, height: int, width: int) -> dict[str, Tensor]:
    """What the slot's ``forward`` takes, by name."""
    tensors = {}
    for seed, name in enumerate(TAKES[slot]):
        if CHANNELS[name] == 1:
            tensors[name] = soft_alpha(batch, height, width)
        else:
            tensors[name] = picture(batch, 3, height, width, seed=seed)
    return tensors


def training_batch(slot: str, batch: int = 3, side: int = 32) -> dict[str, Tensor]:
    """A batch with everything that any of the slots trains on."""
    alpha = soft_alpha(batch, side, side)
    color, old, new = (picture(batch, 3, side, side, seed=seed) for seed in range(3))
    photograph = old + alpha * (color - old)
    mask = alpha if slot == "segmenter" else F.avg_pool2d(alpha, 5, 1, 2, count_include_pad=False)
    return {
        "image": photograph,
        "foreground": photograph,
        "background": new,
        "mask": mask,
        "alpha": alpha,
        "foreground_color": color,
        "composite": new + alpha * (color - new),
    }


def onnx_model(
    folder: Path, inputs: dict[str, tuple[int, Any]], nodes: list[tuple[str, list[str], str]]
) -> str:
    """Save a small ONNX model: channels and side of each input, and ``kernel`` and ``bias``."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    channels = sum(count for count, _ in inputs.values())
    kernel = np.array([8.0] + [0] * (channels - 1), np.float32)
    shapes = {name: [1, count, side, side] for name, (count, side) in inputs.items()}
    side = next(iter(inputs.values()))[1]
    graph = helper.make_graph(
        [
            helper.make_node(what, taken, [made], **({"axis": 1} if what == "Concat" else {}))
            for what, taken, made in nodes
        ],
        "red",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(nodes[-1][2], kind, [1, 1, side, side])],
        [
            helper.make_tensor("kernel", kind, (1, channels, 1, 1), kernel),
            helper.make_tensor("bias", kind, (1,), [-4.0]),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, folder / "red.onnx")
    return str(folder / "red.onnx")


@pytest.fixture(scope="module")
def onnx_segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that gives the sharpened red channel of an 8 x 8 picture."""
    nodes = [("Conv", ["picture", "kernel", "bias"], "logits"), ("Sigmoid", ["logits"], "mask")]
    return onnx_model(tmp_path_factory.mktemp("onnx"), {"picture": (3, 8)}, nodes)


@pytest.fixture(scope="module")
def onnx_refiner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that corrects masks of any size by the red channel."""
    nodes = [
        ("Concat", ["image", "mask"], "both"),
        ("Conv", ["both", "kernel", "bias"], "change"),
    ]
    inputs = {"image": (3, None), "mask": (1, None)}
    return onnx_model(tmp_path_factory.mktemp("onnx"), inputs, nodes)


def take_steps(stage: Stage, count: int, batch: dict[str, Tensor]) -> None:
    """Train for ``count`` steps; leaves the gradients of the last one."""
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.05)
    stage.train()
    for _ in range(count):
        optimizer.zero_grad()
        stage.loss(batch).loss.backward()
        optimizer.step()


class One:
    """One case, and the stages that its tests share."""

    def __init__(self, key: tuple[str, str, str], options: dict[str, Any]) -> None:
        self.slot, self.name, _ = key
        self.case, self.options = CASES[key], options

    def make(self) -> Stage:
        torch.manual_seed(0)
        stage: Stage = registry.create(self.slot, self.name, **self.options).eval()
        return stage

    made = cached_property(make)

    @cached_property
    def trained(self) -> Stage:
        """A stage whose weights are no longer the ones of its constructor, and its gradients."""
        if not self.case.learned:
            return self.made
        stage = self.make()
        # Heads and mask channels that begin at zero let gradients through from the second step.
        take_steps(stage, 2, training_batch(self.slot))
        return stage.eval()

    def inputs(self, batch: int, height: int, width: int) -> dict[str, Tensor]:
        return inputs(self.slot, batch, height, width)

    def run(self, stage: Stage, tensors: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            return stage(*(tensors[name] for name in TAKES[self.slot]))


@pytest.fixture(scope="module", params=CASES, ids=lambda key: "-".join(filter(None, key)))
def one(request: pytest.FixtureRequest) -> One:
    slot, name, _ = request.param
    options = dict(CASES[request.param].options)
    if name == "onnx":
        options["path"] = request.getfixturevalue(f"onnx_{slot}")
    return One(request.param, options)


def only(chosen: Callable[[tuple[str, str, str], Case], bool]) -> pytest.MarkDecorator:
    """Of all cases, those that promise what a test looks at."""
    keys = [key for key, case in CASES.items() if chosen(key, case)]
    names = ["-".join(filter(None, key)) for key in keys]
    return pytest.mark.parametrize("one", keys, indirect=True, ids=names, scope="module")


# In pictures of a few pixels a trimap may lack known subject, which matting refiners tell.
@pytest.mark.filterwarnings("ignore:.*the trimap has no known")
def test_shape_and_range_at_any_size(one: One) -> None:
    for size in SIZES:
        for batch in (1, 3):
            answer = one.run(one.made, one.inputs(batch, *size))
            assert answer.shape == (batch, CHANNELS[GIVES[one.slot]], *size)
            assert answer.dtype == torch.float32
            assert answer.isfinite().all()
            assert answer.min() >= 0
            assert answer.max() <= 1
    for value in (0.0, 1.0):
        flat = {name: torch.full_like(x, value) for name, x in one.inputs(1, 9, 12).items()}
        answer = one.run(one.made, flat)
        assert answer.isfinite().all()
        if one.slot == "fuser" and one.case.untouched:
            assert torch.equal(answer, flat["background"])


def test_the_answer_has_the_dtype_of_the_picture(one: One) -> None:
    tensors = one.inputs(2, 17, 31)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        answer = one.run(one.trained, {name: x.to(dtype) for name, x in tensors.items()})
        assert answer.dtype == dtype
        # The same numbers in single precision give the same answer, up to rounding it.
        expected = one.run(one.trained, {name: x.to(dtype).float() for name, x in tensors.items()})
        rounding = 2e-5 if one.slot == "harmonizer" else 1e-6  # of logarithms and powers
        allowed = 2 * torch.finfo(dtype).eps + rounding
        assert torch.allclose(answer.float(), expected, atol=allowed), dtype


def test_same_pictures_same_answer_whatever_their_form(one: One) -> None:
    stage, tensors = one.trained, one.inputs(3, 20, 26)
    before, state = copy.deepcopy(tensors), copy.deepcopy(stage.state_dict())
    together = one.run(stage, tensors)
    with torch.inference_mode():  # by name, in any order
        assert torch.equal(stage(**dict(reversed(tensors.items()))), together)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in stage.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for i in range(3):
        alone = one.run(stage, {name: x[i : i + 1] for name, x in tensors.items()})
        assert torch.allclose(alone, together[i : i + 1], atol=1e-4), i
    strided = {name: x.mT.contiguous().mT for name, x in tensors.items()}
    assert torch.allclose(one.run(stage, strided), together, atol=1e-4)


def test_weights_file_round_trip(one: One, tmp_path: Path) -> None:
    stage, others = one.trained, [one.make()]
    path = tmp_path / "stage.safetensors"
    weights.save(stage, path)
    weights.load(others[0], path)
    if one.case.learned:  # the file says how it was made
        others.append(make_stage(one.slot, (one.name, {"weights": str(path)})).eval())
        told = [json.dumps({**x.hparams, "weights": ""}) for x in (others[1], stage)]
        assert json.loads(told[0]) == json.loads(told[1])
    tensors = one.inputs(1, 20, 26)
    expected = one.run(stage, tensors)
    for other in others:
        for name, stored in stage.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                stored = stored.half().float() if stored.is_floating_point() else stored
                assert torch.equal(other.state_dict()[name], stored), name
        assert torch.allclose(one.run(other, tensors), expected, atol=0.02)
    if one.case.learned:  # and the constructor alone reads what the networks are
        alone = type(stage)(weights=str(path))
        assert alone.state_dict().keys() == stage.state_dict().keys()


@only(lambda key, case: case.learned)
def test_lightning_checkpoint_round_trip(one: One, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    stage = one.trained
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.strategy.connect(stage)
    trainer.save_checkpoint(tmp_path / "stage.ckpt", weights_only=True)
    again = type(stage).load_from_checkpoint(tmp_path / "stage.ckpt", weights_only=True).eval()
    assert again.hparams == stage.hparams
    tensors = one.inputs(1, 20, 26)
    assert torch.equal(one.run(again, tensors), one.run(stage, tensors))
    assert not torch.equal(one.run(one.made, tensors), one.run(stage, tensors))


def test_gradient_reaches_every_trainable_parameter(one: One) -> None:
    assert one.made.trainable == one.case.learned
    if not one.case.learned:
        assert one.made.configure_optimizers() is None
    for name, parameter in one.trained.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_wrong_tensors_are_named_unless_checks_are_turned_off(one: One) -> None:
    stage, good = one.made, one.inputs(2, 9, 12)
    for name in TAKES[one.slot]:
        with pytest.raises(UsageError, match=f"{name}.*finite"):
            one.run(stage, {**good, name: good[name] * float("nan")})
    for name in TAKES[one.slot][1:]:
        with pytest.raises(UsageError, match=f"{name}.*must agree"):
            one.run(stage, {**good, name: good[name][..., :-1]})
    checked, previous = one.run(stage, good), set_checks(False)
    try:
        assert torch.equal(one.run(stage, good), checked)
    finally:
        set_checks(previous)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_another_device(one: One) -> None:
    tensors = one.inputs(2, 20, 26)
    expected = one.run(one.trained, tensors)
    moved = {name: x.to("cuda") for name, x in tensors.items()}
    answer = one.run(copy.deepcopy(one.trained).to("cuda"), moved)
    assert answer.device.type == "cuda"
    assert torch.allclose(answer.cpu(), expected, atol=5e-3)


@only(lambda key, case: key[0] == "fuser" and case.untouched)
def test_untouched_beyond_32_pixels_from_the_rim(one: One) -> None:
    tensors = one.inputs(1, 12, 110)
    alpha = tensors["alpha"]
    far = ~unknown_band(alpha, 32)[0, 0]
    subject, scene = far & (alpha[0, 0] >= 0.99), far & (alpha[0, 0] <= 0.01)
    assert subject.any()
    assert scene.any()
    composite = as_bytes(one.run(one.trained, tensors))
    for place, source in ((subject, "foreground"), (scene, "background")):
        own = as_bytes(tensors[source])
        assert torch.equal(composite[..., place], own[..., place])


@only(lambda key, case: key[0] == "harmonizer")
def test_a_harmonizer_leaves_the_scene_alone(one: One) -> None:
    stage, tensors = copy.deepcopy(one.trained), one.inputs(2, 17, 31)
    answer, given = one.run(stage, tensors), tensors["composite"]
    outside = (tensors["mask"] == 0).expand_as(given)
    assert torch.equal(answer[outside], given[outside])
    assert torch.equal(answer, given) == (one.name == "none")
    for value in (0.0, 1.0):  # nothing, or nothing else, is subject
        mask = torch.full_like(tensors["mask"], value)
        assert torch.equal(one.run(stage, {**tensors, "mask": mask}), given)
    stage.strength = 0.0
    assert torch.equal(one.run(stage, tensors), given)


@only(lambda key, case: key[0] == "harmonizer")
def test_a_recoloring_holds_for_any_part_and_size(one: One) -> None:
    tensors = one.inputs(2, 20, 32)
    with torch.inference_mode():
        recolor = one.trained.recoloring(tensors["composite"], tensors["mask"])
        whole = recolor(tensors["composite"], (0.0, 0.0, 1.0, 1.0))
        part = recolor(tensors["composite"][..., 5:15, 8:24], (0.25, 0.25, 0.75, 0.75))
        flat = recolor(torch.full((2, 3, 1, 1), 0.4), (0.0, 0.0, 1.0, 1.0))
    assert torch.allclose(part, whole[..., 5:15, 8:24], atol=1e-5)
    assert flat.shape == (2, 3, 1, 1)
    assert whole.min() >= 0
    assert whole.max() <= 1


@only(lambda key, case: key[0] == "fuser")
def test_layers_make_the_composite(one: One) -> None:
    stage, tensors = one.trained, one.inputs(2, 17, 31)
    with torch.inference_mode():
        layers = stage.layers(*(tensors[name] for name in TAKES["fuser"]))
        half = stage.layers(*(tensors[name].half() for name in TAKES["fuser"]))
    if layers is None:
        assert half is None
        return
    assert layers.alpha.shape == tensors["alpha"].shape
    assert layers.foreground_color.shape == tensors["foreground"].shape
    back = tensors["background"]
    composite = back + layers.alpha * (layers.foreground_color - back)
    assert torch.allclose(composite, one.run(stage, tensors), atol=1e-6)
    assert half.alpha.dtype == half.foreground_color.dtype == torch.float16


def as_bytes(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def test_a_stage_in_half_precision_takes_single_and_gives_single() -> None:
    tensors = inputs("fuser", 1, 16, 20)
    fuser = registry.create("fuser", "multi_stream", widths=(4, 6), radius=3).eval()
    expected = fuser(*tensors.values())
    answer = fuser.to(torch.bfloat16)(*tensors.values())
    assert answer.dtype == torch.float32
    assert torch.allclose(answer, expected, atol=0.05)


@pytest.mark.parametrize(
    ("slot", "name", "package", "extra"),
    [
        ("segmenter", "grabcut", "cv2", "opencv"),
        ("fuser", "poisson", "cv2", "opencv"),
        ("refiner", "closed_form", "pymatting", "matting"),
        ("refiner", "knn", "pymatting", "matting"),
        ("refiner", "information_flow", "scipy", "matting"),
    ],
)
def test_a_missing_package_is_named(
    slot: str, name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"the {slot} '{name}' needs .*\[{extra}\]"):
        registry.create(slot, name)
    registry.create("fuser", "poisson", mode="mixed")
