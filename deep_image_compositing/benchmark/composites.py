"""``benchmark pipeline`` and ``resolution``: time and memory of composites and of pymatting."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.benchmark import measuring
from deep_image_compositing.benchmark.measuring import PROGRAM, fresh, write_scene
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.errors import MissingExtraError, UsageError
from deep_image_compositing.functional.compose import trimap_from_mask
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.images import read_mask, to_tensor
from deep_image_compositing.stages.making import make_stage


def pipeline(device: torch.device, quick: bool) -> Iterator[Table]:
    """Cold starts, and one pair through the pipeline, each stage and pymatting."""
    with TemporaryDirectory() as name:
        folder, side = Path(name), 96 if quick else 768
        write_scene(folder / "large", *((160, 120) if quick else (1440, 1080)))
        write_scene(folder / "pair", side, side)
        yield start_table(folder, 1 if quick else 3)
        yield pair_table(folder / "pair", device, 1 if quick else 5)


def start_table(folder: Path, repeats: int) -> Table:
    """Fresh processes on the CPU: seconds, their ratio to ``import torch``, and memory."""
    scenes = [[str(folder / part / file) for file in measuring.SCENE] for part in ("large", "pair")]
    large, pair = (
        [*PROGRAM, "composite", *scene[:2], "--device=cpu", f"--output={folder / 'out.png'}"]
        for scene in scenes
    )
    table = Table("command", "seconds", "of import torch", "peak MB",
                  title=f"Cold start: fresh processes on the CPU, median of {repeats}")  # fmt: skip
    torch_import = 0.0
    for label, arguments, code in (
        ("import torch", ["-c", "import torch"], 0),
        ("--help", [*PROGRAM, "--help"], 0),
        ("composite, a wrong name", [*large, "--segmenter=piramid"], 2),
        ("composite, 1.5 megapixels", large, 0),
        ("the same, --mask … --refiner none --fuser laplacian",
         [*large, f"--mask={scenes[0][2]}", "--refiner=none", "--fuser=laplacian"], 0),
        ("composite, 768 × 768", pair, 0),
    ):  # fmt: skip
        runs = [fresh(*arguments, code=code) for _ in range(repeats)]
        times, peaks, _ = zip(*runs, strict=True)
        seconds, peak = statistics.median(times), statistics.median(peaks)
        torch_import = torch_import or seconds
        table.add_row(label, f"{seconds:.2f}", f"{seconds / torch_import:.2f}", f"{peak:.0f}")
    return table


def pair_table(folder: Path, device: torch.device, repeats: int) -> Table:
    """One pair through pymatting on the CPU, the whole pipeline, and each stage alone."""
    front, back = (photograph.pixels for photograph in measuring.read_scene(folder))
    mask = read_mask(folder / "mask.png")
    f, b, m = (to_tensor(picture)[None].to(device) for picture in (front, back, mask))
    inputs = {"segmenter": [f], "refiner": [f, m], "fuser": [f, b, m], "harmonizer": [b, m]}
    table = Table("what", "seconds", "of pymatting",
                  title=f"A pair of {len(mask)} × {len(mask)} pixels on {device}, "
                  f"{torch.get_num_threads()} threads, median of {repeats}")  # fmt: skip
    calls, baseline = dict[str, Callable[[], Any]](), "pymatting: closed form, multi-level colours"
    with contextlib.suppress(ImportError):
        from pymatting import estimate_alpha_cf, estimate_foreground_ml

        trimap = trimap_from_mask(m, max(2, len(mask) // 48))[0, 0].double().cpu().numpy()
        calls[baseline] = lambda: estimate_foreground_ml(
            front / 255.0, estimate_alpha_cf(front / 255.0, trimap)
        )
    calls["the default pipeline"] = partial(with_mask(m, device), front, back)
    for entry in registry.list_stages():
        if entry.published is not None:  # its weights may be a large download
            continue
        with contextlib.suppress(UsageError, MissingExtraError):  # it needs a file, or an extra
            stage: Any = make_stage(entry.slot, entry.name)
            stage.to(device).eval()
            calls[f"{entry.slot} {entry.name}"] = partial(stage, *inputs[entry.slot])
    with torch.inference_mode():
        medians = {label: measuring.median(call, repeats) for label, call in calls.items()}
    for label, seconds in medians.items():
        ratio = seconds / medians.get(baseline, math.nan)
        table.add_row(label, f"{seconds:.3f}", f"{ratio:.3f}")
    return table


def with_mask(mask: Tensor, device: torch.device, **options: Any) -> Compositor:
    """The default compositor; its segmenter runs, but then returns ``mask``, which has a rim."""
    segmenter: Any = make_stage("segmenter", "pyramid")
    segmenter.to(device).eval()

    def segment(image: Tensor) -> Tensor:
        segmenter(image)
        return resize(mask.to(image), (image.shape[-2], image.shape[-1])).clamp(0, 1)

    return Compositor(segment, device=device, **options)


def resolution(megapixels: Sequence[float], device: torch.device, quick: bool) -> Iterator[Table]:
    """Seconds and memory of the same synthetic subject at several sizes."""
    parts = ("segmentation", "refinement", "fusion", "all", "read", "write")
    table = Table("megapixels", *parts, "ratio of all", "peak MB", "tiles",
                  title=f"Seconds of one subject at several sizes, on {device}, each in a fresh "
                  f"process, {torch.get_num_threads()} threads")  # fmt: skip
    first = 0.0
    for size in megapixels:
        height = max(8, 8 * round((size * 750_000) ** 0.5 / 8))
        with TemporaryDirectory() as folder:
            write_scene(Path(folder), 8 * round(height / 6), height)
            options = json.dumps({"side": 128 if quick else 896, "repeats": 1 if quick else 3})
            _, peak, output = fresh("-m", __name__, folder, str(device), options)
        figures = json.loads(output.splitlines()[-1])
        first = first or figures["all"]
        touched, tiles = figures["tiles"]
        table.add_row(f"{size:g}", *(f"{figures[part]:.2f}" for part in parts),
                      f"{figures['all'] / first:.2f}", f"{peak:.0f}",
                      f"{touched} of {tiles}" if tiles else "all")  # fmt: skip
    yield table


def measure_scene(folder: Path, device: str, side: int, repeats: int) -> dict[str, Any]:
    """Median seconds of each stage, of ``all``, ``read`` and ``write``, and the tile counts."""
    mask = to_tensor(read_mask(folder / "mask.png"))[None]
    compositor = with_mask(mask, torch.device(device), work_side=side)
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        photographs = measuring.read_scene(folder)
        read = time.perf_counter() - start
        result = compositor(*photographs)
        start = time.perf_counter()
        result.save(folder / "out.jpg")
        write = time.perf_counter() - start
        runs.append({**result.seconds, "read": read, "write": write})
        runs[-1]["all"] = sum(result.seconds.values())
    runs = runs[repeats > 1 :]  # without the warm-up run
    medians = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    return {**medians, "tiles": result.tiles}


if __name__ == "__main__":
    print(json.dumps(measure_scene(Path(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3]))))
