"""What a worker makes of jobs is what the library makes of the same photographs, to the bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deep_image_compositing import remove
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.serving import work
from deep_image_compositing.serving.jobs import Answer, Job
from deep_image_compositing.settings import Shadow
from tests.photographs import disk, encode, oriented, scene

pytest.importorskip("skimage")
from tests.serving.running import ASTRONAUT, ROCKET

PLAIN = (("pyramid", ()), ("none", ()), ("alpha", ()), ("none", ()))


@pytest.fixture(autouse=True)
def forgotten() -> None:
    work.start("cpu", PLAIN)
    work._compose.cache_clear()


def opened(answer: Answer) -> NDArray[Any]:
    assert answer.status == 200, answer.body
    return np.asarray(Image.open(io.BytesIO(answer.body)))


def small(path: Path, side: int = 256) -> bytes:
    """A photograph, shrunk, as a file."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((side, side))
    return encode(image)


@pytest.mark.parametrize(
    "options", [{}, {"frame": "background", "scale": 0.5, "position": (0.2, 1.0)}]
)
def test_composite_cutout_and_alpha_are_the_library_s(
    options: dict[str, Any], tmp_path: Path
) -> None:
    front, back = small(ASTRONAUT), small(ROCKET)
    stages = (
        ("pyramid", ()), ("cascade", ()), ("feather", (("sigma", 3.0),)),
        ("reinhard", (("strength", 0.7),)),
    )  # fmt: skip
    last = ("feather", {"sigma": 3.0}), ("reinhard", {"strength": 0.7})
    compositor = Compositor("pyramid", "cascade", *last, device="cpu")
    expected = compositor(front, back, **options)
    names = {output: tmp_path / f"{output}.png" for output in ("path", "cutout", "alpha")}
    expected.save(**names)
    for output, name in (("composite", "path"), ("cutout", "cutout"), ("alpha", "alpha")):
        answer = work.perform(Job(front, back, stages=stages, output=output, **options))
        assert answer.body == names[name].read_bytes()
        assert answer.headers["content-type"] == "image/png"
    assert "segmentation;dur=" in answer.headers["server-timing"]
    assert 0 < float(answer.headers["x-subject-doubt"]) < 0.5
    for form in ("jpeg", "webp"):
        job = Job(front, back, stages=stages, form=form, **options)
        assert opened(work.perform(job)).shape[:2] == expected.size


def test_a_shadow_is_the_library_s() -> None:
    front, back, mask = encode(scene()), encode(scene(seed=1)), encode(disk())
    shadow = Shadow("contact", strength=0.9)
    plain, shaded = (
        work.perform(Job(front, back, mask, stages=PLAIN, shadow=one)) for one in (None, shadow)
    )
    expected = Compositor("pyramid", "none", "alpha", shadow=shadow, device="cpu")
    whole = expected(front, back, mask).composite_pixels.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(opened(shaded), whole)
    assert (opened(plain) != opened(shaded)).any()


def test_a_cut_out_is_what_remove_makes() -> None:
    front = small(ASTRONAUT)
    assert work.perform(Job(front, output="cutout")).body == remove(front)


def test_photographs_are_upright_and_results_tell_nothing_of_them() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    front = encode(scene(), "JPEG", exif=exif.tobytes(), quality=95)
    answer = work.perform(Job(front, encode(scene(seed=1)), encode(disk()), stages=PLAIN))
    assert opened(answer).shape == (24, 32, 3)
    assert b"camera" not in answer.body
    turned = oriented(scene(), 6)
    answer = work.perform(Job(turned, encode(scene(seed=1)), encode(disk()), stages=PLAIN))
    assert opened(answer).shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"foreground": b"no picture"}, 400, "the foreground is not an image"),
        ({"background": encode(scene())[:200]}, 400, "it may be truncated"),
        ({"mask": b"no picture"}, 400, "the mask is not an image"),
        ({"mask": encode(disk(32, 24))}, 400, "the mask is 24 x 32 pixels"),
        (
            {"mask": encode(np.zeros((24, 32), np.uint8))},
            422,
            "the mask of the foreground is empty",
        ),
        ({"max_pixels": 700}, 400, "the foreground has 768 pixels, more than the limit of 700"),
        ({"frame": "background", "scale": 40.0, "max_pixels": 100_000}, 400, "smaller scale"),
        ({"stages": (*PLAIN[:2], ("feather", (("sigma", -1),)))}, 400, "sigma must be at least 0"),
        ({"stages": (*PLAIN[:2], ("feather", (("sigma", "x"),)))}, 400, "'sigma'"),
    ],
)
def test_what_is_wrong_is_told_by_the_form_s_own_names(
    change: dict[str, Any], status: int, said: str
) -> None:
    job = {
        "foreground": encode(scene()), "background": encode(scene(seed=1)),
        "mask": encode(disk()), "stages": PLAIN,
    }  # fmt: skip
    answer = work.perform(Job(**{**job, **change}))
    assert answer.status == status
    assert said in answer.body.decode()


