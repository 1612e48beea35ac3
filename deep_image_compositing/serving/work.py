"""The work of a worker process: makes one image per job; the only module here that uses torch."""

from __future__ import annotations

import functools
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deep_image_compositing import registry
from deep_image_compositing.composite import Composite
from deep_image_compositing.compositor import Compositor, doubt
from deep_image_compositing.errors import (
    CompositingError,
    ImageError,
    MissingExtraError,
    UsageError,
    WeightsError,
)
from deep_image_compositing.fullsize import as_floats
from deep_image_compositing.functional.compose import dilate, unknown_band
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.functional.strokes import SIDE, spread_strokes
from deep_image_compositing.images import (
    Photograph,
    encode_image,
    read_image,
    read_mask,
    to_tensor,
)
from deep_image_compositing.placement import resample
from deep_image_compositing.removal import ask
from deep_image_compositing.serving.jobs import DEFAULTS, FORMATS, Answer, Job, Stage
from deep_image_compositing.settings import Shadow, placed_size
from deep_image_compositing.stages.making import make_stage

COLOURLESS: Stage = ("copy_paste", ())
"""The fuser for jobs that need only a mask: the cheapest one."""

_BAND = 0.02  # share of the long side: how far from strokes' edits the refiner may change alpha
_STATUS = ((MissingExtraError, 501), (UsageError, 400), (ImageError, 400))
_device = "cpu"


def start(device: str, stages: tuple[Stage, ...]) -> None:
    """Load the stages that most jobs need on ``device``; may raise ``CompositingError``."""
    global _device
    _device = device
    _compositor(stages)


def perform(job: Job) -> Answer:
    """Make the image of a job; the answer holds the image or the reason for a failure."""
    try:
        alpha: Tensor | None = None
        if job.output == "mask":
            result, picture = _edit_mask(job)
        else:
            result = _compose(_without_output(job))
            picture, alpha = {
                "composite": (result.composite_pixels, None),
                "cutout": (result.cutout_pixels, result.cutout_levels),
                "alpha": (result.alpha_levels, None),
            }[job.output]
        timings = [f"{name};dur={1000 * value:.0f}" for name, value in result.seconds.items()]
        headers = {"content-type": FORMATS[job.form], "server-timing": ", ".join(timings)}
        if not job.mask:
            headers["x-subject-doubt"] = f"{doubt(as_floats(result.mask_levels)):.3f}"
        return Answer(200, encode_image(f".{job.form}", picture, alpha=alpha), headers)
    except CompositingError as error:
        if isinstance(error, WeightsError):  # not the client's fault, and it reveals file names
            traceback.print_exc()
            return Answer(500, b"a stage could not be created; see the server's log")
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 422)
        return Answer(status, str(error).replace("image in memory", "the mask").encode())
    except Exception:
        traceback.print_exc()
        return Answer(500, b"the picture could not be made; see the server's log")


@functools.lru_cache(maxsize=2)
def _compose(job: Job) -> Composite:
    """Run the compositor; cached, as clients often want several outputs of one composite."""
    photograph = _read("foreground", job.foreground, job.max_pixels)
    background: Any = ask(None)[1]  # the neutral one of a cut-out
    if job.background:
        background = _read("background", job.background, job.max_pixels)
        if job.frame == "background":
            height, width = placed_size(photograph.size, background.size, job.scale)
            if job.max_pixels is not None and height * width > job.max_pixels:
                raise UsageError(
                    f"scale {job.scale:g} would enlarge the subject's photograph to {width} x "
                    f"{height} pixels, above the limit of {job.max_pixels:,}; use a smaller scale"
                )
    compositor = _compositor(job.stages, job.max_pixels, job.shadow)
    frame: Any = job.frame
    mask, position = job.mask or None, job.position
    return compositor(photograph, background, mask, frame=frame, scale=job.scale, position=position)


