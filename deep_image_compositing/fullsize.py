"""Refinement and fusion at full resolution: tiles along the subject's rim, plain copies elsewhere.

Pictures stay 8-bit; only one strip of tiles is in floating point at a time, so time and memory grow
with the length of the subject's outline rather than the picture's area. Tiles get their global
context from a low-resolution pass; see ``deep_image_compositing.functional.lift``. The compositor
also fuses pictures within the working size here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.boxes import Box, grow
from deep_image_compositing.functional.compose import dilate, erode, over, unknown_band
from deep_image_compositing.functional.lift import (
    NEAR,
    REACH,
    follow_alpha,
    follow_guide,
    make_guide,
)
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.functional.tiles import (
    Grid,
    enlarged_windows,
    fill_cells,
    touched_cells,
    window_of,
    work_on_cells,
)
from deep_image_compositing.inference import find_override, is_learned, run_checked, run_layers
from deep_image_compositing.models.base import Layers
from deep_image_compositing.placement import resample, subject_box

BLOCK = 8
"""Side in pixels of the blocks in which a full-size alpha is searched for its rim."""

MARGIN = 64
"""Pixels around the subject that a fuser also sees."""

UNCHANGED = 0.06
"""Largest change by which a fuser may snap alpha to 0 or 1 and still count as not changing it."""

Corners: TypeAlias = list[tuple[int, int]]
"""(top, left) of each window in the frame."""


class Repainted(NamedTuple):
    """Pixels whose colour differs from the photograph's; by default none."""

    indices: Tensor = torch.zeros(0, dtype=torch.int64)
    """(N,) int64, into the flattened (H · W) picture."""
    colors: Tensor = torch.zeros(3, 0, dtype=torch.uint8)
    """(3, N) uint8."""

    @classmethod
    def where_changed(cls, pixels: Tensor, color: Tensor, alpha: Tensor) -> Repainted:
        """Where alpha is not 0 and ``color`` differs from ``pixels``, both (3, H, W) uint8."""
        rows, columns = ((color != pixels).any(0) & (alpha[0] > 0)).nonzero(as_tuple=True)
        return cls(rows * pixels.shape[-1] + columns, color[:, rows, columns])

    def apply_to(self, pixels: Tensor) -> Tensor:
        """A copy of ``pixels`` (3, H, W), uint8, with these colours."""
        out = pixels.clone(memory_format=torch.contiguous_format)
        out.view(3, -1)[:, self.indices] = self.colors
        return out


NO_CHANGES = Repainted()


class Colors(Protocol):
    """How a subject's colours differ from its photograph."""

    def apply_to(self, pixels: Tensor) -> Tensor:
        """A copy of ``pixels`` (3, H, W), uint8, with the subject's colours."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Inputs of fusion and harmonization, at the frame's size.

    ``mask_unchanged`` means that ``alpha`` is the user's mask, which the refiner did not change.
    ``work_side`` and ``device`` are as for ``Compositor``.
    """

    pixels: Tensor  # (3, H, W) uint8, the subject's photograph
    backdrop: Tensor  # (3, H, W) uint8, the new background
    alpha: Tensor  # (1, H, W), uint8 or float in [0, 1]
    mask_unchanged: bool
    work_side: int
    device: torch.device

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass(frozen=True, eq=False)
class Fused:
    """The result of fusion: ``composite`` (3, H, W), uint8, and the fuser's ``alpha`` (1, H, W).

    ``touched`` of the frame's ``cells`` were processed in tiles. ``layered`` is False if the fuser
    painted the composite itself instead of returning layers.
    """

    composite: Tensor
    alpha: Tensor
    repainted: Colors = NO_CHANGES
    cells: int = 0
    touched: int = 0
    layered: bool = True


# Alpha


