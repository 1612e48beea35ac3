"""The main job: two photographs in, one composite out; users and the command line call it.

The flow is segment → refine → fuse → harmonize → shadow. Photographs stay 8-bit tensors at their
full size; learned stages see at most ``work_side`` pixels on the long side, and what they find is
carried to full size along the subject's rim (``deep_image_compositing.fullsize``). A pixel that no
stage changed comes out as it went in.
"""

from __future__ import annotations

import logging
import os
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
from deep_image_compositing.asking import ask_picture, is_learned
from deep_image_compositing.composite import Composite
from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.fullsize import (
    Fused,
    Repainted,
    Scene,
    as_floats,
    floats,
    fuse,
    lift_refined,
    refine_given,
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
from deep_image_compositing.models.base import StageModel
from deep_image_compositing.placement import cover, paste, place
from deep_image_compositing.settings import Shadow, check_placement, check_sides
from deep_image_compositing.shadows import find_shade, floor_row, lay_shade
from deep_image_compositing.stages.making import StageLike, check_stage, make_stage

SUBJECT = 0.5
"""Belief from which a pixel of a mask counts as subject."""

LEAST_SUBJECT = 1e-4
"""Share of the picture below which a subject counts as not found."""

FULL = 0.99
"""A mask that nowhere falls below this covers the whole photograph."""

UNSURE = 0.5
"""Doubt from which on a found mask is reported as unsure; see ``doubt``.

Of 146 masks of held-out photographs (``recipes/groups.py``), 118 have an IoU of at least 0.8, and 2
of these have more; of 6 below 0.6, 5 have more.
"""

_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True, eq=False)
class _CutOut:
    """What the first two slots give, as floats in [0, 1], or as uint8 where that is large.

    ``everything`` if the mask covers the whole photograph; ``kept`` if alpha is a given mask that
    the refiner has left alone: a fuser may do so as well.
    """

    mask: Tensor  # (1, h, w)
    alpha: Tensor  # (1, H, W)
    everything: bool = False
    kept: bool = False