def _edit_mask(job: Job) -> tuple[Composite, Tensor]:
    """Apply the strokes to the subject's alpha: the composite, and alpha (1, H, W) uint8."""
    plain = replace(_without_output(job), strokes=b"")
    if not job.strokes:
        result = _compose(plain)
        return result, result.alpha_levels
    photograph = _read("foreground", job.foreground, job.max_pixels)
    marks = _to_marks(_read("strokes", job.strokes, job.max_pixels), photograph.size)
    before = _initial_alpha(plain, photograph, bool((marks > 0).any()))
    small = fit_long_side(*photograph.size, SIDE)
    image = resample(to_tensor(photograph.pixels), small, "bilinear")[None]
    spread = spread_strokes(image, _shrink_marks(marks, small)[None])[0]
    # Interpolating between -1, 0 and 1 in 8 bits gives a smooth outline at full size.
    levels = resample(to_bytes((spread + 1) / 2), photograph.size, "bilinear")
    labels = torch.where(marks != 0, marks, (levels > 191).char() - (levels < 64).char())
    rough = before.masked_fill(labels > 0, 255).masked_fill(labels < 0, 0)
    result = _compose(replace(plain, mask=encode_image(".png", rough)))
    # Use the refined alpha only along the outline, and only near what the strokes have changed.
    band = max(2, round(_BAND * max(photograph.size)))
    near_outline = unknown_band(as_floats(rough)[None], band)[0]
    refined = torch.where(near_outline, to_bytes(result.alpha), rough)
    changed = (rough >= 128) != (before >= 128)
    after = torch.where(dilate(changed[None], band)[0], refined, before)
    return result, after.masked_fill(marks > 0, 255).masked_fill(marks < 0, 0)


def _initial_alpha(job: Job, photograph: Photograph, may_be_empty: bool) -> Tensor:
    """The alpha before any stroke, (1, H, W) uint8: the job's mask, or that of the stages."""
    if job.mask:
        mask = read_mask(job.mask, size=photograph.size, max_pixels=job.max_pixels)
        return to_bytes(to_tensor(mask))
    try:
        return to_bytes(_compose(job).alpha)
    except CompositingError as error:
        if type(error) is not CompositingError or not may_be_empty:
            raise
        # No subject was found: start from an empty mask.
        return torch.zeros((1, *photograph.size), dtype=torch.uint8)


def _to_marks(strokes: Photograph, size: tuple[int, int]) -> Tensor:
    """Convert strokes to 1 (green), -1 (red) and 0 at the photograph's size: (1, H, W) int8."""
    red, green = strokes.pixels[..., 0] >= 128, strokes.pixels[..., 1] >= 128
    visible = np.ones_like(red) if strokes.alpha is None else strokes.alpha >= 128
    marks = torch.from_numpy((visible & green & ~red) * np.int8(1) - (visible & red & ~green))
    rows, columns = (
        torch.arange(side) * source // side for side, source in zip(size, marks.shape, strict=True)
    )
    return marks[rows][:, columns][None]


def _shrink_marks(marks: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink marks (1, H, W); a pixel is marked if at least a quarter of it was."""
    green, red = (resample((marks == s).float(), size, "bilinear") >= 0.25 for s in (1, -1))
    return green.float() - (red & ~green).float()


def _compositor(
    stages: tuple[Stage, ...], max_pixels: int | None = None, shadow: Shadow | None = None
) -> Compositor:
    filled: dict[str, Any] = {
        slot: _stage(slot, *stage) for slot, stage in zip(registry.SLOTS, stages, strict=True)
    }
    return Compositor(**filled, device=_device, max_pixels=max_pixels, shadow=shadow)


@functools.lru_cache(maxsize=12)
def _stage(slot: str, name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    stage = make_stage(slot, (name, dict(options)), model=True)
    if slot in ("segmenter", "refiner") and isinstance(stage, nn.Module):
        stage.forward = _memoize(stage.forward)
    return stage


def _memoize(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache the last four results, because a page sends the same photograph repeatedly."""
    cache: deque[tuple[list[Tensor], Tensor]] = deque(maxlen=4)

    def wrapper(*tensors: Tensor) -> Tensor:
        for inputs, output in cache:
            if all(map(torch.equal, inputs, tensors)):
                return output.clone()
        output = function(*tensors)
        cache.append(([tensor.clone() for tensor in tensors], output.clone()))
        return output

    return wrapper


def _read(field: str, data: bytes, max_pixels: int | None) -> Photograph:
    """Read a photograph and name it after its field in messages."""
    try:
        photograph = read_image(data, max_pixels=max_pixels, cutout=True)
    except ImageError as error:
        raise ImageError(str(error).replace("image in memory", f"the {field}")) from error
    return replace(photograph, name=f"the {field}")


def _without_output(job: Job) -> Job:
    """Drop what does not affect the composite, so that equal work is cached once."""
    last = (COLOURLESS, DEFAULTS["harmonizer"]) if job.output == "mask" else job.stages[2:]
    return replace(job, stages=(*job.stages[:2], *last), output="", form="")
