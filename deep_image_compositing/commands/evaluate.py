"""The command ``evaluate``: its arguments and its work; imports nothing heavy before it runs."""

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
"""Options that each kind of test set takes."""

_PATHS = ("mattes", "backgrounds", "triplets", "folder", "photographs")

_NEEDED = {
    "taught": ("triplets", "shards that teach has written"),
    "folders": ("folder", "with foreground/ and background/"),
    "harmonization": ("photographs", "which have masks"),
}
"""What a kind of test set cannot do without."""

_SHOWN = {
    "recolored": ("psnr", "gain", "fmse", "fmse_share", "square_error", "ssim",
                  "harmonization_seconds"),
    "untouched": ("change",),
}  # fmt: skip
"""Measures of the table of harmonizers alone, by grade."""

_PARAMETERS = {"triplets": "shards", "folder": "path"}


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    argument_adder(parser)("--out", str, "DIR", "folder of the report", required=True)
    add = argument_adder(parser.add_argument_group("methods"))
    add("--methods", list, "NAME,...",
        "sets (paper, ablations, fast, harmonize) or methods of sets; -NAME leaves one out; "
        "default: paper, or none where --method names some")
    add("--method", list, "NAME=SEGMENTER,REFINER,FUSER",
        "one more, its stages with options if need be: mine=pyramid,none,"
        "'multi_stream(weights=runs/mine)'; NAME=HARMONIZER for a harmonizer alone")
    add("--reference", str, "NAME",
        "the method that the others are compared with; default: ours, or the last one")
    add("--runs", "runs", "DIR", "training runs for the set ablations")
    _add_test_set(parser.add_argument_group("test set"))
    add = argument_adder(parser.add_argument_group("report"))
    add("--sheets", int, "N",
        "samples that get contact sheets; default: 12, and all without truth")
    add("--no-sheets", bool, "", "as --sheets 0")
    add("--lpips-weights", str, "FILE",
        "torchvision's AlexNet; default: the copy in torch hub's folder, if there is one")
    add("--overwrite", bool, "", "begin anew, whatever --out holds of an earlier evaluation")
    add = argument_adder(parser.add_argument_group("resources"))
    add("--devices", int, "N",
        "GPUs, or processes on a CPU; default: 1, or as many as torchrun has started")
    add("--accelerator", "auto", "", "auto, cpu, gpu")
    add("--threads", int, "N",
        "CPU threads of each process; default: torch's, divided among processes")


def _add_test_set(group: argparse._ArgumentGroup) -> None:
    add = argument_adder(group)
    several: dict[str, Any] = {"nargs": "+", "type": os.path.expanduser}
    add("--test-set", str, "",
        "syntest: made of mattes; taught: made by a network; folders: one's own pictures; "
        "harmonization: photographs with recoloured subjects; default: harmonization for "
        "harmonizers alone, else syntest", choices=_OPTIONS)
    for flag, text in (("--mattes", "subjects with their alpha"), ("--backgrounds", "photographs")):
        add(flag, str, "PATH", f"of syntest, {text}: folders, shards or patterns of shards; "
            "default: made of noise", **several)
    add("--triplets", str, "PATH", "of taught: shards that teach has written", **several)
    add("--folder", str, "DIR",
        "of folders: foreground/, background/ and, where there are any, mask/, composite/ and "
        "alpha/", type=os.path.expanduser)
    add("--photographs", str, "PATH",
        "of harmonization, photographs with masks: folders, shards or patterns of shards; or "
        "folders with composites/, images/ and masks/", **several)
    add("--hold-out", float, "SHARE",
        "of plain folders of mattes or photographs, what training with this hold_out has not "
        "seen; default: all of them")
    add("--background-hold-out", float, "SHARE", "the same of plain folders of backgrounds")
    add("--split", str, "NAME", "of folders of shards; default: validation")
    add("--samples", int, "N",
        "how many; default: all, in syntest every subject --per-subject times")
    add("--per-subject", int, "N",
        "samples with other backgrounds of each subject; default: 2")
    add("--size", int, "PX",
        "long side to which larger subjects are reduced; default: 768, in harmonization none")
    add("--seed", int, "S", "of backgrounds and masks, or of colours; default: 0")
    add("--strength", float, "S",
        "of harmonization, of the changes of colour, in (0, 2]; default: 1")
    add("--cache", str, "DIR", "keep shards from elsewhere here")
    add("--grades", str, "NAME,...",
        "of the masks that methods are given: exact, rough, bad, none (taught: exact, rough, "
        "none; folders: given, none); of harmonization: recolored, untouched; default: all")
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Do what ``evaluate`` was asked for; returns the exit code: 1 when nothing was measured."""
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
        # Not asked of the test set: another choice would make another set of it.
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
    """What the test set is opened with; UsageError for an option of another, or one missing."""
    every = {name: getattr(args, name) for names in _OPTIONS.values() for name in names}
    values = {name: value for name, value in every.items() if value is not None}
    for name in values:
        if name not in _OPTIONS[kind]:
            sets = " and ".join(each for each, names in _OPTIONS.items() if name in names)
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is an option of --test-set {sets}, not of {kind}")
    needed, what = _NEEDED.get(kind, ("", ""))
    if needed and needed not in values:
        raise UsageError(f"--test-set {kind} needs --{needed}: {what}")
    if len({"mattes", "backgrounds"} & set(values)) == 1:
        one, other = sorted(("mattes", "backgrounds"), key=lambda name: name not in values)
        raise UsageError(f"--{one} needs --{other}")
    for name in _PATHS:
        paths = values.get(name, [])
        for path in [paths] if isinstance(paths, str) else paths:
            plain = not any(sign in path for sign in "*?[{:")  # patterns and URLs are not looked up
            if plain and not Path(path).exists():
                raise UsageError(f"there is no {path} (--{name})")
    if values.get("split") == "all":
        values["split"] = None
    return {_PARAMETERS.get(name, name): value for name, value in values.items()}


# For the terminal


def print_report(report: Report) -> None:
    """Print a report's main table, and what the figures say."""
    from rich.console import Console

    from deep_image_compositing.evaluation import pages

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(report))
    if report.published:
        console.print(published_table(report))
    for line in (*pages.verdicts(report), *pages.failures(report)):
        console.print(printable(line), markup=False, highlight=False)


