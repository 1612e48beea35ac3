"""Composites of photographs that training never saw, at full size, and contact sheets of them.

    python recipes/held_out_sheet.py data --out sheet/

takes people, animals, everyday subjects and mattes that are held out by the hash of their names,
sets each into a held-out background with the default stages, and writes ``NN.png`` and sheets of
eight: photograph, mask, alpha, composite, and the liveliest part of the rim, magnified. The same
seed chooses the same pairs. Stages can be replaced: --segmenter, --refiner, --fuser NAME(OPTIONS).
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
"""How many photographs of each set a sheet of 40 shows; mattes are shown twice."""

ROWS = 8
ZOOM = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with people/, cats/, backgrounds/ ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    for slot in ("segmenter", "refiner", "fuser"):
        parser.add_argument(f"--{slot}", metavar="NAME(OPTIONS)")
    options = parser.parse_args()
    texts = {slot: getattr(options, slot) for slot in ("segmenter", "refiner", "fuser")}
    try:
        stages = {slot: parse_stage(text) for slot, text in texts.items() if text}
        compositor = Compositor(**stages, device="cpu")
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Tensor]] = []
    pairs = choose(options.data, np.random.default_rng(options.seed))
    for number, (foreground, background) in enumerate(pairs, 1):
        made = compositor(foreground, background)
        made.save(options.out / f"{number:02}.png")
        box = liveliest(made.cutout_alpha)
        rows.append(
            {
                f"{number:02} photograph": made.foreground[None],
                "mask": made.mask[None],
                "alpha": made.cutout_alpha[None],
                "composite": made.composite[None],
                "rim": made.composite[None, :, *box],
                "photograph's rim": made.foreground[None, :, *box],
            }
        )
        print(f"{number:02}  {foreground.name} before {background.name}", flush=True)
        if len(rows) == ROWS or number == len(pairs):
            write_image(options.out / f"sheet_{(number - 1) // ROWS + 1}.png", sheet(rows))
            rows = []


def choose(data: Path, rng: np.random.Generator) -> list[tuple[Path, Path]]:
    """Pairs of a photograph with a subject and a background, all held out."""
    scenes = files(data, "backgrounds", "backgrounds")
    pairs = []
    for name, count in SETS.items():
        found = files(data, name)
        chosen = [found[i] for i in rng.permutation(len(found))[:count]]
        for photograph in chosen * (2 if name == "mattes" else 1):
            pairs.append((photograph, scenes[int(rng.integers(len(scenes)))]))
    return pairs


def files(data: Path, folder: str, kind: str = "segmentation") -> list[Path]:
    items = held_out(source(data, folder), kind)
    if not items:
        raise SystemExit(f"nothing is held out of {data / folder}")
    return [item.pair.image for item in items]


def liveliest(alpha: Tensor) -> tuple[slice, slice]:
    """The square of ``alpha`` (1, H, W) that holds most of its soft rim."""
    soft = (alpha * (1 - alpha))[None] + 0.01 * rim_band(alpha[None], 1).float()
    side = min(ZOOM, *alpha.shape[-2:])
    sums = torch.nn.functional.avg_pool2d(soft, side, stride=max(1, side // 8))
    row, column = divmod(int(sums.flatten().argmax()), sums.shape[-1])
    step = max(1, side // 8)
    top, left = row * step, column * step
    return slice(top, top + side), slice(left, left + side)


def sheet(rows: list[dict[str, Tensor]]) -> Tensor:
    """Rows of pictures below one another, each with its labels."""
    return torch.cat([contact_sheet(row, cell=384) for row in rows], 1)


if __name__ == "__main__":
    main()
