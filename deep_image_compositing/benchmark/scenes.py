"""One made subject with exact truth, at any size; ``benchmark resolution`` measures on it.

Outline, strands and colours are functions of the place, so that every size shows the same subject,
with detail down to its own pixels. Pictures are made in bands of rows and kept in 8 bits on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from deep_image_compositing.functional.compose import over
from deep_image_compositing.images import write_image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

CAMERA = 3000
"""Height in pixels of the photograph, 12 megapixels, in which strands are 1 to 3 pixels wide."""

STRANDS = 400
MASK_SIDE = 1024
_BAND = 128
_WAVES = 48


@dataclass(frozen=True)
class Scene:
    """A photograph of the made subject, and what is true of it.

    Attributes:
        height: of the picture in pixels.
        width: of the picture in pixels.
        unit: pixels that the subject's unit of length has; it is about 0.7 units high.
        grain: pixels that a pixel of the 12 megapixel photograph has; the width of strands and
            the softness of the outline go with it.
        seed: of the outline, the strands and the colours.
    """

    height: int
    width: int
    unit: float
    grain: float
    seed: int = 0

    @classmethod
    def of(cls, megapixels: float, seed: int = 0) -> Scene:
        """The subject in a 4:3 photograph of so many megapixels, sides in multiples of 8."""
        height = max(8, 8 * round((megapixels * 750_000) ** 0.5 / 8))
        return cls(height, max(8, 8 * round(height * 4 / 3 / 8)), height, height / CAMERA, seed)

    def bands(self) -> Iterator[tuple[slice, Bytes, Bytes, Bytes, Bytes]]:
        """Row bands from the top: rows, alpha (h, W), and the subject's, old and new colours.

        The colours are (h, W, 3).
        """
        for top in range(0, self.height, _BAND):
            rows = slice(top, min(top + _BAND, self.height))
            alpha = np.maximum(self._outline(rows), self._strands(rows))
            color, old, new = (self._colors(rows, layer) for layer in range(3))
            yield rows, alpha, color, old, new

    # The subject's alpha

    @cached_property
    def _radius(self) -> tuple[Floats, Floats]:
        """Radius of the outline in units, and its softness in pixels, for 4096 directions."""
        rng = np.random.default_rng([self.seed, 1])
        angle = np.linspace(0, 2 * np.pi, 4096, endpoint=False, dtype=np.float32)
        radius = np.full_like(angle, 0.27)
        for times, share in ((2, 0.05), (3, 0.03), (5, 0.015), (11, 0.008), (23, 0.004)):
            radius += share * np.cos(times * angle + rng.uniform(0, 2 * np.pi), dtype=np.float32)
        # In focus here, out of focus there, and never sharper than a lens makes it.
        soft = 2 + 5 * (1 + np.cos(angle + rng.uniform(0, 2 * np.pi))) ** 2 / 4
        return radius, np.maximum(1.2, soft * self.grain).astype(np.float32)

    def _places(self, rows: slice) -> tuple[Floats, Floats]:
        """Distance of rows (h, 1) and columns (W,) from the subject's middle, in units."""
        y = (np.arange(rows.start, rows.stop) + 0.5 - self.height / 2) / self.unit
        x = (np.arange(self.width) + 0.5 - self.width / 2) / self.unit
        return y.astype(np.float32)[:, None], x.astype(np.float32)

    def _outline(self, rows: slice) -> Bytes:
        y, x = self._places(rows)
        radius, soft = self._radius
        distance = np.hypot(x, y)
        room = float(soft.max()) / self.unit
        out = np.where(distance < radius.min() - room, 255, 0).astype(np.uint8)
        near = np.abs(distance - (radius.min() + radius.max()) / 2)
        row, column = np.nonzero(near <= (radius.max() - radius.min()) / 2 + room)
        place = np.arctan2(y[row, 0], x[column]) * (len(radius) / (2 * np.pi))
        index = np.floor(place).astype(np.int64)
        part = (place - index).astype(np.float32)
        after, index = (index + 1) % len(radius), index % len(radius)
        here = radius[index] + part * (radius[after] - radius[index])
        level = (here - distance[row, column]) * self.unit / soft[index] + 0.5
        out[row, column] = np.rint(255 * level.clip(0, 1))
        return out

    @cached_property
    def _lines(self) -> list[tuple[NDArray[np.float64], float, int]]:
        """Strands: their points (N, 2) as (x, y) in units, width in units of grain, opacity."""
        rng = np.random.default_rng([self.seed, 2])
        radius, _ = self._radius
        lines = []
        for _ in range(STRANDS):
            angle = rng.uniform(1.05, 1.95) * np.pi  # the upper part, as hair is
            start = radius[int(angle / (2 * np.pi) * len(radius)) % len(radius)] - 0.005
            length, turn = rng.uniform(0.008, 0.03), rng.normal(0, 1.5)
            heading = angle + rng.normal(0, 0.5) + np.linspace(0, turn, 16)
            steps = np.stack([np.cos(heading), np.sin(heading)], -1) * (length / 16)
            begin = start * np.array([np.cos(angle), np.sin(angle)])
            points = begin + np.concatenate([np.zeros((1, 2)), steps.cumsum(0)])
            lines.append((points, rng.uniform(1, 3), int(rng.choice([255, 210, 150]))))
        return sorted(lines, key=lambda line: line[2])  # the more opaque wins where they cross

    def _strands(self, rows: slice) -> Bytes:
        """Strands drawn larger and averaged, so that those below a pixel are faint, not ragged."""
        times = max(2, int(np.ceil(2 / self.grain)))
        out = np.zeros((rows.stop - rows.start, self.width), np.uint8)
        middle = np.array([self.width / 2, self.height / 2])
        lines = [(points * self.unit + middle, *rest) for points, *rest in self._lines]
        room = 4 * self.grain
        near = [
            line
            for line in lines
            if line[0][:, 1].max() > rows.start - room and line[0][:, 1].min() < rows.stop + room
        ]
        if not near:
            return out
        low = min(float(points[:, 0].min()) for points, *_ in near) - room
        high = max(float(points[:, 0].max()) for points, *_ in near) + room
        left, right = max(0, int(low)), min(self.width, int(high) + 1)
        picture = Image.new("L", (times * (right - left), times * len(out)))
        draw = ImageDraw.Draw(picture)
        for points, width, opacity in near:
            path = [tuple(point) for point in ((points - (left, rows.start)) * times).tolist()]
            thick = max(1, round(width * self.grain * times))
            draw.line(path[:12], fill=opacity, width=thick, joint="curve")
            draw.line(path[11:], fill=opacity, width=max(1, thick // 2))
        out[:, left:right] = np.asarray(picture.reduce(times))
        return out

    # Colours

    @cached_property
    def _waves(self) -> list[tuple[NDArray[np.float64], ...]]:
        """For each layer: direction times frequency (K, 2), phase (K,), strength (K, 3), mean."""
        layers: list[tuple[NDArray[np.float64], ...]] = []
        for layer in range(3):
            rng = np.random.default_rng([self.seed, 3, layer])
            # From half a wave across the picture to 8 pixels of 12 megapixels, coarse ones strong.
            frequency = np.geomspace(0.5, CAMERA / 8, _WAVES)
            angle = rng.uniform(0, np.pi, _WAVES)
            ways = 2 * np.pi * frequency[:, None] * np.stack([np.sin(angle), np.cos(angle)], -1)
            strength = rng.normal(0, 20, (_WAVES, 3)) * (frequency[:, None] / 0.5) ** -0.75
            strength += rng.normal(0, 14, (_WAVES, 1)) * (frequency[:, None] / 0.5) ** -0.4
            mean = np.array([[150, 105, 80], [70, 120, 95], [120, 130, 165]][layer], np.float64)
            layers.append((ways, rng.uniform(0, 2 * np.pi, _WAVES), strength, mean))
        return layers

    def _colors(self, rows: slice, layer: int) -> Bytes:
        """Colours of a layer: plane waves, which are products of what rows and columns have."""
        ways, phase, strength, mean = self._waves[layer]
        y, x = self._places(rows)
        down = y * ways[:, 0] + phase
        along = x[:, None] * ways[:, 1]
        lines = np.concatenate([np.cos(down), -np.sin(down)], 1).astype(np.float32)
        columns = np.concatenate([np.cos(along), np.sin(along)], 1).astype(np.float32)
        out = np.empty((len(lines), self.width, 3), np.uint8)
        for channel in range(3):
            level = (lines * np.tile(strength[:, channel], 2).astype(np.float32)) @ columns.T
            out[..., channel] = (level + (mean[channel] + 0.5)).clip(0, 255)
        return out


@dataclass(frozen=True)
class Files:
    """Where a scene was written, see :func:`write_scene`."""

    folder: Path

    @property
    def photograph(self) -> Path:
        return self.folder / "photograph.png"

    @property
    def background(self) -> Path:
        return self.folder / "background.png"

    def array(self, name: str) -> Bytes:
        """``alpha`` (H, W), ``truth`` (H, W, 3) or ``mask`` (h, w), read where it is looked at."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="c")


def write_scene(scene: Scene, folder: Path) -> Files:
    """Photograph the subject, and write that and the truth into ``folder``.

    Args:
        scene: what to photograph.
        folder: it must exist. Into it go ``photograph.png``, the subject over its old background;
            ``background.png``, the new one; ``alpha.npy`` (H, W) and ``truth.npy`` (H, W, 3),
            the exact alpha and the composite made of it and the subject's own colours; and
            ``mask.npy`` (h, w), the alpha averaged to at most :data:`MASK_SIDE` pixels on the
            long side. All of them are uint8.
    """
    size = scene.height, scene.width
    pictures: dict[str, Any] = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.uint8, (*size, 3)[: 2 if name == "alpha" else 3]
        )
        for name in ("alpha", "truth", "photograph", "background")
    }
    for rows, alpha, color, old, new in scene.bands():
        pictures["alpha"][rows] = alpha
        pictures["background"][rows] = new
        pictures["photograph"][rows] = blend(color, alpha, old)
        pictures["truth"][rows] = blend(color, alpha, new)
    for name in ("photograph", "background"):
        write_image(folder / f"{name}.png", pictures.pop(name))
        (folder / f"{name}.npy").unlink()
    small = Image.fromarray(np.asarray(pictures["alpha"]))
    small.thumbnail((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX)
    np.save(folder / "mask.npy", np.asarray(small))
    return Files(folder)


def blend(color: Bytes, alpha: Bytes, behind: Bytes) -> Bytes:
    """``alpha · color + (1 − alpha) · behind`` in 8 bits, rounded: (H, W, 3), (H, W), (H, W, 3)."""
    parts = [torch.from_numpy(x).float() / 255 for x in (color, alpha[..., None], behind)]
    planes = [x.permute(2, 0, 1)[None] for x in parts]
    mixed: Tensor = over(*planes)[0].permute(1, 2, 0)
    return mixed.mul(255).add_(0.5).byte().numpy()
