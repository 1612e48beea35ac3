"""Shadows in composites and cut-outs: where they are laid, and what stays as it was."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deep_image_compositing import Composite, Compositor, remove
from deep_image_compositing.cli import main
from deep_image_compositing.errors import UsageError
from deep_image_compositing.fullsize import as_floats
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.shadow import darken
from deep_image_compositing.placement import Placement
from deep_image_compositing.settings import DIRECTIONS, Shadow
from deep_image_compositing.shadows import BAND, Shade, find_shade, floor_row, lay_shade
from tests.conftest import noise

KINDS: tuple[Any, ...] = ("contact", "cast", ("cast", {"direction": "front", "length": 2}))
LIGHT = ["--refiner", "none", "--fuser", "alpha"]


def figure(size: tuple[int, int] = (120, 160), bottom: float = 0.8) -> np.ndarray:
    """The mask of somebody on two legs, (H, W) uint8, whose feet end at a share of the height."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
    rows, columns = (rows + 0.5) / size[0], (columns + 0.5) / size[1]
    body = (abs(columns - 0.5) < 0.1) & (rows > 0.15) & (rows < bottom - 0.25)
    legs = (abs(abs(columns - 0.5) - 0.06) < 0.03) & (rows > 0.3) & (rows < bottom)
    return np.where(body | legs, 255, 0).astype(np.uint8)


def scene(size: tuple[int, int] = (120, 160), seed: int = 0) -> np.ndarray:
    """A photograph of bright noise, (H, W, 3) uint8."""
    return noise(*size, seed) // 2 + 60


def make(shadow: Any = None, size: tuple[int, int] = (120, 160), **options: Any) -> Composite:
    compositor = Compositor(refiner="none", fuser="alpha", shadow=shadow)
    options.setdefault("mask", figure(size))
    return compositor(scene(size), options.pop("background", scene(size, 1)), **options)


