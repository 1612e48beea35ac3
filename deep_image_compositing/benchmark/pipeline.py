"""How long composites take and how much memory they need: ``benchmark pipeline``.

Everything is measured in one run on one machine, against what people use today: closed-form
matting with multi-level foreground estimation (pymatting) and a pyramid blend (OpenCV). So the
ratios, not the seconds, are what can be compared.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.errors import (
    CompositingError,
    MissingExtraError,
    UsageError,
    WeightsError,
)
from deep_image_compositing.functional.compose import over, trimap_from_mask
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.stages.making import make_stage

_PATIENCE = 20.0
_IMPORT = (
    "import time; start = time.perf_counter(); import deep_image_compositing; "
    "print(time.perf_counter() - start)"
)


@dataclass(frozen=True)
class Pair:
    """A made pair of photographs with the truth about it.

    Attributes:
        foreground: (1, 3, H, W) in [0, 1], the subject on its old background.
        background: (1, 3, H, W) in [0, 1], the new background.
        alpha: (1, 1, H, W) in [0, 1], true.
        mask: (1, 1, H, W) in [0, 1], what a segmenter might say: binary, small, blurred.
        trimap: (1, 1, H, W) in {0, 0.5, 1}.
    """

    foreground: Tensor
    background: Tensor
    alpha: Tensor
    mask: Tensor
    trimap: Tensor


def make_pair(size: int, seed: int = 0) -> Pair:
    """A soft-edged, ragged subject on textures, ``size`` pixels square, made from noise alone."""
    random = torch.Generator().manual_seed(seed)

    def texture(channels: int, coarsest: int) -> Tensor:
        total = torch.zeros(1, channels, size, size)
        side, weight, weights = coarsest, 1.0, 0.0
        while side <= size:
            noise = torch.rand(1, channels, side, side, generator=random)
            total += weight * resize(noise, (size, size), "bicubic")
            weights += weight
            side, weight = side * 2, weight * 0.6
        return (total / weights).clamp(0, 1)

    axis = torch.linspace(-1, 1, size)
    radius = (axis.view(-1, 1).square() + axis.square()).sqrt().view(1, 1, size, size)
    edge = radius + 0.5 * (texture(1, 4) - 0.5)
    softness = 8 / size
    alpha = ((0.55 - edge) / softness + 0.5).clamp(0, 1)
    foreground = over(texture(3, 2) * 0.6 + 0.3, alpha, texture(3, 4))
    binary = (alpha > 0.5).float()
    rough = resize(resize(binary, (max(1, size // 3),) * 2), (size, size)).clamp(0, 1)
    trimap = trimap_from_mask(rough, max(2, size // 48))
    return Pair(foreground, texture(3, 2), alpha, rough, trimap)


def run(
    size: int = 768, *, quick: bool = False, threads: int | None = None, device: str = "cpu"
) -> None:
    """Measure everything and print the tables.

    Args:
        size: side of the pair in pixels.
        quick: a pair of 96 pixels, and every measurement once.
        threads: of torch, OpenCV and numba; None leaves each its own default.
        device: where our stages run; the others run on the CPU.

    Raises:
        UsageError: a size or number of threads that cannot be, or a device that is not there.
    """
    if size < 64:
        raise UsageError(f"--size must be at least 64 pixels, got {size}")
    if threads is not None:
        limit_threads(threads)
    if quick:
        size = 96
    repeats = 1 if quick else 5
    console = open_console()
    console.print(_start_table(repeats))
    console.print(_time_table(size, repeats, device))
    console.print(_memory_table(size))


# The tables


def _start_table(repeats: int) -> Table:
    table = Table("start", "seconds", "aim", title=f"Fresh processes, median of {repeats}")
    imports = _median(lambda: float(_python("-c", _IMPORT)), repeats, value=True)
    table.add_row("import deep_image_compositing", f"{imports:.3f}", "0.3")
    helps = _median(lambda: _python("-m", "deep_image_compositing", "--help"), repeats)
    table.add_row("deep-image-compositing --help", f"{helps:.3f}", "0.7")
    return table


def _time_table(size: int, repeats: int, device: str) -> Table:
    pair = make_pair(size)
    table = Table(
        "what",
        "seconds",
        "ratio",
        "to",
        title=f"One pair of {size} x {size} pixels, median of up to {repeats}, "
        f"{torch.get_num_threads()} threads",
    )
    matting = _try_row(
        table, "pymatting closed form + multi-level colour", _closed_form, pair, repeats
    )
    blend = _try_row(table, "OpenCV pyramid blend", _opencv_blend, pair, repeats)
    table.add_section()
    segmenter = _stage("segmenter", "pyramid")

    def informed(image: Tensor) -> Tensor:
        # The segmenter runs, but the true subject is handed on: whatever it makes of noise, the
        # later stages have a rim to work on.
        segmenter(image)
        return resize(pair.mask, (image.shape[-2], image.shape[-1])).to(image)

    compositor = Compositor(
        informed, _stage("refiner", "cascade"), _stage("fuser", "multi_stream"), device=device
    )
    segmenter.to(compositor.device).eval()
    photographs = [_photograph(pair.foreground), _photograph(pair.background)]
    whole = _median(lambda: compositor(*photographs), repeats)
    _add(table, "the whole default pipeline", whole, matting, "closed form + multi-level")
    on = {name: getattr(pair, name).to(compositor.device) for name in vars(pair)}
    table.add_section()
    with torch.inference_mode():
        for entry in registry.list_stages():
            try:
                stage = _stage(entry.slot, entry.name)
            except (UsageError, MissingExtraError):  # needs a file or an extra
                continue
            stage.to(compositor.device).eval()
            given = {
                "segmenter": (on["foreground"],),
                "refiner": (on["foreground"], on["mask"]),
                "fuser": (on["foreground"], on["background"], on["alpha"]),
            }[entry.slot]
            seconds = _median(_synchronised(stage, given), repeats)
            is_blend = entry.name == "laplacian"
            _add(
                table,
                f"{entry.slot} {entry.name}",
                seconds,
                blend if is_blend else matting,
                "OpenCV pyramid blend" if is_blend else "closed form + multi-level",
            )
    return table


def _memory_table(size: int) -> Table:
    table = Table("memory", "MB", "aim", title="Peak of a fresh process")
    peak = _python("-m", "deep_image_compositing.benchmark.pipeline", str(size))
    table.add_row(f"default pipeline, {size} x {size} pixels", peak.strip(), "1500")
    return table


def _add(table: Table, what: str, seconds: float, other: float | None, name: str) -> None:
    ratio = ("-", "-") if other is None else (f"{seconds / other:.2f}", name)
    table.add_row(what, f"{seconds:.3f}", *ratio)


def _try_row(
    table: Table, what: str, method: Callable[[Pair], Callable[[], Any]], pair: Pair, repeats: int
) -> float | None:
    """A competitor's row; when its package is missing, the row says what to install."""
    try:
        seconds = _median(method(pair), repeats)
    except MissingExtraError as error:
        table.add_row(what, "-", "-", str(error))
        return None
    _add(table, what, seconds, None, "")
    return seconds


