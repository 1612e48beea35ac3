"""How well segmenters find subjects, and how far the refiner moves their outlines.

    python recipes/measure_masks.py data --out runs/masks.json

measures, on photographs held out of training, mean IoU and the mean distance between outlines in
pixels of a picture whose long side is 640, before and after the refiner: of people, of animals as
they were photographed, and of animals and objects pasted before held-out backgrounds. Further
segmenters are compared with --segmenter NAME=STAGE, options as for `evaluate`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.data import folders
from deep_image_compositing.data.feeds import FolderFeed, Reading, open_source
from deep_image_compositing.data.items import FileItem, Source
from deep_image_compositing.data.mattes import read_matte
from deep_image_compositing.evaluation.methods import parse_stage
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.metrics.masks import iou, outline_distance
from deep_image_compositing.placement import cover

SIDE = 640
SETS = {
    # name: (folder, share held out, pasted)
    "people": ("people", 0.1, False),
    "animals": ("cats", 0.1, False),
    "people pasted": ("people", 0.1, True),
    "animals pasted": ("cats", 0.1, True),
    "objects pasted": ("subjects", 0.1, True),
    "mattes pasted": ("mattes", 0.2, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with people/, cats/, backgrounds/ ...")
    parser.add_argument("--segmenter", action="append", default=[], metavar="NAME=STAGE")
    parser.add_argument("--refiner", default="cascade")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--limit", type=int, default=40, help="pictures of a set, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write a record for each picture as JSON")
    options = parser.parse_args()
    named = dict(text.split("=", 1) for text in options.segmenter or ["pyramid=pyramid"])
    segmenters = {name: make("segmenter", text) for name, text in named.items()}
    refiner = make("refiner", options.refiner)
    scenes = held_out(options.data / "backgrounds", 0.1, "backgrounds")
    records = []
    for name in options.sets.split(","):
        folder, share, pasted = SETS[name]
        rng = np.random.default_rng(options.seed)
        for item in held_out(options.data / folder, share, "segmentation")[: options.limit]:
            scene = scenes[int(rng.integers(len(scenes)))] if pasted else None
            photograph, truth = picture(item, scene)
            for segmenter, stage in segmenters.items():
                mask = stage(photograph)
                alpha = refiner(photograph, mask)
                record = {"set": name, "picture": Path(item.name).name, "segmenter": segmenter}
                for when, found in (("mask", mask), ("refined", alpha)):
                    record[f"{when}_iou"] = iou(found[0], truth[0])
                    record[f"{when}_distance"] = outline_distance(found[0], truth[0])
                records.append(record)
        for segmenter in segmenters:
            report(name, segmenter, records)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(records, indent=1))


def make(slot: str, text: str) -> torch.nn.Module:
    name, stage_options = parse_stage(text)
    if "default" in registry.get(slot, name).weights:
        stage_options = {"weights": "default", **stage_options}
    stage = registry.create(slot, name, **stage_options).eval()
    return torch.inference_mode()(stage)


def held_out(path: Path, share: float, kind: str) -> list[FileItem]:
    """What training with ``hold_out=share`` has not seen, in the order of the names."""
    source = Source(str(path), hold_out=share)
    _, feed = open_source(source, (kind,), Reading())
    if not isinstance(feed, FolderFeed):
        raise SystemExit(f"nothing is held out of {path}")
    return [FileItem(source, pair) for pair in feed.pairs]


def picture(item: FileItem, scene: FileItem | None) -> tuple[Tensor, Tensor]:
    """The photograph (1, 3, H, W), or its subject before ``scene``, and the true mask."""
    label = item.label()
    size = label.size
    if scene is not None:
        wide = cover(tensor(scene.image())[0], (size[1], size[0]))[None].clamp(0, 1)
        color = read_matte(item.pair).color
        pasted = over(tensor(color), tensor(label), wide)
    else:
        pasted = tensor(item.image())
    small = fit_long_side(size[1], size[0], SIDE)
    return resize(pasted, small).clamp(0, 1), resize(tensor(label), small).clamp(0, 1)


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(folders.to_planes(image))[None].float() / 255


def report(name: str, segmenter: str, records: list[dict]) -> None:
    chosen = [r for r in records if r["set"] == name and r["segmenter"] == segmenter]
    mean = {
        key: np.mean([r[key] for r in chosen])
        for key in chosen[0]
        if key.endswith(("iou", "distance"))
    }
    gain = 1 - mean["refined_distance"] / mean["mask_distance"]
    print(
        f"{name:15} {segmenter:12} n={len(chosen):3}  IoU {mean['mask_iou']:.3f} -> "
        f"{mean['refined_iou']:.3f}  outline {mean['mask_distance']:5.2f} -> "
        f"{mean['refined_distance']:5.2f} px ({100 * gain:+.0f} % better)",
        flush=True,
    )


if __name__ == "__main__":
    main()
