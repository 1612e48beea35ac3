"""The command ``teach``: hard training triplets made by a trained fuser."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from deep_image_compositing import registry
from deep_image_compositing.commands.arguments import (
    check_outputs,
    launched,
    real_paths,
    slot_and_name,
)
from deep_image_compositing.errors import UsageError
from deep_image_compositing.messages import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``teach`` to its parser."""
    parser.add_argument(
        "--fuser", required=True, metavar="FILE", help="a checkpoint or weights file trained on "
        "easy triplets, or the name of shipped weights: default",
    )  # fmt: skip
    parser.add_argument(
        "--stage", default="fuser/multi_stream", metavar="SLOT/NAME", help="what it holds; "
        "default: fuser/multi_stream",
    )  # fmt: skip
    for name, text in (("mattes", "subjects with their alpha"), ("backgrounds", "photographs")):
        parser.add_argument(
            f"--{name}", nargs="+", required=True, metavar="PATH", help=f"{text}: folders, shards "
            "or patterns of shards",
        )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("--sheet", metavar="FILE.png", help="also draw the first triplets")
    what = parser.add_argument_group("what is made")
    for flag, kind, default, text in (
        ("samples", int, 10_000, "triplets"),
        ("shard-samples", int, 100, "triplets in a shard"),
        ("size", int, 640, "side of the pictures in pixels"),
        ("validation", float, 0.0, "share of shards made of what the sources hold out"),
        ("augment", float, 1.0, "strength of colour jitter and camera effects"),
        ("degrade", float, 1.0, "how far the written masks are degraded"),
        ("teacher-degrade", float, 0.25, "how far those are that the fuser is given"),
        ("seed", int, 0, "of everything random"),
    ):
        metavar = "N" if kind is int else "SHARE" if flag == "validation" else "STRENGTH"
        what.add_argument(
            f"--{flag}", type=kind, default=default, metavar=metavar, help=f"{text}; "
            f"default: {default}",
        )  # fmt: skip
    what.add_argument("--licence", default="", metavar="TEXT", help="of plain folders, to record")
    where = parser.add_argument_group("resources")
    where.add_argument(
        "--devices", type=int, metavar="N", help="GPUs, or processes on a CPU; -1 for all GPUs; "
        "default: 1, or as many as torchrun has started",
    )  # fmt: skip
    where.add_argument("--nodes", type=int, metavar="N", help="machines; default: 1, or torchrun's")
    where.add_argument("--accelerator", default="auto", help="auto, cpu, cuda, mps; default: auto")
    where.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="triplets at once; default: 4"
    )
    where.add_argument(
        "--workers", type=int, default=2, metavar="N", help="loader processes a device; default: 2"
    )
    where.add_argument("--cache", metavar="DIR", help="keep shards from elsewhere here")


def run(options: argparse.Namespace) -> int:
    """Make triplets; returns the exit code."""
    slot, name = slot_and_name(options.stage)
    if slot != "fuser":
        raise UsageError(f"only a fuser can teach, not a {slot}: --stage {options.stage}")
    if options.sheet is not None:
        check_outputs({"path": Path(options.sheet)}, real_paths(options.fuser))
    given = {"weights": options.fuser}
    registry.get(slot, name).check(given)
    from deep_image_compositing import weights
    from deep_image_compositing.data.teach import teach
    from deep_image_compositing.data.triplets import identify
    from deep_image_compositing.stages.making import make_stage

    start = time.perf_counter()
    fuser: Any = make_stage(slot, (name, given))
    own = ("run", "debug", "fuser", "stage", "devices", "nodes")
    index = teach(
        fuser,
        identify(options.stage, weights.resolve(fuser, options.fuser)),
        devices=launched("LOCAL_WORLD_SIZE", options.devices),
        nodes=launched("GROUP_WORLD_SIZE", options.nodes),
        show=True,
        **{key: value for key, value in vars(options).items() if key not in own},
    )
    if index is not None:
        seconds = time.perf_counter() - start
        show(f"{options.out}: {index.counts()} triplets ({seconds:.1f} s)")
        if options.sheet is not None:
            show(f"wrote {options.sheet}")
    return 0
