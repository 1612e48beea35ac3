"""Photographs beyond the working size: the rim is worked on in tiles, everything else is copied.

The compositor calls it, and has smaller ones fused here, too. Pictures stay in 8 bits; a strip of
tiles at a time is held in floating point. So time and memory grow with the length of the subject's
outline, and not with the area of the picture. What a tile cannot see reaches it from the small
pass, see ``deep_image_compositing.functional.lift``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.asking import ask_layers, ask_picture, is_learned, own_method
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
    cells_inside,
    enlarged_windows,
    fill_cells,
    touched_cells,
    window_of,
    work_on_cells,
)
from deep_image_compositing.models.base import Layers
from deep_image_compositing.placement import resample, subject_box

BLOCK = 8
"""Side of the blocks of a full-size alpha in which its rim is looked for."""

MARGIN = 64
"""Pixels around a subject that a fuser sees with it."""

UNCHANGED = 0.06
"""Change of alpha up to which a fuser has left it alone: what is almost 0 or 1 may become so."""

Corners: TypeAlias = list[tuple[int, int]]
"""Top and left of some windows, in the frame."""


class Repainted(NamedTuple):
    """Pixels whose colour is not the photograph's own."""

    places: Tensor
    """(N,) int64, their numbers, row after row."""
    colors: Tensor
    """(3, N) uint8."""

    @classmethod
    def of(cls, places: list[Tensor], colors: list[Tensor]) -> Repainted:
        """The parts put together."""
        none = torch.zeros(0, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.uint8)
        return cls(torch.cat([none[0], *places]), torch.cat([none[1], *colors], 1))

    @classmethod
    def between(cls, pixels: Tensor, color: Tensor, alpha: Tensor) -> Repainted:
        """Where ``color`` (3, H, W), uint8, is not the photograph's, of what ``alpha`` shows."""
        rows, columns = ((color != pixels).any(0) & (alpha[0] > 0)).nonzero(as_tuple=True)
        return cls(rows * pixels.shape[-1] + columns, color[:, rows, columns])

    def on(self, pixels: Tensor) -> Tensor:
        """A copy of ``pixels`` (3, H, W), uint8, with these colours."""
        out = pixels.clone(memory_format=torch.contiguous_format)
        out.view(3, -1)[:, self.places] = self.colors
        return out


class Colors(Protocol):
    """A subject's colours: those of its photograph, and what has become of them."""

    def on(self, pixels: Tensor) -> Tensor:
        """A copy of ``pixels`` (3, H, W), uint8, with these colours."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is to be set together, at the size of the frame.

    ``alpha`` is ``kept`` if it is a given mask that the refiner has left alone; a fuser may do so
    as well. ``work_side`` and ``device`` are as for ``Compositor``.
    """

    pixels: Tensor  # (3, H, W) uint8, the subject's photograph
    backdrop: Tensor  # (3, H, W) uint8
    alpha: Tensor  # (1, H, W)
    kept: bool
    work_side: int
    device: torch.device

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass(frozen=True, eq=False)
class Fused:
    """What fusing gives: ``composite`` (3, H, W), uint8, and the fuser's own ``alpha`` (1, H, W).

    ``touched`` of the frame's ``cells`` were worked on; ``layered`` unless it paints by itself.
    """

    composite: Tensor
    alpha: Tensor
    repainted: Colors
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
    """``alpha`` (1, 1, h, w) of ``image``, the small ``pixels``, at their size: (1, H, W) uint8.

    ``refine``, if any, corrects the lifted alpha of tiles; its answer depends on ``context`` pixels
    around them. Away from the rim alpha is exactly 0 or 255.
    """
    height, width = pixels.shape[-2:]
    grid, frame = Grid.over(pixels, context), (slice(0, height), slice(0, width))
    guide = make_guide(image.float(), alpha.float())
    touched = touched_cells(grid, guide[0, 1].cpu() > 0)
    inside = cells_inside(grid, alpha[0, 0].cpu() > 0.5)
    out = torch.zeros(1, height, width, dtype=torch.uint8)
    fill_cells(grid, ~touched & inside, lambda *span: out[:, *span].fill_(255))

    def make(corners: Corners) -> Tensor:
        photograph = _windows(pixels, grid, corners, guide.device)
        lifted = follow_alpha(enlarged_windows(guide, grid, corners, frame), photograph)
        return lifted if refine is None else refine(photograph, lifted)

    return _levels(out, grid, touched, make, guide.device)


