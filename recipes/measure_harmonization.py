"""Measure how well harmonizers restore recoloured subjects, on held-out photographs.

    python recipes/measure_harmonization.py data --out reports/harmonization

runs ``evaluate --methods harmonize`` on the photographs that groups.py holds out, by group.
``--methods`` selects other methods, as in ``evaluate``; ``--method NAME=HARMONIZER`` adds more.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from groups import GROUPS, source

from deep_image_compositing.commands.evaluate import print_report
from deep_image_compositing.errors import CompositingError
from deep_image_compositing.evaluation.evaluate import evaluate
from deep_image_compositing.evaluation.methods import choose
from deep_image_compositing.evaluation.testsets import Harmonization


def main() -> None:
    options = arguments()
    folders = {**GROUPS, "mattes": ("mattes",)}
    sources = {
        group: [source(options.data, name) for name in names if (options.data / name).is_dir()]
        for group, names in folders.items()
    }
    try:
        report = evaluate(
            choose(options.methods, options.method),
            Harmonization(sources, samples=options.samples, seed=options.seed),
            options.out,
            reference=options.reference,
            sheets=options.sheets,
            threads=options.threads,
            accelerator=options.accelerator,
            show=True,
            command=shlex.join(["python", *sys.argv]),
        )
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
    if report is not None:
        print_report(report)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with people/, open/, mattes/ ...")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--methods", action="append", help="default: harmonize")
    parser.add_argument("--method", action="append", default=[], metavar="NAME=HARMONIZER")
    parser.add_argument("--reference", help="method with which the others are compared")
    parser.add_argument("--samples", type=int, help="maximum number of photographs")
    parser.add_argument("--seed", type=int, default=0, help="seed of colours and photographs")
    parser.add_argument("--sheets", type=int, default=24, help="number of photographs to show")
    parser.add_argument("--threads", type=int, help="number of CPU threads")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu")
    options = parser.parse_args()
    options.methods = options.methods or ["harmonize"]
    return options


if __name__ == "__main__":
    main()
