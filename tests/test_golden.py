"""The default pipeline on two public-domain photographs, held against a stored picture.

The stored picture is an eighth of the composite's size; `python tests/test_golden.py` makes it anew
after a deliberate change of weights or stages. Look at it before committing it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deep_image_compositing import Compositor
from deep_image_compositing.composite import Composite
from deep_image_compositing.functional.compose import unknown_band
from deep_image_compositing.functional.resize import resize

GOLDEN = Path(__file__).parent / "golden" / "astronaut_onto_rocket.png"
SIZE = (64, 64)


def photographs() -> tuple[Path, Path]:
    skimage = pytest.importorskip("skimage")
    folder = Path(skimage.__file__).parent / "data"
    return folder / "astronaut.png", folder / "rocket.jpg"


def compose() -> Composite:
    foreground, background = photographs()
    return Compositor(device="cpu")(foreground, background)


@pytest.fixture(scope="module")
def result() -> Composite:
    return compose()


def shrunk(result: Composite) -> np.ndarray:
    small = resize(result.composite[None], SIZE)[0]
    return (small * 255).round().byte().permute(1, 2, 0).numpy()


def test_the_default_composite_is_the_stored_one(result: Composite) -> None:
    stored = np.asarray(Image.open(GOLDEN)).astype(int)
    difference = np.abs(shrunk(result).astype(int) - stored)
    assert difference.mean() < 1.0
    assert np.percentile(difference, 99) < 12


def test_the_subject_and_only_the_subject_is_cut_out(result: Composite) -> None:
    alpha = result.cutout[3]
    assert alpha[60:200, 190:260].mean() > 0.95  # face
    assert alpha[330:500, 100:180].mean() > 0.95  # suit
    assert alpha[:150, 300:].mean() < 0.05  # wall and shuttle
    assert alpha[:100, :100].mean() < 0.05  # flag


def test_away_from_the_rim_pixels_are_the_photographs_own(result: Composite) -> None:
    alpha = result.cutout[3:][None]
    rim = unknown_band(alpha, 32)[0, 0]
    inside, outside = (alpha[0, 0] == 1) & ~rim, (alpha[0, 0] == 0) & ~rim
    assert inside.any()
    assert outside.any()
    for region, photograph in (
        (inside, result.foreground_pixels),
        (outside, result.background_pixels),
    ):
        assert torch.equal(result.composite_pixels[:, region], photograph[:, region])


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    Image.fromarray(shrunk(compose())).save(GOLDEN)
