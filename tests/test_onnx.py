"""The ONNX segmenter, on models made here and on two real ones where they lie."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deep_image_compositing import Compositor
from deep_image_compositing.cli import main
from deep_image_compositing.errors import MissingExtraError, UsageError, WeightsError
from deep_image_compositing.images import read_image, read_mask, to_tensor
from deep_image_compositing.models.onnx_file import OnnxFile
from deep_image_compositing.registry import create
from deep_image_compositing.stages.segmentation import OnnxSegmenter
from tests.conftest import PlainFuser, disc, noise

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., str]:
    """Write a model whose output is a weighted sum of its input's channels, and maybe more."""
    from onnx import TensorProto, helper

    def write(
        weights: Any = ((1.0, 0.0, 0.0),),
        size: Any = (8, 8),
        channels_last: bool = False,
        kind: int = TensorProto.FLOAT,
        batch: Any = 1,
        name: str = "model.onnx",
    ) -> str:
        kernel = np.asarray(weights, np.float32)[:, :, None, None]
        shape = [batch, *size, 3] if channels_last else [batch, 3, *size]
        out = [batch, *size, len(kernel)] if channels_last else [batch, len(kernel), *size]
        nodes, x = [], "picture"
        if kind != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [x], ["floats"], to=TensorProto.FLOAT))
            x = "floats"
        if channels_last:
            nodes.append(helper.make_node("Transpose", [x], ["first"], perm=[0, 3, 1, 2]))
            x = "first"
        last = "planes" if channels_last else "mask"
        nodes.append(helper.make_node("Conv", [x, "kernel"], [last]))
        if channels_last:
            nodes.append(helper.make_node("Transpose", [last], ["mask"], perm=[0, 2, 3, 1]))
        graph = helper.make_graph(
            nodes,
            "channels",
            [helper.make_tensor_value_info("picture", kind, shape)],
            [helper.make_tensor_value_info("mask", TensorProto.FLOAT, out)],
            [helper.make_tensor("kernel", TensorProto.FLOAT, kernel.shape, kernel.ravel())],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        path = tmp_path / name
        onnx.save(made, path)
        return str(path)

    return write


def picture(height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


SIZE57 = {"size": (5, 7)}
TWO = {"weights": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))}
LOGITS = {"weights": ((4.0, 0.0, 0.0),)}
DIFFERENCE = {"weights": ((0.0, 0.0, 0.0), (4.0, 0.0, 0.0))}
BYTES = {"weights": ((1 / 255, 0.0, 0.0),), "kind": onnx.TensorProto.UINT8}


@pytest.mark.parametrize(
    ("made", "options", "expected"),
    [
        ({}, {}, lambda x: x[:, :1]),  # the channel that the model takes first
        ({}, {"channels": "BGR"}, lambda x: x[:, 2:]),
        ({}, {"output": "mask"}, lambda x: x[:, :1]),
        (SIZE57, {}, lambda x: x[:, :1]),
        ({**SIZE57, "channels_last": True}, {}, lambda x: x[:, :1]),
        # Mean and deviation are in the model's order.
        ({}, {"channels": "BGR", "mean": [51, 0, 0], "std": [510, 1, 1], "scale": 255},
         lambda x: x[:, 2:] / 2 - 0.1),
        (BYTES, {"scale": 255}, lambda x: x[:, :1]),
        ({"kind": onnx.TensorProto.FLOAT16}, {}, lambda x: x[:, :1]),
        (TWO, {}, lambda x: x[:, 1:2]),  # background and subject
        (TWO, {"channel": 0}, lambda x: x[:, :1]),
        ({"weights": np.eye(3)}, {"channel": 2}, lambda x: x[:, 2:]),
        (LOGITS, {"logits": True}, lambda x: (4 * x[:, :1]).sigmoid()),
        (DIFFERENCE, {"logits": True}, lambda x: (4 * x[:, :1]).sigmoid()),
        (LOGITS, {"logits": "auto"}, lambda x: (4 * x[:, :1]).sigmoid()),  # told by their range
        ({}, {"logits": "auto"}, lambda x: x[:, :1]),
        ({"size": ("h", "w"), "batch": "n"}, {"size": (16, 24)}, None),
    ],
)  # fmt: skip
def test_how_a_model_is_fed_and_read(
    model: Callable[..., str], made: Any, options: Any, expected: Any
) -> None:
    image = picture(*made.get("size", (8, 8))) if expected else picture()
    image[:, 2].clamp_(min=0.2)
    found = OnnxSegmenter(model(**made), **options)(image)
    assert found.shape == (2, 1, *image.shape[-2:])
    if expected is not None:
        atol = 0.5 / 255 + 1e-6 if "kind" in made else 1e-6
        torch.testing.assert_close(found, expected(image), rtol=0, atol=atol)


