"""The command ``evaluate``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing.commands.arguments import argument_adder, launch_count
from deep_image_compositing.errors import UsageError
from deep_image_compositing.files import at_home
from deep_image_compositing.messages import PROGRAM, printable, show

if TYPE_CHECKING:
    from rich.table import Table

    from deep_image_compositing.evaluation.report import Report

_OPTIONS = {
    "syntest": ("mattes", "backgrounds", "hold_out", "background_hold_out", "per_subject", "size",
                "seed", "samples", "split", "cache"),
    "taught": ("triplets", "samples", "split", "cache"),
    "folders": ("folder",),
    "harmonization": ("photographs", "hold_out", "split", "samples", "size", "seed", "strength",
                      "cache"),
}  # fmt: skip
"""Options of each kind of test set."""

_PATHS = ("mattes", "backgrounds", "triplets", "folder", "photographs")

_REQUIRED = {
    "taught": ("triplets", "shards that teach has written"),
    "folders": ("folder", "with foreground/ and background/"),
    "harmonization": ("photographs", "which have masks"),
}
"""The option that a kind of test set requires, and what it names."""

_COLOR_MEASURES = {
    "recolored": ("psnr", "gain", "fmse", "fmse_share", "square_error", "ssim",
                  "harmonization_seconds"),
    "untouched": ("change",),
}  # fmt: skip
"""Measures by grade in the table of an evaluation of harmonizers alone."""

_PARAMETERS = {"triplets": "shards", "folder": "path"}


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
    add = argument_adder(parser.add_argument_group("report"))
    add("--sheets", int, "N", "samples with contact sheets; default: 12, or all without truth")
    add("--no-sheets", bool, "", "same as --sheets 0")
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
        "harmonizers alone, else syntest", choices=_OPTIONS)
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
    if args.no_sheets and args.sheets:
        raise UsageError("--no-sheets and --sheets contradict each other")
    if args.lpips_weights is not None and not at_home(args.lpips_weights).is_file():
        raise UsageError(f"there is no file {args.lpips_weights} (--lpips-weights)")
    from deep_image_compositing.evaluation.methods import ALONE, choose

    methods = choose(args.methods, args.method, runs=args.runs)
    alone = methods[0].slots == ALONE or args.photographs
    kind = args.test_set or ("harmonization" if alone else "syntest")
    test_set_options = _test_set_options(args, kind)
    from deep_image_compositing.evaluation.evaluate import evaluate
    from deep_image_compositing.evaluation.testsets import open_test_set

    report = evaluate(
        methods,
        open_test_set(kind, **test_set_options),
        Path(args.out),
        # Not an option of the test set, which would become a different set.
        grades=None if args.grades is None else args.grades.split(","),
        reference=args.reference,
        devices=launch_count(args.devices),
        accelerator=args.accelerator,
        threads=args.threads,
        sheets=0 if args.no_sheets else args.sheets,
        lpips_weights=args.lpips_weights,
        overwrite=args.overwrite,
        show=True,
        command=shlex.join([PROGRAM, *sys.argv[1:]]),
    )
    if report is None:
        return 0
    print_report(report)
    show(f"wrote {Path(args.out, 'report.html')}")
    return int(not any(sum(part.measured.values()) for part in report.summary.values()))


def _test_set_options(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The arguments of ``open_test_set``; ``UsageError`` for invalid or missing options."""
    names = {name for options in _OPTIONS.values() for name in options}
    values = {name: value for name, value in vars(args).items() if name in names}
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if name not in _OPTIONS[kind]:
            sets = " and ".join(other for other, options in _OPTIONS.items() if name in options)
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is an option of --test-set {sets}, not of {kind}")
    required, description = _REQUIRED.get(kind, ("", ""))
    if required and required not in values:
        raise UsageError(f"--test-set {kind} needs --{required}: {description}")
    for one, other in (("mattes", "backgrounds"), ("backgrounds", "mattes")):
        if one in values and other not in values:
            raise UsageError(f"--{one} needs --{other}")
    for name in _PATHS:
        paths = values.get(name, [])
        for path in [paths] if isinstance(paths, str) else paths:
            is_plain = not any(sign in path for sign in "*?[{:")  # no pattern and no URL
            if is_plain and not Path(path).exists():
                raise UsageError(f"there is no {path} (--{name})")
    if values.get("split") == "all":
        values["split"] = None
    return {_PARAMETERS.get(name, name): value for name, value in values.items()}