def published_table(report: Report) -> Table:
    """What others have published, on other data."""
    title = "published elsewhere, on other data: iHarmony4, full resolution"
    rows = [(name, f"{psnr:.2f}", f"{fmse:g}") for name, psnr, fmse in report.published]
    return _table(title, ["PSNR (dB) ↑", "fMSE ↓"], rows)


def color_table_of(report: Report) -> Table:
    """A compact table of harmonizers alone: the main measures of each grade, without intervals."""
    from deep_image_compositing.evaluation.report import head, table

    columns, heads = [], []
    for grade, keys in _SHOWN.items():
        means = report.summary[grade].means.values() if grade in report.summary else ()
        for key in keys:
            if any(key in mean for mean in means):
                name, arrow, unit = head(key)
                heads.append(f"{grade}: {name}{f' ({unit})' if unit else ''} {arrow}")
                found = table(report, grade, "", [key]).rows
                columns.append([_text(row.cells[0]) for row in found])
    rows = [(name, *cells) for name, *cells in zip(report.method_names, *columns, strict=True)]
    return _table(f"{len(report.names)} photographs", heads, rows)


def table_of(report: Report) -> Table:
    """A compact table: for each grade the mean of ``KEY`` with its interval, and seconds."""
    if report.alone:
        return color_table_of(report)
    from rich.markup import escape

    from deep_image_compositing.evaluation.measures import KEY
    from deep_image_compositing.evaluation.report import head, table

    shown = KEY if report.has_truth else "seconds"
    parts = [report.summary[grade] for grade in report.grades]
    grades = [table(report, grade, "", [shown]).rows for grade in report.grades]
    failing = any(sum(part.failed.values()) for part in parts)
    value, seconds = ("{0} ({2}) {1}".format(*head(key)) for key in (shown, "seconds"))
    rows = []
    for number, method in enumerate(report.method_names):
        cells = [row[number].cells[0] for row in grades]
        texts = [
            f"{_text(cell)} {escape(cell.interval if cell else '')}".rstrip() for cell in cells
        ]
        if shown == KEY:
            times = [p.means[method]["seconds"] for p in parts if "seconds" in p.means[method]]
            total = sum(time.pictures for time in times)
            texts.append(f"{sum(t.mean * t.pictures for t in times) / total:.2f}" if total else "-")
        if failing:
            failed = sum(part.failed[method] for part in parts)
            texts.append(f"{failed} of {len(report.names) * len(parts)}" if failed else "-")
        rows.append((method, *texts))
    more = [*([seconds] if shown == KEY else []), *(["failed"] if failing else [])]
    return _table(value, [*report.grades, *more], rows)


def _text(cell: Any) -> str:
    """A cell as rich marks it up: the best one bold."""
    return f"[bold]{cell.text}[/bold]" if cell and cell.best else cell.text if cell else "-"


def _table(title: str, heads: list[str], rows: list[Any]) -> Table:
    """A table of methods, whose names come first in the rows."""
    from rich.table import Table

    lines = Table("method", title=title)
    for text in heads:
        lines.add_column(text, justify="right")
    for name, *cells in rows:
        lines.add_row(printable(name), *cells)
    return lines
