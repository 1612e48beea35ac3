"""Exported stages answer as the stages do, at any size and in batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from deep_image_compositing import Compositor
from deep_image_compositing.cli import main
from deep_image_compositing.errors import UsageError
from deep_image_compositing.export import export, parts
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.stages.making import make_stage

ANY = [(h, w) for h in (64, 97, 160, 255) for w in (33, 101, 150, 222, 320)]
MULTIPLES = [(h, w) for h in (64, 96, 160, 256) for w in (64, 128, 192, 224, 320)]

REFINER = {"trust": 3.0, "confidence": 1.0, "keep_good": False, "sizes": (64,)}

OPTIONS: dict[str, Any] = {
    "segmenter": ("pyramid", {"looks": 1, "sure": 0}),
    "refiner": ("cascade", REFINER),
    "fuser": ("multi_stream", {}),
    "harmonizer": ("color_map", {}),
}


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    return torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder, made = tmp_path_factory.mktemp("exported"), set[Path]()

    def file(slot: str, suffix: str) -> Path:
        path = folder / f"{slot}{suffix}"
        if path not in made:
            export(make_stage(slot, OPTIONS[slot], model=True), path)  # type: ignore[arg-type]
            made.add(path)
        return path

    return file


def inputs(photograph: Tensor, channels: list[int], size: tuple[int, int], batch: int) -> Any:
    """Crops of a photograph as the inputs of a network, repeated to as many channels."""
    crops = [photograph[..., 7 * i : 7 * i + size[0], : size[1]] for i in range(batch)]
    picture = torch.cat([resize(crop, size) for crop in crops])
    return [picture.repeat(1, -(-count // 3), 1, 1)[:, :count].contiguous() for count in channels]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("slot", OPTIONS)
def test_an_exported_network_answers_as_it_did(
    slot: str, suffix: str, photograph: Tensor, exported: Callable[[str, str], Path]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = exported(slot, suffix)
    known = parts(make_stage(slot, OPTIONS[slot], model=True))  # type: ignore[arg-type]
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

        def run(given: list[Tensor]) -> np.ndarray:
            feed = {name: x.numpy() for name, x in zip(known.inputs, given, strict=True)}
            return session.run(None, feed)[0]
    else:
        program = torch.export.load(str(file)).module()

        def run(given: list[Tensor]) -> np.ndarray:
            return program(*given).numpy()

    known.module.eval()
    for number, size in enumerate(ANY if suffix == ".onnx" and slot != "fuser" else MULTIPLES):
        given = inputs(photograph, [*known.inputs.values()], size, (1, 2)[number % 2])
        with torch.inference_mode():
            expected = known.module(*given).numpy()
            np.testing.assert_allclose(run(given), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_compositor_of_exports_makes_the_same_picture(
    exported: Callable[[str, str], Path],
) -> None:
    pytest.importorskip("onnxscript")
    pictures = skimage.data.astronaut(), skimage.data.coffee()
    fuser = ("alpha", {"foreground_color": "multilevel"})
    first = Compositor(OPTIONS["segmenter"], OPTIONS["refiner"], fuser, device="cpu")
    second = Compositor(
        ("onnx", {"path": str(exported("segmenter", ".onnx"))}),
        ("onnx", {"path": str(exported("refiner", ".onnx"))}),
        fuser,
        device="cpu",
    )
    one, other = first(*pictures), second(*pictures)
    assert (one.mask - other.mask).abs().max() < 1e-3
    assert (one.alpha - other.alpha).abs().max() < 1e-3
    assert (one.composite - other.composite).abs().max() <= 1.5 / 255


@pytest.mark.slow
def test_the_refiner_is_as_it_was_exported(exported: Callable[[str, str], Path]) -> None:
    pytest.importorskip("onnxscript")
    path = str(exported("refiner", ".onnx"))
    made: Any = make_stage("refiner", ("onnx", {"path": path, "zoom": 2.0}))
    assert (made.trust, made.confidence, made.keep_good) == (3.0, 1.0, False)
    assert (made.sizes, made.zoom) == ((64,), 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fuser", "--stage", "laplacian", "-o", "a.onnx"], "no network that can be exported"),
        (["harmonizer", "--stage", "reinhard", "-o", "a.onnx"], "no network that can be exported"),
        (["segmenter", "-o", "a.onx"], "end in .onnx or .pt2"),
        (["refiner", "-o", "missing/a.onnx"], "does not exist"),
    ],
)
def test_what_cannot_be_exported_is_told(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_suffix_says_the_format(tmp_path: Path) -> None:
    stage: Any = make_stage("refiner", ("cascade", {}), model=True)
    with pytest.raises(UsageError, match=r"has to end in \.onnx or \.pt2"):
        export(stage, tmp_path / "a.pt")
