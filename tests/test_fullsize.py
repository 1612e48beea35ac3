"""Work at full size: tiles give what the whole would, and what is solid is copied bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing import Compositor
from deep_image_compositing.fullsize import (
    Fused,
    Repainted,
    Scene,
    fuse_tiles,
    lift_refined,
    refine_full_mask,
    rim_blocks,
    to_bytes,
)
from deep_image_compositing.functional.compose import dilate, erode
from deep_image_compositing.functional.lift import follow_alpha, make_guide, snap_alpha
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.functional.tiles import Grid
from deep_image_compositing.metrics.composites import rim_band
from deep_image_compositing.models.fusion.classical import LaplacianModel
from deep_image_compositing.stages.base import Layers
from deep_image_compositing.stages.fusion import (
    AlphaFuser,
    CopyPasteFuser,
    FeatherFuser,
    LaplacianFuser,
    MultiStreamFuser,
)
from tests.conftest import disc, noise
from tests.functional.test_exactness import strands
from tests.whole import fuse_whole, recorded_layers

CPU = torch.device("cpu")


def planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def smooth(height: int, width: int, seed: int) -> Tensor:
    """A photograph with structure that survives shrinking, (3, H, W) uint8."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 30, 40, generator=random)
    fine = torch.rand(1, 3, height, width, generator=random) - 0.5
    return to_bytes((resize(coarse, (height, width), "bicubic") + 0.1 * fine)[0])


def steps(one: Tensor, other: Tensor) -> int:
    """The largest difference in 8-bit steps."""
    return int((one.short() - other.short()).abs().max())


def whole_of(fuser: Any, pixels: Tensor, backdrop: Tensor, alpha: Tensor) -> Tensor:
    front, back = pixels[None] / 255, backdrop[None] / 255
    return to_bytes(fuser(front, back, alpha[None] / 255)[0])


def scene(pixels: Tensor, backdrop: Tensor, alpha: Tensor) -> Scene:
    return Scene(pixels, backdrop, alpha, False, 896, CPU)


def in_tiles(fuser: Any, pixels: Tensor, backdrop: Tensor, alpha: Tensor) -> Fused:
    def fuse(front: Tensor, back: Tensor, opacity: Tensor) -> Tensor | Layers:
        layers = fuser.layers(front, back, opacity)
        return fuser(front, back, opacity) if layers is None else layers

    return fuse_tiles(scene(pixels, backdrop, alpha), fuse, fuser.tile_context)


# What is copied, what is painted


def test_repainted_lays_colours_over_a_copy() -> None:
    pixels = planes(noise(4, 5))
    before = pixels.clone()
    parts = [torch.tensor([0, 7]), torch.tensor([19])]
    colors = [torch.tensor([[1, 2], [3, 4], [5, 6]]).byte(), torch.tensor([[7], [8], [9]]).byte()]
    out = Repainted(torch.cat(parts), torch.cat(colors, 1)).apply_to(pixels)
    assert out[:, 0, 0].tolist() == [1, 3, 5]
    assert out[:, 1, 2].tolist() == [2, 4, 6]
    assert out[:, 3, 4].tolist() == [7, 8, 9]
    assert int((out != pixels).any(0).sum()) <= 3
    assert torch.equal(pixels, before)
    assert torch.equal(Repainted().apply_to(pixels), pixels)


def test_repainted_takes_views_whose_rows_are_not_contiguous() -> None:
    pixels = torch.from_numpy(noise(4, 5)).permute(2, 0, 1)
    color = torch.tensor([[1], [2], [3]], dtype=torch.uint8)
    out = Repainted(torch.tensor([6]), color).apply_to(pixels)
    assert out[:, 1, 1].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("height", "width"), [(300, 400), (293, 401)])
