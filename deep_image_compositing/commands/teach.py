"""The command ``teach``: hard training triplets made by a trained fuser."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from deep_image_compositing import registry
from deep_image_compositing.commands.arguments import (
    argument_adder,
    check_outputs,
    launch_count,
    real_paths,
    slot_and_name,
)
from deep_image_compositing.errors import UsageError
from deep_image_compositing.messages import show


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add("--fuser", str, "FILE", "a checkpoint or weights file trained on easy triplets, or the "
        "name of shipped weights: default", required=True)
    add("--stage", "fuser/multi_stream", "SLOT/NAME", "what it holds")
    for name, text in (("mattes", "subjects with their alpha"), ("backgrounds", "photographs")):
        add(f"--{name}", str, "PATH", f"{text}: folders, shards or patterns of shards", nargs="+",
            required=True)
    add("--out", str, "DIR", "folder of the shards", required=True)
    add("--sheet", str, "FILE.png", "also draw the first triplets")
    add = argument_adder(parser.add_argument_group("what is made"))
    add("--samples", 10_000, "N", "triplets")
    add("--shard-samples", 100, "N", "triplets in a shard")
    add("--size", 640, "N", "side of the pictures in pixels")
    add("--validation", 0.0, "SHARE", "share of shards made of what the sources hold out")
    add("--augment", 1.0, "STRENGTH", "strength of colour jitter and camera effects")
    add("--degrade", 1.0, "STRENGTH", "how far the written masks are degraded")
    add("--teacher-degrade", 0.25, "STRENGTH", "how far those are that the fuser is given")
    add("--seed", 0, "N", "of everything random")
    add("--licence", "", "TEXT", "of plain folders, to record")
    add = argument_adder(parser.add_argument_group("resources"))
    add("--devices", int, "N", "GPUs, or processes on a CPU; -1 for all GPUs; default: 1, or as "
        "many as torchrun has started")
    add("--nodes", int, "N", "machines; default: 1, or torchrun's")
    add("--accelerator", "auto", "", "auto, cpu, cuda, mps")
    add("--batch-size", 4, "N", "triplets at once")
    add("--workers", 2, "N", "loader processes a device")
    add("--cache", str, "DIR", "keep shards from elsewhere here")
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Make triplets; returns the exit code."""
    slot, name = slot_and_name(args.stage)
    if slot != "fuser":
        raise UsageError(f"only a fuser can teach, not a {slot}: --stage {args.stage}")
    if args.sheet is not None:
        check_outputs({"path": Path(args.sheet)}, real_paths(args.fuser))
    chosen = {"weights": args.fuser}
    registry.get(slot, name).check(chosen)
    from deep_image_compositing import weights
    from deep_image_compositing.data.teach import teach
    from deep_image_compositing.data.triplets import identify
    from deep_image_compositing.stages.making import make_stage

    start = time.perf_counter()
    fuser: Any = make_stage(slot, (name, chosen))
    own = ("run", "debug", "fuser", "stage", "devices", "nodes")
    index = teach(
        fuser,
        identify(args.stage, weights.resolve(fuser, args.fuser)),
        devices=launch_count(args.devices),
        nodes=launch_count(args.nodes, "GROUP_WORLD_SIZE"),
        show=True,
        **{key: value for key, value in vars(args).items() if key not in own},
    )
    if index is not None:
        seconds = time.perf_counter() - start
        show(f"{args.out}: {index.counts()} triplets ({seconds:.1f} s)")
        if args.sheet is not None:
            show(f"wrote {args.sheet}")
    return 0