def lift_refined(
    pixels: Tensor,
    image: Tensor,
    alpha: Tensor,
    refine: Callable[[Tensor, Tensor], Tensor] | None = None,
    context: int = 0,
) -> Tensor:
    """Upsample ``alpha`` (1, 1, h, w) along the edges of the photograph; (1, H, W) uint8.

    ``image`` (1, 3, h, w) is ``pixels`` (3, H, W) at low resolution. ``refine`` corrects the
    upsampled alpha of each tile and depends on ``context`` pixels around it. Away from the rim the
    result is exactly 0 or 255.
    """
    height, width = pixels.shape[-2:]
    grid, frame = Grid.over(pixels, context), (slice(0, height), slice(0, width))
    guide = make_guide(image.float(), alpha.float())
    touched = touched_cells(grid, guide[0, 1].cpu() > 0)
    inside = touched_cells(grid, alpha[0, 0].cpu() > 0.5)
    out = torch.zeros(1, height, width, dtype=torch.uint8)
    fill_cells(grid, ~touched & inside, lambda *span: out[:, *span].fill_(255))

    def make(corners: Corners) -> Tensor:
        photograph = _windows(pixels, grid, corners, guide.device)
        lifted = follow_alpha(enlarged_windows(guide, grid, corners, frame), photograph)
        return lifted if refine is None else refine(photograph, lifted)

    return _levels(out, grid, touched, make, guide.device)


def refine_full_mask(
    pixels: Tensor,
    mask: Tensor,
    refine: Callable[[Tensor, Tensor], Tensor],
    context: int,
    device: torch.device,
) -> Tensor:
    """Refine a full-size mask in tiles along its rim, and threshold it at 0.5 elsewhere.

    ``mask`` and the result are (1, H, W) uint8. ``context`` is as in ``lift_refined``.
    """
    grid = Grid.over(pixels, context)
    touched = touched_cells(grid, rim_blocks(mask, REACH))

    def make(corners: Corners) -> Tensor:
        return refine(*(_windows(x, grid, corners, device) for x in (pixels, mask)))

    return _levels((mask > 127).byte().mul_(255), grid, touched, make, device)


def _levels(
    out: Tensor,
    grid: Grid,
    touched: Tensor,
    make: Callable[[Corners], Tensor],
    device: torch.device,
) -> Tensor:
    """Write the output of ``make`` for the touched cells into ``out`` (1, H, W), uint8."""
    for top, bottom, (levels,), covered in work_on_cells(grid, touched, make, 1, device):
        out[0, top:bottom][covered.cpu()] = to_bytes(levels[covered]).cpu()
    return out


# Composites


def fuse(stage: Callable[..., Any], scene: Scene) -> Fused:
    """Run the fuser ``stage`` on a scene, at the frame's size."""
    get_layers, context = find_override(stage, "layers"), getattr(stage, "tile_context", None)

    def fuse_part(front: Tensor, back: Tensor, opacity: Tensor) -> Layers | Tensor:
        """The fuser's layers if it has any, else its composite."""
        layers = get_layers and run_layers(get_layers, front, back, opacity)
        if layers is not None:
            return layers
        return run_checked("fuser", "composite", stage, front, back, opacity)

    if context is not None and max(scene.size) > scene.work_side and not is_learned(stage):
        return fuse_tiles(scene, fuse_part, context)
    fused = get_layers and _fuse_box(stage, get_layers, scene)
    if fused is not None:
        return fused
    pictures = (floats(x, scene.size, scene.device) for x in (scene.pixels, scene.backdrop))
    opacity = as_floats(scene.alpha)[None].to(scene.device)
    composite = run_checked("fuser", "composite", stage, *pictures, opacity)[0]
    return Fused(to_bytes(composite.cpu()), scene.alpha, layered=False)


