"""What ``benchmark resolution`` measures of one scene, in a fresh process of its own.

So that memory is that of one composite, and no size warms up what another one uses.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import deep_image_compositing.compositor as compositor_module
import deep_image_compositing.fullsize as fullsize_module
import deep_image_compositing.models.fusion.multi_stream as fuser_module
from deep_image_compositing.benchmark.pipeline import limit_threads, peak_memory, synchronise
from deep_image_compositing.benchmark.scenes import Files, blend
from deep_image_compositing.composite import Composite
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.errors import MissingExtraError
from deep_image_compositing.functional.boxes import Box, edges, grow
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.foreground import box_filter
from deep_image_compositing.functional.lift import follow_guide, make_guide, upsample_rows
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.functional.tiles import CELL, Grid, enlarged_windows
from deep_image_compositing.images import read_image, write_image
from deep_image_compositing.metrics.band import BAND_RADIUS, decibels, rim_band
from deep_image_compositing.placement import resample
from deep_image_compositing.stages.base import Layers
from deep_image_compositing.stages.making import make_stage

LIMIT = 8e9
"""Bytes that a comparison may need, by the estimates below; where it needs more, it is left out."""

WHOLE_BYTES = 450
"""Bytes a pixel of the subject's surroundings that layers take when lifted all at once."""

SOLVED_PIXELS = 2_500_000
"""Pixels up to which closed-form matting is run: it would take minutes beyond."""

SMALL_SHARE = 6 / 7
"""Long side, as a share of the working size, of the composite that is enlarged: 768 of 896."""

_STRIP = 256
_MARGIN = 64
_ALIGN = 32


# Truth


