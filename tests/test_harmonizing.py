"""The fourth slot in the compositor: who may fill it, and what it does to pictures of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from deep_image_compositing import Compositor, harmonizing, remove
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.fullsize import Fused, Repainted, Scene
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.harmonizing import change_between, recolor_subject
from deep_image_compositing.models.base import WHOLE, HarmonizerModel, Recoloring
from deep_image_compositing.models.harmonization.color_map import ColorMapModel, apply_color_map
from tests.conftest import PlainFuser, disc, noise

CPU = torch.device("cpu")


def make(harmonizer: Any, fuser: Any = "alpha", **options: Any) -> Compositor:
    return Compositor("pyramid", "none", fuser, harmonizer, device="cpu", **options)


def smooth(height: int, width: int, seed: int, low: int = 0, high: int = 255) -> NDArray[np.uint8]:
    """A photograph (H, W, 3) without detail, of colours from ``low`` to ``high``."""
    few = torch.from_numpy(noise(4, 5, seed)).permute(2, 0, 1)[None] / 255
    planes = resize(few, (height, width))[0] * (high - low) + low
    return planes.permute(1, 2, 0).round().byte().numpy()


def warmer(colors: Tensor) -> Tensor:
    return colors * colors.new_tensor([0.8, 0.7, 0.5]).view(3, 1, 1) + 0.15


def call(composite: Tensor, mask: Tensor) -> Tensor:
    return torch.lerp(composite, warmer(composite), mask)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        return call(composite, mask) + self.weight


class OnlyForward(HarmonizerModel):
    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        return call(composite, mask)


class Recolors(HarmonizerModel):
    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        return lambda colors, place: warmer(colors)


def learned() -> ColorMapModel:
    """The learned one, which does something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ColorMapModel()
        nn.init.normal_(model.network.polynomial.weight, std=0.03)
        nn.init.normal_(model.network.local.weight, std=0.3)
    return model


def levels(result: Any) -> Tensor:
    return result.composite_pixels.int()


@pytest.mark.parametrize("side", [2000, 120])
@pytest.mark.parametrize("fuser", ["alpha", "feather", PlainFuser()])
def test_anything_with_the_slot_s_signature_may_fill_it(fuser: Any, side: int) -> None:
    front, back = smooth(280, 300, 1), smooth(280, 300, 2)
    copies = front.copy(), back.copy()
    plain = make("none", fuser, work_side=side)(front, back, disc(280, 300)[0])
    opaque, clear = plain.cutout_alpha[0] == 1, plain.cutout_alpha[0] == 0
    assert opaque.sum() > 3000
    expected = 255 * warmer(plain.composite)[:, opaque]
    for own in (call, Plain(), OnlyForward(), Recolors()):
        moved = make(own, fuser, work_side=side)(front, back, disc(280, 300)[0])
        assert torch.equal(levels(moved)[:, clear], levels(plain)[:, clear])
        off = (levels(moved)[:, opaque] - expected).abs()
        assert off.max() < (9 if side < 300 else 1.6)  # where it was found small, near the rim
        assert off.mean() < 0.7
        assert torch.equal(moved.cutout[:3, opaque], moved.composite[:, opaque])
        for name in ("foreground", "background", "alpha", "mask", "cutout_alpha"):
            assert torch.equal(getattr(moved, name), getattr(plain, name)), name
    assert np.array_equal(front, copies[0])
    assert np.array_equal(back, copies[1])


@pytest.mark.parametrize("own", [Recolors(), "reinhard", "white_balance", learned()])
def test_small_and_large_photographs_agree(own: Any) -> None:
    front, back = smooth(280, 300, 3, 20, 150), smooth(280, 300, 4, 90, 240)
    results = [
        levels(make(own, work_side=side)(front, back, disc(280, 300, 0.3)[0]))
        for side in (2000, 100)
    ]
    assert (results[0] - results[1]).abs().max() <= 2


@pytest.mark.parametrize("side", [2000, 100])
@pytest.mark.parametrize("own", [call, Recolors()])
def test_a_soft_rim_has_no_halo_of_the_old_colour(own: Any, side: int) -> None:
    front = np.full((200, 260, 3), (220, 40, 30), np.uint8)
    back = smooth(200, 260, 5)
    result = make(own, work_side=side)(front, back, disc(200, 260, 0.6)[0])
    alpha = result.cutout_alpha
    subject = warmer(torch.tensor([220.0, 40, 30]).view(3, 1, 1) / 255)
    expected = alpha * subject + (1 - alpha) * result.background
    off = (result.composite - expected).abs() * 255
    if isinstance(own, Recolors):
        assert off.max() < 1.6
    else:  # it sees no straight colours; where little of the subject shows, it counts as inside
        assert off[:, alpha[0] > 0.95].max() < 8
        assert off[:, alpha[0] < 0.05].max() < 3
    assert torch.equal(levels(result)[:, alpha[0] == 0], result.background_pixels[:, alpha[0] == 0])