def _fuse_box(stage: Callable[..., Any], run: Callable[..., Any], scene: Scene) -> Fused | None:
    """Fuse the subject's surroundings by the layers from ``run``; None if it returns None."""
    pixels, backdrop, alpha = scene.pixels, scene.backdrop, scene.alpha
    # Crop to the subject first, so that downscaling does not shrink a small one needlessly.
    box = grow(subject_box(alpha, 0.0), MARGIN, scene.size)
    part = (..., *box)
    size = (box[0].stop - box[0].start, box[1].stop - box[1].start)
    at = fit_long_side(*size, scene.work_side) if is_learned(stage) else size
    foreground, background = (floats(x[part], at, scene.device) for x in (pixels, backdrop))
    small = resize(as_floats(alpha[part])[None], at).clamp(0, 1).to(scene.device)
    layers = run_layers(run, foreground, background, small)
    if layers is None:
        return None
    if at != size:
        unchanged = float((layers.alpha - small).abs().max()) <= UNCHANGED
        fixed_alpha = to_bytes(alpha) if scene.mask_unchanged and unchanged else None
        near = unknown_band(small, REACH - NEAR)
        layers.alpha = torch.where(near, layers.alpha, (small > 0.5).to(small.dtype))
        method, context = find_override(stage, "finer_layers"), getattr(stage, "tile_context", None)
        finer = None if method is None or context is None else partial(run_layers, method)
        return fuse_layers(scene, box, foreground, layers, finer, context or 0, fixed_alpha)
    near = unknown_band(small, REACH)
    opacity = torch.where(near, layers.alpha, small)
    color = torch.where(near, layers.foreground_color, foreground)
    composite, paint = (x.clone(memory_format=torch.preserve_format) for x in (backdrop, pixels))
    fused_alpha = torch.zeros(alpha.shape)
    composite[part] = to_bytes(over(color, opacity, background)[0].cpu())
    paint[part] = to_bytes(color[0].cpu())
    fused_alpha[part] = opacity[0].cpu()
    return Fused(composite, fused_alpha, Repainted.where_changed(pixels, paint, fused_alpha))


def fuse_layers(
    scene: Scene,
    box: Box,
    image: Tensor,
    coarse: Layers,
    finer: Callable[[Tensor, Tensor, Layers], Layers | None] | None,
    context: int,
    fixed_alpha: Tensor | None = None,
) -> Fused:
    """Upsample low-resolution layers to full size and composite them over the backdrop.

    ``coarse`` are the layers of ``image`` (1, 3, h, w), which shows ``box`` of the scene;
    alpha is 0 outside. If they include the old background, ``finer`` corrects the upsampled layers
    of each tile and depends on ``context`` pixels around it; otherwise changes of colour are
    upsampled instead of colours. ``fixed_alpha`` (1, H, W), uint8, replaces the layers' alpha.
    """
    image, alpha, color = image.float(), coarse.alpha.float(), coarse.foreground_color.float()
    old = None if coarse.old_background is None else coarse.old_background.float()
    guide = make_guide(image, alpha, *((color - image,) if old is None else (color, old)))

    def make(photograph: Tensor, behind: Tensor, corners: Corners) -> Layers:
        part = enlarged_windows(guide, grid, corners, box)
        if old is None:
            lifted = follow_alpha(part, photograph)
            changed = (photograph + part[:, 8:]).clamp(0, 1)
            layers = Layers(lifted, torch.where(lifted == 1, photograph, changed))
        else:
            layers = Layers(*follow_guide(part, photograph))
            if finer is not None:
                layers = finer(photograph, behind, layers) or layers
        if fixed_alpha is None:
            return layers
        opacity = _windows(fixed_alpha, grid, corners, scene.device)
        color = torch.where(opacity == 1, photograph, layers.foreground_color)
        return Layers(opacity, color, layers.old_background)

    grid = Grid.over(scene.pixels, context)
    touched = touched_cells(grid, guide[0, 1].cpu() > 0, box)
    if fixed_alpha is not None:
        touched |= touched_cells(grid, rim_blocks(fixed_alpha, context))
    inside = touched_cells(grid, alpha[0, 0].cpu() > 0.5, box)
    return _assemble(scene, grid, touched, inside, make)


def fuse_tiles(
    scene: Scene, fuse: Callable[[Tensor, Tensor, Tensor], Tensor | Layers], context: int
) -> Fused:
    """Composite by running ``fuse`` on tiles along the rim of the scene's alpha.

    It returns layers or composites of tiles, which depend on ``context`` pixels around them.
    """
    grid, alpha = Grid.over(scene.pixels, context), to_bytes(scene.alpha)
    touched = touched_cells(grid, rim_blocks(alpha, max(REACH, context)))
    inside = touched_cells(grid, alpha[0, ::BLOCK, ::BLOCK] > 127)

    def make(photograph: Tensor, behind: Tensor, corners: Corners) -> Tensor | Layers:
        return fuse(photograph, behind, _windows(alpha, grid, corners, scene.device))

    return _assemble(scene, grid, touched, inside, make, alpha)