# The competitors


def _closed_form(pair: Pair) -> Callable[[], Any]:
    try:
        from pymatting import estimate_alpha_cf, estimate_foreground_ml
    except ImportError:
        raise MissingExtraError("this comparison", "pymatting", "matting") from None
    image, background = (_array(x).astype(np.float64) for x in (pair.foreground, pair.background))
    trimap = _array(pair.trimap)[..., 0].astype(np.float64)

    def composite() -> NDArray[np.float64]:
        alpha = estimate_alpha_cf(image, trimap)
        color = estimate_foreground_ml(image, alpha)
        opacity = alpha[..., None]
        return np.asarray(opacity * color + (1 - opacity) * background)

    return composite


def _opencv_blend(pair: Pair) -> Callable[[], Any]:
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("this comparison", "OpenCV", "opencv") from None
    foreground, background = _array(pair.foreground), _array(pair.background)
    alpha = np.ascontiguousarray(_array(pair.alpha).repeat(3, axis=2))
    levels = max(1, min(foreground.shape[:2]).bit_length() - 4)

    def pyramid(image: Any) -> tuple[list[Any], Any]:
        details = []
        for _ in range(levels):
            small = cv2.pyrDown(image)
            details.append(image - cv2.pyrUp(small, dstsize=image.shape[1::-1]))
            image = small
        return details, image

    def blend() -> Any:
        front, front_rest = pyramid(foreground)
        back, back_rest = pyramid(background)
        weights: list[Any] = [alpha]
        for _ in range(levels):
            weights.append(cv2.pyrDown(weights[-1]))
        image = back_rest + weights[-1] * (front_rest - back_rest)
        for a, b, w in zip(front[::-1], back[::-1], weights[-2::-1], strict=True):
            image = cv2.pyrUp(image, dstsize=a.shape[1::-1]) + b + w * (a - b)
        return image.clip(0, 1)

    return blend