def levels(composite: Composite) -> Tensor:
    return to_bytes(composite.cutout_levels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_background_is_darkened_and_nothing_else_changes(kind: Any) -> None:
    plain, shaded = make(), make(kind)
    assert plain.shade is None
    shade = shaded.shade.full(shaded.size)
    before, after = plain.composite_pixels, shaded.composite_pixels
    kept = ((levels(shaded) == 255) | (shade == 0)).expand(3, -1, -1)
    assert torch.equal(after[kept], before[kept])
    assert bool((after <= before).all())
    assert float((after < before).float().mean()) > 0.02
    assert torch.equal(shaded.background_pixels, plain.background_pixels)
    assert torch.equal(shaded.cutout, plain.cutout)
    behind, opacity = shaded.background, as_floats(levels(shaded))
    expected = plain.composite + (1 - opacity) * (darken(behind, shade) - behind)
    assert float((shaded.composite - expected).abs().max()) <= 1 / 255


def test_the_same_is_the_same_and_a_shadow_can_be_added_afterwards() -> None:
    first, second, added = make("cast"), make("cast"), make().with_shadow("cast")
    assert torch.equal(first.composite_pixels, second.composite_pixels)
    assert torch.equal(first.composite_pixels, added.composite_pixels)
    plain = make()
    before = plain.composite_pixels.clone()
    plain.with_shadow("contact")
    assert torch.equal(plain.composite_pixels, before)
    with pytest.raises(UsageError, match="has a shadow already"):
        first.with_shadow("contact")


@pytest.mark.parametrize("kind", ["contact", "cast"])
def test_an_enlarged_picture_has_the_enlarged_shadow(kind: str) -> None:
    shades = []
    for factor in (1, 2, 5):
        size = (120 * factor, 160 * factor)
        alpha = torch.from_numpy(figure(size))[None]
        back = torch.full((3, *size), 200, dtype=torch.uint8)
        full = find_shade(alpha, back, Shadow(kind), None).full(size)
        shades.append(torch.nn.functional.avg_pool2d(full, factor))
    for other in shades[1:]:
        assert float((other - shades[0]).abs().max()) < 0.12  # at the core, on whole pixels
        assert float((other - shades[0]).abs().mean()) < 0.003


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (31, 1), (37, 53), (3, 200)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_works(size: tuple[int, int], kind: Any) -> None:
    alpha = torch.zeros(1, *size, dtype=torch.uint8)
    alpha[:, : size[0] // 2 + 1, size[1] // 3 : size[1] // 2 + 1] = 255
    back = torch.full((3, *size), 180, dtype=torch.uint8)
    shade = find_shade(alpha, back, Shadow.of(kind), None)
    composite = back.clone()
    lay_shade(composite, back, alpha, shade)
    assert float(shade.full(size).max()) <= 1
    inside = (alpha == 255).expand(3, -1, -1)
    assert bool((composite[inside] == 180).all())


def test_bands_of_rows_are_parts_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    shade = Shade(torch.rand(9, 12, generator=generator), top=-3.5, left=20.0, scale=0.06)
    whole = shade.full((200, 250))
    assert 3 * BAND < 200
    part = (slice(70, 131), slice(33, 200))
    bands = torch.cat([band for _, band in shade.bands(part)], 1)
    assert torch.equal(bands, whole[:, part[0], part[1]])
    rows, columns = shade.box((200, 250))
    outside = whole.clone()
    outside[:, rows, columns] = 0
    assert float(outside.max()) == 0
    assert Shade(shade.values, top=300.0).box((200, 250)) is None
    enlarged = shade.resized(2.0).full((400, 500))
    assert float((enlarged[:, ::2, ::2] - whole).abs().max()) < 0.05


def test_a_subject_that_is_cut_off_gets_none_and_one_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "deep_image_compositing"):
        cut = make("cast", mask=figure(bottom=1.2))
    assert sum("cut off at the bottom" in record.message for record in caplog.records) == 1
    assert torch.equal(cut.composite_pixels, make(mask=figure(bottom=1.2)).composite_pixels)
    assert float(cut.shadow.max()) == 0
    assert cut.floor == 120


def test_where_a_subject_is_cut_off_is_known_wherever_it_is_placed() -> None:
    whole, cut, cropped = figure(), figure(bottom=1.2), np.full((40, 30), 255, np.uint8)
    alphas = [torch.from_numpy(alpha)[None] for alpha in (whole, cut, cropped)]
    assert [floor_row(a, (a.shape[1], a.shape[2])) for a in alphas] == [None, 120, None]
    frame = (300, 400)
    inside, below = Placement((60, 80), 100, 10), Placement((240, 320), 150, 0)
    assert [floor_row(a, frame, inside) for a in alphas] == [None, 160, None]
    assert floor_row(alphas[0], frame, below) == 300
    assert floor_row(alphas[0], frame, Placement((240, 320), 300 - 192, 0)) is None


def test_feet_on_the_lower_border_of_the_frame_stand_on_the_ground() -> None:
    placed = {"frame": "background", "scale": 0.6, "position": (0.5, 1.0)}
    assert bool((make("contact", **placed).composite != make(**placed).composite).any())


@pytest.mark.parametrize("kind", ["contact", "cast"])
def test_the_layer_over_the_background_and_under_the_cut_out_gives_the_composite(
    kind: str, tmp_path: Path
) -> None:
    gray = np.repeat(scene(seed=1)[..., :1], 3, 2)
    composite = make(kind, background=gray)
    composite.save(shadow=tmp_path / "shadow.png", cutout=tmp_path / "cutout.png")
    laid = Image.fromarray(gray).convert("RGBA")
    for name in ("shadow", "cutout"):
        laid.alpha_composite(Image.open(tmp_path / f"{name}.png"))
    seen = torch.from_numpy(np.array(laid)[..., :3]).permute(2, 0, 1).int()
    assert int((seen - composite.composite_pixels.int()).abs().max()) <= 2
    layer = np.array(Image.open(tmp_path / "shadow.png"))
    assert layer[..., :3].max() == 0
    assert layer[0, 0, 3] == 0


def test_a_cut_out_with_its_shadow_is_the_composite_on_white() -> None:
    compositor = Compositor(refiner="none", fuser="alpha")
    soft = np.asarray(Image.fromarray(figure()).resize((80, 60), Image.Resampling.BILINEAR))
    soft = np.asarray(Image.fromarray(soft).resize((160, 120), Image.Resampling.BILINEAR))
    for kind in ("contact", ("cast", {"direction": "left", "softness": 0.3})):
        options: dict[str, Any] = {"mask": soft, "shadow": kind, "compositor": compositor}
        cutout = Image.fromarray(remove(scene(), **options))
        white = Image.new("RGBA", cutout.size, "white")
        white.alpha_composite(cutout)
        expected = remove(scene(), "white", **options).astype(int)
        difference = np.abs(np.asarray(white)[..., :3] - expected)
        assert difference.max() <= 2
        assert expected.min() < 250
    bare = remove(scene(), mask=soft, compositor=compositor)
    inside = bare[..., 3] == 255
    np.testing.assert_array_equal(np.asarray(cutout)[inside], bare[inside])
    assert (np.asarray(cutout)[..., 3] > bare[..., 3]).mean() > 0.02


def test_a_compositor_that_makes_shadows_makes_them_for_cut_outs() -> None:
    compositor = Compositor(refiner="none", fuser="alpha", shadow="contact")
    plain = Compositor(refiner="none", fuser="alpha")
    given = remove(scene(), mask=figure(), shadow="contact", compositor=plain)
    np.testing.assert_array_equal(remove(scene(), mask=figure(), compositor=compositor), given)
    with pytest.raises(UsageError, match="the photograph's own"):
        remove(scene(), "blur", mask=figure(), shadow="contact", compositor=plain)


@pytest.mark.parametrize(
    ("shadow", "message"),
    [
        ("drop", "no shadow 'drop'; use contact or cast"),
        (("cast", {"hight": 1}), "takes no option 'hight'.*here are: strength"),
        (("contact", {"direction": "left"}), "'contact' takes no option 'direction'"),
        (("cast", {"direction": "up"}), "or right, behind, left, front; got 'up'"),
        (("cast", {"length": 9}), "length is a number from 0.05 to 4; got 9"),
        (("cast", {"softness": float("nan")}), "softness is a number from 0 to 1"),
        (("contact", {"strength": True}), "strength is a number from 0 to 1; got True"),
        (3, "or a pair of one and its options, got 3"),
    ],
)
def test_a_shadow_that_cannot_be_is_told_early(shadow: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Compositor(segmenter="grabcut", refiner="none", fuser="alpha", shadow=shadow)


def test_options_mean_what_they_say() -> None:
    assert Shadow.of(("cast", {"direction": -35})) == Shadow("cast", direction=325.0)
    left = Shadow.of(("cast", {"direction": "left"}))
    assert left == Shadow("cast", direction=DIRECTIONS["left"])
    assert Shadow.of(left) is left
    for wrong in (("long",), ("cast", 9.0), ("contact", 0.5, 0.5, 90.0)):
        with pytest.raises(UsageError, match=r"there is no|from 0 to 1|takes no"):
            Shadow(*wrong)
    faint, strong = (make(("contact", {"strength": x})).composite.mean() for x in (0.2, 0.9))
    assert faint > strong
    assert torch.equal(make(("cast", {"strength": 0})).composite, make().composite)
    with pytest.raises(UsageError, match="no shadow to save"):
        make().save(shadow="shadow.png")


def test_the_light_of_the_background_decides_unless_it_is_told() -> None:
    bright = np.linspace(20, 255, 160).astype(np.uint8)
    back = np.repeat(np.repeat(bright[None, :, None], 120, 0), 3, 2)
    shades = [
        make(kind, background=behind).shade.full((120, 160))
        for kind, behind in (
            ("cast", back),
            ("cast", back[:, ::-1].copy()),
            (("cast", {"direction": "right"}), back),
        )
    ]
    left, right = ([float(part.sum()) for part in (s[..., :70], s[..., 90:])] for s in shades[:2])
    assert left[0] > 2 * left[1]
    assert right[1] > 2 * right[0]
    assert float(shades[2][..., 90:].sum()) > 2 * float(shades[2][..., :70].sum())


def saved(folder: Path) -> Path:
    """A folder with a photograph, another one, their mask and a background."""
    (folder / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(scene()).save(folder / "in" / f"{name}.png")
    Image.fromarray(figure()).save(folder / "mask.png")
    Image.fromarray(scene(seed=1)).save(folder / "back.png")
    return folder


def test_the_command_writes_the_shadow_of_one_photograph_and_of_a_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    more = ["--mask", f"{folder}/mask.png", *LIGHT]
    cast = ["--shadow", "cast", "--shadow-option", "direction=left", "--shadow-option", "length=2"]
    composite = ["composite", f"{folder}/in/a.png", f"{folder}/back.png", *more, *cast]
    files = ["-o", f"{folder}/one.png", "--save-shadow", f"{folder}/layer.png"]
    assert main([*composite, *files, "--save-steps", f"{folder}/steps.png"]) == 0
    expected = make(("cast", {"direction": "left", "length": 2}))
    pixels = expected.composite_pixels.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "one.png")), pixels)
    composite[1] = f"{folder}/in"
    files = ["-o", f"{folder}/out", "--save-shadow", f"{folder}/layers"]
    assert main([*composite, *files]) == 0
    for name in ("a", "b"):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"out/{name}.png")), pixels)
        layer = np.asarray(Image.open(folder / f"layers/{name}.png"))
        np.testing.assert_array_equal(layer, np.asarray(Image.open(folder / "layer.png")))


