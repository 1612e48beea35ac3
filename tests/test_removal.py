"""One photograph in, its subject out: ``remove`` and the command ``cutout``."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deep_image_compositing import Compositor, remove
from deep_image_compositing.cli import main
from deep_image_compositing.errors import ImageError, UsageError

SIZE = (40, 60)
LIGHT = ["--segmenter", "grabcut", "--refiner", "none", "--fuser", "alpha"]
"""Stages that load no weights: a disc before a plain wall is all that they have to find."""


def disc() -> np.ndarray:
    """A red disc before a blue wall, (60, 80, 3) uint8."""
    rows, columns = np.mgrid[:60, :80]
    inside = (rows - 30) ** 2 + (columns - 40) ** 2 < 15**2
    return np.where(inside[..., None], [220, 30, 30], [20, 40, 200]).astype(np.uint8)


@pytest.fixture(scope="module")
def compositor() -> Compositor:
    return Compositor(segmenter=lambda x: (x[:, :1] > 0.5).float(), refiner="none", fuser="alpha")


def test_the_answer_has_the_form_of_what_was_given(compositor: Compositor, tmp_path: Path) -> None:
    pixels = disc()
    expected = remove(pixels, compositor=compositor)
    assert expected.shape == (60, 80, 4)
    assert tuple(expected[30, 40]) == (220, 30, 30, 255)
    assert tuple(expected[0, 0]) == (0, 0, 0, 0)

    picture = remove(Image.fromarray(pixels), compositor=compositor)
    assert picture.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(picture), expected)

    planes = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    tensor = remove(planes, compositor=compositor)
    np.testing.assert_array_equal((tensor * 255).round().permute(1, 2, 0).numpy(), expected)

    Image.fromarray(pixels).save(tmp_path / "disc.png")
    sent = remove((tmp_path / "disc.png").read_bytes(), compositor=compositor)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent))), expected)

    written = remove(tmp_path / "disc.png", compositor=compositor)
    assert written == tmp_path / "disc.cutout.png"
    np.testing.assert_array_equal(np.asarray(Image.open(written)), expected)
    other = remove(tmp_path / "disc.png", output=tmp_path / "other.webp", compositor=compositor)
    assert np.asarray(Image.open(other)).shape == (60, 80, 4)


def test_something_plain_can_stand_behind_the_subject(compositor: Compositor) -> None:
    pixels = disc()
    white = remove(pixels, "white", compositor=compositor)
    assert white.shape == (60, 80, 3)
    assert tuple(white[0, 0]) == (255, 255, 255)
    assert tuple(white[30, 40]) == (220, 30, 30)
    orange = remove(pixels, "#ff8800", compositor=compositor)
    assert tuple(orange[0, 0]) == (255, 136, 0)
    green = np.zeros((10, 10, 3), np.uint8) + np.array([0, 200, 0], np.uint8)
    assert tuple(remove(pixels, green, compositor=compositor)[0, 0]) == (0, 200, 0)


def test_a_blurred_background_has_nothing_of_the_subject_in_it(compositor: Compositor) -> None:
    blurred = remove(disc(), "blur", compositor=compositor).astype(int)
    assert tuple(blurred[30, 40]) == (220, 30, 30)
    assert np.abs(blurred[30, 58] - [20, 40, 200]).max() <= 3  # beside the disc: no red has run


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (disc(), {"background": "#ff8zzz"}, "is no colour"),
        (disc(), {"background": "#ff880080"}, "is transparent"),
        (disc(), {"background": "whit"}, "neither a colour, nor blur, nor an existing file"),
        (disc(), {"output": "x.png"}, "output names the file"),
    ],
)
def test_what_cannot_be_is_told(
    compositor: Compositor, given: np.ndarray, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        remove(given, compositor=compositor, **options)


def test_an_output_that_cannot_be_is_told_before_the_work(tmp_path: Path) -> None:
    def segmenter(image: torch.Tensor) -> torch.Tensor:
        raise AssertionError("there was work")

    worker = Compositor(segmenter=segmenter, refiner="none", fuser="alpha", device="cpu")
    Image.fromarray(disc()).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="cannot hold an alpha"):
        remove(tmp_path / "a.png", output=tmp_path / "a.jpg", compositor=worker)
    with pytest.raises(ImageError, match="does not exist"):
        remove(tmp_path / "a.png", output=tmp_path / "no" / "a.png", compositor=worker)


def test_the_command_cuts_out_a_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(disc()).save(tmp_path / "in" / f"{name}.png")
    one, out = str(tmp_path / "one.png"), tmp_path / "out"
    assert main(["cutout", str(tmp_path / "in" / "a.png"), "-o", one, *LIGHT]) == 0
    assert main(["cutout", str(tmp_path / "in"), "-o", str(out), *LIGHT]) == 0
    expected = np.asarray(Image.open(one))
    assert expected[0, 0, 3] == 0
    assert expected[30, 40, 3] == 255
    for name in ("a", "b"):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}.png")), expected)


def test_a_cut_out_does_not_go_into_a_file_without_transparency(tmp_path: Path) -> None:
    Image.fromarray(disc()).save(tmp_path / "a.png")
    assert main(["cutout", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.jpg"), *LIGHT]) == 2


@pytest.mark.parametrize(
    ("command", "mode"),
    [("cutout -", "RGBA"), ("composite - a.png", "RGB"), ("cutout a.png --background -", "RGB")],
)
def test_standard_input_and_output(
    tmp_path: Path, command: str, mode: str, monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.fromarray(disc()).save("a.png")
    with open("a.png") as given:
        monkeypatch.setattr(sys, "stdin", given)
        assert main([*command.split(), "-o", "-", *LIGHT]) == 0
    picture = Image.open(io.BytesIO(capfdbinary.readouterr().out))
    assert picture.size == (80, 60)
    assert picture.mode == mode


def test_a_photograph_is_not_written_over(compositor: Compositor, tmp_path: Path) -> None:
    Image.fromarray(disc()).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(UsageError, match="also an input"):
        remove(tmp_path / "a.png", output=tmp_path / "a.png", compositor=compositor)
    assert (tmp_path / "a.png").read_bytes() == before


def test_standard_input_is_one_photograph(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert main(["composite", "-", "-", "-o", str(tmp_path / "a.png"), *LIGHT]) == 2
    assert main(["cutout", str(tmp_path / "in"), "-o", "-", *LIGHT]) == 2