# Small parts


def _stage(slot: str, name: str) -> Any:
    """A stage with its shipped weights; untrained, which takes as long, where there are none."""
    try:
        return make_stage(slot, name)
    except WeightsError:
        return make_stage(slot, (name, {"weights": None}))


def _synchronised(stage: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Callable[[], None]:
    def call() -> None:
        stage(*given)
        synchronise(given[0].device)

    return call


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _median(call: Callable[[], Any], repeats: int, *, value: bool = False) -> float:
    """Median seconds of ``call`` (or of its values), after one call that does not count.

    Ends early, after at least one, when the patience is used up; a single repeat is not warmed.
    """
    if repeats > 1 and not value:
        call()
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < repeats:
        start = time.perf_counter()
        answer = call()
        seconds.append(float(answer) if value else time.perf_counter() - start)
        if time.perf_counter() - begin > _PATIENCE:
            break
    return statistics.median(seconds)


def _python(*arguments: str) -> str:
    """What a fresh Python process prints."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CompositingError(f"a fresh process failed ({' '.join(arguments)[:40]}): {reason}")
    return done.stdout


def open_console() -> Console:
    """Where tables are printed: as wide as the terminal, and wide enough where there is none."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else 200)


def limit_threads(threads: int) -> None:
    """Keep torch, OpenCV, numba and processes to come to so many threads."""
    if threads < 1:
        raise UsageError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)  # numba reads it on import; so do fresh processes
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(threads)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """(1, C, H, W) as a contiguous (H, W, C) array."""
    return np.ascontiguousarray(tensor[0].permute(1, 2, 0).numpy())


def _photograph(tensor: Tensor) -> NDArray[np.uint8]:
    return np.rint(_array(tensor) * 255).astype(np.uint8)


def _peak(size: int) -> str:
    """Megabytes that this process has needed at most, after one composite."""
    pair = make_pair(size)
    compositor = Compositor(
        _stage("segmenter", "pyramid"),
        _stage("refiner", "cascade"),
        _stage("fuser", "multi_stream"),
        device="cpu",
    )
    # With a mask the segmenter would not run, and without one it may find nothing in noise.
    with torch.inference_mode():
        compositor.segmenter(pair.foreground)
    compositor(
        _photograph(pair.foreground), _photograph(pair.background), _photograph(pair.mask)[..., 0]
    )
    peak = peak_memory()
    return "not measured" if peak is None else f"{peak / 1e6:.0f}"


def peak_memory() -> int | None:
    """Bytes that this process has occupied at most; None where that cannot be known.

    On Linux the high-water mark of its own memory: what ``getrusage`` says there begins with the
    size of the process that started it.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(_peak(int(sys.argv[1])))
