"""Composites of held-out photographs, at full size and as contact sheets.

    python recipes/held_out_sheet.py data --out sheet/

composites held-out people, animals, everyday subjects and mattes onto held-out backgrounds with the
default stages, and writes each result as ``NN.png`` and sheets of eight: photograph, mask, alpha,
composite, and the softest part of the rim, magnified. The same seed chooses the same pairs. Stages
can be replaced: --segmenter, --refiner, --fuser NAME(OPTIONS).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from groups import held_out, source
from torch import Tensor

from deep_image_compositing import Compositor
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.evaluation.methods import parse_stage
from deep_image_compositing.functional.sheets import contact_sheet
from deep_image_compositing.images import write_image
from deep_image_compositing.metrics.composites import rim_band

SETS = {"people": 14, "cats": 8, "subjects": 8, "mattes": 5}
"""Number of photographs from each set, for 40 composites: each matte is used twice."""

ROWS = 8
ZOOM = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with people/, cats/, backgrounds/ ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    slots = ("segmenter", "refiner", "fuser")
    for slot in slots:
        parser.add_argument(f"--{slot}", metavar="NAME(OPTIONS)")
    options = parser.parse_args()
    try:
        stages = {slot: parse_stage(text) for slot in slots if (text := getattr(options, slot))}
        compositor = Compositor(**stages, device="cpu")
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Tensor]] = []
    pairs = choose(options.data, np.random.default_rng(options.seed))
    for number, (foreground, background) in enumerate(pairs, 1):
        result = compositor(foreground, background)
        result.save(options.out / f"{number:02}.png")
        box = softest_square(result.cutout_alpha)
        rows.append(
            {
                f"{number:02} photograph": result.foreground[None],
                "mask": result.mask[None],
                "alpha": result.cutout_alpha[None],
                "composite": result.composite[None],
                "rim": result.composite[None, :, *box],
                "photograph's rim": result.foreground[None, :, *box],
            }
        )
        print(f"{number:02}  {foreground.name} on {background.name}", flush=True)
        if len(rows) == ROWS or number == len(pairs):
            sheet = torch.cat([contact_sheet(row, cell=384) for row in rows], 1)
            write_image(options.out / f"sheet_{(number - 1) // ROWS + 1}.png", sheet)
            rows = []


def choose(data: Path, rng: np.random.Generator) -> list[tuple[Path, Path]]:
    """Random pairs of a photograph and a background, both held out."""
    scenes = files(data, "backgrounds", "backgrounds")
    pairs = []
    for name, count in SETS.items():
        photographs = files(data, name)
        chosen = [photographs[i] for i in rng.permutation(len(photographs))[:count]]
        for photograph in chosen * (2 if name == "mattes" else 1):
            pairs.append((photograph, scenes[int(rng.integers(len(scenes)))]))
    return pairs


def files(data: Path, folder: str, kind: str = "segmentation") -> list[Path]:
    items = held_out(source(data, folder), kind)
    if not items:
        raise SystemExit(f"nothing is held out of {data / folder}")
    return [item.pair.image for item in items]


def softest_square(alpha: Tensor) -> tuple[slice, slice]:
    """The square of ``alpha`` (1, H, W) with the largest part of its soft rim."""
    soft = (alpha * (1 - alpha))[None] + 0.01 * rim_band(alpha[None], 1).float()
    side = min(ZOOM, *alpha.shape[-2:])
    step = max(1, side // 8)
    sums = torch.nn.functional.avg_pool2d(soft, side, stride=step)
    row, column = divmod(int(sums.flatten().argmax()), sums.shape[-1])
    top, left = row * step, column * step
    return slice(top, top + side), slice(left, left + side)


if __name__ == "__main__":
    main()
