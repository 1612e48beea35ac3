"""What a worker process does: photographs in, one picture out. The only part that uses torch."""

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
"""The fuser where a mask is all that is asked for: it costs nothing."""

_BAND = 0.02  # of the long side, within which the refiner may change what strokes have said
_STATUS = ((MissingExtraError, 501), (UsageError, 400), (ImageError, 400))
_device = "cpu"


def start(device: str, stages: tuple[Stage, ...]) -> None:
    """Make what most jobs on ``device`` need; ``CompositingError`` where that cannot be."""
    global _device
    _device = device
    _compositor(stages)


def perform(job: Job) -> Answer:
    """The picture that a job asks for, or why it cannot be had."""
    try:
        if job.output == "mask":
            result, picture, alpha = _masked(job)
        else:
            result = _composited(_essence(job))
            picture, alpha = {
                "composite": (result.composite_pixels, None),
                "cutout": (result.cutout_pixels, result.cutout_levels),
                "alpha": (result.alpha_levels, None),
            }[job.output]
        spent = [f"{name};dur={1000 * value:.0f}" for name, value in result.seconds.items()]
        headers = {"content-type": FORMATS[job.form], "server-timing": ", ".join(spent)}
        if not job.mask:
            headers["x-subject-doubt"] = f"{doubt(as_floats(result.mask_levels)):.3f}"
        return Answer(200, encode_image(f".{job.form}", picture, alpha=alpha), headers)
    except CompositingError as error:
        if isinstance(error, WeightsError):  # not the client's fault, and it names files
            traceback.print_exc()
            return Answer(500, b"a stage could not be made; the server's log says why")
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 422)
        return Answer(status, str(error).replace("image in memory", "the mask").encode())
    except Exception:
        traceback.print_exc()
        return Answer(500, b"the picture could not be made; the server's log says why")


@functools.lru_cache(maxsize=2)
def _composited(job: Job) -> Composite:
    """The last ones are kept: who asks for a composite may want its cut-out and alpha next."""
    photograph = _read("foreground", job.foreground, job.max_pixels)
    new: Any = ask(None)[1]  # as for any cut-out
    if job.background:
        new = _read("background", job.background, job.max_pixels)
        if job.frame == "background":
            height, width = placed_size(photograph.size, new.size, job.scale)
            if job.max_pixels is not None and height * width > job.max_pixels:
                raise UsageError(
                    f"scale {job.scale:g} would enlarge the subject's photograph to {width} x "
                    f"{height} pixels, and {job.max_pixels:,} are the most; use a smaller scale"
                )
    compositor = _compositor(job.stages, job.max_pixels, job.shadow)
    mask = job.mask or None
    frame: Any = job.frame
    return compositor(photograph, new, mask, frame=frame, scale=job.scale, position=job.position)


def _masked(job: Job) -> tuple[Composite, Tensor, None]:
    """The subject's alpha after strokes, as a composite's ``alpha_levels`` are."""
    plain = replace(_essence(job), strokes=b"")
    if not job.strokes:
        result = _composited(plain)
        return result, result.alpha_levels, None
    photograph = _read("foreground", job.foreground, job.max_pixels)
    marks = _marks(_read("strokes", job.strokes, job.max_pixels), photograph.size)
    before = _before(plain, photograph, bool((marks > 0).any()))
    small = fit_long_side(*photograph.size, SIDE)
    image = resample(to_tensor(photograph.pixels), small, "bilinear")[None]
    spread = spread_strokes(image, _shrunk(marks, small)[None])[0]
    # Between -1, 0 and 1 there is a smooth outline at full size, in 8 bits.
    levels = resample(to_bytes((spread + 1) / 2), photograph.size, "bilinear")
    said = torch.where(marks != 0, marks, (levels > 191).char() - (levels < 64).char())
    rough = before.masked_fill(said > 0, 255).masked_fill(said < 0, 0)
    result = _composited(replace(plain, mask=encode_image(".png", rough)))
    # The refiner decides along the outline, and nowhere but near what has changed.
    band = max(2, round(_BAND * max(photograph.size)))
    near_outline = unknown_band(as_floats(rough)[None], band)[0]
    exact = torch.where(near_outline, to_bytes(result.alpha), rough)
    changed = (rough >= 128) != (before >= 128)
    after = torch.where(dilate(changed[None], band)[0], exact, before)
    return result, after.masked_fill(marks > 0, 255).masked_fill(marks < 0, 0), None