def test_an_error_of_ours_is_no_one_else_s_business(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(work, "read_image", lambda *given, **more: 1 / 0)
    answer = work.perform(Job(encode(scene()), output="mask"))
    assert answer.status == 500
    assert b"division" not in answer.body
    assert "ZeroDivisionError" in capsys.readouterr().err


# Strokes


def strokes(size: tuple[int, int], *lines: tuple[str, list[tuple[int, int]], int]) -> bytes:
    """A file of strokes: colour, points and width of each."""
    picture = Image.new("RGBA", size)
    draw = ImageDraw.Draw(picture)
    for color, points, width in lines:
        draw.line(points, fill=color, width=width, joint="curve")
    return encode(picture)


def test_the_mask_follows_a_stroke_on_the_helmet_and_changes_nowhere_else() -> None:
    front = ASTRONAUT.read_bytes()
    stages = (("pyramid", ()), ("cascade", ()), ("alpha", ()), ("none", ()))
    before = opened(work.perform(Job(front, stages=stages, output="mask")))
    line = [(330, 430), (390, 400), (460, 375)]
    drawn = strokes((512, 512), ("#00ff00", line, 14))
    after = opened(work.perform(Job(front, strokes=drawn, stages=stages, output="mask")))
    helmet = [(330, 400), (350, 470), (440, 365), (456, 408)]
    assert [before[y, x] < 128 for x, y in helmet].count(True) >= 3
    assert [after[y, x] for x, y in helmet] == [255] * 4
    assert np.array_equal(after[:300], before[:300])
    assert np.array_equal(after[:, :250], before[:, :250])
    assert after[320, 480] == 0, "the table behind it does not belong"


def test_strokes_of_both_colours_count_exactly_where_they_are() -> None:
    ground = np.full((120, 160, 3), 120, np.uint8)
    ground[30:90, 20:80] = (200, 30, 30)
    mask = np.zeros((120, 160), np.uint8)
    mask[30:90, 20:140] = 255  # the red square, and ground beside it
    drawn = strokes((320, 240), ("#ff0000", [(200, 100), (260, 100)], 8))  # at twice the size
    job = Job(encode(ground), mask=encode(mask), strokes=drawn, stages=PLAIN, output="mask")
    after = opened(work.perform(job))
    assert (after[48:52, 102:128] == 0).all()
    assert (after[32:88, 22:76] == 255).all(), "another colour stays"
    drawn = strokes(
        (160, 120), ("#00ff00", [(100, 10), (150, 10)], 5), ("#ff0000", [(40, 60)] * 2, 9)
    )
    job = Job(encode(ground), mask=encode(mask), strokes=drawn, stages=PLAIN, output="mask")
    assert opened(work.perform(job))[10, 125] == 255


def test_strokes_say_all_where_nothing_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = np.full((60, 80, 3), 120, np.uint8)
    ground[20:40, 20:50] = (30, 30, 200)

    class Blind(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(image[:, :1])

    made = work._stage
    monkeypatch.setattr(
        work, "_stage", lambda slot, *more: Blind() if slot == "segmenter" else made(slot, *more)
    )
    job = {"foreground": encode(ground), "stages": PLAIN, "output": "mask"}
    assert work.perform(Job(**job)).status == 422
    drawn = strokes((80, 60), ("#00ff00", [(25, 30), (45, 30)], 4))
    after = opened(work.perform(Job(**job, strokes=drawn)))
    assert np.array_equal(after > 127, (ground[..., 2] == 200))
    only_red = strokes((80, 60), ("#ff0000", [(25, 30), (45, 30)], 4))
    assert work.perform(Job(**job, strokes=only_red)).status == 422


def test_answers_of_stages_are_remembered_and_cannot_be_spoiled() -> None:
    asked = []

    def ask(*tensors: torch.Tensor) -> torch.Tensor:
        asked.append(tensors)
        return sum(tensors, torch.zeros(()))

    remembering = work._memoize(ask)
    first, second = torch.ones(2, 2), torch.full((2, 2), 2.0)
    remembering(first, second).zero_()
    assert torch.equal(remembering(first, second), first + second)
    assert len(asked) == 1
    first += 1
    assert torch.equal(remembering(first, second), first + second)
    assert len(asked) == 2
