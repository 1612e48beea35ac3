"""Whether cost grows with the subject's outline, not with the area: ``benchmark resolution``.

One made subject with exact truth at several sizes. Each size is measured in a fresh process, see
:mod:`deep_image_compositing.benchmark.fullsize`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deep_image_compositing.benchmark.fullsize import LIMIT, SOLVED_PIXELS
from deep_image_compositing.benchmark.pipeline import (
    Pair,
    _add,
    _median,
    _opencv_blend,
    _python,
    _stage,
    _synchronised,
    _try_row,
    limit_threads,
    make_pair,
    open_console,
    synchronise,
)
from deep_image_compositing.benchmark.scenes import Scene, write_scene
from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.pyramids import BLEND_LEVELS

MEGAPIXELS = (0.6, 2.0, 12.0, 24.0, 48.0)
"""Sizes that are measured when none are named."""

PARTS = ("sizes", "solved", "outline", "blends", "batches")
"""What is measured, group by group; ``solved`` adds closed-form matting to ``sizes``."""

OUTLINES = (0.4, 0.6, 0.8, 1.0)
"""Sizes of the subject relative to its own, in photographs of one size."""

_QUICK = (0.02, 0.05, 0.1)
_AIMS: tuple[tuple[str, float, str, float, str], ...] = (
    ("seconds at 12 MP", 12, "total", 6.0, "<"),
    ("times of 0.6 MP at 12 MP", 12, "ratio", 3.0, "<"),
    ("seconds at 48 MP", 48, "total", 20.0, "<"),
    ("peak MB at 12 MP", 12, "memory", 800.0, "<"),
    ("peak MB at 48 MP", 48, "memory", 1500.0, "<"),
    ("8-bit steps from the whole at 12 MP", 12, "difference", 1.0, "≤"),
    ("dB over the enlarged small one at 12 MP", 12, "gain", 2.0, "≥"),
)

Row = Mapping[str, Any]


def run(
    megapixels: Sequence[float] = MEGAPIXELS,
    *,
    parts: Sequence[str] = PARTS,
    quick: bool = False,
    threads: int | None = None,
    device: str = "cpu",
) -> None:
    """Measure everything and print the tables.

    Args:
        megapixels: sizes of the photographs; ratios are to the first.
        parts: which of :data:`PARTS`.
        quick: tiny photographs with a small working size, and every measurement once.
        threads: of torch, OpenCV and numba; None leaves each its own default.
        device: where our stages run; the others run on the CPU.

    Raises:
        UsageError: sizes, parts or a number of threads that cannot be, or a device that is not
            there.
    """
    if not megapixels or min(megapixels) < 0.01 or max(megapixels) > 250:
        raise UsageError(f"--megapixels are numbers from 0.01 to 250, got {_listed(megapixels)}")
    for part in parts:
        if part not in PARTS:
            raise UsageError(f"--parts takes some of {','.join(PARTS)}, not {part!r}")
    choose_device(device)
    if threads is not None:
        limit_threads(threads)
    console = open_console()
    options: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "repeats": 1 if quick else 2,
        "work_side": 128 if quick else 896,
    }
    megapixels = _QUICK if quick else sorted(megapixels)
    middle = min(megapixels, key=lambda size: abs(size - 12))
    rows: dict[float, Row] = {}
    if "sizes" in parts:
        rows = {size: _size(size, middle, options, parts) for size in megapixels}
        for table in (
            size_table(rows), quality_table(rows), others_table(rows),
            profile_table(middle, rows[middle]["profile"]), aim_table(rows),
        ):  # fmt: skip
            console.print(table)
    if "outline" in parts:
        _outline(console, middle, rows.get(middle), options)
    if "blends" in parts:
        console.print(blend_table(96 if quick else 768, 1 if quick else 5))
    if "batches" in parts:
        _batches(console, device, quick)


# Measuring


def measure(scene: Scene, options: Row, parts: Sequence[str] = ()) -> Row:
    """The figures of a scene, from a fresh process; its files are gone afterwards."""
    with TemporaryDirectory() as folder:
        write_scene(scene, Path(folder))
        given = json.dumps({**options, "parts": list(parts)})
        module = "deep_image_compositing.benchmark.fullsize"
        found: Row = json.loads(_python("-m", module, folder, given).splitlines()[-1])
    return found


def _size(size: float, middle: float, options: Row, chosen: Sequence[str]) -> Row:
    parts = ["quality", "whole", "floor"]
    parts += ["solved"] if "solved" in chosen else []
    parts += ["profile"] if size == middle else []
    return measure(Scene.of(size), options, parts)


def _outline(console: Console, middle: float, known: Row | None, options: Row) -> None:
    """Subjects of several sizes in photographs of one, and one subject in twice the area."""
    whole = Scene.of(middle)
    rows = []
    for scale in OUTLINES:
        scene = Scene(whole.height, whole.width, scale * whole.unit, whole.grain)
        rows.append(known if known and scale == 1 else measure(scene, options))
    console.print(outline_table(middle, rows))
    double = Scene.of(2 * middle)
    scene = Scene(double.height, double.width, whole.unit, whole.grain)
    table = Table(
        "area", "outline px", "seconds", "ratio", title="The same pixels in twice the area"
    )
    for row, area in ((rows[-1], middle), (measure(scene, options), 2 * middle)):
        ratio = row["total"] / rows[-1]["total"]
        table.add_row(
            f"{area:g} MP", f"{row['outline']:.0f}", f"{row['total']:.2f}", f"{ratio:.2f}"
        )
    console.print(table)


# The tables


def size_table(rows: Mapping[float, Row]) -> Table:
    """Seconds, memory and tiles of each size."""
    first = next(iter(rows.values()))["total"]
    table = Table(
        "MP", "segment", "refine", "fuse", "all three", "ratio", "decode", "encode", "peak MB",
        "tiles", "outline px", title="One subject at several sizes; seconds, "
        f"{torch.get_num_threads()} threads",
    )  # fmt: skip
    for size, row in rows.items():
        names = ("segmentation", "refinement", "fusion", "total")
        table.add_row(
            f"{size:g}",
            *(f"{row[name]:.2f}" for name in names),
            f"{row['total'] / first:.2f}",
            f"{row['decode']:.2f}",
            f"{row['encode']:.2f}",
            _figure(row, "memory", "{:.0f}"),
            "all" if not row["tiles"][1] else f"{row['tiles'][0]} of {row['tiles'][1]}",
            f"{row['outline']:.0f}",
        )
    return table


def quality_table(rows: Mapping[float, Row]) -> Table:
    """Closeness to the truth and to the same networks on the whole picture."""
    table = Table(
        "MP", "band dB", "small enlarged", "gain dB", "most steps from whole", "99.9 %",
        "whole seconds", "seams", "of the truth", title="In the rim band; the whole where it "
        f"fits {LIMIT / 1e9:.0f} GB",
    )  # fmt: skip
    for size, row in rows.items():
        table.add_row(
            f"{size:g}",
            *(_figure(row, name, "{:.2f}") for name in ("psnr", "enlarged_psnr", "gain")),
            *(_figure(row, name, "{}") for name in ("difference", "difference_999")),
            *(_figure(row, name, "{:.2f}") for name in ("whole_seconds", "seam", "seam_truth")),
        )
    return table


def others_table(rows: Mapping[float, Row]) -> Table:
    """The default beside closed form with multi-level colour, and plain alpha blending."""
    table = Table(
        "MP", "ours s", "dB", "closed form + multi-level s", "dB", "plain blend s",
        "with files s", "dB", title="Beside others; closed form up to "
        f"{SOLVED_PIXELS / 1e6:g} MP",
    )  # fmt: skip
    for size, row in rows.items():
        names = ("total", "psnr", "solved", "solved_psnr")
        plain = ("plain_seconds", "plain_files", "plain_psnr")
        table.add_row(f"{size:g}", *(_figure(row, name, "{:.2f}") for name in (*names, *plain)))
    return table


def profile_table(size: float, seconds: Mapping[str, float]) -> Table:
    """Shares of the time by kind of work, largest first."""
    table = Table("work", "seconds", "share", title=f"Where the time of {size:g} MP goes")
    total = sum(seconds.values())
    for kind, value in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(kind, f"{value:.2f}", f"{value / total:.0%}")
    return table


def aim_table(rows: Mapping[float, Row]) -> Table:
    """Each aim next to its figure; sizes that were not measured have none."""
    table = Table("what", "figure", "aim", title="Aims")
    first = next(iter(rows.values()))["total"]
    for what, size, name, aim, relation in _AIMS:
        row = dict(rows.get(size, {}))
        if name == "ratio" and row and 0.6 in rows:
            row["ratio"] = row["total"] / first
        table.add_row(what, _figure(row, name, "{:.3g}"), f"{relation} {aim:g}")
    return table


def outline_table(size: float, rows: Sequence[Row]) -> Table:
    """Seconds against the length of the outline, and the line through them."""
    lengths, seconds = ([row[name] for row in rows] for name in ("outline", "total"))
    slope, intercept, fit = line_through(lengths, seconds)
    table = Table(
        "outline px", "tiles", "seconds", "on the line",
        title=f"Subjects of several sizes in {size:g} MP: {intercept:.2f} s + {1000 * slope:.3f} s "
        f"for 1000 px, R² {fit:.3f}",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            f"{row['outline']:.0f}",
            f"{row['tiles'][0]} of {row['tiles'][1]}",
            f"{row['total']:.2f}",
            f"{intercept + slope * row['outline']:.2f}",
        )
    return table


def line_through(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R² of the least-squares line through some points."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + intercept)
    around = np.asarray(y) - np.mean(y)
    fit = 1 - float((rest**2).sum() / max(float((around**2).sum()), 1e-30))
    return float(slope), float(intercept), fit


def _figure(row: Row, name: str, form: str) -> str:
    """A figure of a row; a reason stands for itself, and a dash for nothing."""
    value = row.get(name)
    if value is None:
        return "-"
    return value if isinstance(value, str) else form.format(value)


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


# Laplacian blends


def blend_table(size: int, repeats: int) -> Table:
    """Our Laplacian blend beside OpenCV's and kornia's pyramids."""
    pair = make_pair(size)
    table = Table(
        "what", "seconds", "ratio", "to",
        title=f"Laplacian blends of {size} x {size} pixels; aim: 5 times as fast as kornia",
    )  # fmt: skip
    times = {"OpenCV": _try_row(table, "OpenCV pyramid blend", _opencv_blend, pair, repeats)}
    try:
        times["kornia"] = _try_row(table, "kornia pyramid blend", kornia_blend, pair, repeats)
    except ImportError:
        table.add_row("kornia pyramid blend", "-", "-", "kornia is not installed")
    stage = _stage("fuser", "laplacian")
    with torch.inference_mode():
        own = _synchronised(stage, (pair.foreground, pair.background, pair.alpha))
        seconds = _median(own, repeats)
    for name, other in times.items():
        if other is not None:
            _add(table, "fuser laplacian", seconds, other, f"{name} pyramid blend")
    if not any(times.values()):
        _add(table, "fuser laplacian", seconds, None, "")
    return table


def kornia_blend(pair: Pair) -> Callable[[], Tensor]:
    """The same blend from kornia's pyramids, which want sides that are powers of two.

    Raises:
        ImportError: kornia is not installed.
    """
    from kornia.geometry.transform import build_laplacian_pyramid, build_pyramid, pyrup

    height, width = pair.alpha.shape[-2:]
    room = [
        0,
        (1 << (width - 1).bit_length()) - width,
        0,
        (1 << (height - 1).bit_length()) - height,
    ]

    def blend() -> Tensor:
        front, back, alpha = (
            F.pad(x, room, mode="reflect") for x in (pair.foreground, pair.background, pair.alpha)
        )
        fronts, backs = (build_laplacian_pyramid(x, BLEND_LEVELS) for x in (front, back))
        weights = build_pyramid(alpha, BLEND_LEVELS)
        image: Tensor | None = None
        for a, b, w in zip(fronts[::-1], backs[::-1], weights[::-1], strict=True):
            band = w * a + (1 - w) * b
            image = band if image is None else pyrup(image) + band
        assert image is not None
        return image[..., :height, :width].clamp(0, 1)

    return blend


# Batches on a GPU


def _batches(console: Console, device: str, quick: bool) -> None:
    chosen = choose_device(device)
    if chosen.type != "cuda":
        console.print(f"Batches a second are measured on a GPU; skipped on {chosen}.")
        return
    console.print(batch_table(chosen, 96 if quick else 768, 1 if quick else 20))


def batch_table(
    device: torch.device, size: int = 768, repeats: int = 20, count: int = 8, compiled: bool = True
) -> Table:
    """Pairs a second through all three stages, from bytes on the host to bytes on the host.

    Args:
        device: where the stages run.
        size: side of the pictures in pixels.
        repeats: batches that are timed.
        count: pairs in a batch.
        compiled: also with networks that torch has compiled.
    """
    pair = make_pair(size)
    given = [
        (255 * x).round().byte().expand(count, -1, -1, -1).contiguous()
        for x in (pair.foreground, pair.background, pair.mask)
    ]
    if device.type == "cuda":
        given = [x.pin_memory() for x in given]
    stages = [
        _stage(*slot).to(device).eval()
        for slot in (("segmenter", "pyramid"), ("refiner", "cascade"), ("fuser", "multi_stream"))
    ]
    table = Table(
        "precision", "pairs/s", "batches/s", title=f"Batches of {count} pairs of {size} x {size} "
        "pixels, copies to and from the device included",
    )  # fmt: skip
    ways = [("fp32", False, False), ("bf16", True, False)]
    if compiled:
        ways += [("fp32, compiled", False, True), ("bf16, compiled", True, True)]
    for name, half, fast in ways:
        if fast:
            for stage in stages:
                stage.compile_networks = True
                stage.configure_model()

        def batch(half: bool = half) -> Tensor:
            front, back, mask = (x.to(device, non_blocking=True).float() / 255 for x in given)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                stages[0](front)  # it runs, but what it makes of noise is not handed on
                alpha = stages[1](front, mask).float()
                out = stages[2](front, back, alpha)
            return out.float().mul(255).add_(0.5).clamp_(0, 255).byte().cpu()

        with torch.inference_mode():
            for _ in range(min(3, repeats)):
                batch()
            synchronise(device)
            start = time.perf_counter()
            for _ in range(repeats):
                batch()
            synchronise(device)
        rate = repeats / (time.perf_counter() - start)
        table.add_row(name, f"{count * rate:.1f}", f"{rate:.2f}")
    return table