def _before(job: Job, photograph: Photograph, may_be_empty: bool) -> Tensor:
    """The alpha before any stroke, (1, H, W) uint8; a given mask is one."""
    if job.mask:
        given = read_mask(job.mask, size=photograph.size, max_pixels=job.max_pixels)
        return to_bytes(to_tensor(given))
    try:
        return to_bytes(_composited(job).alpha)
    except CompositingError as error:
        if type(error) is not CompositingError or not may_be_empty:
            raise
        # Nothing was found, so that the strokes say all.
        return torch.zeros((1, *photograph.size), dtype=torch.uint8)


def _marks(strokes: Photograph, size: tuple[int, int]) -> Tensor:
    """1 where a stroke is green, -1 where it is red, 0 elsewhere: (1, H, W) int8."""
    red, green = strokes.pixels[..., 0] >= 128, strokes.pixels[..., 1] >= 128
    seen = np.ones_like(red) if strokes.alpha is None else strokes.alpha >= 128
    marks = torch.from_numpy((seen & green & ~red) * np.int8(1) - (seen & red & ~green))
    rows, columns = (
        (torch.arange(there) * have // there) for there, have in zip(size, marks.shape, strict=True)
    )
    return marks[rows][:, columns][None]


def _shrunk(marks: Tensor, size: tuple[int, int]) -> Tensor:
    """Marks (1, H, W) at another size: where a quarter of a pixel is marked, all of it is."""
    kinds = [resample((marks == sign).float(), size, "bilinear") >= 0.25 for sign in (1, -1)]
    return kinds[0].float() - (kinds[1] & ~kinds[0]).float()


def _compositor(
    stages: tuple[Stage, ...], max_pixels: int | None = None, shadow: Shadow | None = None
) -> Compositor:
    made = map(_stage, registry.SLOTS, *zip(*stages, strict=True))
    filled = dict(zip(registry.SLOTS, made, strict=True))
    return Compositor(**filled, device=_device, max_pixels=max_pixels, shadow=shadow)


@functools.lru_cache(maxsize=12)
def _stage(slot: str, name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    stage = make_stage(slot, (name, dict(options)), model=True)
    if slot in ("segmenter", "refiner") and isinstance(stage, nn.Module):
        stage.forward = _remembering(stage.forward)
    return stage


def _remembering(ask: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``ask``, with its last answers kept: a page asks about one photograph again and again."""
    kept: deque[tuple[list[Tensor], Tensor]] = deque(maxlen=4)

    def answer(*tensors: Tensor) -> Tensor:
        for given, found in kept:
            if all(map(torch.equal, given, tensors)):
                return found.clone()
        found = ask(*tensors)
        kept.append(([tensor.clone() for tensor in tensors], found.clone()))
        return found

    return answer


def _read(field: str, data: bytes, max_pixels: int | None) -> Photograph:
    """A photograph that messages call by its field."""
    try:
        photograph = read_image(data, max_pixels=max_pixels, cutout=True)
    except ImageError as error:
        raise ImageError(str(error).replace("image in memory", f"the {field}")) from error
    return replace(photograph, name=f"the {field}")


def _essence(job: Job) -> Job:
    """The job without what only the form of its answer depends on, and with its fuser."""
    last = (COLOURLESS, DEFAULTS["harmonizer"]) if job.output == "mask" else job.stages[2:]
    return replace(job, stages=(*job.stages[:2], *last), output="", form="")
