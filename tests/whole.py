"""Reference for tiled fusion: the same layers, lifted and corrected on the whole image at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing import fullsize
from deep_image_compositing.functional.boxes import Box, edges, grow
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.lift import follow_guide, make_guide
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.functional.tiles import Grid, enlarged_windows
from deep_image_compositing.stages.base import Layers

MARGIN, ALIGN = 64, 32


@contextmanager
def recorded_layers(into: list[tuple[Any, ...]]) -> Iterator[None]:
    """Append the arguments of the compositor's calls of ``fuse_layers`` to ``into``."""
    original = fullsize.fuse_layers

    def record(*args: Any) -> Any:
        into.append(args)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fullsize, "fuse_layers", record)
        yield


def fuse_whole(
    scene: fullsize.Scene,
    box: Box,
    image: Tensor,
    coarse: Layers,
    finer: Callable[[Tensor, Tensor, Layers], Layers | None] | None,
    context: int,
    kept: Tensor | None = None,
) -> Tensor:
    """Compute what ``fuse_layers`` returns for the same arguments, but without tiles.

    Returns:
        (3, H, W) uint8, the composite.
    """
    assert coarse.old_background is not None
    guide = make_guide(image, coarse.alpha, coarse.foreground_color, coarse.old_background)
    pixels, backdrop = scene.pixels, scene.backdrop
    around = grow(box, MARGIN, (pixels.shape[-2], pixels.shape[-1]))
    top, bottom, left, right = edges(around)
    # Start at a multiple of the networks' strides, as tiles do.
    top, left = (edge // ALIGN * ALIGN for edge in (top, left))
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
