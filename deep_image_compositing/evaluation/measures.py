"""The measures of an evaluation: names, units, definitions, and functions that compute them.

The figures come from ``metrics``. Pictures are uint8 or floats in [0, 1].
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.metrics import composites, masks, matting
from deep_image_compositing.metrics.composites import BAND_RADIUS, HALO_RADIUS
from deep_image_compositing.metrics.lpips import LPIPS

if TYPE_CHECKING:
    from deep_image_compositing.evaluation.testsets import Sample

KEY = "band_psnr"  # main measure of whole methods: decides comparisons and wins
COLOR_KEY = "psnr"  # the same for harmonizers alone
OUTLINE_SIDE = 640
"""Long side to which outline distances are scaled, to be comparable across picture sizes."""

Better = Literal["higher", "lower"]
Group = Literal["composite", "color", "alpha", "mask", "cost"]


@dataclass(frozen=True)
class Measure:
    """One column of a table."""

    name: str  # column heading
    unit: str  # empty if dimensionless
    better: Better
    digits: int  # decimals shown
    about: str  # a sentence for the legend
    group: Group


_BAND = f"in the band of {BAND_RADIUS} pixels around the rim (0.02 < alpha < 0.98)"

# fmt: off
_ROWS: dict[Group, dict[str, tuple[str, str, Better, int, str]]] = {
    "composite": {
        "psnr": ("PSNR", "dB", "higher", 2, "Peak signal-to-noise ratio over RGB, at most 54.15."),
        "ssim": ("SSIM", "", "higher", 4,
         "Structural similarity (Wang et al., 2004), mean over pixels and channels."),
        "lpips": ("LPIPS", "", "lower", 4,
         "Learned perceptual distance (Zhang et al., 2018) in AlexNet's features."),
        KEY: ("band PSNR", "dB", "higher", 2, f"PSNR {_BAND}."),
        "band_ssim": ("band SSIM", "", "higher", 4, f"Mean of SSIM's map {_BAND}."),
        "band_lpips": ("band LPIPS", "", "lower", 4, f"Mean of LPIPS's map {_BAND}."),
        "band_error": ("band error", "8-bit steps", "lower", 2,
         f"Mean absolute colour error {_BAND}."),
        "halo": ("halo", "", "lower", 3,
         f"Share of the old background's colour left in the rim and {HALO_RADIUS} pixels around "
         "it: 0 none, 1 the photograph pasted; removing too much counts the same."),
        "lost": ("lost subject", "", "lower", 3,
         "Share of the subject there that the new background replaced: 0 none, 1 all."),
        "exact": ("exact", "%", "higher", 2,
         "Pixels outside the band that equal those of the photographs bit for bit."),
        "exact_subject": ("exact subject", "%", "higher", 2,
         "Subject pixels outside the band that equal the photograph's bit for bit."),
        "exact_background": ("exact background", "%", "higher", 2,
         "Background pixels outside the band that equal the new background's bit for bit."),
        "worst": ("worst", "8-bit steps", "lower", 0,
         "Largest deviation outside the band from the photographs."),
    },
    "color": {
        "gain": ("PSNR gain", "dB", "higher", 2, "PSNR minus that of the input composite."),
        "fmse": ("fMSE", "", "lower", 1,
         "Mean squared error over RGB where the mask exceeds 0.5, of 8-bit values."),
        "fmse_share": ("fMSE left", "", "lower", 3,
         "Mean fMSE divided by that of the input composites."),
        "square_error": ("8-bit MSE", "", "lower", 2,
         "Mean squared error over RGB, of 8-bit values."),
        "foreground_ssim": ("fSSIM", "", "higher", 4,
         "Mean of SSIM's map where the mask exceeds 0.5."),
        "change": ("change", "8-bit steps", "lower", 2,
         "Mean absolute change of subjects that need none, where the mask exceeds 0.5."),
        "outside": ("outside", "8-bit steps", "lower", 0,
         "Largest change where the mask is 0."),
    },
    "alpha": {
        "sad": ("SAD", "thousands", "lower", 2,
         "Sum of absolute alpha differences over the trimap's unknown pixels, else the picture."),
        "mse": ("MSE", "", "lower", 4, "Mean squared alpha difference over the same pixels."),
        "gradient": ("Gradient", "thousands", "lower", 2,
         "Squared differences of alpha's gradient magnitudes (Rhemann et al., 2009; sigma 1.4)."),
        "connectivity": ("Connectivity", "thousands", "lower", 2,
         "Differences in how alpha connects to the subject (Rhemann et al., 2009; "
         "step 0.1, theta 0.15)."),
    },
    "mask": {
        "iou": ("IoU", "", "higher", 4, "Intersection over union of masks at 0.5."),
        "max_f": ("max F", "", "higher", 4,
         "Best F-measure over 256 thresholds of the mask, beta² = 0.3."),
        "mae": ("MAE", "", "lower", 4, "Mean absolute difference of mask and alpha."),
        "outline": ("outline", f"pixels at {OUTLINE_SIDE}", "lower", 2,
         "Mean distance between the outlines (level 0.5), scaled to a long side of "
         f"{OUTLINE_SIDE}."),
    },
    "cost": {
        "seconds": ("time", "s", "lower", 2, "Seconds per picture, all stages."),
        "segmentation_seconds": ("segmentation", "s", "lower", 2,
         "Seconds per picture in the segmenter."),
        "refinement_seconds": ("refinement", "s", "lower", 2,
         "Seconds per picture in the refiner."),
        "fusion_seconds": ("fusion", "s", "lower", 2, "Seconds per picture in the fuser."),
        "harmonization_seconds": ("harmonization", "s", "lower", 3,
         "Seconds per picture in the harmonizer."),
        "peak_memory": ("memory", "MB", "lower", 0, "Peak memory while a picture is made."),
    },
}
# fmt: on
MEASURES: dict[str, Measure] = {
    key: Measure(*row, group) for group, rows in _ROWS.items() for key, row in rows.items()
}
"""All measures by their keys in records, in table order."""


def measure_composite(
    composite: Tensor, sample: Sample, lpips: LPIPS | None = None
) -> dict[str, float]:
    """Measure a composite (3, H, W) of a sample against the true one.

    The result omits what is undefined or unknown: band measures of a picture without an alpha or a
    rim, ``halo`` and ``lost`` without the old background or where it resembles the new one, SSIM
    below 6 pixels, LPIPS below 64 or without ``lpips`` (from ``find_lpips``). UsageError if the
    sizes differ.
    """
    assert sample.composite is not None
    c, t = _floats(composite), _floats(sample.composite)
    composites.check_pair(c, t)
    similarity, band = composites.ssim_map(c, t), None
    figures = {"psnr": float(composites.picture_psnr(c[None], t[None]))}
    figures["ssim"] = float(similarity.mean())
    if sample.alpha is not None:
        a = _floats(sample.alpha)
        composites.check_alpha(c, a)
        band = composites.rim_band(a[None])[0]
        figures["band_psnr"] = float(composites.band_psnr(c[None], t[None], a[None]))
        figures["band_error"] = composites.color_error(c, t, band)
        figures["band_ssim"] = float(similarity[:, band[0]].mean())
        if sample.old_background is not None:
            behind = _floats(sample.background), _floats(sample.old_background)
            color = None if sample.foreground_color is None else _floats(sample.foreground_color)
            figures["halo"], figures["lost"] = map(abs, composites.halo(c, t, a, *behind, color))
        photographs = to_bytes(sample.foreground), to_bytes(sample.background)
        *shares, figures["worst"] = composites.exactness(to_bytes(composite), a, *photographs)
        names = ("exact", "exact_subject", "exact_background")
        figures |= {name: 100 * share for name, share in zip(names, shares, strict=True)}
    if lpips is not None:
        figures["lpips"], figures["band_lpips"] = lpips(c, t, band)
    return _sorted(figures)


def measure_colors(
    composite: Tensor, truth: Tensor, mask: Tensor, before: Tensor
) -> dict[str, float]:
    """Measure a harmonised composite (3, H, W); UsageError if shapes differ.

    The result omits SSIM below 6 pixels and, if the mask nowhere exceeds 0.5, all that needs it.

    Args:
        composite: the harmonizer's output.
        truth: the true composite.
        mask: (1, H, W) of the subject.
        before: the harmonizer's input; if it equals the truth, colours should not change.
    """
    # The same memory layout, so that equal pictures have equal errors to the last bit.
    c, t, m, b = (_floats(p)[None].contiguous() for p in (composite, truth, mask, before))
    composites.check_pair(c[0], t[0])
    composites.check_pair(b[0], t[0])
    composites.check_alpha(t[0], m[0])
    psnr, ssim = composites.picture_psnr(c, t), composites.ssim_map(c[0], t[0])
    figures = {
        "psnr": psnr,
        "fmse": composites.foreground_error(c, t, m),
        "square_error": composites.square_error(c, t),
        "outside": 255 * ((c - b).abs() * (m == 0)).amax(),
        "ssim": ssim.mean(),
        "foreground_ssim": ssim[:, m[0, 0] > 0.5].mean(),
    }
    if torch.equal(b, t):
        figures["change"] = 255 * (c - b).abs().mean(1, keepdim=True)[m > 0.5].mean()
    else:
        figures["gain"] = psnr - composites.picture_psnr(b, t)
    return _sorted({key: float(figure) for key, figure in figures.items()})


def measure_alpha(alpha: Tensor, truth: Tensor) -> dict[str, float]:
    """Measure the refiner's alpha against the truth, both (1, H, W); UsageError if shapes differ.

    Methods get no trimap, so errors count in the whole picture.
    """
    a, t = _floats(alpha), _floats(truth)
    return {
        "sad": matting.sad(a, t),
        "mse": matting.mse(a, t),
        "gradient": matting.gradient_error(a, t),
        "connectivity": matting.connectivity_error(a, t),
    }


def measure_mask(mask: Tensor, truth_alpha: Tensor) -> dict[str, float]:
    """Measure a segmenter's mask against the true alpha, (1, H, W); UsageError if shapes differ.

    The result omits ``max_f`` if there is no subject.
    """
    m, t = _floats(mask), _floats(truth_alpha)
    outline = masks.outline_distance(m, t) * (OUTLINE_SIDE / max(m.shape[-2:]))
    figures = {"iou": masks.iou(m, t), "max_f": masks.max_f_measure(m, t), "outline": outline}
    return _sorted(figures | {"mae": float((m - t).abs().mean())})


def _sorted(figures: dict[str, float]) -> dict[str, float]:
    """The figures in table order, without NaN."""
    return {key: figures[key] for key in MEASURES if not math.isnan(figures.get(key, math.nan))}


def _floats(picture: Tensor) -> Tensor:
    return picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()


@contextlib.contextmanager
def measure_cost(device: torch.device) -> Iterator[dict[str, float]]:
    """Measure the wall-clock ``seconds`` and ``peak_memory`` of a block; filled in at its end.

    Memory is in megabytes (10⁶ bytes) above the use at the start: GPU memory on CUDA, otherwise
    the process's resident memory, absent outside Linux.
    """
    figures: dict[str, float] = {}
    before: int | None = None
    gc.collect(1)  # a full collection would take longer than many methods
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        with contextlib.suppress(OSError, TypeError, AttributeError):  # not on Linux
            # Freed memory that glibc keeps would hide what a call needs.
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # count the peak from now on
            before = _resident("VmRSS")
    start = time.perf_counter()
    yield figures
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    figures["seconds"] = time.perf_counter() - start
    if before is not None:
        cuda = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) if cuda else _resident("VmHWM")
        figures["peak_memory"] = max(0, peak - before) / 1e6


def _resident(field: str) -> int:
    """Bytes of resident memory: ``VmRSS`` now, ``VmHWM`` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
