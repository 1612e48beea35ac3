"""``Compositor``: composite the subject of one photograph over another.

The pipeline is segment → refine → fuse → harmonize → shadow. Photographs stay 8-bit at full size;
learned stages see at most ``work_side`` pixels on the long side, and their outputs are upsampled
along the subject's rim (``deep_image_compositing.fullsize``). Pixels that no stage changes are
copied exactly.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deep_image_compositing import registry
from deep_image_compositing.composite import Composite
from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.files import real_paths
from deep_image_compositing.fullsize import (
    Fused,
    Scene,
    as_floats,
    floats,
    fuse,
    lift_refined,
    refine_full_mask,
)
from deep_image_compositing.functional.lift import NEAR, REACH, snap_alpha
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.harmonizing import harmonize
from deep_image_compositing.images import (
    ImageSource,
    Photograph,
    longest_sides,
    read_image,
    read_mask,
    to_tensor,
)
from deep_image_compositing.inference import is_learned, run_checked
from deep_image_compositing.models.base import StageModel
from deep_image_compositing.placement import cover, paste, place
from deep_image_compositing.settings import Shadow, check_placement, check_sides
from deep_image_compositing.shadows import find_shade, floor_row, lay_shade
from deep_image_compositing.stages.making import StageLike, check_stage, make_stage

SUBJECT = 0.5
"""Mask value from which a pixel counts as subject."""

LEAST_SUBJECT = 1e-4
"""Fraction of the picture below which no subject counts as found."""

FULL = 0.99
"""A mask that exceeds this everywhere covers the whole photograph."""

UNSURE = 0.5
"""Value of ``doubt`` above which a segmenter's mask causes a warning.