# Tables for the terminal


def print_report(report: Report) -> None:
    """Print a report's main table, its verdicts and its failures."""
    from rich.console import Console

    from deep_image_compositing.evaluation import pages

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(report))
    if report.published:
        console.print(published_table(report))
    for line in (*pages.verdicts(report), *pages.failures(report)):
        console.print(printable(line), markup=False, highlight=False)


def published_table(report: Report) -> Table:
    """A table of results that others have published, on other data."""
    title = "published elsewhere, on other data: iHarmony4, full resolution"
    rows = [(name, f"{psnr:.2f}", f"{fmse:g}") for name, psnr, fmse in report.published]
    return _table(title, ["PSNR (dB) ↑", "fMSE ↓"], rows)


def color_table_of(report: Report) -> Table:
    """A table of harmonizers alone: the main measures of each grade, without intervals."""
    from deep_image_compositing.evaluation.rendering import counted
    from deep_image_compositing.evaluation.report import head, table

    columns, heads = [], []
    for grade, keys in _COLOR_MEASURES.items():
        means = report.summary[grade].means.values() if grade in report.summary else ()
        for key in keys:
            if any(key in mean for mean in means):
                name, arrow, unit = head(key)
                heads.append(f"{grade}: {name}{f' ({unit})' if unit else ''} {arrow}")
                rows = table(report, grade, "", [key]).rows
                columns.append([_text(row.cells[0]) for row in rows])
    methods = list(zip(report.method_names, *columns, strict=True))
    return _table(counted(len(report.names), "photograph"), heads, methods)


def table_of(report: Report) -> Table:
    """A table with the mean of ``KEY`` and its interval for each grade, and the mean time."""
    if report.alone:
        return color_table_of(report)
    from rich.markup import escape

    from deep_image_compositing.evaluation.measures import KEY
    from deep_image_compositing.evaluation.report import head, table

    key = KEY if report.has_truth else "seconds"
    summaries = [report.summary[grade] for grade in report.grades]
    grades = [table(report, grade, "", [key]).rows for grade in report.grades]
    any_failed = any(sum(summary.failed.values()) for summary in summaries)
    title, seconds = ("{0} ({2}) {1}".format(*head(name)) for name in (key, "seconds"))
    rows = []
    for number, method in enumerate(report.method_names):
        cells = [row[number].cells[0] for row in grades]
        texts = [
            f"{_text(cell)} {escape(cell.interval if cell else '')}".rstrip() for cell in cells
        ]
        if key == KEY:
            means = [summary.means[method] for summary in summaries]
            times = [mean["seconds"] for mean in means if "seconds" in mean]
            total = sum(time.pictures for time in times)
            texts.append(f"{sum(t.mean * t.pictures for t in times) / total:.2f}" if total else "-")
        if any_failed:
            failed = sum(summary.failed[method] for summary in summaries)
            texts.append(f"{failed} of {len(report.names) * len(summaries)}" if failed else "-")
        rows.append((method, *texts))
    more = [*([seconds] if key == KEY else []), *(["failed"] if any_failed else [])]
    return _table(title, [*report.grades, *more], rows)


def _text(cell: Any) -> str:
    """A cell in rich's markup, the best one in bold."""
    return f"[bold]{cell.text}[/bold]" if cell and cell.best else cell.text if cell else "-"


def _table(title: str, heads: list[str], rows: list[Any]) -> Table:
    """A table with a row for each method, whose first entry is the method's name."""
    from rich.table import Table

    table = Table("method", title=title)
    for head in heads:
        table.add_column(head, justify="right")
    for name, *cells in rows:
        table.add_row(printable(name), *cells)
    return table
