"""What is imported when: seconds are measured by the benchmark, here it is what makes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import deep_image_compositing as package

HEAVY = ("torch", "lightning", "timm", "kornia", "torchvision", "torchmetrics", "numpy", "PIL")

TRAINING = ("lightning", "torchmetrics", "torchvision", "timm", "kornia", "tensorboard",
            "jsonargparse", "webdataset", "huggingface_hub", "scipy", "pandas", "matplotlib",
            "sklearn", "sympy", "torch._dynamo", "torch.distributed.tensor")  # fmt: skip
"""What a composite needs nothing of."""


def imported_by(code: str, names: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of the heavy packages a fresh process has imported after ``code``."""
    before = "import os, sys\nfrom deep_image_compositing.cli import main\n"
    script = f"{before}{code}\nprint('|', *(name for name in {names} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True
    )
    return set(done.stdout.rpartition("|")[2].split())


def test_what_can_be_answered_at_once_imports_nothing_heavy(
    capfd: pytest.CaptureFixture[str],
) -> None:
    wrong = {
        "did you mean 'onnx'": ["--segmenter", "onx"],
        "no ONNX file gone.onnx": ["--segmenter=onnx", "--segmenter-option=path=gone.onnx"],
        "needs the option 'path'": ["--segmenter", "onnx"],
        "did you mean 'widths'": ["--fuser-option", "widht=3"],
        "no weights 'gone.ckpt'": ["--refiner-option", "weights=gone.ckpt"],
    }
    code = (
        "for call in (['--help'], ['composite', '--help'], ['--version'], ['fix']): main(call)\n"
        f"for more in {[*wrong.values()]}:\n"
        "    assert main(['composite', 'a.png', 'b.png', '-o', 'out.png', *more]) in (1, 2), more"
    )
    assert imported_by(code) == set()
    said = capfd.readouterr().err
    assert [message for message in wrong if message not in said] == []


def test_what_needs_no_torch_does_not_import_it(tmp_path: Path) -> None:
    """Reading and writing, the list of stages, and what is told of a call that cannot be."""
    for name, size in (("front", (40, 30)), ("back", (50, 50)), ("wide", (17_000, 2))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    placed = ["--frame", "background"]
    wrong = [
        ["--scale", "2"], ["--position", "0,0"], [*placed, "--scale", "0"],
        [*placed, "--scale", "nan"], [*placed, "--position", "2,0"],
        [*placed, "--scale", "1e6"], ["--work-side", "3"], ["--max-side", "3"],
        ["--max-pixels", "0"], ["--device", "gpu"], ["--harmonize-strength", "0.5"],
        ["--harmonize", "reinhard", "--harmonize-strength", "2"], ["--harmonizer", "rheinhard"],
        ["--harmonizer=color_map", "--harmonizer-option=width"], ["--resume"], ["--mask", "none"],
        ["--save-cutout", "cutout.jpg"], ["--save-alpha", "alpha"], ["--save-steps", "no/a.png"],
        ["--save-alpha", "front.png"], ["--mask", "pipe.png"], ["-o", "wide.webp"],
    ]  # fmt: skip
    for_folders = [
        ["--devices", "0"], ["--accelerator", "cuda", "--device", "cpu"], ["--mask", "none.png"],
        ["--mask", "pipe.png"], ["--save-cutout", "cutouts.png"],
    ]  # fmt: skip
    code = (
        f"os.chdir({str(tmp_path)!r})\n"
        "os.mkfifo('pipe.png')\n"
        f"for more in {wrong}:\n"
        "    front = 'wide.png' if more[0] == '-o' else 'front.png'\n"
        "    code = main(['composite', front, 'back.png', '-o', 'out.png', *more])\n"
        "    assert code in (1, 2), more\n"
        f"for more in {for_folders}:\n"
        "    assert main(['composite', '.', 'back.png', '-o', 'out', *more]) in (1, 2), more\n"
        "assert not os.path.exists('out')\n"
        "assert main(['composite', 'missing.png', 'missing.png', '-o', 'out.png']) == 1\n"
        "assert main(['stages']) == 0\n"
        "import numpy as np\n"
        "from deep_image_compositing.images import read_image, read_mask, write_image\n"
        "write_image('photo.png', np.zeros((3, 4, 5)), alpha=np.ones((4, 5)))\n"
        "assert read_image('photo.png').size == read_mask('photo.png').shape == (4, 5)"
    )
    assert imported_by(code) & {"torch", "lightning", "timm"} == set()


def test_a_composite_imports_nothing_of_training(tmp_path: Path) -> None:
    front = Image.new("RGB", (64, 48), "gray")
    front.paste("red", (20, 8, 44, 40))
    front.save(tmp_path / "front.png")
    Image.new("RGB", (64, 48), "blue").save(tmp_path / "back.png")
    mask = Image.new("L", (64, 48))
    mask.paste(255, (20, 8, 44, 40))
    mask.save(tmp_path / "mask.png")
    code = (
        f"os.chdir({str(tmp_path)!r})\n"
        "call = ['composite', 'front.png', 'back.png', '--mask', 'mask.png']\n"
        "assert main([*call, '-o', 'learned.png', '--save-steps', 'steps.png']) == 0\n"
        "plain = ['--refiner', 'none', '--fuser', 'laplacian', '-o', 'plain.png']\n"
        "assert main([*call, *plain]) == 0\n"
        "from deep_image_compositing import Compositor\n"
        "assert Compositor().segmenter is not None"
    )
    assert imported_by(code, TRAINING) == set()


def test_public_names_are_there_and_no_others() -> None:
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) == package._HOMES.keys()
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