Of the 302 masks of ``recipes/measure_masks.py``, on held-out photographs and subjects, it is
exceeded by 3 of the 253 with an IoU of at least 0.8, and by 10 of the 13 with an IoU below 0.6.
"""

_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True, eq=False)
class _CutOut:
    """Output of the segmenter and the refiner, float in [0, 1], or uint8 for large photographs.

    ``covers_all`` if the mask covers the whole photograph; ``mask_unchanged`` as in ``Scene``.
    """

    mask: Tensor  # (1, h, w)
    alpha: Tensor  # (1, H, W)
    covers_all: bool = False
    mask_unchanged: bool = False


class Compositor:
    """Composites the subject of one photograph over another.

    Each stage is a registered name (created with its shipped weights, if any), a pair of a name and
    options, a stage, an ``nn.Module``, or any callable with the stage's signature: ``image →
    mask``, ``image, mask → alpha``, ``foreground, background, alpha → composite``, ``composite,
    mask → composite``; see ``deep_image_compositing.conventions``. Modules are put into evaluation
    mode and moved to the device.

    Args:
        segmenter: first stage; if given by name alone, it is created when first needed.
        refiner: second stage.
        fuser: third stage.
        harmonizer: fourth stage; ``none`` keeps the colours. They are always kept on a background
            of uniform colour, which shows no lighting.
        device: ``auto`` (a GPU if available; logs the choice), ``cpu``, ``cuda``, ``cuda:1``,
            ``mps``.
        max_pixels: refuse larger files; see ``read_image``.
        work_side: long side in pixels of the largest pictures that learned stages see; their
            output is upsampled to full size. Stages without parameters see user masks at full size
            and the whole frame, as do fusers that paint the composite themselves.
        shadow: shadow of the subject on the new background: None, ``contact``, ``cast``, or a pair
            of one of these and its options, such as
            ``("cast", {"direction": "left", "softness": 0.2})``; see
            ``deep_image_compositing.settings.Shadow``.
        max_side: longest side in pixels of composites; larger photographs are downscaled, with
            antialiasing, when read. None keeps the frame's size.

    Raises:
        UsageError: an unknown stage or option, a stage of the wrong kind, or an unavailable device.
        WeightsError: weights cannot be loaded.
    """

    def __init__(
        self,
        segmenter: StageLike = "pyramid",
        refiner: StageLike = "cascade",
        fuser: StageLike = "multi_stream",
        harmonizer: StageLike = "none",
        device: str | torch.device = "auto",
        max_pixels: int | None = None,
        work_side: int = 896,
        max_side: int | None = None,
        shadow: Shadow | str | tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        check_sides(work_side, max_side)
        self.shadow = Shadow.of(shadow)
        self.max_pixels, self.max_side, self.work_side = max_pixels, max_side, work_side
        self._segmenter = segmenter
        stages = segmenter, refiner, fuser, harmonizer
        for slot, stage in zip(registry.SLOTS, stages, strict=True):
            check_stage(slot, stage)  # report errors before loading any weights
        self.device = choose_device(device)
        self._named_device = str(device) != "auto"
        if not isinstance(segmenter, str):
            self.segmenter = self._make_stage("segmenter", segmenter)
        self.refiner = self._make_stage("refiner", refiner)
        self.fuser = self._make_stage("fuser", fuser)
        self.harmonizer = self._make_stage("harmonizer", harmonizer)

    @cached_property
    def segmenter(self) -> Callable[..., Any]:
        """The first stage; created on first access if given by name alone."""
        return self._make_stage("segmenter", self._segmenter)

    @torch.no_grad()
    def __call__(
        self,
        foreground: ImageSource,
        background: ImageSource,
        mask: ImageSource | None = None,
        *,
        frame: Literal["foreground", "background"] = "foreground",
        scale: float = 1.0,
        position: tuple[float, float] | str = (0.5, 0.5),
    ) -> Composite:
        """Composite the subject of ``foreground`` over ``background``.

        Args:
            foreground: photograph of the subject: a path, bytes, a Pillow image, a uint8 (H, W, 3)
                array or a float (3, H, W) tensor; see ``read_image``. If it is partly transparent,
                its alpha is used as the mask.
            background: the new background, in any of these forms.
            mask: the subject's mask, instead of running the segmenter; see ``read_mask``. One that
                covers the whole photograph is used as it is, with a warning; with
                ``frame="foreground"`` the composite is then the photograph.
            frame: which photograph determines the composite's frame. ``foreground``: the
                background is scaled and cropped to cover it. ``background``: the subject's
                photograph is scaled and placed in it.
            scale: with ``frame="background"``, size of the subject's photograph relative to the
                largest that fits into the frame.
            position: with ``frame="background"``, (x, y) of the subject's bounding box, from
                (0, 0), the top left, to (1, 1), the bottom right; also as text, ``"0.5,1"``.

        Raises:
            ImageError: a photograph or mask cannot be read.
            UsageError: an invalid argument, or a mask whose aspect ratio is not the photograph's.
            CompositingError: no subject was found, or a stage returned an invalid output.
        """
        x, y = check_placement(frame, scale, position)
        foreground_side, background_side = longest_sides(self.max_side, frame, scale)
        photograph = read_image(foreground, max_pixels=self.max_pixels, max_side=foreground_side)
        new = read_image(background, max_pixels=self.max_pixels, max_side=background_side)
        seconds: dict[str, float] = {}
        pixels = _planes(photograph)
        cut = self._cut_out(photograph, pixels, mask, seconds)
        backdrop = _planes(new)
        if frame == "foreground":
            backdrop = cover(backdrop, photograph.size)
            floor = floor_row(cut.alpha, photograph.size)
        else:
            where = place(as_floats(cut.alpha), new.size, scale, (x, y))
            floor = floor_row(cut.alpha, new.size, where)
            pixels = paste(pixels, where, new.size, edge=True)
            full_mask = resize(as_floats(cut.mask)[None], photograph.size)[0].clamp(0, 1)
            cut = replace(
                cut,
                mask=paste(to_bytes(full_mask), where, new.size, edge=False),
                alpha=paste(cut.alpha, where, new.size, edge=False),
            )
        scene = Scene(pixels, backdrop, cut.alpha, cut.mask_unchanged, self.work_side, self.device)
        with _timed(seconds, "fusion"):
            if cut.covers_all and frame == "foreground":
                fused = Fused(pixels, cut.alpha)
            else:
                fused = fuse(self.fuser, scene)
        if not cut.covers_all and getattr(self.harmonizer, "strength", True):
            with _timed(seconds, "harmonization"):
                fused = harmonize(self.harmonizer, fused, scene)
        shade = None
        if self.shadow is not None:
            with _timed(seconds, "shadow"):
                shade = find_shade(fused.alpha, backdrop, self.shadow, floor, photograph.name)
                lay_shade(fused.composite, backdrop, fused.alpha, shade)
        inputs = (foreground, background, mask)
        names = (x.name if isinstance(x, Photograph) else x for x in inputs)
        return Composite(
            composite_pixels=fused.composite,
            foreground_pixels=pixels,
            background_pixels=backdrop,
            repainted=fused.repainted,
            cutout_levels=fused.alpha,
            mask_levels=cut.mask,
            alpha_levels=cut.alpha,
            shade=shade,
            floor=floor,
            name=photograph.name,
            device=str(self.device),
            sources=frozenset(real_paths(*names)),
            seconds=seconds,
            tiles=(fused.touched, fused.cells),
        )

    def _cut_out(
        self,
        photograph: Photograph,
        pixels: Tensor,
        mask: ImageSource | None,
        seconds: dict[str, float],
    ) -> _CutOut:
        """Segment the photograph unless it has a mask, and refine the mask."""
        size, name = photograph.size, photograph.name
        working_size = fit_long_side(*size, self.work_side)
        has_mask = mask is not None or photograph.alpha is not None
        with _timed(seconds, "segmentation"):
            if mask is not None:
                coarse = to_tensor(read_mask(mask, size=size, max_pixels=self.max_pixels))[None]
            elif photograph.alpha is not None:
                _log.info("%s: its own alpha is taken as the mask", name)
                coarse = to_tensor(photograph.alpha)[None]
            else:
                side = getattr(self.segmenter, "long_side", None) or self.work_side
                image = floats(pixels, fit_long_side(*size, side), self.device)
                coarse = run_checked("segmenter", "mask", self.segmenter, image).cpu()
        if float((coarse >= SUBJECT).float().mean()) < LEAST_SUBJECT:
            if not has_mask:
                raise CompositingError(
                    f"no subject found in {name}; give a mask with --mask (mask=)"
                )
            raise CompositingError(
                f"the mask of {name} is empty: less than {LEAST_SUBJECT:.2%} of it reaches "
                f"{SUBJECT}; give one that is white where the subject is"
            )
        if not has_mask and doubt(coarse) > UNSURE:
            _log.warning(
                "%s: it is not clear what the subject is; --save-steps (in Python, save(steps=)) "
                "shows what was found, and --mask (mask=) takes a mask of your own",
                name,
            )
        if float(coarse.min()) > FULL:
            _log.warning(
                "%s: the mask covers the whole photograph; all of it is taken as the subject", name
            )
            whole = torch.full((1, *size), 255, dtype=torch.uint8)
            return _CutOut(whole, whole, covers_all=True, mask_unchanged=True)
        with _timed(seconds, "refinement"):
            alpha, unchanged = self._refine(pixels, coarse, working_size, has_mask)
        if float(alpha.max()) < (1 - FULL) * (255 if alpha.dtype == torch.uint8 else 1):
            raise CompositingError(
                f"nothing is left of the subject in {name} after refinement; "
                "give a better mask, or use the refiner 'none'"
            )
        small = coarse.shape[-2:] == working_size
        levels = coarse[0].clamp(0, 1) if small else to_bytes(coarse[0])
        return _CutOut(levels, alpha, mask_unchanged=unchanged)

    def _refine(
        self, pixels: Tensor, coarse: Tensor, working_size: tuple[int, int], user_mask: bool
    ) -> tuple[Tensor, bool]:
        """Refine the mask ``coarse`` (1, 1, h, w); returns alpha (1, H, W).

        Also returns whether the refiner left a user's mask unchanged. If it did so at the working
        size, alpha is the mask at full size.
        """
        size = (pixels.shape[-2], pixels.shape[-1])
        context = getattr(self.refiner, "tile_context", None)
        refine = partial(run_checked, "refiner", "alpha", self.refiner)
        large, full = size != working_size, user_mask and not is_learned(self.refiner)
        if large and full and context is not None:
            levels = to_bytes(coarse[0])
            refined = refine_full_mask(pixels, levels, refine, context, self.device)
            return refined, torch.equal(refined, levels)
        at = size if full else working_size
        image = floats(pixels, at, self.device)
        mask = resize(coarse.to(self.device), at).clamp(0, 1)
        alpha = refine(image, mask)
        unchanged = user_mask and torch.equal(alpha, mask)
        if large and unchanged:
            return to_bytes(coarse[0]), True
        if at == size:
            alpha = snap_alpha(alpha)[0].cpu()
            return (to_bytes(alpha) if large else alpha), unchanged
        alpha = snap_alpha(alpha, REACH - NEAR)
        tile_refine = None if context is None else refine
        return lift_refined(pixels, image, alpha, tile_refine, context or 0), False

    def _make_stage(self, slot: str, source: StageLike) -> Callable[..., Any]:
        """Create a stage and prepare it for inference."""
        stage = make_stage(slot, source, model=True)
        if isinstance(stage, nn.Module):
            stage = stage.to(self.device).eval()
        if self._named_device and isinstance(stage, StageModel):
            stage.use(self.device)
        return stage


def doubt(mask: Tensor) -> float:
    """Uncertainty of a mask in [0, 1], ``4 Σ m (1 − m) / Σ m``.

    It is 0 for a binary mask and approaches 4 as all values approach 0. Soft edges count too: a
    confident mask of hair has 0.1 to 0.4.
    """
    m = mask.float()
    return float(4 * (m * (1 - m)).sum() / m.sum().clamp_min(1e-6))


def _planes(photograph: Photograph) -> Tensor:
    """(3, H, W) uint8, a read-only view of the photograph's memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(photograph.pixels)).permute(2, 0, 1)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
