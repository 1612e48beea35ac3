"""The arguments of ``benchmark`` and which table they ask for; imports nothing heavy before."""

from __future__ import annotations

import argparse
import os
import sys

from deep_image_compositing.commands.arguments import add_actions, options

_KINDS = {
    "pipeline": ("cold start, composites against closed-form matting, memory; the default", "cpu"),
    "resolution": ("seconds and memory from 0.6 to 48 megapixels", "cpu"),
    "data": ("loading of training data against the bare decoding", "cpu"),
    "train": ("samples a second, waiting for data and memory of each slot", "auto"),
    "gpu": ("batches through all stages, and training, in eight minutes", "cuda"),
}


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    action = add_actions(parser, "WHAT", needed=False)
    # An option may stand before or behind what is measured: only the outermost has defaults.
    for name, (summary, device) in {"": ("", "cpu; of train auto, of gpu cuda"), **_KINDS}.items():
        add, unset = action(name, summary) if name else options(parser), argparse.SUPPRESS
        add("--quick", bool, "", "everything small and once: to see that it runs", default=unset)
        add("--device", str, "", f"auto, cpu, cuda, ...; default: {device}", default=unset)
        if name == "resolution":
            add("--megapixels", "0.6,2,12,24,48", "N,...", "sizes of the photographs", type=_sizes)
        if name in ("data", "train", "gpu"):
            usual = "2" if name == "data" else "all cores but one, at most 12"
            add("--workers", str, "N", f"loader processes; default: {usual}", type=_positive)
    parser.set_defaults(action="pipeline", quick=False, device=None)
# fmt: on


def run(given: argparse.Namespace) -> int:
    """Measure and print, as wide as the terminal, and wide enough where there is none."""
    from rich.console import Console

    from deep_image_compositing.benchmark import composites, training
    from deep_image_compositing.devices import choose_device

    what, quick = given.action, given.quick
    device = choose_device(given.device or _KINDS[what][1])
    if what == "pipeline":
        tables = composites.pipeline(device, quick)
    elif what == "resolution":
        tables = composites.resolution([0.02, 0.1] if quick else given.megapixels, device, quick)
    elif what == "data":
        tables = training.loading(given.workers or 2, quick)
    else:
        tables = training.run(device, given.workers, quick, batches=what == "gpu")
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    for table in tables:
        Console(width=None if known else 200).print(table)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is a number of at least 1, got {text!r}")
    return int(text)


def _sizes(text: str) -> list[float]:
    try:
        sizes = sorted({float(size) for size in text.split(",")})
    except ValueError:
        sizes = [0.0]
    if not all(0.01 <= size <= 250 for size in sizes):
        raise argparse.ArgumentTypeError(f"they are 0.01 to 250, as in 0.6,12, got {text!r}")
    return sizes