def test_solid_cells_are_copies_bit_for_bit(height: int, width: int) -> None:
    pixels, backdrop = planes(noise(height, width)), planes(noise(height, width, seed=1))
    alpha = to_bytes(disc(height, width, 0.02)[0])
    fused = in_tiles(AlphaFuser(), pixels, backdrop, alpha)
    assert 0 < fused.touched < fused.cells
    level = alpha.expand(3, -1, -1)
    assert torch.equal(fused.composite[level == 255], pixels[level == 255])
    assert torch.equal(fused.composite[level == 0], backdrop[level == 0])
    assert torch.equal(fused.alpha, alpha)
    assert fused.repainted.indices.numel() == 0


def test_only_what_shows_and_differs_is_repainted() -> None:
    pixels, backdrop = planes(noise(300, 400)), planes(noise(300, 400, seed=1))
    alpha = to_bytes(disc(300, 400, 0.1)[0])

    def darker(front: Tensor, back: Tensor, opacity: Tensor) -> Layers:
        return Layers(opacity, torch.where(opacity == 1, front, front / 2))

    fused = fuse_tiles(scene(pixels, backdrop, alpha), darker, 4)
    rows, columns = fused.repainted.indices // 400, fused.repainted.indices % 400
    level = alpha[0, rows, columns]
    assert ((level > 0) & (level < 255)).all()
    own = fused.repainted.apply_to(pixels)
    soft = (alpha > 0) & (alpha < 255)
    assert steps(own * soft, to_bytes(pixels / 510) * soft) <= 1
    assert torch.equal(own * ~soft, pixels * ~soft)


# Tiles against the whole


