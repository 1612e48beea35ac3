"""Shared fixtures: small synthetic photographs, and stub stages with predictable output."""

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

# At most one thread per core, here and in the processes that tests start.
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# pytest-xdist workers ignore SIGINT, which child processes would inherit; tests send it to them.
signal.signal(signal.SIGINT, signal.default_int_handler)

LAUNCHERS = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE"}


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A photograph of noise, (H, W, 3); any misplaced pixel is noticed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(height: int, width: int, softness: float = 0.1) -> Tensor:
    """The mask (1, 1, H, W) of a centred ellipse, half as high and wide as the image."""
    y = ((torch.arange(height) + 0.5) / height * 2 - 1).view(-1, 1)
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    radius = (y.square() + x.square()).sqrt()
    return ((0.5 - radius) / softness + 0.5).clamp(0, 1).expand(1, 1, height, width).clone()


class DiscSegmenter(Segmenter):
    """Always finds a centred ellipse; ``softness`` is an option to test with."""

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
    """A trainable fuser with layers that changes alpha and colour everywhere."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.weight = nn.Parameter(torch.zeros(1))
        self.sizes: list[tuple[int, int]] = []

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers:
        self.sizes.append((foreground.shape[-2], foreground.shape[-1]))
        return Layers(alpha.sqrt(), 0.5 * foreground + 0.25)

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        layers = self.layers(foreground, background, alpha)
        return over(layers.foreground_color, layers.alpha, background)


class PlainFuser(nn.Module):
    """Alpha blending as a user would write it: without a base class or layers."""

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        return alpha * foreground + (1 - alpha) * background


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """Fail a test that leaves behind a process group, which would affect later tests."""
    yield
    variables = sorted(LAUNCHERS & os.environ.keys())
    for name in variables:
        del os.environ[name]
    initialized = torch.distributed.is_initialized()
    if initialized:  # so that only this test fails
        torch.distributed.destroy_process_group()
    assert not variables, f"launcher variables are still set: {', '.join(variables)}"
    assert not initialized, "a process group still exists"


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], registry.Entry]:
    """A copy of the registry that is discarded after the test."""
    registry.list_stages()
    entries = dict(registry._entries)
    monkeypatch.setattr(registry, "_entries", entries)
    return entries


@pytest.fixture
def stub_stages(own_registry: dict[tuple[str, str], registry.Entry]) -> None:
    """Register the segmenter ``disc`` and the fusers ``in-layers`` and ``plain``."""
    registry.register("segmenter", "disc", description="an ellipse")(DiscSegmenter)
    registry.register("fuser", "in-layers", description="repaints everything")(LayerFuser)
    registry.register("fuser", "plain", description="alpha blending")(PlainFuser)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an array as an image below the test's folder and returns its path."""

    def write(name: str, pixels: NDArray[np.uint8], **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write