def test_a_session_stays_open_for_the_same_device_by_another_name(tmp_path: Path) -> None:
    file = OnnxFile(tmp_path / "none.onnx", None, "this test")
    file.device, file._session = torch.device("cuda"), "open"
    file.move(torch.device("cuda:0"))
    assert file.session == "open"
    file.move(torch.device("cuda:1"))
    assert file._session is None


def test_channels_and_logits_that_cannot_be(model: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match="has 2 channels; there is no channel 2"):
        OnnxSegmenter(model(**TWO), channel=2)(picture())
    with pytest.raises(UsageError, match=r"has 3 channels; choose .* channel=0 to 2"):
        OnnxSegmenter(model(np.eye(3)))(picture())
    with pytest.raises(WeightsError, match="logits=true"):
        OnnxSegmenter(model(**LOGITS))(picture())


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (37, 23), (200, 100)])
@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_any_picture_size(model: Callable[..., str], size: tuple[int, int], fit: str) -> None:
    stage = OnnxSegmenter(model(size=(32, 32)), fit=fit)
    mask = stage(torch.full((1, 3, *size), 0.25))
    assert mask.shape == (1, 1, *size)
    assert torch.allclose(mask, torch.full_like(mask, 0.25), atol=1e-5)


def test_padding_keeps_the_aspect(model: Callable[..., str]) -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 32, 64).contiguous()
    stage = OnnxSegmenter(model(size=(64, 64)), fit="pad")
    assert torch.allclose(stage(ramp), ramp[:, :1], atol=1e-5)


def test_sizes_that_cannot_be(model: Callable[..., str]) -> None:
    path = model(size=("h", "w"), batch="n")
    with pytest.raises(UsageError, match="takes any input size"):
        OnnxSegmenter(path)
    assert OnnxSegmenter(path, size=16).size == (16, 16)
    with pytest.raises(UsageError, match="8 x 8 pixels"):
        OnnxSegmenter(model(), size=16)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": "GRB"},
        {"fit": "crop"},
        {"std": 0},
        {"std": [1, 0, 1]},
        {"mean": [1, 2]},
        {"mean": "red"},
        {"mean": float("nan")},
        {"output": 3},
        {"output": "alpha"},
        {"size": (1, 2, 3)},
        {"size": 0},
        {"providers": ["NoSuchProvider"]},
    ],
)
def test_options_that_cannot_be(model: Callable[..., str], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r".{20}"):
        OnnxSegmenter(model(), **options)