@pytest.mark.parametrize("size", [(400, 500), (401, 497), (523, 97)])
def test_lifting_in_tiles_is_lifting_the_whole(size: tuple[int, int]) -> None:
    pixels = planes(noise(*size))
    at = (size[0] // 3, size[1] // 3)
    image = resize(pixels[None] / 255, at)
    alpha = snap_alpha(disc(*at, 0.05), 18)
    tiled = lift_refined(pixels, image, alpha)
    whole = follow_alpha(resize(make_guide(image, alpha), size), pixels[None] / 255)
    assert steps(tiled, to_bytes(whole[0])) <= 1


@pytest.mark.parametrize("size", [(352, 448), (351, 449)])
@pytest.mark.parametrize(
    ("fuser", "allowed"),
    [
        (CopyPasteFuser(), 0),
        (FeatherFuser(), 1),
        (AlphaFuser(), 0),
        (LaplacianFuser(), 1),
        (LaplacianFuser(levels=2), 1),
        # Windows of 90 and 6 pixels reach farther than the 48 pixels of context that are allowed.
        (AlphaFuser(foreground_color="blur_fusion", radii=(20, 6)), 2),
    ],
    ids=["copy_paste", "feather", "alpha", "laplacian", "laplacian-2", "blur_fusion"],
)
def test_fusing_in_tiles_is_fusing_the_whole(
    fuser: Any, allowed: int, size: tuple[int, int]
) -> None:
    pixels, backdrop = smooth(*size, 1), smooth(*size, 2)
    alpha = to_bytes(disc(*size, 0.05)[0])
    fused = in_tiles(fuser, pixels, backdrop, alpha)
    assert 0 < fused.touched < fused.cells
    assert steps(fused.composite, whole_of(fuser, pixels, backdrop, alpha)) <= allowed


def test_a_filter_of_a_given_mask_in_tiles_is_that_of_the_whole() -> None:
    pixels, mask = planes(noise(300, 401)), to_bytes(disc(300, 401, 0.01)[0])

    def spread(image: Tensor, alpha: Tensor) -> Tensor:
        return (dilate(alpha, 5) + erode(alpha, 5)) / 2

    tiled = refine_full_mask(pixels, mask, spread, 10, CPU)  # tiles blend over half
    whole = spread(pixels[None] / 255, mask[None] / 255)[0]
    assert steps(tiled, to_bytes(whole)) <= 1


@pytest.mark.parametrize(("size", "side"), [((461, 587), 192), ((460, 580), 256)])
def test_finer_layers_in_tiles_are_those_of_the_whole(size: tuple[int, int], side: int) -> None:
    torch.manual_seed(0)
    fuser = MultiStreamFuser(widths=(8, 8), finer_widths=(8, 12), start="given")
    assert fuser.finer is not None
    with torch.no_grad():  # corrections of a few steps, as trained ones are
        fuser.finer.head.weight.normal_(0, 0.02)
    compositor = Compositor(
        lambda image: disc(image.shape[-2], image.shape[-1], 0.02),
        lambda image, mask: mask,
        fuser,
        device="cpu",
        work_side=side,
    )
    front, back = (smooth(*size, seed).permute(1, 2, 0).contiguous().numpy() for seed in (1, 2))
    given: list[tuple[Any, ...]] = []
    with recorded_layers(given):
        result = compositor(front, back)
    (call,) = given
    assert call[4] is not None  # the finer network was asked
    with torch.inference_mode():
        whole = fuse_whole(*call)
        coarse = fuse_whole(*call[:4], None, 0)
    band = rim_band(result.alpha[None])[0].expand(3, -1, -1)
    assert steps(whole[band], coarse[band]) >= 3
    assert steps(result.composite_pixels[band], whole[band]) <= 1
    assert steps(result.composite_pixels, whole) <= 1


@pytest.mark.parametrize("refiner", ["cascade", "none"])
def test_an_exact_alpha_keeps_its_detail_beyond_the_working_size(refiner: str) -> None:
    torch.manual_seed(0)
    fuser = MultiStreamFuser(widths=(8, 8), finer_widths=(8, 12))
    assert fuser.finer is not None
    with torch.no_grad():
        fuser.network.head.weight.normal_()
        fuser.finer.head.weight.normal_(0, 0.02)
    small = {"backbone": "test_efficientnet", "width": 8, "weights": None}
    compositor = Compositor(
        refiner=(refiner, small if refiner == "cascade" else {}),
        fuser=fuser,
        device="cpu",
        work_side=256,
    )
    photograph, alpha = strands(400)
    front, mask = (to_bytes(x[0]).permute(1, 2, 0).squeeze(-1).numpy() for x in (photograph, alpha))
    given: list[tuple[Any, ...]] = []
    with recorded_layers(given):
        result = compositor(front, noise(400, 400), mask=mask)
    assert np.array_equal(result.cutout_levels[0].numpy(), mask)
    with torch.inference_mode():
        assert steps(result.composite_pixels, fuse_whole(*given[0])) <= 1
    fuser.keep_exact = False
    changed = compositor(front, noise(400, 400), mask=mask).cutout_levels[0].numpy()
    assert np.abs(changed.astype(int) - mask).max() > 50


def test_a_subject_cut_off_by_the_picture_s_border_is_in_phase_too() -> None:
    """At sides that no stride divides, the last windows were once out of step with the others."""

    def cut(height: int, width: int) -> Tensor:
        return disc(2 * height, 2 * width, 0.05)[..., :height, :width]

    size = (479, 641)
    pixels, backdrop, alpha = smooth(*size, 1), smooth(*size, 2), to_bytes(cut(*size)[0])
    fuser = LaplacianFuser(levels=6)
    fused = in_tiles(fuser, pixels, backdrop, alpha)
    assert steps(fused.composite, whole_of(fuser, pixels, backdrop, alpha)) <= 1
    torch.manual_seed(0)
    learned = MultiStreamFuser(widths=(8, 8), finer_widths=(8, 12, 16), start="given")
    assert learned.finer is not None
    with torch.no_grad():
        learned.finer.head.weight.normal_(0, 0.02)
    compositor = Compositor(
        lambda image: cut(image.shape[-2], image.shape[-1]),
        lambda image, mask: mask,
        learned,
        device="cpu",
        work_side=256,
    )
    given: list[tuple[Any, ...]] = []
    with recorded_layers(given):
        result = compositor(*(x.permute(1, 2, 0).numpy() for x in (pixels, backdrop)))
    with torch.inference_mode():
        assert steps(result.composite_pixels, fuse_whole(*given[0])) <= 1


def test_a_wide_context_does_not_cost_the_frame_again_for_every_cell() -> None:
    size, seen = (400, 500), []
    pixels, backdrop, alpha = smooth(*size, 1), smooth(*size, 2), to_bytes(disc(*size, 0.05)[0])
    fuser = LaplacianModel(levels=7)

    def fuse(front: Tensor, back: Tensor, opacity: Tensor) -> Tensor:
        seen.append(front.shape[0] * front.shape[-2] * front.shape[-1])
        return fuser(front, back, opacity)

    fused = fuse_tiles(scene(pixels, backdrop, alpha), fuse, fuser.tile_context)
    assert sum(seen) <= 9 * size[0] * size[1]
    assert steps(fused.composite, whole_of(fuser, pixels, backdrop, alpha)) <= 1


# Who sees what


class Watched(AlphaFuser):
    """Remembers the sizes of what it is shown."""

    def __init__(self, context: int | None) -> None:
        super().__init__()
        self.tile_context = context
        self.sizes: list[tuple[int, int]] = []

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers:
        self.sizes.append((foreground.shape[-2], foreground.shape[-1]))
        return super().layers(foreground, background, alpha)


@pytest.mark.parametrize("context", [0, 10, None])
def test_who_states_a_context_sees_tiles_and_who_does_not_the_whole(context: int | None) -> None:
    fuser = Watched(context)
    compositor = Compositor(
        lambda image: disc(image.shape[-2], image.shape[-1], 0.02),
        lambda image, mask: mask,
        fuser,
        device="cpu",
        work_side=128,
    )
    result = compositor(noise(500, 700), noise(500, 700, seed=1))
    if context is None:
        ((height, width),) = fuser.sizes  # the subject's surroundings, at full size
        assert 250 < height <= 500
        assert 350 < width <= 700
        assert result.tiles == (0, 0)
    else:
        assert set(fuser.sizes) == {Grid(500, 700, context=context).window}
        touched, cells = result.tiles
        assert 0 < touched < cells == 6 * 8


@pytest.mark.parametrize("context", [8, None])
def test_a_refiner_with_a_context_sees_the_small_whole_and_then_tiles(context: int | None) -> None:
    sizes = []

    class Keep(torch.nn.Module):
        tile_context = context

        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            sizes.append((image.shape[-2], image.shape[-1]))
            return mask

    segmenter: Callable[[Tensor], Tensor] = lambda x: disc(x.shape[-2], x.shape[-1], 0.02)  # noqa: E731
    compositor = Compositor(segmenter, Keep(), AlphaFuser(), device="cpu", work_side=160)
    compositor(noise(480, 640), noise(480, 640, seed=1))
    assert sizes[0] == (120, 160)
    assert set(sizes[1:]) == (set() if context is None else {(112, 112)})


@pytest.mark.parametrize("size", [(160, 240), (157, 243), (3, 5)])
@pytest.mark.parametrize("reach", [0, 3, 22])
def test_rim_blocks_miss_nothing_within_reach(size: tuple[int, int], reach: int) -> None:
    alpha = to_bytes(disc(*size, 0.1)[0])
    marked = rim_blocks(alpha, reach)
    assert marked.shape == (-(-size[0] // 8), -(-size[1] // 8))
    rim = ((alpha > 2) & (alpha < 253))[None].float()
    near = F.max_pool2d(rim, 2 * reach + 1, 1, reach)[0, 0] > 0
    full = marked.repeat_interleave(8, 0).repeat_interleave(8, 1)[: size[0], : size[1]]
    assert not (near & ~full).any()
    assert not rim_blocks(torch.full((1, *size), 255, dtype=torch.uint8), reach).any()
    assert not rim_blocks(torch.zeros((1, *size), dtype=torch.uint8), reach).any()