def rough_mask(alpha: Tensor, size: tuple[int, int]) -> Tensor:
    """What a segmenter might say: binary and blurred, without strands.

    Args:
        alpha: (1, 1, h, w) in [0, 1], the truth, small.
        size: (height, width) of the answer.

    Returns:
        (1, 1, height, width) in [0, 1].
    """
    whole = resize(alpha, size).clamp(0, 1)
    return box_filter((whole > 0.5).float(), max(1, max(size) // 340)).clamp(0, 1)


def outline_length(alpha: Tensor) -> float:
    """Length in pixels of the outline of an alpha (H, W), uint8, at one half.

    Crossings of all rows and columns, times π / 4: right for an outline that runs in all
    directions alike (Cauchy and Crofton).
    """
    inside = alpha > 127
    crossings = sum(int((x[1:] ^ x[:-1]).sum()) for x in (inside, inside.T))
    return float(torch.pi / 4 * crossings)


def band_strips(alpha: Tensor, radius: int = BAND_RADIUS) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the metrics' rim band of an alpha (H, W), uint8: the slice, and (rows, W) boolean."""
    height = alpha.shape[0]
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        low, high = max(0, top - radius - 1), min(height, bottom + radius + 1)
        band = rim_band(alpha[None, None, low:high].float() / 255, radius)[0, 0]
        yield slice(top, bottom), band[top - low : top - low + bottom - top]


def band_decibels(composite: Tensor, truth: Tensor, alpha: Tensor) -> float:
    """The metrics' band PSNR in dB, in the memory of a few rows.

    Args:
        composite: (3, H, W) uint8.
        truth: (3, H, W) uint8.
        alpha: (H, W) uint8, the true one.
    """
    total, count = 0.0, 0
    for rows, band in band_strips(alpha):
        error = (composite[:, rows].float() - truth[:, rows].float()).div_(255).square_().mean(0)
        total += float(error[band].double().sum())
        count += int(band.sum())
    return float(decibels(torch.tensor(total / max(1, count))))


def seam_ratio(composite: Tensor, alpha: Tensor, cell: int = CELL) -> float:
    """Mean step between pixels across the borders of cells, relative to all others in the band.

    Args:
        composite: (3, H, W) uint8.
        alpha: (H, W) uint8, whose rim band is looked at.
        cell: side of a cell in pixels.

    Returns:
        About 1 where borders do not show; NaN where the band crosses none.
    """
    sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    before = None
    for rows, band in band_strips(alpha):
        part = composite[:, rows].float().mean(0)
        stacked, held = part, band
        if before is not None:
            stacked, held = torch.cat([before[0], part]), torch.cat([before[1], band])
        first = rows.stop - len(stacked)
        down = (stacked[1:] - stacked[:-1]).abs()
        across = (part[:, 1:] - part[:, :-1]).abs()
        lines = torch.arange(first + 1, rows.stop)[:, None].expand_as(down)
        columns = torch.arange(1, part.shape[1]).expand_as(across)
        for step, place, within in (
            (down, lines, held[1:] & held[:-1]),
            (across, columns, band[:, 1:] & band[:, :-1]),
        ):
            border = place % cell == 0
            for index, where in enumerate((border & within, ~border & within)):
                sums[index] += step[where].double().sum()
                counts[index] += where.sum()
        before = part[-1:], band[-1:]
    means = sums / counts
    return float(means[0] / means[1])


# Ours


class Informed(nn.Module):
    """A segmenter that works as the shipped one does, and hands on a rough mask of the truth.

    Whatever the shipped one makes of a made picture, the later stages have a rim to work on.
    """

    def __init__(self, segmenter: nn.Module, alpha: Tensor) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.alpha = alpha

    def forward(self, image: Tensor) -> Tensor:
        """The rough mask (1, 1, H, W) of ``image`` (1, 3, H, W)."""
        self.segmenter(image)
        return rough_mask(self.alpha, (image.shape[-2], image.shape[-1])).to(image)


def default_compositor(alpha: Tensor, device: str = "cpu", work_side: int = 896) -> Compositor:
    """The shipped stages, informed of a small true alpha (1, 1, h, w)."""
    segmenter: Any = make_stage("segmenter", "pyramid")
    return Compositor(Informed(segmenter, alpha), device=device, work_side=work_side)


def measure(files: Files, options: dict[str, Any]) -> dict[str, Any]:
    """Everything about one scene.

    Args:
        files: of the scene.
        options: ``device``, ``work_side``; ``repeats`` of what is timed; and ``parts``, what is
            measured beside that: ``quality``, ``whole``, ``solved``, ``floor``, ``profile``.

    Returns:
        Figures by name; None, or a text that says why, where there is none.
    """
    small = torch.from_numpy(np.array(files.array("mask"))).float()[None, None] / 255
    compositor = default_compositor(small, options["device"], options["work_side"])
    found: dict[str, Any] = {}
    start_memory = reset_peak()
    seconds = _once(compositor, files)
    peak = peak_memory()
    if peak is not None and start_memory is not None:
        found["memory"] = (peak - start_memory) / 1e6
    front, back = read_image(files.photograph), read_image(files.background)
    given: list[tuple[Any, ...]] = []
    with recorded_layers(given):
        runs = [compositor(front, back) for _ in range(options["repeats"])]
    for name in ("segmentation", "refinement", "fusion"):
        found[name] = statistics.median(run.seconds[name] for run in runs)
    found["total"] = statistics.median(sum(run.seconds.values()) for run in runs)
    result = runs.pop()
    runs.clear()
    found |= seconds
    alpha = torch.from_numpy(files.array("alpha"))
    truth = torch.from_numpy(files.array("truth")).permute(2, 0, 1)
    found["outline"] = outline_length(alpha)
    found["tiles"] = list(result.tiles)
    if "quality" in options["parts"]:
        found["psnr"] = band_decibels(result.composite_pixels, truth, alpha)
        enlarged = enlarged_small(compositor, result)
        found["enlarged_psnr"] = band_decibels(enlarged, truth, alpha)
        found["gain"] = found["psnr"] - found["enlarged_psnr"]
        found["seam"] = seam_ratio(result.composite_pixels, alpha)
        found["seam_truth"] = seam_ratio(truth, alpha)
        del enlarged
    if "whole" in options["parts"]:
        found |= compare_whole(result, given, alpha)
    if "profile" in options["parts"]:
        found["profile"] = profile(compositor, front, back)
    del result
    if "floor" in options["parts"]:
        found |= plain_blend(files)
        plain = torch.from_numpy(np.array(read_image(files.folder / "plain.png").pixels))
        found["plain_psnr"] = band_decibels(plain.permute(2, 0, 1), truth, alpha)
    if "solved" in options["parts"]:
        found |= solve(files, small, truth, alpha)
    return found


def reset_peak() -> int | None:
    """Forget the most memory that this process has had; the bytes it has now, None if unknown."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
    return peak_memory()


def _once(compositor: Compositor, files: Files) -> dict[str, float]:
    """From files to a file, once: seconds of reading both photographs and of writing one."""
    out = files.folder / "composite.png"
    start = time.perf_counter()
    front, back = read_image(files.photograph), read_image(files.background)
    read = time.perf_counter()
    result = compositor(front, back)
    done = time.perf_counter()
    result.save(out)
    written = time.perf_counter()
    out.unlink()
    return {"decode": read - start, "encode": written - done}


# Against the same networks on the whole


@contextmanager
def recorded_layers(into: list[tuple[Any, ...]]) -> Iterator[None]:
    """While this lasts, what the compositor hands to ``fuse_layers`` is kept in ``into``."""
    real = fullsize_module.fuse_layers

    def record(*given: Any) -> Any:
        into.append(given)
        return real(*given)

    with mock.patch.object(compositor_module, "fuse_layers", record):
        yield


def fuse_whole(
    pixels: Tensor,
    backdrop: Tensor,
    box: Box,
    image: Tensor,
    coarse: Layers,
    finer: Callable[[Tensor, Tensor, Layers], Layers | None] | None,
    context: int,
    kept: Tensor | None = None,
) -> Tensor:
    """What ``fuse_layers`` makes of the same arguments, all at once instead of in tiles.

    Returns:
        (3, H, W) uint8, the composite.
    """
    assert coarse.old_background is not None
    guide = make_guide(image, coarse.alpha, coarse.foreground_color, coarse.old_background)
    around = grow(box, _MARGIN, (pixels.shape[-2], pixels.shape[-1]))
    top, bottom, left, right = edges(around)
    # From multiples of the strides of networks, as the tiles are.
    top, left = (edge // _ALIGN * _ALIGN for edge in (top, left))
    part = (..., slice(top, bottom), slice(left, right))
    size = (bottom - top, right - left)
    photograph, behind = (x[part][None].to(image.device).float() / 255 for x in (pixels, backdrop))
    large = enlarged_windows(guide, Grid(*size, cell=max(size)), [(top, left)], box)
    layers = Layers(*follow_guide(large, photograph))
    del large
    better = None if finer is None else finer(photograph, behind, layers)
    layers = layers if better is None else better
    if kept is not None:
        layers.alpha = kept[part][None].to(image.device).float() / 255
        own = torch.where(layers.alpha == 1, photograph, layers.foreground_color)
        layers.foreground_color = own
    composite = backdrop.clone(memory_format=torch.contiguous_format)
    composite[part] = to_bytes(over(layers.foreground_color, layers.alpha, behind)[0]).cpu()
    return composite


def compare_whole(result: Composite, given: list[tuple[Any, ...]], alpha: Tensor) -> dict[str, Any]:
    """How far tiles are from the whole, inside the rim band, in 8-bit steps.

    Args:
        result: made in tiles.
        given: what ``fuse_layers`` was given for it, see :func:`recorded_layers`.
        alpha: (H, W) uint8, the true one.
    """
    if not given:
        return {"difference": "no tiles"}
    tiled = result.composite_pixels
    top, bottom, left, right = edges(given[0][2])
    needed = WHOLE_BYTES * (bottom - top) * (right - left)
    if needed > LIMIT:
        return {"difference": f"needs {needed / 1e9:.0f} GB"}
    with torch.inference_mode():
        start = time.perf_counter()
        whole = fuse_whole(*given[0])
        seconds = time.perf_counter() - start
    steps = torch.cat(
        [
            (tiled[:, rows].short() - whole[:, rows].short()).abs().amax(0)[band]
            for rows, band in band_strips(alpha)
        ]
    )
    ranked = steps.sort().values
    return {
        "difference": int(ranked[-1]),
        "difference_999": int(ranked[int(0.999 * (len(ranked) - 1))]),
        "whole_seconds": seconds,
    }


# Against others


def enlarged_small(compositor: Compositor, result: Composite) -> Tensor:
    """The composite made at 768 pixels, enlarged: its cut-out over the large backdrop.

    The cut-out is enlarged bilinearly with its colour multiplied by alpha, so that its rim does
    not take on the black of what is empty. Returns (3, H, W) uint8.
    """
    size = result.size
    at = fit_long_side(*size, round(SMALL_SHARE * compositor.work_side))
    pictures = [
        resample(x.contiguous(), at).permute(1, 2, 0).contiguous().numpy()
        for x in (result.foreground_pixels, result.background_pixels)
    ]
    cutout = compositor(*pictures).cutout[None]
    cutout = torch.cat([cutout[:, :3] * cutout[:, 3:], cutout[:, 3:]], 1)
    out = torch.empty_like(result.background_pixels, memory_format=torch.contiguous_format)
    for top in range(0, size[0], _STRIP):
        bottom = min(top + _STRIP, size[0])
        color, alpha = upsample_rows(cutout, size, top, bottom).split((3, 1), 1)
        behind = result.background_pixels[None, :, top:bottom] / 255
        out[:, top:bottom] = to_bytes((color + (1 - alpha) * behind)[0])
    return out


def plain_blend(files: Files) -> dict[str, float]:
    """The floor: read both, enlarge the rough mask, blend, write ``plain.png``; seconds."""
    start = time.perf_counter()
    front, back = read_image(files.photograph).pixels, read_image(files.background).pixels
    read = time.perf_counter()
    small = torch.from_numpy(np.array(files.array("mask"))).float()[None, None] / 255
    rough = rough_mask(small, (small.shape[-2], small.shape[-1]))
    levels = Image.fromarray(to_bytes(rough)[0, 0].numpy())
    mask = np.asarray(levels.resize(front.shape[1::-1], Image.Resampling.BILINEAR))
    out = np.empty_like(front)
    for top in range(0, len(front), _STRIP):
        rows = slice(top, top + _STRIP)
        out[rows] = blend(front[rows], mask[rows], back[rows])
    blended = time.perf_counter()
    write_image(files.folder / "plain.png", out)
    return {
        "plain_seconds": blended - read,
        "plain_files": time.perf_counter() - start,
    }


def solve(files: Files, small: Tensor, truth: Tensor, alpha: Tensor) -> dict[str, Any]:
    """Closed-form matting and multi-level colour at full size, from the same rough mask."""
    front, back = read_image(files.photograph), read_image(files.background)
    size = front.size
    if size[0] * size[1] > SOLVED_PIXELS:
        return {"solved": "too large"}
    try:
        fuser = ("alpha", {"foreground_color": "multilevel"})
        compositor = Compositor(refiner="closed_form", fuser=fuser, device="cpu")
    except MissingExtraError as error:
        return {"solved": str(error)}
    mask = resize(rough_mask(small, (small.shape[-2], small.shape[-1])), size).clamp(0, 1)
    result = compositor(front, back, mask[0].contiguous())
    return {
        "solved": sum(result.seconds.values()),
        "solved_psnr": band_decibels(result.composite_pixels, truth, alpha),
    }


# Where the time goes


class Stopwatch:
    """Seconds by kind of work; work inside other work counts for itself alone.

    Args:
        device: whose work is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []

    def start(self, kind: str) -> None:
        """Begin work of a kind."""
        now = self._now()
        if self._open:
            self._add(self._open[-1], now)
        self._open.append((kind, now))

    def stop(self) -> None:
        """End the work that was begun last."""
        now = self._now()
        self._add(self._open.pop(), now)
        if self._open:
            self._open[-1] = (self._open[-1][0], now)

    def wrapped(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, timed as work of a kind."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start(kind)
            try:
                return call(*args, **kwargs)
            finally:
                self.stop()

        return timed

    def _add(self, entry: tuple[str, float], now: float) -> None:
        self.seconds[entry[0]] = self.seconds.get(entry[0], 0.0) + now - entry[1]

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()


_PARTS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("lifting", fullsize_module, (
        "make_guide", "follow_guide", "follow_alpha", "enlarged_windows",
    )),
    ("alpha and colour solves", fuser_module, (
        "closed_form", "blur_fusion_foreground", "multilevel_layers",
    )),
    ("copying and resizing", fullsize_module, ("_windows", "to_bytes", "fill_cells")),
    ("copying and resizing", compositor_module, (
        "resample", "resize", "cover", "subject_box", "to_bytes",
    )),
    ("marking tiles and rims", fullsize_module, ("touched_cells", "cells_inside", "rim_blocks")),
    ("marking tiles and rims", compositor_module, ("unknown_band", "snap_alpha")),
)  # fmt: skip
"""Functions of the hot path, under the names by which they are called, by kind of work."""


def profile(compositor: Compositor, front: Any, back: Any) -> dict[str, float]:
    """Seconds of one composite by kind of work: inside networks, and what is done around them."""
    watch = Stopwatch(compositor.device)
    stages: list[Any] = [compositor.segmenter, compositor.refiner, compositor.fuser]
    networks = [
        child
        for stage in stages
        for child in (stage.segmenter if isinstance(stage, Informed) else stage).children()
        if next(child.parameters(), None) is not None
    ]
    with ExitStack() as stack:
        for child in networks:
            before = child.register_forward_pre_hook(lambda *_: watch.start("networks"))
            after = child.register_forward_hook(lambda *_: watch.stop())
            stack.callback(before.remove)
            stack.callback(after.remove)
        for kind, module, names in _PARTS:
            for name in names:
                timed = watch.wrapped(kind, getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, timed))
        watch.start("blending tiles and the rest")
        compositor(front, back)
        watch.stop()
    return watch.seconds


def main(folder: str, options: str) -> None:
    """Measure the scene in ``folder`` and print the figures as JSON."""
    given = json.loads(options)
    if given["threads"] is not None:
        limit_threads(given["threads"])
    print(json.dumps(measure(Files(Path(folder)), given)))


if __name__ == "__main__":
    main(*sys.argv[1:])