def refine_given(
    pixels: Tensor,
    mask: Tensor,
    refine: Callable[[Tensor, Tensor], Tensor],
    context: int,
    device: torch.device,
) -> Tensor:
    """What ``refine`` makes of tiles of a full-size ``mask``, (1, H, W) uint8 as the answer.

    It depends on ``context`` pixels around a tile. Away from the rim, the mask is cut at one half.
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
    """``out`` (1, H, W), uint8, with the answers of ``make`` for the cells that are touched."""
    for top, bottom, (answer,), covered in work_on_cells(grid, touched, make, 1, device):
        out[0, top:bottom][covered.cpu()] = to_bytes(answer[covered]).cpu()
    return out


# Composites


def fuse(stage: Callable[..., Any], scene: Scene) -> Fused:
    """Composite by what fills the third slot, at the size of the frame."""
    layers, context = own_method(stage, "layers"), getattr(stage, "tile_context", None)

    def paint(front: Tensor, back: Tensor, opacity: Tensor) -> Layers | Tensor:
        """The layers of a fuser that is asked for them and has some, else its composite."""
        parts = layers and ask_layers(layers, front, back, opacity)
        if parts is not None:
            return parts
        return ask_picture("fuser", "composite", stage, front, back, opacity)

    if context is not None and max(scene.size) > scene.work_side and not is_learned(stage):
        # It depends on its surroundings alone.
        levels = to_bytes(scene.alpha)
        return fuse_tiles(scene.pixels, scene.backdrop, levels, paint, context, scene.device)
    fused = layers and _fuse_box(stage, layers, scene)
    if fused is not None:
        return fused
    pictures = (floats(x, scene.size, scene.device) for x in (scene.pixels, scene.backdrop))
    opacity = as_floats(scene.alpha)[None].to(scene.device)
    composite = ask_picture("fuser", "composite", stage, *pictures, opacity)[0]
    return Fused(to_bytes(composite.cpu()), scene.alpha, Repainted.of([], []), layered=False)


def _fuse_box(stage: Callable[..., Any], layers: Callable[..., Any], scene: Scene) -> Fused | None:
    """As ``fuse``, by the stage's ``layers``; None when it has none."""
    pixels, backdrop, alpha, device = scene.pixels, scene.backdrop, scene.alpha, scene.device
    # Only the subject's surroundings go through the fuser, so that a small subject in a large
    # frame is not shrunk with it.
    box = grow(subject_box(alpha, 0.0), MARGIN, scene.size)
    part = (..., *box)
    size = (box[0].stop - box[0].start, box[1].stop - box[1].start)
    at = fit_long_side(*size, scene.work_side) if is_learned(stage) else size
    foreground, background = (floats(x[part], at, device) for x in (pixels, backdrop))
    small = resize(as_floats(alpha[part])[None], at).clamp(0, 1).to(device)
    found = ask_layers(layers, foreground, background, small)
    if found is None:
        return None
    if at != size:
        kept = scene.kept and float((found.alpha - small).abs().max()) <= UNCHANGED
        near = unknown_band(small, REACH - NEAR)
        found.alpha = torch.where(near, found.alpha, (small > 0.5).to(small.dtype))
        finer, context = own_method(stage, "finer_layers"), getattr(stage, "tile_context", None)
        better = None if finer is None or context is None else partial(ask_layers, finer)
        own = to_bytes(alpha) if kept else None
        return fuse_layers(pixels, backdrop, box, foreground, found, better, context or 0, own)
    near = unknown_band(small, REACH)
    opacity = torch.where(near, found.alpha, small)
    color = torch.where(near, found.foreground_color, foreground)
    composite, paint = (x.clone(memory_format=torch.preserve_format) for x in (backdrop, pixels))
    corrected = torch.zeros(alpha.shape)
    composite[part] = to_bytes(over(color, opacity, background)[0].cpu())
    paint[part] = to_bytes(color[0].cpu())
    corrected[part] = opacity[0].cpu()
    return Fused(composite, corrected, Repainted.between(pixels, paint, corrected))


