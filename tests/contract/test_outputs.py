"""Every output of a composite, whatever the photograph is stored as, below and above ``work_side``.

That a folder and the command line give the same is tested in test_batch.py and test_cli.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deep_image_compositing import Compositor
from deep_image_compositing.cli import main
from deep_image_compositing.composite import Composite
from tests import photographs
from tests.conftest import disc, noise

WORK_SIDE = 64
SIZES = {"below": (40, 60), "above": (90, 140)}
BACK = (70, 110)
OUTPUTS = ("alpha", "cutout", "steps")


def stored(kind: str, size: tuple[int, int]) -> bytes:
    """The file of a photograph of ``size`` with noise in it."""
    wide = np.random.default_rng(0).integers(0, 65536, (*size, 3), dtype=np.uint16)
    eight = noise(*size)
    opacity = disc(*size)[0, 0].mul(255).byte().numpy()
    return {
        "colour8": lambda: photographs.encode(eight),
        "colour16": lambda: photographs.png16(wide),
        "gray8": lambda: photographs.encode(np.ascontiguousarray(eight[..., 0])),
        "gray16": lambda: photographs.png16(np.ascontiguousarray(wide[..., 0])),
        "rgba": lambda: photographs.encode(np.dstack([eight, opacity])),
    }[kind]()


KINDS = ("colour8", "colour16", "gray8", "gray16", "rgba")


def read(path: Path) -> Tensor:
    """(C, H, W) uint8."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return torch.from_numpy(pixels.copy().reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def check_files(files: dict[str, Path], size: tuple[int, int]) -> None:
    """The files say what they are to say, and nothing more has been written."""
    composite, alpha, cutout = (read(files[key]) for key in ("path", "alpha", "cutout"))
    assert composite.shape == (3, *size)
    assert alpha.shape == (1, *size)
    assert cutout.shape == (4, *size)
    assert alpha.min() == 0
    assert alpha.max() == 255
    assert not cutout[:3, cutout[3] == 0].any()
    assert "steps" not in files or read(files["steps"]).shape[0] == 3
    for folder in {path.parent for path in files.values()}:
        assert not list(folder.glob(".*"))


def check_saved(result: Composite, files: dict[str, Path], size: tuple[int, int]) -> None:
    """The files hold what the attributes do."""
    check_files(files, size)
    assert result.mask.shape == (1, *size)
    pictures = {"path": result.composite, "alpha": result.alpha, "cutout": result.cutout}
    for key, pixels in pictures.items():
        assert torch.equal(read(files[key]), pixels.mul(255).add(0.5).byte()), key


def targets(folder: Path, suffix: str = ".png") -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    return {key: folder / f"{key}{suffix}" for key in ("path", *OUTPUTS)}


def frame_of(size: tuple[int, int], frame: str) -> tuple[int, int]:
    return size if frame == "foreground" else BACK


@pytest.fixture
def back(save: Callable[..., Path]) -> Path:
    return save("back.png", noise(*BACK, seed=1))


@pytest.mark.usefixtures("stub_stages")
@pytest.mark.parametrize("frame", ["foreground", "background"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("refiner", "fuser"),
    [("none", "in-layers"), ("none", "plain"), ("none", "alpha"), ("guided_filter", "laplacian")],
)
def test_a_composite(
    tmp_path: Path, back: Path, refiner: str, fuser: str, size: tuple[int, int], frame: Any
) -> None:
    compositor = Compositor("disc", refiner, fuser, device="cpu", work_side=WORK_SIDE)
    most = targets(tmp_path / "out")
    del most["steps"]  # drawing it takes longer than all the rest
    for kind in KINDS if fuser == "in-layers" else ("colour8", "rgba"):
        result = compositor(stored(kind, size), back, frame=frame)
        result.save(**most)
        check_saved(result, most, frame_of(size, frame))
    for mask, suffix in ((disc(*size)[0], ".tiff"), (disc(*size)[0, 0].mul(255).byte(), ".png")):
        result = compositor(stored("gray16", size), back, mask, frame=frame)
        files = targets(tmp_path / "given", suffix)
        result.save(**files)
        check_saved(result, files, frame_of(size, frame))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "frame"), [((200, 300), "background"), ((700, 940), "foreground")], ids=SIZES
)
def test_the_command_with_its_defaults(
    tmp_path: Path, back: Path, size: tuple[int, int], frame: str
) -> None:
    soft = np.clip(disc(*size, 0.02)[0, 0].numpy()[..., None] * 200 + 30, 0, 255).astype(np.uint8)
    front, rough = tmp_path / "front.jpg", tmp_path / "rough.png"
    Image.fromarray(soft.repeat(3, axis=2)).save(front)
    Image.fromarray(disc(*size)[0, 0].mul(255).byte().numpy()).save(rough)
    Image.fromarray(noise(*size, seed=1)).save(back)
    files = targets(tmp_path / "out")
    arguments = ["composite", str(front), str(back), "-o", str(files["path"]), "--frame", frame]
    arguments += ["--device", "cpu", "--mask", str(rough)]
    for key in OUTPUTS:
        arguments += [f"--save-{key}", str(files[key])]
    assert main(arguments) == 0
    check_files(files, size)