def test_the_command_cuts_out_with_a_shadow(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    cutout = ["cutout", f"{folder}/in/a.png", "--mask", f"{folder}/mask.png", *LIGHT]
    assert main([*cutout, "-o", f"{folder}/one.png", "--shadow", "contact"]) == 0
    compositor = Compositor(refiner="none", fuser="alpha")
    expected = remove(scene(), mask=figure(), shadow="contact", compositor=compositor)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "one.png")), expected)
    sent = remove((folder / "in/a.png").read_bytes(), mask=figure(), shadow="contact",
                  compositor=compositor)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent))), expected)


def test_the_command_tells_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path)
    files = [f"{folder}/in/a.png", f"{folder}/back.png", "-o", f"{folder}/one.png"]
    for more, message in (
        (["--shadow", "drop"], "invalid choice: 'drop'"),
        (["--shadow-option", "length=1"], "--shadow-option takes effect only with --shadow"),
        (["--save-shadow", "x.png"], "--save-shadow takes effect only with --shadow"),
        (["--shadow", "contact", "--shadow-option", "length=1"], "takes no option 'length'"),
        (["--shadow", "cast", "--shadow-option", "length=long"], "got 'long'"),
        (["--shadow", "cast", "--save-shadow", "shadow.jpg"], "cannot hold an alpha"),
    ):
        assert main(["composite", *files, *LIGHT, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "one.png").exists()