class Compositor:
    """Sets the subject of one photograph into another.

    Each slot takes a registered name (made with its shipped weights, if it has any), a pair of a
    name and its options, a stage, a plain ``nn.Module``, or any callable with the slot's
    signature: ``image → mask``, ``image, mask → alpha``, ``foreground, background, alpha →
    composite``, ``composite, mask → composite``; see ``deep_image_compositing.conventions``.
    Modules are put into evaluation mode and moved to the device.

    Args:
        segmenter: fills the first slot; one given by its name alone is not made until a photograph
            comes without a mask.
        refiner: fills the second slot.
        fuser: fills the third slot.
        harmonizer: fills the fourth slot; ``none`` leaves colours as they are, and so does every
            other one before a background of one colour, which has no light to agree with.
        device: ``auto`` (a GPU if there is one, and says so in the log), ``cpu``, ``cuda``,
            ``cuda:1``, ``mps``.
        max_pixels: refuse files of more pixels; see ``read_image``.
        work_side: learned stages see pictures of at most this many pixels on the long side;
            their answers are lifted to full size. Stages without parameters see a user's mask at
            full size and the whole frame, as does a fuser that paints the composite itself.
        shadow: what the subject throws on the ground of the new background: None, ``contact``,
            ``cast``, or a pair of one of these and its options, as
            ``("cast", {"direction": "left", "softness": 0.2})``; see
            ``deep_image_compositing.settings.Shadow``.
        max_side: make composites of at most this many pixels on the long side; larger
            photographs are reduced, antialiased, as they are read. None keeps the frame's size.

    Raises:
        UsageError: a name that is not registered, an option a stage does not take, a stage of
            another slot, or a device that is not there.
        WeightsError: weights that could not be loaded.
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
        filled = segmenter, refiner, fuser, harmonizer
        for slot, given in zip(registry.SLOTS, filled, strict=True):
            check_stage(slot, given)  # what is wrong is told before anything is loaded
        self.device = choose_device(device)
        self._named_device = str(device) != "auto"
        if not isinstance(segmenter, str):
            self.segmenter = self._fill("segmenter", segmenter)
        self.refiner = self._fill("refiner", refiner)
        self.fuser = self._fill("fuser", fuser)
        self.harmonizer = self._fill("harmonizer", harmonizer)

    @cached_property
    def segmenter(self) -> Callable[..., Any]:
        """What fills the first slot; made here if it was given by its name alone."""
        return self._fill("segmenter", self._segmenter)

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
            foreground: the photograph with the subject: a path, bytes, a Pillow image, a uint8
                (H, W, 3) array or a float (3, H, W) tensor; see ``read_image``. If it is partly
                transparent, its alpha is taken as the mask.
            background: the new background, in any of these forms.
            mask: where the subject is, instead of the segmenter's answer; see ``read_mask``. One
                that covers the whole photograph leaves nothing to cut out: it is taken as it is,
                with a warning, and with ``frame="foreground"`` the composite is the photograph.
            frame: which photograph's frame the composite has. ``foreground``: the background is
                scaled and cropped to cover it. ``background``: the subject's photograph is
                scaled and placed in it.
            scale: with ``frame="background"``, size of the subject's photograph; at 1 it just
                fits into the frame.
            position: with ``frame="background"``, (x, y) of the subject's bounding box from
                (0, 0), the top left, to (1, 1), the bottom right; also as text, ``"0.5,1"``.

        Raises:
            ImageError: a photograph or mask that cannot be read.
            UsageError: a wrong argument, or a mask whose aspect is not the photograph's.
            CompositingError: no subject was found, or a stage gave an answer that is none.
        """
        x, y = check_placement(frame, scale, position)
        own, theirs = longest_sides(self.max_side, frame, scale)
        photograph = read_image(foreground, max_pixels=self.max_pixels, max_side=own)
        new = read_image(background, max_pixels=self.max_pixels, max_side=theirs)
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
            belief = resize(as_floats(cut.mask)[None], photograph.size)[0].clamp(0, 1)
            cut = replace(
                cut,
                mask=paste(to_bytes(belief), where, new.size, edge=False),
                alpha=paste(cut.alpha, where, new.size, edge=False),
            )
        scene = Scene(pixels, backdrop, cut.alpha, cut.kept, self.work_side, self.device)
        with _timed(seconds, "fusion"):
            if cut.everything and frame == "foreground":
                fused = Fused(pixels, cut.alpha, Repainted.of([], []))
            else:
                fused = fuse(self.fuser, scene)
        if not cut.everything and getattr(self.harmonizer, "strength", True):
            with _timed(seconds, "harmonization"):
                fused = harmonize(self.harmonizer, fused, scene)
        shade = None
        if self.shadow is not None:
            with _timed(seconds, "shadow"):
                shade = find_shade(fused.alpha, backdrop, self.shadow, floor, photograph.name)
                lay_shade(fused.composite, backdrop, fused.alpha, shade)
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
            sources=_files(foreground, background, mask),
            seconds=seconds,
            tiles=(fused.touched, fused.cells),
        )

    # The first two slots

    def _cut_out(
        self,
        photograph: Photograph,
        pixels: Tensor,
        mask: ImageSource | None,
        seconds: dict[str, float],
    ) -> _CutOut:
        """The subject of ``photograph``: by the segmenter or ``mask``, then by the refiner."""
        size, name = photograph.size, photograph.name
        working = fit_long_side(*size, self.work_side)
        given = mask is not None or photograph.alpha is not None
        with _timed(seconds, "segmentation"):
            if mask is not None:
                belief = to_tensor(read_mask(mask, size=size, max_pixels=self.max_pixels))[None]
            elif photograph.alpha is not None:
                _log.info("%s: its own alpha is taken as the mask", name)
                belief = to_tensor(photograph.alpha)[None]
            else:
                side = getattr(self.segmenter, "long_side", None) or self.work_side
                image = floats(pixels, fit_long_side(*size, side), self.device)
                belief = ask_picture("segmenter", "mask", self.segmenter, image).cpu()
        if float((belief >= SUBJECT).float().mean()) < LEAST_SUBJECT:
            if not given:
                raise CompositingError(
                    f"no subject found in {name}; give a mask with --mask (mask=)"
                )
            raise CompositingError(
                f"the mask of {name} is empty: less than {LEAST_SUBJECT:.2%} of it reaches "
                f"{SUBJECT}; give one that is white where the subject is"
            )
        if not given and doubt(belief) > UNSURE:
            _log.warning(
                "%s: it is not clear what the subject is; see --save-steps (save(steps=)) for what "
                "was found, and give a better mask with --mask (mask=)",
                name,
            )
        if float(belief.min()) > FULL:
            _log.warning(
                "%s: the mask covers the whole photograph; all of it is taken as the subject", name
            )
            whole = torch.full((1, *size), 255, dtype=torch.uint8)
            return _CutOut(whole, whole, everything=True, kept=True)
        with _timed(seconds, "refinement"):
            alpha, kept = self._refine(pixels, belief, working, given)
        if float(alpha.max()) < (1 - FULL) * (255 if alpha.dtype == torch.uint8 else 1):
            raise CompositingError(
                f"nothing is left of the subject in {name} after refinement; "
                "give a better mask, or use the refiner 'none'"
            )
        small = belief.shape[-2:] == working
        levels = belief[0].clamp(0, 1) if small else to_bytes(belief[0])
        return _CutOut(levels, alpha, kept=kept)

    def _refine(
        self, pixels: Tensor, belief: Tensor, working: tuple[int, int], given: bool
    ) -> tuple[Tensor, bool]:
        """Alpha (1, H, W) of the subject at which ``belief`` (1, 1, h, w) points.

        Also whether that is a given mask that the refiner has left alone, if only at the working
        size: then it keeps the detail that it has at full size.
        """
        size = (pixels.shape[-2], pixels.shape[-1])
        context = getattr(self.refiner, "tile_context", None)
        refine = partial(ask_picture, "refiner", "alpha", self.refiner)
        large, full = size != working, given and not is_learned(self.refiner)
        if large and full and context is not None:
            levels = to_bytes(belief[0])
            made = refine_given(pixels, levels, refine, context, self.device)
            return made, torch.equal(made, levels)
        at = size if full else working
        image = floats(pixels, at, self.device)
        mask = resize(belief.to(self.device), at).clamp(0, 1)
        alpha = refine(image, mask)
        kept = given and torch.equal(alpha, mask)
        if large and kept:
            return to_bytes(belief[0]), True
        if at == size:
            alpha = snap_alpha(alpha)[0].cpu()
            return (to_bytes(alpha) if large else alpha), kept
        alpha = snap_alpha(alpha, REACH - NEAR)
        tiles = None if context is None else refine
        return lift_refined(pixels, image, alpha, tiles, context or 0), False

    # Stages and tensors

    def _fill(self, slot: str, given: StageLike) -> Callable[..., Any]:
        """The stage that ``given`` means, ready to run."""
        stage = make_stage(slot, given, model=True)
        if isinstance(stage, nn.Module):
            stage = stage.to(self.device).eval()
        if self._named_device and isinstance(stage, StageModel):
            stage.use(self.device)
        return stage


def doubt(mask: Tensor) -> float:
    """How unsure a mask in [0, 1] is: 0 where all of it is 0 or 1, 4 where all is barely above 0.

    ``4 Σ m (1 − m) / Σ m``. Soft rims count as well, so that a sure mask of hair has 0.1 to 0.4.
    """
    m = mask.float()
    return float(4 * (m * (1 - m)).sum() / m.sum().clamp_min(1e-6))


def _files(*given: Any) -> frozenset[str]:
    """The files among what was given, whatever links lead to them."""
    paths = (x.name if isinstance(x, Photograph) else x for x in given)
    named = (str(path) for path in paths if isinstance(path, (str, os.PathLike)))
    return frozenset(os.path.realpath(path) for path in named if os.path.isfile(path))


def _planes(photograph: Photograph) -> Tensor:
    """(3, H, W) uint8, a view of the photograph's own memory: never written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(photograph.pixels)).permute(2, 0, 1)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
