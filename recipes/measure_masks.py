"""Measure the masks of segmenters, find their failures, and measure what the refiner adds.

    python recipes/measure_masks.py data --segmenter 'u2netp=u2netp(path=u2netp.onnx)' --list

measures ``pyramid`` and every ``--segmenter NAME=STAGE`` (written as for ``evaluate``) on held-out
photographs (groups.py): mean IoU, the share of photographs with an IoU below 0.5, the time relative
to the first segmenter, and how often the compositor would warn of doubt. ``--refiner cascade`` also
measures the outline error before and after refinement, in pixels at a long side of 640.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from groups import DOUBT, GROUPS, held_out, source
from PIL import Image
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.compositor import UNSURE, doubt
from deep_image_compositing.data.crops import planes
from deep_image_compositing.data.items import FileItem
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.evaluation.methods import parse_stage
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.functional.sheets import contact_sheet
from deep_image_compositing.images import write_image
from deep_image_compositing.metrics.masks import iou, outline_distance
from deep_image_compositing.placement import cover, paste, place

SIDE = 640
BUSY = ("mattes", "cutouts")
PASTES = 6
"""The group ``pasted`` puts each held-out matte and cut-out on this many busy backgrounds."""

WHOLE = {
    "people pasted": "people",
    "animals pasted": "cats",
    "objects pasted": "subjects",
    "mattes pasted": "mattes",
}
"""Further sets: subjects at their place in the photograph's frame, on other backgrounds."""

Picture = tuple[str, Tensor, Tensor]
"""Name, photograph (1, 3, H, W) and true mask (1, 1, H, W)."""