def test_a_missing_and_a_broken_file(tmp_path: Path, model: Callable[..., str]) -> None:
    with pytest.raises(WeightsError, match="there is no ONNX file"):
        OnnxSegmenter(str(tmp_path / "missing.onnx"))
    whole = Path(model()).read_bytes()
    for content in (b"", b"not a model", whole[: len(whole) // 2]):
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(content)
        with pytest.raises(WeightsError, match=r"broken\.onnx"):
            OnnxSegmenter(str(broken))


def test_a_model_of_gray_pictures(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    path = tmp_path / "gray.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    with pytest.raises(WeightsError, match="takes 1 channels; expected 3"):
        OnnxSegmenter(str(path))


def test_without_onnxruntime_it_says_what_to_install(
    model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'deep-image-compositing\[onnx\]'"):
        OnnxSegmenter(model())


def test_it_survives_pickling(model: Callable[..., str]) -> None:
    stage = OnnxSegmenter(model())
    again = pickle.loads(pickle.dumps(stage))
    assert torch.equal(again(picture()), stage(picture()))


def test_by_name_in_the_compositor(model: Callable[..., str]) -> None:
    path = model(size=(32, 32))
    assert isinstance(create("segmenter", "onnx", path=path), OnnxSegmenter)
    compositor = Compositor(
        segmenter=("onnx", {"path": path, "size": 32, "channels": "RGB"}),
        refiner="none",
        fuser=PlainFuser(),
        device="cpu",
    )
    photograph = (disc(64, 64)[0].expand(3, -1, -1) * 0.9).contiguous()
    result = compositor(photograph, noise(64, 64))
    assert (result.mask - photograph[:1]).abs().mean() < 0.02


def test_by_name_on_the_command_line(
    model: Callable[..., str], save: Callable[..., Path], tmp_path: Path, stub_stages: None
) -> None:
    white = (disc(64, 64)[0, 0] * 255).byte().numpy()
    front = save("front.png", np.dstack([white] * 3))
    back, out = save("back.png", noise(64, 64)), tmp_path / "out.png"
    options = [f"path={model(size=(32, 32))}", "size=32", "mean=[0, 0, 0]", "std=1", "channels=RGB"]
    arguments = ["composite", str(front), str(back), "-o", str(out), "--fuser", "plain"]
    arguments += ["--segmenter", "onnx", "--refiner", "none", "--device", "cpu"]
    for option in options:
        arguments += ["--segmenter-option", option]
    assert main(arguments) == 0
    pixels = read_image(out).pixels
    np.testing.assert_array_equal(pixels[32, 32], [255] * 3)
    np.testing.assert_array_equal(pixels[0, 0], noise(64, 64)[0, 0])


REAL = {
    "sinet_portrait_320.onnx": {
        "size": 320,
        "channels": "BGR",
        # It takes ((v − mean) / std) / 255 of 8-bit values v: the same as mean / 255 in [0, 1].
        "mean": [102.89 / 255, 111.25 / 255, 126.91 / 255],
        "std": [62.93, 62.82, 66.36],
    },
    "prisma_portrait_256.onnx": {"size": 256},
}


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the real models are not here")
@pytest.mark.parametrize("name", REAL)
def test_real_portrait_models(name: str) -> None:
    stage = OnnxSegmenter(str(SHARED / "models" / name), **REAL[name])
    scores = []
    for path in sorted((SHARED / "people").glob("*.jpg"))[:12]:
        image = to_tensor(read_image(path).pixels)[None]
        true = read_mask(path.with_suffix(".mask.png"), size=image.shape[-2:]) > 0.5
        found = stage(image)[0, 0].numpy() > 0.5
        scores.append((found & true).sum() / (found | true).sum())
    assert np.mean(scores) > 0.7


def test_a_model_can_be_fed_and_read_as_rembg_does_it(model: Callable[..., str]) -> None:
    dark = torch.linspace(0.1, 0.5, 64).expand(1, 3, 64, 64)
    options = {"scale": "maximum", "resample": "lanczos", "min_max": True}
    found = create("segmenter", "onnx", path=model(size=(64, 64)), **options)(dark)
    # Divided by its maximum of 0.5 the darkest is 0.2, which is then stretched to 0.
    assert found[0, 0, 0, [0, -1]].tolist() == pytest.approx([0, 1], abs=0.01)
    assert found[0, 0, 5, 32] == pytest.approx(32 / 63, abs=0.01)


def test_padding_can_be_black(model: Callable[..., str]) -> None:
    file, wide = model(size=(8, 8)), torch.ones(1, 3, 4, 8)
    seen = {
        padding: create("segmenter", "onnx", path=file, fit="pad", padding=padding)._fit_in(wide)[0]
        for padding in ("edge", "black")
    }
    assert seen["edge"].min() == 1
    assert seen["black"][:, :, 4:].max() == 0
    assert seen["black"][:, :, :4].min() == 1


def test_a_gpu_that_was_asked_for_and_not_got_is_an_error(
    model: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    if "CUDAExecutionProvider" in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    gpu, picture = torch.device("cuda", 1), torch.rand(1, 3, 8, 8)
    asked = create("segmenter", "onnx", path=model())
    with pytest.raises(UsageError, match=r"cannot run on cuda:1.*onnxruntime-gpu"):
        asked.use(gpu)
    with pytest.raises(UsageError, match=r"cannot run on cuda:1"):
        asked.file.run("mask", {})
    chosen = create("segmenter", "onnx", path=model())
    chosen.file.move(gpu)  # what device="auto" comes to
    assert chosen.file.session is not None
    assert "it runs on the CPU" in caplog.text
    named = create("segmenter", "onnx", path=model(), providers=["CPUExecutionProvider"])
    named.use(gpu)
    assert named(picture).shape == (1, 1, 8, 8)