def fuse_layers(
    pixels: Tensor,
    backdrop: Tensor,
    box: Box,
    image: Tensor,
    coarse: Layers,
    finer: Callable[[Tensor, Tensor, Layers], Layers | None] | None,
    context: int,
    kept: Tensor | None = None,
) -> Fused:
    """Carry small layers up to full size, correct them in tiles, and set them over the backdrop.

    ``image`` (1, 3, h, w) is the photograph in the ``box``, where ``coarse`` was found; outside
    it alpha is 0. Where ``coarse`` lacks the old background, changes of colour are carried up; else
    ``finer``, if any, corrects the lifted layers of tiles, and depends on ``context`` pixels around
    them. ``kept`` (1, H, W), uint8, is an alpha that stays as it is at full size.
    """
    image, alpha, color = image.float(), coarse.alpha.float(), coarse.foreground_color.float()
    old = None if coarse.old_background is None else coarse.old_background.float()
    guide = make_guide(image, alpha, *((color - image,) if old is None else (color, old)))

    def make(photograph: Tensor, behind: Tensor, corners: Corners) -> Layers:
        part = enlarged_windows(guide, grid, corners, box)
        if old is None:
            lifted = follow_alpha(part, photograph)
            moved = (photograph + part[:, 8:]).clamp(0, 1)
            layers = Layers(lifted, torch.where(lifted == 1, photograph, moved))
        else:
            layers = Layers(*follow_guide(part, photograph))
            better = None if finer is None else finer(photograph, behind, layers)
            layers = layers if better is None else better
        if kept is None:
            return layers
        opacity = _windows(kept, grid, corners, guide.device)
        own = torch.where(opacity == 1, photograph, layers.foreground_color)
        return Layers(opacity, own, layers.old_background)

    grid = Grid.over(pixels, context)
    touched = touched_cells(grid, guide[0, 1].cpu() > 0, box)
    if kept is not None:
        touched |= touched_cells(grid, rim_blocks(kept, context))
    inside = cells_inside(grid, alpha[0, 0].cpu() > 0.5, box)
    return _assemble(pixels, backdrop, grid, touched, inside, make, guide.device)


def fuse_tiles(
    pixels: Tensor,
    backdrop: Tensor,
    alpha: Tensor,
    fuse: Callable[[Tensor, Tensor, Tensor], Tensor | Layers],
    context: int,
    device: torch.device,
) -> Fused:
    """Composite by a stage that sees nothing but tiles along the rim of ``alpha``, in 8 bits.

    ``fuse`` makes layers, or the composite, of tiles, and depends on ``context`` pixels around.
    """
    grid = Grid.over(pixels, context)
    touched = touched_cells(grid, rim_blocks(alpha, max(REACH, context)))
    inside = cells_inside(grid, alpha[0] > 127)

    def make(photograph: Tensor, behind: Tensor, corners: Corners) -> Tensor | Layers:
        return fuse(photograph, behind, _windows(alpha, grid, corners, device))

    return _assemble(pixels, backdrop, grid, touched, inside, make, device, alpha)