def main() -> None:
    options = arguments()
    stages = {name: make("segmenter", text) for name, text in options.segmenters.items()}
    refiner = make("refiner", options.refiner) if options.refiner else None
    records: list[dict[str, Any]] = []
    rows: list[tuple[float, dict[str, Tensor]]] = []
    print(f"{'group':15} {'segmenter':12} {'n':>4} {'IoU':>6} {'<0.5':>6} {'time':>6}", flush=True)
    for group in options.sets:
        for name, photograph, truth in pictures(options, group):
            if not records:  # warm up, so that the times do not include initialization
                for stage in stages.values():
                    stage(photograph)
            row = {f"{group}: {name}": photograph, "truth": truth}
            for segmenter, stage in stages.items():
                start = time.perf_counter()
                mask = stage(photograph)
                seconds = time.perf_counter() - start
                record = {"set": group, "picture": name, "segmenter": segmenter}
                measured = {"mask_iou": iou(mask[0], truth[0]), "doubt": doubt(mask)}
                records.append({**record, "seconds": seconds, **measured})
                row[f"{segmenter} {records[-1]['mask_iou']:.3f}"] = mask
                if refiner is not None:
                    alpha = refiner(photograph, mask)
                    records[-1]["mask_distance"] = outline_distance(mask[0], truth[0])
                    records[-1]["refined_iou"] = iou(alpha[0], truth[0])
                    records[-1]["refined_distance"] = outline_distance(alpha[0], truth[0])
            first = records[-len(stages)]["mask_iou"]
            rows.append((first, {label: thumbnail(picture) for label, picture in row.items()}))
        report(group, list(stages), [r for r in records if r["set"] == group])
    report("all, by group", list(stages), records)
    report_warnings(list(stages), records)
    worst = [row for _, row in sorted(rows, key=lambda pair: pair[0])[: options.worst]]
    if options.list:
        print(*("  ".join(row).replace("  truth", "") for row in worst), sep="\n")
    if options.sheet:
        floats = [{k: v.float() / 255 for k, v in row.items()} for row in worst]
        write_image(options.sheet, torch.cat([contact_sheet(row, cell=256) for row in floats], 1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(records, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("data", type=Path, help="folder with people/, open/, backgrounds/ ...")
    segmenter: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=STAGE"}
    add("--segmenter", **segmenter, help="another segmenter; pyramid comes first unless named")
    add("--refiner", metavar="STAGE", help="also measure the refined masks")
    add("--sets", help=f"comma-separated, of {', '.join([*GROUPS, 'pasted', *WHOLE])}")
    add("--limit", type=int, help="maximum number of photographs per folder")
    doubt = "leave out masks made by a network whose doubt is this or more"
    add("--doubt", type=float, default=DOUBT, help=doubt)
    add("--seed", type=int, default=0, help="seed of backgrounds and placements")
    add("--worst", type=int, default=24, help="number of photographs to list or show")
    add("--list", action="store_true", help="list the first segmenter's worst photographs")
    add("--sheet", type=Path, help="write these as a contact sheet")
    add("--out", type=Path, help="write a record for each picture as JSON")
    options = parser.parse_args()
    options.sets = options.sets.split(",") if options.sets else [*GROUPS, "pasted"]
    if unknown := set(options.sets) - {*GROUPS, "pasted", *WHOLE}:
        parser.error(f"there is no set {min(unknown)!r}")
    if wrong := [text for text in options.segmenter if "=" not in text.partition("(")[0]]:
        parser.error(f"{wrong[0]!r} is not NAME=STAGE")
    named = dict(text.split("=", 1) for text in options.segmenter)
    options.segmenters = named if "pyramid" in named else {"pyramid": "pyramid", **named}
    return options


def make(slot: str, text: str) -> torch.nn.Module:
    try:
        name, options = parse_stage(text)
        if "default" in registry.get(slot, name).weights:
            options = {"weights": "default", **options}
        stage: torch.nn.Module = registry.create(slot, name, **options)
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
    return torch.inference_mode()(stage.eval())


def pictures(options: argparse.Namespace, group: str) -> Iterator[Picture]:
    """The pictures of a set: held-out photographs, or subjects on other backgrounds."""
    folders = BUSY if group == "pasted" else GROUPS.get(group) or (WHOLE[group],)
    sources = [source(options.data, folder, options.doubt) for folder in folders]
    items = [item for s in sources for item in held_out(s)[: options.limit]]
    rng = np.random.default_rng(options.seed)
    scenes: list[Tensor] = []
    if group not in GROUPS:
        backgrounds = held_out(source(options.data, "backgrounds"), "backgrounds")
        scenes = [tensor(background.image()) for background in backgrounds]
    if not items or (group not in GROUPS and not scenes):
        raise SystemExit(f"error: nothing is held out of {', '.join(folders)}, or of backgrounds")
    if group == "pasted":
        scenes = sorted(scenes, key=busyness)[len(scenes) // 2 :]
    for item in items:
        name = Path(item.name).stem
        if group == "pasted":
            for number, index in enumerate(rng.permutation(len(scenes))[:PASTES]):
                yield f"{name} {number}", *shrink(*place_subject(item, scenes[index], rng))
        elif scenes:
            scene = scenes[int(rng.integers(len(scenes)))]
            truth = tensor(item.label())
            background = cover(scene[0], (truth.shape[-2], truth.shape[-1]))[None].clamp(0, 1)
            yield name, *shrink(over(tensor(item.straight()), truth, background), truth)
        else:
            yield name, *shrink(tensor(item.image()), tensor(item.label()))


def place_subject(item: FileItem, scene: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Place a subject at random on a background; returns the composite and the true mask.

    A subject that the frame of its photograph cuts off is not moved or scaled. A cut-out counts as
    complete, though it may touch the border.
    """
    color, alpha, complete = tensor(item.straight()), tensor(item.label()), item.pair.label is None
    frame = fit_long_side(alpha.shape[-2], alpha.shape[-1], SIDE, enlarge=True)
    sides = alpha[0, 0, :, [0, -1]].amax(), alpha[0, 0, 0].amax()
    cut = not complete and max(sides) > 0.5
    scale, x = (1.0, 0.5) if cut else (rng.uniform(0.4, 0.9), rng.uniform(0, 1))
    cut_below = not complete and float(alpha[0, 0, -1].amax()) > 0.5
    y = 1.0 if cut_below else rng.uniform(0.5, 1)
    placement = place(alpha[0], frame, float(scale), (float(x), float(y)))
    truth = paste(alpha[0], placement, frame, edge=False)[None]
    subject = paste(color[0], placement, frame, edge=True)[None]
    return over(subject, truth, cover(scene[0], frame)[None].clamp(0, 1)), truth


def busyness(scene: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels at a long side of 128."""
    small = resize(scene, fit_long_side(scene.shape[-2], scene.shape[-1], 128))
    return float(small.diff(dim=-1).abs().mean() + small.diff(dim=-2).abs().mean())


def shrink(photograph: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    size = fit_long_side(truth.shape[-2], truth.shape[-1], SIDE)
    return resize(photograph, size).clamp(0, 1), resize(truth, size).clamp(0, 1)


def thumbnail(picture: Tensor) -> Tensor:
    small = resize(picture, fit_long_side(picture.shape[-2], picture.shape[-1], 256))
    return (small.clamp(0, 1) * 255).round().to(torch.uint8)


def tensor(image: Image.Image) -> Tensor:
    return planes(image)[None].float() / 255


def report(group: str, segmenters: list[str], records: list[dict[str, Any]]) -> None:
    """Print a line for each segmenter, with the mean over the sets' means."""
    sets = list(dict.fromkeys(record["set"] for record in records))
    base = 0.0
    for segmenter in segmenters:
        results = [r for r in records if r["segmenter"] == segmenter]
        parts = [[r for r in results if r["set"] == name] for name in sets]

        def mean(key: str, parts: list[list[dict[str, Any]]] = parts) -> float:
            return float(np.mean([np.mean([r[key] for r in part]) for part in parts]))

        failures = np.mean([np.mean([r["mask_iou"] < 0.5 for r in part]) for part in parts])
        seconds = sum(r["seconds"] for r in results)
        base = base or seconds
        line = f"{group:15} {segmenter:12} {len(results):4} {mean('mask_iou'):6.3f} {failures:6.1%}"
        line += f" {seconds / base:6.2f}"
        if "refined_iou" in results[0]:
            before, after = mean("mask_distance"), mean("refined_distance")
            line += f"  refined {mean('refined_iou'):.3f}  outline {before:5.2f} -> {after:5.2f} px"
        print(line, flush=True)


def report_warnings(segmenters: list[str], records: list[dict[str, Any]]) -> None:
    """Print for how many good and bad masks of each segmenter the compositor would warn."""
    for segmenter in segmenters:
        results = [r for r in records if r["segmenter"] == segmenter]
        good = [r["doubt"] > UNSURE for r in results if r["mask_iou"] >= 0.8]
        bad = [r["doubt"] > UNSURE for r in results if r["mask_iou"] < 0.6]
        print(
            f"{segmenter}: warns of doubt for {sum(good)} of {len(good)} masks with an IoU of at "
            f"least 0.8, and for {sum(bad)} of {len(bad)} below 0.6"
        )


if __name__ == "__main__":
    main()
