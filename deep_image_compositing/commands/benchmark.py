"""The arguments of ``benchmark`` and which table they ask for; imports nothing heavy before."""

from __future__ import annotations

import argparse
import os
import sys

_KINDS = {
    "pipeline": ("cold start, composites against closed-form matting, memory; the default", "cpu"),
    "resolution": ("seconds and memory from 0.6 to 48 megapixels", "cpu"),
    "data": ("loading of training data against the bare decoding", "cpu"),
    "train": ("samples a second, waiting for data and memory of each slot", "auto"),
    "gpu": ("batches through all stages, and training, in eight minutes", "cuda"),
}


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``benchmark`` to its parser."""
    kinds = parser.add_subparsers(metavar="WHAT", dest="what", required=False)
    # An option may stand before or behind what is measured: only the outermost has defaults.
    parser.set_defaults(what="pipeline", quick=False, device=None)
    for name, (summary, device) in {"": ("", "cpu; of train auto, of gpu cuda"), **_KINDS}.items():
        sub = parser
        if name:
            sub = kinds.add_parser(name, help=summary, description=summary, allow_abbrev=False)
            sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                             help=argparse.SUPPRESS)
        sub.add_argument("--quick", action="store_true", default=argparse.SUPPRESS,
                         help="everything small and once: to see that it runs")
        sub.add_argument("--device", default=argparse.SUPPRESS,
                         help=f"auto, cpu, cuda, ...; default: {device}")
        if name == "resolution":
            sub.add_argument("--megapixels", metavar="N,...", type=_sizes, default="0.6,2,12,24,48",
                             help="sizes of the photographs; default: 0.6,2,12,24,48")
        if name in ("data", "train", "gpu"):
            usual = "2" if name == "data" else "all cores but one, at most 12"
            sub.add_argument("--workers", type=_positive, metavar="N",
                             help=f"loader processes; default: {usual}")
# fmt: on


def run(options: argparse.Namespace) -> int:
    """Measure and print, as wide as the terminal, and wide enough where there is none.

    Raises:
        UsageError: a device that is not there.
    """
    from rich.console import Console

    from deep_image_compositing.benchmark import composites, training
    from deep_image_compositing.devices import choose_device

    what, quick = options.what, options.quick
    device = choose_device(options.device or _KINDS[what][1])
    if what == "pipeline":
        tables = composites.pipeline(device, quick)
    elif what == "resolution":
        tables = composites.resolution([0.02, 0.1] if quick else options.megapixels, device, quick)
    elif what == "data":
        tables = training.loading(options.workers or 2, quick)
    else:
        tables = training.run(device, options.workers, quick, batches=what == "gpu")
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
