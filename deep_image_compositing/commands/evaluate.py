"""The command ``evaluate``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing.commands.arguments import argument_adder, launch_count
from deep_image_compositing.messages import PROGRAM, printable, show

if TYPE_CHECKING:
    import rich.table

    from deep_image_compositing.evaluation.report import Report, Table

_TEST_SETS = ("syntest", "taught", "folders", "harmonization")

_OPTIONS = ("mattes", "backgrounds", "triplets", "folder", "photographs", "hold_out",
            "background_hold_out", "split", "samples", "per_subject", "size", "seed", "strength",
            "cache")  # fmt: skip
"""Options of test sets; each kind has some of them."""


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    argument_adder(parser)("--out", str, "DIR", "folder of the report", required=True)
    add = argument_adder(parser.add_argument_group("methods"))
    add("--methods", list, "NAME,...",
        "sets (paper, ablations, fast, harmonize) or methods of sets; -NAME leaves one out; "
        "default: paper, or none with --method")
    add("--method", list, "NAME=SEGMENTER,REFINER,FUSER",
        "another method; stages may have options: mine=pyramid,none,"
        "'multi_stream(weights=runs/mine)'; NAME=HARMONIZER for a harmonizer alone")
    add("--reference", str, "NAME", "method to compare with; default: ours, or the last one")
    add("--runs", "runs", "DIR", "folder of training runs for the set ablations")
    _add_test_set(parser.add_argument_group("test set"))
    report = parser.add_argument_group("report")
    add = argument_adder(report)
    add("--sheets", int, "N", "samples with contact sheets; default: 12, or all without truth")
    report.add_argument("--no-sheets", dest="sheets", action="store_const", const=0,
        help="same as --sheets 0")
    add("--lpips-weights", str, "FILE", "torchvision's AlexNet; default: torch hub's copy, if any")
    add("--overwrite", bool, "", "discard the results of an earlier evaluation in --out")
    add = argument_adder(parser.add_argument_group("resources"))
    add("--devices", int, "N",
        "number of GPUs, or of processes on a CPU; default: 1, or torchrun's number")
    add("--accelerator", "auto", "", "auto, cpu, gpu")
    add("--threads", int, "N", "CPU threads per process; default: torch's, divided among them")


def _add_test_set(group: argparse._ArgumentGroup) -> None:
    add = argument_adder(group)
    paths: dict[str, Any] = {"nargs": "+", "type": os.path.expanduser}
    add("--test-set", str, "",
        "syntest: made of mattes; taught: made by a network; folders: your own pictures; "
        "harmonization: photographs with recoloured subjects; default: harmonization for "
        "harmonizers alone, else syntest", choices=_TEST_SETS)
    for flag, text in (("--mattes", "subjects with their alpha"), ("--backgrounds", "photographs")):
        add(flag, str, "PATH", f"for syntest, {text}: folders, shards or patterns of shards; "
            "default: generated from noise", **paths)
    add("--triplets", str, "PATH", "for taught, shards that teach has written", **paths)
    add("--folder", str, "DIR", "for folders, a folder with foreground/, background/ and "
        "optionally mask/, composite/ and alpha/", type=os.path.expanduser)
    add("--photographs", str, "PATH",
        "for harmonization, photographs with masks: folders, shards or patterns of shards; or "
        "folders with composites/, images/ and masks/", **paths)
    add("--hold-out", float, "SHARE",
        "use only the share of plain folders of mattes or photographs that training with this "
        "hold_out has not seen; default: all files")
    add("--background-hold-out", float, "SHARE", "the same for plain folders of backgrounds")
    add("--split", str, "NAME", "split of folders of shards; default: validation")
    add("--samples", int, "N", "number of samples; default: all, in syntest --per-subject each")
    add("--per-subject", int, "N", "for syntest, backgrounds for each subject; default: 2")
    add("--size", int, "PX",
        "long side to which larger subjects are reduced; default: 768, in harmonization none")
    add("--seed", int, "S", "seed of backgrounds and masks, or of colours; default: 0")
    add("--strength", float, "S", "for harmonization, recolouring strength in (0, 2]; default: 1")
    add("--cache", str, "DIR", "folder for copies of remote shards")
    add("--grades", str, "NAME,...",
        "grades of the masks that methods take: exact, rough, bad, none (taught: exact, rough, "
        "none; folders: given, none); for harmonization: recolored, untouched; default: all")
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Run an evaluation; returns the exit code, which is 1 if nothing was measured."""
    from deep_image_compositing.evaluation.evaluate import evaluate
    from deep_image_compositing.evaluation.methods import ALONE, choose
    from deep_image_compositing.evaluation.testsets import open_test_set

    methods = choose(args.methods, args.method, runs=args.runs)
    alone = methods[0].slots == ALONE or args.photographs
    kind = args.test_set or ("harmonization" if alone else "syntest")
    report = evaluate(
        methods,
        open_test_set(kind, **_test_set_options(args)),
        args.out,
        grades=args.grades,
        reference=args.reference,
        devices=launch_count(args.devices),
        accelerator=args.accelerator,
        threads=args.threads,
        sheets=args.sheets,
        lpips_weights=args.lpips_weights,
        overwrite=args.overwrite,
        show=True,
        command=shlex.join([PROGRAM, *sys.argv[1:]]),
    )
    if report is None:
        return 0
    print_report(report)
    show(f"wrote {Path(args.out, 'report.html')}")
    return 0 if report.measured else 1


def _test_set_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``open_test_set``."""
    options = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    return {**options, "split": None} if args.split == "all" else options


def print_report(report: Report) -> None:
    """Print a report's main table, its verdicts and its failures."""
    from rich.console import Console

    from deep_image_compositing.evaluation import pages
    from deep_image_compositing.evaluation.report import overview, published

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(overview(report)))
    if report.alone:
        console.print(table_of(published()))
    for line in (*pages.verdicts(report), *pages.failures(report)):
        console.print(printable(line), markup=False, highlight=False)


def table_of(content: Table) -> rich.table.Table:
    """A report's table for the terminal, the best cells in bold."""
    from rich.table import Table
    from rich.text import Text

    table = Table("method", title=content.title)
    for name, arrow, unit in content.columns:
        table.add_column(f"{name}{f' ({unit})' if unit else ''} {arrow}", justify="right")
    for label, _, cells in content.rows:
        texts = [
            Text(f"{cell.text} {cell.interval}".rstrip(), "bold" if cell.best else "")
            if cell
            else "-"
            for cell in cells
        ]
        table.add_row(printable(label), *texts)
    return table