def _assemble(
    pixels: Tensor,
    backdrop: Tensor,
    grid: Grid,
    touched: Tensor,
    inside: Tensor,
    fuse: Callable[[Tensor, Tensor, Corners], Tensor | Layers],
    device: torch.device,
    given: Tensor | None = None,
) -> Fused:
    """Copy cells that are all subject or all background, and blend the others' tiles.

    Where tiles are composites, not layers, alpha is the ``given`` one.
    """
    composite = backdrop.clone(memory_format=torch.preserve_format)
    alpha = torch.zeros(1, grid.height, grid.width, dtype=torch.uint8)
    places, colors, painted = [], [], False

    def copy(rows: slice, columns: slice) -> None:
        composite[:, rows, columns] = pixels[:, rows, columns]
        alpha[:, rows, columns] = 255

    def answer(corners: Corners) -> Tensor:
        """Alpha and colour; alpha is -1 where the colour is the composite's."""
        photograph, behind = (_windows(x, grid, corners, device) for x in (pixels, backdrop))
        made = fuse(photograph, behind, corners)
        if isinstance(made, Layers):
            return torch.cat([made.alpha, made.foreground_color], 1)
        return F.pad(made, (0, 0, 0, 0, 1, 0), value=-1.0)

    fill_cells(grid, ~touched & inside, copy)
    for top, _, values, covered in work_on_cells(grid, touched, answer, 4, device):
        rows, columns = covered.nonzero(as_tuple=True)
        opacity, color = values[:, rows, columns].split((1, 3))
        rows, columns = rows.cpu() + top, columns.cpu()
        if given is not None and bool((opacity < 0).any()):
            composite[:, rows, columns] = to_bytes(color).cpu()
            alpha[:, rows, columns] = given[:, rows, columns]
            painted = True
            continue
        behind = backdrop[:, rows, columns].to(device).float() / 255
        mixed = over(color[None, :, None], opacity[None, :, None], behind[None, :, None])[0, :, 0]
        levels, paint = to_bytes(opacity).cpu(), to_bytes(color).cpu()
        composite[:, rows, columns] = to_bytes(mixed).cpu()
        alpha[:, rows, columns] = levels
        changed = (levels[0] > 0) & (paint != pixels[:, rows, columns]).any(0)
        places.append((rows * grid.width + columns)[changed])
        colors.append(paint[:, changed])
    done = Repainted.of(places, colors), touched.numel(), int(touched.sum())
    return Fused(composite, alpha, *done, layered=not painted)


def floats(pixels: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """8-bit (3, H, W) as (1, 3, h, w) float in [0, 1] on the device."""
    return resample(pixels, size, "bilinear").to(device).unsqueeze(0) / 255


def as_floats(levels: Tensor) -> Tensor:
    """A mask or alpha as floats in [0, 1]."""
    return levels / 255 if levels.dtype == torch.uint8 else levels


def rim_blocks(alpha: Tensor, reach: int) -> Tensor:
    """Blocks (h, w) of ``alpha`` (1, H, W), uint8, not all 0 or all 255 within ``reach`` pixels."""
    height, width = alpha.shape[-2:]
    # The border is repeated to whole blocks, in 8 bits.
    plane = window_of(alpha, (0, 0), (height + -height % BLOCK, width + -width % BLOCK))[0]
    strips = plane.reshape(plane.shape[0] // BLOCK, BLOCK, -1)  # first along rows: it is quicker
    high, low = (x.reshape(len(x), -1, BLOCK) for x in (strips.amax(1), strips.amin(1)))
    radius = -(-reach // BLOCK) + 1
    high, low = dilate(high.amax(2)[None], radius), erode(low.amin(2)[None], radius)
    return ((high > 2) & (low < 253))[0]


def _windows(picture: Tensor, grid: Grid, corners: Corners, device: torch.device) -> Tensor:
    """Windows (B, C, h, w) of an 8-bit picture as floats in [0, 1] on the device."""
    parts = [window_of(picture, corner, grid.window) for corner in corners]
    return torch.stack(parts).to(device).float() / 255
