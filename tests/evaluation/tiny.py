"""A test set of small made pictures, and methods of stages that are known by heart."""

from __future__ import annotations

import logging
import warnings
from typing import ClassVar

import torch
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.errors import CompositingError, DataError
from deep_image_compositing.evaluation.methods import Method, parse_method
from deep_image_compositing.evaluation.testsets import Sample, TestSet
from tests.conftest import DiscSegmenter, PlainFuser, disc, noise

SIDE = 72


class Tiny(TestSet):
    """An ellipse of noise before noise, in two grades; number ``broken`` cannot be read."""

    name: ClassVar[str] = "tiny"
    grades = ("exact", "none")

    def __init__(self, count: int = 3, truth: bool = True, broken: int | None = None) -> None:
        self.truth, self.broken = truth, broken
        names = [f"picture-{i}" for i in range(count)]
        super().__init__(names, {"count": count, "truth": truth}, [])

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise DataError(f"picture-{index}.png is cut off")
        color, old, new = (
            torch.from_numpy(noise(SIDE, SIDE, 3 * index + i).transpose(2, 0, 1).copy())
            for i in range(3)
        )
        alpha = (disc(SIDE, SIDE, 0.3)[0] * 255).round().byte()
        masks = {"exact": alpha, "none": None}
        photograph = blend(color, alpha, old)
        truths = (blend(color, alpha, new), alpha, color, old) if self.truth else ()
        return Sample(self.names[index], photograph, new, masks, *truths)


def blend(color: Tensor, alpha: Tensor, behind: Tensor) -> Tensor:
    """The one before the other, in 8 bits."""
    a = alpha.float() / 255
    return (a * color + (1 - a) * behind).round().byte()


class Odd(PlainFuser):
    """Alpha blending that counts its calls, fails from the ``fail``-th on, and warns of things."""

    calls: ClassVar[int] = 0

    def __init__(self, fail: int | None = None, kind: str = "known", warn: str = "") -> None:
        super().__init__()
        self.fail, self.kind, self.warn = fail, kind, warn

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        type(self).calls += 1
        if self.fail is not None and type(self).calls >= self.fail:
            kinds = {"known": CompositingError, "memory": MemoryError, "stop": KeyboardInterrupt}
            raise kinds[self.kind]("no more")
        if self.warn:
            warnings.warn(self.warn, stacklevel=1)
            logging.getLogger("deep_image_compositing").warning("and logged")
        return super().forward(foreground, background, alpha)


class Brighter(PlainFuser):
    """Alpha blending, and every pixel a little brighter."""

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        return (super().forward(foreground, background, alpha) + 0.1).clamp(0, 1)


def register() -> None:
    """Register ``disc``, ``plain``, ``odd`` and ``brighter``, in a registry that goes away."""
    registry.register("segmenter", "disc", description="an ellipse")(DiscSegmenter)
    for name, stage in (("plain", PlainFuser), ("odd", Odd), ("brighter", Brighter)):
        registry.register("fuser", name, description="for tests")(stage)
    Odd.calls = 0


def method(fuser: str) -> Method:
    """A method of the ellipse, no refiner, and this fuser, whose name it has."""
    return parse_method(f"{fuser.partition('(')[0]}=disc,none,{fuser}")
