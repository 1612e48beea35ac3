"""Helpers of the benchmarks: fresh processes, medians, synthetic photographs and shards."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from deep_image_compositing import noise
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.images import Photograph, read_image

PROGRAM = ("-m", "deep_image_compositing")
SCENE = ("photograph.jpg", "background.jpg", "mask.png")

# A process inherits the peak memory of its parent, so a small one starts it.
_STARTER = """
import subprocess, sys, time
try: from resource import RUSAGE_CHILDREN, getrusage
except ImportError: getrusage = None
start = time.perf_counter()
code = subprocess.call([sys.executable, *sys.argv[1:]])
seconds = time.perf_counter() - start
unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
print(seconds, getrusage(RUSAGE_CHILDREN).ru_maxrss / unit if getrusage else "nan", code)
"""


def fresh(*arguments: str, code: int = 0) -> tuple[float, float, str]:
    """Run Python in a fresh process; returns seconds, peak memory in MB (or NaN), and its output.

    CompositingError if the exit code is not ``code``.
    """
    command = [sys.executable, "-c", _STARTER, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    *output, figures = process.stdout.splitlines() or ["nan nan nan"]
    seconds, peak, exit_code = figures.split()
    if exit_code != str(code):
        reason = (process.stderr.strip() or "no message").splitlines()[-1]
        raise CompositingError(f"{' '.join(arguments[:3])} ended with {exit_code}: {reason}")
    return float(seconds), float(peak), "\n".join(output)


def median(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of ``call``, after a warm-up call if there are several."""
    seconds: list[float] = []
    if repeats > 1:
        call()
    while len(seconds) < repeats and sum(seconds) < 20:
        start = now()
        call()
        seconds.append(now() - start)
    return statistics.median(seconds)


def now() -> float:
    """Seconds on the clock, after the accelerator has finished all queued work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def write_scene(folder: Path, width: int, height: int) -> None:
    """Write the files ``SCENE``: the same subject at every size, with a binary, blurred mask."""
    folder.mkdir(exist_ok=True)
    rng, size = np.random.default_rng(2), (width, height)
    cutout = noise.matte(rng, (600, 600)).resize(size, Image.Resampling.BICUBIC)
    alpha = cutout.getchannel("A")
    for name in SCENE[:2]:
        picture = noise.photograph(rng, (600, 600)).resize(size)
        if name == SCENE[0]:
            picture.paste(cutout, mask=alpha)
        grain = rng.integers(-5, 6, (height, width, 1), np.int16)
        pixels = (np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)
        (folder / name).write_bytes(noise.jpeg(Image.fromarray(pixels)))
    alpha.thumbnail((1024, 1024))
    rough = alpha.point(lambda level: 255 * (level > 127)).filter(ImageFilter.BoxBlur(2))
    rough.resize(size, Image.Resampling.BILINEAR).save(folder / "mask.png")


def read_scene(folder: Path) -> list[Photograph]:
    """Both photographs of a scene."""
    return [read_image(folder / name) for name in SCENE[:2]]


def write_shards(folder: Path, kind: str, count: int, sides: noise.Sides) -> Path:
    """Write synthetic files of a kind, and return the folder of shards made from them."""
    root, out = folder / f"{kind}-files", folder / kind
    images, labels = root / "images", root / ("masks" if kind == "segmentation" else "alphas")
    rng = np.random.default_rng(len(kind))
    for path in (images, labels):
        path.mkdir(parents=True)
    for number in range(count):
        picture = noise.photograph(rng, sides)
        (images / f"{number}.jpg").write_bytes(noise.jpeg(picture))
        if kind != "backgrounds":
            mask = noise.subject(rng, picture.size)
            (labels / f"{number}.png").write_bytes(noise.png(mask))
    fresh(*PROGRAM, "shards", kind, "--layout=folders", f"--root={root}", f"--out={out}",
          "--licence=made", "--validation=0", "--shard-samples=20")  # fmt: skip
    return out
