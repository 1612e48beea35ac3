"""The command ``teach``: make hard training triplets with a trained fuser."""

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
    slot_and_name,
)
from deep_image_compositing.errors import UsageError
from deep_image_compositing.files import real_paths
from deep_image_compositing.messages import show


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add("--fuser", str, "FILE", "checkpoint or weights file of a fuser trained on easy triplets, "
        "or 'default' for the shipped weights", required=True)
    add("--stage", "fuser/multi_stream", "SLOT/NAME", "stage in the file")
    for name, text in (("mattes", "subjects with their alpha"), ("backgrounds", "photographs")):
        add(f"--{name}", str, "PATH", f"{text}: folders, shards or patterns of shards", nargs="+",
            required=True)
    add("--out", str, "DIR", "folder of the shards", required=True)
    add("--sheet", str, "FILE.png", "also write a contact sheet of the first triplets")
    add = argument_adder(parser.add_argument_group("triplets"))
    add("--samples", 10_000, "N", "number of triplets")
    add("--shard-samples", 100, "N", "triplets per shard")
    add("--size", 640, "N", "side of the pictures in pixels")
    add("--validation", 0.0, "SHARE", "share of shards, made of the sources' held-out files")
    add("--augment", 1.0, "STRENGTH", "strength of colour jitter and camera effects")
    add("--degrade", 1.0, "STRENGTH", "degradation of the masks in the shards")
    add("--teacher-degrade", 0.25, "STRENGTH", "degradation of the masks that the fuser takes")
    add("--seed", 0, "N", "random seed")
    add("--licence", "", "TEXT", "licence of plain folders, to record")
    add = argument_adder(parser.add_argument_group("resources"))
    add("--devices", int, "N", "number of GPUs, or of processes on a CPU; -1 for all GPUs; "
        "default: 1, or torchrun's number")
    add("--nodes", int, "N", "number of machines; default: 1, or torchrun's number")
    add("--accelerator", "auto", "", "auto, cpu, cuda, mps")
    add("--batch-size", 4, "N", "triplets per batch")
    add("--workers", 2, "N", "loader processes per device")
    add("--cache", str, "DIR", "folder for copies of remote shards")
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Make triplets; returns the exit code."""
    slot, name = slot_and_name(args.stage)
    if slot != "fuser":
        raise UsageError(f"only a fuser can teach, not a {slot}: --stage {args.stage}")
    if args.sheet is not None:
        check_outputs({"path": Path(args.sheet)}, real_paths(args.fuser))
    options = {"weights": args.fuser}
    registry.get(slot, name).check(options)
    from deep_image_compositing import weights
    from deep_image_compositing.data.teach import teach
    from deep_image_compositing.data.triplets import identify
    from deep_image_compositing.stages.making import make_stage

    start = time.perf_counter()
    fuser: Any = make_stage(slot, (name, options))
    excluded = ("run", "debug", "fuser", "stage", "devices", "nodes")
    index = teach(
        fuser,
        identify(args.stage, weights.resolve(fuser, args.fuser)),
        devices=launch_count(args.devices),
        nodes=launch_count(args.nodes, "GROUP_WORLD_SIZE"),
        show=True,
        **{key: value for key, value in vars(args).items() if key not in excluded},
    )
    if index is not None:
        seconds = time.perf_counter() - start
        show(f"{args.out}: {index.counts()} triplets ({seconds:.1f} s)")
        if args.sheet is not None:
            show(f"wrote {args.sheet}")
    return 0