def _assemble(
    scene: Scene,
    grid: Grid,
    touched: Tensor,
    inside: Tensor,
    fuse: Callable[[Tensor, Tensor, Corners], Tensor | Layers],
    input_alpha: Tensor | None = None,
) -> Fused:
    """Copy cells that are all subject or all background, and blend the tiles of the others.

    ``input_alpha`` is the result's alpha where tiles are composites instead of layers.
    """
    pixels, backdrop, device = scene.pixels, scene.backdrop, scene.device
    composite = backdrop.clone(memory_format=torch.preserve_format)
    alpha = torch.zeros(1, grid.height, grid.width, dtype=torch.uint8)
    indices, colors, painted = [NO_CHANGES.indices], [NO_CHANGES.colors], False

    def copy(rows: slice, columns: slice) -> None:
        composite[:, rows, columns] = pixels[:, rows, columns]
        alpha[:, rows, columns] = 255

    def make(corners: Corners) -> Tensor:
        """Alpha and colour; for a composite, alpha is -1."""
        photograph, behind = (_windows(x, grid, corners, device) for x in (pixels, backdrop))
        fused = fuse(photograph, behind, corners)
        if isinstance(fused, Layers):
            return torch.cat([fused.alpha, fused.foreground_color], 1)
        return F.pad(fused, (0, 0, 0, 0, 1, 0), value=-1.0)

    fill_cells(grid, ~touched & inside, copy)
    for top, _, values, covered in work_on_cells(grid, touched, make, 4, device):
        rows, columns = covered.nonzero(as_tuple=True)
        opacity, color = values[:, rows, columns].split((1, 3))
        rows, columns = rows.cpu() + top, columns.cpu()
        if input_alpha is not None and bool((opacity < 0).any()):
            composite[:, rows, columns] = to_bytes(color).cpu()
            alpha[:, rows, columns] = input_alpha[:, rows, columns]
            painted = True
            continue
        behind = backdrop[:, rows, columns].to(device).float() / 255
        mixed = over(color[None, :, None], opacity[None, :, None], behind[None, :, None])[0, :, 0]
        levels, paint = to_bytes(opacity).cpu(), to_bytes(color).cpu()
        composite[:, rows, columns] = to_bytes(mixed).cpu()
        alpha[:, rows, columns] = levels
        changed = (levels[0] > 0) & (paint != pixels[:, rows, columns]).any(0)
        indices.append((rows * grid.width + columns)[changed])
        colors.append(paint[:, changed])
    repainted = Repainted(torch.cat(indices), torch.cat(colors, 1))
    cells = touched.numel(), int(touched.sum())
    return Fused(composite, alpha, repainted, *cells, layered=not painted)


def floats(pixels: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """Resize ``pixels`` (3, H, W), uint8, to (1, 3, h, w) float in [0, 1] on the device."""
    return resample(pixels, size, "bilinear").to(device).unsqueeze(0) / 255


def as_floats(levels: Tensor) -> Tensor:
    """Convert a uint8 picture to floats in [0, 1]; a float tensor is returned unchanged."""
    return levels / 255 if levels.dtype == torch.uint8 else levels


def rim_blocks(alpha: Tensor, reach: int) -> Tensor:
    """Blocks of ``alpha`` that are not all 0 or all 255 within ``reach`` pixels.

    ``alpha`` is (1, H, W) uint8; the result is boolean, one element for each block of ``BLOCK``.
    """
    height, width = alpha.shape[-2:]
    # Replicate the border up to whole blocks.
    plane = window_of(alpha, (0, 0), (height + -height % BLOCK, width + -width % BLOCK))[0]
    strips = plane.reshape(plane.shape[0] // BLOCK, BLOCK, -1)  # reducing rows first is faster
    high, low = (x.reshape(len(x), -1, BLOCK) for x in (strips.amax(1), strips.amin(1)))
    radius = -(-reach // BLOCK) + 1
    high, low = dilate(high.amax(2)[None], radius), erode(low.amin(2)[None], radius)
    return ((high > 2) & (low < 253))[0]


def _windows(picture: Tensor, grid: Grid, corners: Corners, device: torch.device) -> Tensor:
    """Windows of a uint8 picture, (B, C, h, w) float in [0, 1] on the device."""
    parts = [window_of(picture, corner, grid.window) for corner in corners]
    return torch.stack(parts).to(device).float() / 255
