"""Fixtures that many tests share: small made photographs, and stages that are known by heart."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from deep_image_compositing import registry
from deep_image_compositing.functional.compose import over
from deep_image_compositing.stages.base import Fuser, Layers, Segmenter

# One thread a core and not more, here and in the processes that tests start.
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Workers of pytest-xdist ignore Ctrl-C, which tests send and the processes that they start inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

LAUNCHERS = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE"}


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A photograph of noise, (H, W, 3): every pixel differs, so a wrong one shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(height: int, width: int, softness: float = 0.1) -> Tensor:
    """The mask (1, 1, H, W) of an ellipse in the middle, half as high and wide as the picture."""
    y = ((torch.arange(height) + 0.5) / height * 2 - 1).view(-1, 1)
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    radius = (y.square() + x.square()).sqrt()
    return ((0.5 - radius) / softness + 0.5).clamp(0, 1).expand(1, 1, height, width).clone()


class DiscSegmenter(Segmenter):
    """Sees an ellipse in the middle of everything; ``softness`` is an option for tests."""

    def __init__(self, softness: float = 0.1, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.softness = softness
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        return (
            disc(image.shape[-2], image.shape[-1], self.softness)
            .to(image)
            .expand(image.shape[0], -1, -1, -1)
        )


class LayerFuser(Fuser):
    """A learned fuser in layers that changes alpha and colour all over the picture."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.weight = nn.Parameter(torch.zeros(1))
        self.sizes: list[tuple[int, int]] = []

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers:
        self.sizes.append((foreground.shape[-2], foreground.shape[-1]))
        return Layers(alpha.sqrt(), 0.5 * foreground + 0.25)

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        parts = self.layers(foreground, background, alpha)
        return over(parts.foreground_color, parts.alpha, background)


class PlainFuser(nn.Module):
    """Alpha blending as a user would write it: no base class, no layers."""

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        return alpha * foreground + (1 - alpha) * background


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """What later tests, and the processes that they start, would take for their own."""
    yield
    left = sorted(LAUNCHERS & os.environ.keys())
    for name in left:
        del os.environ[name]
    grouped = torch.distributed.is_initialized()
    if grouped:  # only the test that leaves it is to fail
        torch.distributed.destroy_process_group()
    assert not left, f"variables of a launcher are left: {', '.join(left)}"
    assert not grouped, "a process group is left"


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], registry.Entry]:
    """A copy of the registry that goes away after the test."""
    registry.list_stages()
    entries = dict(registry._entries)
    monkeypatch.setattr(registry, "_entries", entries)
    return entries


@pytest.fixture
def stub_stages(own_registry: dict[tuple[str, str], registry.Entry]) -> None:
    """The stages ``disc`` (segmenter), ``in-layers`` and ``plain`` (fusers), by name."""
    registry.register("segmenter", "disc", description="an ellipse")(DiscSegmenter)
    registry.register("fuser", "in-layers", description="repaints everything")(LayerFuser)
    registry.register("fuser", "plain", description="alpha blending")(PlainFuser)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write an array as a picture below the test's folder and return its path."""

    def write(name: str, pixels: NDArray[np.uint8], **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write
