"""The command ``benchmark``."""

from __future__ import annotations

import argparse
import os
import sys

from deep_image_compositing.commands.arguments import argument_adder
from deep_image_compositing.errors import UsageError

_KINDS = {
    "pipeline": ("cold start, composites against closed-form matting, memory; the default", "cpu"),
    "resolution": ("seconds and memory from 0.6 to 48 megapixels", "cpu"),
    "data": ("loading of training data against decoding alone", "cpu"),
    "train": ("samples per second, time waiting for data, and memory of each slot", "auto"),
    "gpu": ("batches through all stages, and training, in eight minutes", "cuda"),
}


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = "; ".join(f"{name}: {summary}" for name, (summary, _) in _KINDS.items())
    parser.add_argument("what", metavar="WHAT", nargs="?", choices=_KINDS, default="pipeline",
        help=kinds)
    add = argument_adder(parser)
    add("--quick", bool, "", "run everything once at a small size, as a test")
    add("--device", str, "", "auto, cpu, cuda, ...; default: cpu, of train auto, of gpu cuda")
    add("--megapixels", str, "N,...", "photograph sizes of resolution; default: 0.6,2,12,24,48",
        type=_sizes)
    add("--workers", str, "N", "loader processes of data, train and gpu; default: 2 of data, else "
        "all cores but one, at most 12", type=_positive)
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Run a benchmark and print its tables; returns the exit code."""
    from rich.console import Console

    from deep_image_compositing.benchmark import composites, training
    from deep_image_compositing.devices import choose_device

    action, quick = args.what, args.quick
    if args.megapixels and action != "resolution":
        raise UsageError("--megapixels is an option of benchmark resolution")
    if args.workers and action not in ("data", "train", "gpu"):
        raise UsageError("--workers is an option of benchmark data, train and gpu")
    device = choose_device(args.device or _KINDS[action][1])
    if action == "pipeline":
        tables = composites.pipeline(device, quick)
    elif action == "resolution":
        tables = composites.resolution(
            [0.02, 0.1] if quick else args.megapixels or [0.6, 2, 12, 24, 48], device, quick
        )
    elif action == "data":
        tables = training.loading(args.workers or 2, quick)
    else:
        tables = training.run(device, args.workers, quick, batches=action == "gpu")
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    for table in tables:
        Console(width=None if has_width else 200).print(table)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


def _sizes(text: str) -> list[float]:
    try:
        sizes = sorted({float(size) for size in text.split(",")})
    except ValueError:
        sizes = [0.0]
    if not all(0.01 <= size <= 250 for size in sizes):
        raise argparse.ArgumentTypeError(f"must be 0.01 to 250, as in 0.6,12, got {text!r}")
    return sizes