@pytest.mark.parametrize(
    "fuser", ["poisson", ("multi_stream", {"head": "rgb", "widths": (4, 6), "weights": None})]
)
def test_a_painted_composite_is_moved_under_alpha(fuser: Any) -> None:
    front, back = smooth(150, 160, 6), smooth(150, 160, 7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = make("none", fuser)
        moved = make(Recolors(), plain.fuser)
    before, after = (one(front, back, disc(150, 160, 0.3)[0]) for one in (plain, moved))
    expected = torch.lerp(before.composite, warmer(before.composite), before.cutout_alpha)
    assert (after.composite - expected).abs().max() * 255 < 1.1
    clear = before.cutout_alpha[0] == 0
    assert torch.equal(levels(after)[:, clear], levels(before)[:, clear])
    assert (levels(after) != levels(before)).any()


def test_bands_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = learned()
    pixels, backdrop = (torch.from_numpy(noise(90, 70, seed)).permute(2, 0, 1) for seed in (1, 2))
    alpha = (disc(90, 70, 0.4)[0] * 255).byte()
    small = backdrop[None] / 255
    with torch.no_grad():
        recolor = model.recoloring(small, alpha[None] / 255)
        whole = recolor(small, WHOLE)
        part = recolor(small[..., 30:61, 11:52], (30 / 90, 11 / 70, 61 / 90, 52 / 70))
        torch.testing.assert_close(part, whole[..., 30:61, 11:52], atol=1e-5, rtol=0)
        made, scene = [], Scene(pixels, backdrop, alpha, False, 896, CPU)
        for rows in (7, 1000):
            monkeypatch.setattr(harmonizing, "BAND", rows)
            fused = Fused(backdrop.clone(), alpha, Repainted())
            made.append(recolor_subject(fused, scene, recolor, 0.7))
    assert (made[0].composite.int() - made[1].composite.int()).abs().max() <= 1
    shown = alpha[0] > 0
    colors = [one.repainted.apply_to(pixels).int()[:, shown] for one in made]
    assert (colors[0] - colors[1]).abs().max() <= 1
    assert (made[0].composite != backdrop).any()


def test_colours_are_moved_once_for_all_that_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make("reinhard")(noise(40, 50), noise(40, 50, 1), disc(40, 50)[0])
    named = {key: tmp_path / f"{key}.png" for key in ("cutout", "steps", "blurred")}
    for key, path in named.items():
        result.save(**{key: path})
    alone = {key: path.read_bytes() for key, path in named.items()}
    original, calls = harmonizing.Recolored.apply_to, []
    monkeypatch.setattr(
        harmonizing.Recolored, "apply_to", lambda *args: calls.append(args) or original(*args)
    )
    result.save(tmp_path / "composite.png", **named)
    assert len(calls) == 1
    assert {key: path.read_bytes() for key, path in named.items()} == alone


def test_the_map_is_its_formula() -> None:
    colors, polynomial, grid = torch.rand(2, 3, 5, 6), torch.rand(2, 3, 10), torch.rand(2, 6, 1, 1)
    polynomial, grid = 0.2 * polynomial - 0.1, 0.4 * grid - 0.2
    r, g, b = colors.unbind(1)
    terms = torch.stack([torch.ones_like(r), r, g, b, r * r, g * g, b * b, r * g, g * b, b * r], 1)
    moved = colors + torch.einsum("bck,bkhw->bchw", polynomial, terms)
    expected = (moved * (1 + grid[:, :3]) + grid[:, 3:]).clamp(0, 1)
    torch.testing.assert_close(apply_color_map(colors, polynomial, grid, WHOLE), expected)


@pytest.mark.parametrize("own", [call, Recolors(), "reinhard", "white_balance", learned()])
def test_what_leaves_nothing_to_agree_with_changes_nothing(own: Any) -> None:
    front, back = smooth(60, 70, 8), smooth(60, 70, 9)
    compositor = make(own)
    whole = compositor(front, back, torch.ones(1, 60, 70))
    np.testing.assert_array_equal(whole.composite_pixels.permute(1, 2, 0), front)
    gray, mask = np.full((9, 9, 3), 128, np.uint8), disc(60, 70)[0]
    plain = make("none")
    assert torch.equal(levels(compositor(front, gray, mask)), levels(plain(front, gray, mask)))
    photograph = Image.fromarray(front)
    for background in (None, "white", "blur", Image.fromarray(back)):
        cut, uncut = (
            np.asarray(remove(photograph, background, mask=mask, compositor=one))
            for one in (compositor, plain)
        )
        assert np.array_equal(cut, uncut) == (background in (None, "white", "blur"))


def test_a_change_is_that_of_the_subject_alone_however_transparent() -> None:
    before = torch.rand(1, 3, 70, 80)
    for most in (1.0, 0.3):
        mask = most * disc(70, 80, 0.2)
        change = change_between(before, before + 0.1 * mask, mask)
        found = change(torch.full((1, 3, 140, 160), 0.5), WHOLE)
        near = resize(mask, (140, 160))[0, 0] > 0.05
        assert (found[0, :, near] - 0.6).abs().max() < 1e-4
    nothing = change_between(before, before, torch.zeros(1, 1, 70, 80))
    assert torch.equal(nothing(before, WHOLE), before)


class Wrong(HarmonizerModel):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring:
        return lambda colors, place: self.answer(colors)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda colors: colors[:, :1], r"must have shape \(B, 3, H, W\)"),
        (lambda colors: colors * torch.nan, r"must lie in \[0, 1\]"),
        (lambda colors: colors + 1, r"must lie in \[0, 1\]"),
        (lambda colors: None, "must be a torch tensor, not NoneType"),
    ],
)
def test_a_wrong_answer_is_the_harmonizer_s(answer: Any, said: str) -> None:
    front, back = noise(40, 50), noise(40, 50, seed=1)
    for own in (Wrong(answer), lambda composite, mask: answer(composite)):
        with pytest.raises(CompositingError, match=f"the harmonizer's output is invalid: .*{said}"):
            make(own)(front, back, disc(40, 50)[0])
