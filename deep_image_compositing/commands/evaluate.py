"""The command ``evaluate``: its arguments and its work; imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing.commands.arguments import launched
from deep_image_compositing.errors import UsageError
from deep_image_compositing.messages import printable, show

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

_SHOWN = {
    "recolored": ("psnr", "gain", "fmse", "fmse_share", "square_error", "ssim",
                  "harmonization_seconds"),
    "untouched": ("change",),
}  # fmt: skip
"""Measures of the table of harmonizers alone, by grade."""

_PARAMETERS = {"triplets": "shards", "folder": "path"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate`` to its parser."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report")
    _add_methods(parser.add_argument_group("methods"))
    _add_test_set(parser.add_argument_group("test set"))
    _add_output(parser.add_argument_group("report"), parser.add_argument_group("resources"))


# fmt: off
def _add_methods(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--methods", action="append", default=[], metavar="NAME,...",
        help="sets (paper, ablations, fast, harmonize) or methods of sets; -NAME leaves one out; "
             "default: paper, or none where --method names some")
    add("--method", action="append", default=[], metavar="NAME=SEGMENTER,REFINER,FUSER",
        help="one more, its stages with options if need be: mine=pyramid,none,"
             "'multi_stream(weights=runs/mine)'; NAME=HARMONIZER beside --methods harmonize; "
             "repeatable")
    add("--reference", metavar="NAME",
        help="the method that the others are compared with; default: ours, or the last one")
    add("--runs", default="runs", metavar="DIR",
        help="training runs for the set ablations; default: runs")


def _add_test_set(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--test-set", choices=_OPTIONS,
        help="syntest: made of mattes; taught: made by a network; folders: one's own pictures; "
             "harmonization: photographs with recoloured subjects; default: harmonization for "
             "--methods harmonize, else syntest")
    for flag, text in (("--mattes", "subjects with their alpha"), ("--backgrounds", "photographs")):
        add(flag, nargs="+", metavar="PATH",
            help=f"of syntest, {text}: folders, shards or patterns of shards; default: made of "
                 "noise")
    add("--triplets", nargs="+", metavar="PATH", help="of taught: shards that teach has written")
    add("--folder", metavar="DIR",
        help="of folders: foreground/, background/ and, where there are any, mask/, composite/ and "
             "alpha/")
    add("--photographs", nargs="+", metavar="PATH",
        help="of harmonization, photographs with masks: folders, shards or patterns of shards; or "
             "folders with composites/, images/ and masks/")
    add("--hold-out", type=float, metavar="SHARE",
        help="of plain folders of mattes or photographs, what training with this hold_out has not "
             "seen; default: all of them")
    add("--background-hold-out", type=float, metavar="SHARE",
        help="the same of plain folders of backgrounds")
    add("--split", metavar="NAME", help="of folders of shards; default: validation")
    add("--samples", type=int, metavar="N",
        help="how many; default: all, in syntest every subject --per-subject times")
    add("--per-subject", type=int, metavar="N",
        help="samples with other backgrounds of each subject; default: 2")
    add("--size", type=int, metavar="PX",
        help="long side to which larger subjects are reduced; default: 768, in harmonization none")
    add("--seed", type=int, metavar="S", help="of backgrounds and masks, or of colours; default: 0")
    add("--strength", type=float, metavar="S",
        help="of harmonization, of the changes of colour, in (0, 2]; default: 1")
    add("--cache", metavar="DIR", help="keep shards from elsewhere here")
    add("--grades", metavar="NAME,...",
        help="of the masks that methods are given: exact, rough, bad, none (taught: exact, rough, "
             "none; folders: given, none); of harmonization: recolored, untouched; default: all")


def _add_output(report: argparse._ArgumentGroup, resources: argparse._ArgumentGroup) -> None:
    add = report.add_argument
    add("--sheets", type=int, metavar="N",
        help="samples that get contact sheets; default: 12, and all without truth")
    add("--no-sheets", action="store_true", help="as --sheets 0")
    add("--lpips-weights", metavar="FILE",
        help="torchvision's AlexNet; default: the copy in torch hub's folder, if there is one")
    add("--overwrite", action="store_true",
        help="begin anew, whatever --out holds of an earlier evaluation")
    add = resources.add_argument
    add("--devices", type=int, metavar="N",
        help="GPUs, or processes on a CPU; default: 1, or as many as torchrun has started")
    add("--accelerator", default="auto", help="auto, cpu, gpu; default: auto")
    add("--threads", type=int, metavar="N",
        help="CPU threads of each process; default: torch's, divided among processes")
# fmt: on


def run(options: argparse.Namespace) -> int:
    """Do what ``evaluate`` was asked for; returns the exit code: 1 when nothing was measured."""
    test_set_options = _test_set_options(options)
    if options.no_sheets and options.sheets:
        raise UsageError("--no-sheets and --sheets contradict each other")
    out = Path(options.out)
    if options.lpips_weights is not None and not Path(options.lpips_weights).expanduser().is_file():
        raise UsageError(f"there is no file {options.lpips_weights} (--lpips-weights)")
    from deep_image_compositing.evaluation.methods import choose

    methods = choose(options.methods, options.method, runs=options.runs)
    from deep_image_compositing.evaluation import pages
    from deep_image_compositing.evaluation.evaluate import evaluate
    from deep_image_compositing.evaluation.testsets import open_test_set

    report = evaluate(
        methods,
        open_test_set(_kind(options), **test_set_options),
        out,
        # Not asked of the test set: another choice would make another set of it.
        grades=None if options.grades is None else options.grades.split(","),
        reference=options.reference,
        devices=launched("LOCAL_WORLD_SIZE", options.devices),
        accelerator=options.accelerator,
        threads=options.threads,
        sheets=0 if options.no_sheets else options.sheets,
        lpips_weights=options.lpips_weights,
        overwrite=options.overwrite,
        show=True,
        command=shlex.join(["deep-image-compositing", *sys.argv[1:]]),
    )
    if report is None:
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(report))
    if report.published:
        console.print(published_table(report))
    for line in (*pages.verdicts(report), *pages.failures(report)):
        console.print(printable(line), markup=False, highlight=False)
    show(f"wrote {out / 'report.html'}")
    return int(not any(sum(part.measured.values()) for part in report.summary.values()))


def published_table(report: Report) -> Table:
    """What others have published, on other data."""
    from rich.table import Table

    lines = Table("method", title="published elsewhere, on other data: iHarmony4, full resolution")
    for column in ("PSNR (dB) ↑", "fMSE ↓"):
        lines.add_column(column, justify="right")
    for name, psnr, fmse in report.published:
        lines.add_row(name, f"{psnr:.2f}", f"{fmse:g}")
    return lines


def color_table_of(report: Report) -> Table:
    """A compact table of harmonizers alone: the main measures of each grade, without intervals."""
    from rich.table import Table

    from deep_image_compositing.evaluation.report import head, table

    parts = [
        (grade, key)
        for grade, keys in _SHOWN.items()
        if grade in report.summary
        for key in keys
        if any(key in means for means in report.summary[grade].means.values())
    ]
    lines = Table("method", title=f"{len(report.names)} photographs")
    rows = [table(report, grade, "", [key]).rows for grade, key in parts]
    for grade, key in parts:
        name, arrow, unit = head(key)
        lines.add_column(f"{grade}: {name}{f' ({unit})' if unit else ''} {arrow}", justify="right")
    for number, method in enumerate(report.method_names):
        cells = [row[number].cells[0] for row in rows]
        lines.add_row(
            printable(method),
            *(f"[bold]{c.text}[/bold]" if c and c.best else c.text if c else "-" for c in cells),
        )
    return lines


def table_of(report: Report) -> Table:
    """A compact table: for each grade the mean of ``KEY`` with its interval, and seconds."""
    if report.alone:
        return color_table_of(report)
    from rich.markup import escape
    from rich.table import Table

    from deep_image_compositing.evaluation.measures import KEY
    from deep_image_compositing.evaluation.report import head, table

    shown = KEY if report.has_truth else "seconds"
    parts = [report.summary[grade] for grade in report.grades]
    rows = [table(report, grade, "", [shown]).rows for grade in report.grades]
    failing = any(sum(part.failed.values()) for part in parts)
    value, seconds = ("{0} ({2}) {1}".format(*head(key)) for key in (shown, "seconds"))
    lines = Table("method", title=value)
    for column in (
        *report.grades,
        *([seconds] if shown == KEY else []),
        *(["failed"] if failing else []),
    ):
        lines.add_column(column, justify="right")
    for number, method in enumerate(report.method_names):
        cells = []
        for cell in (row[number].cells[0] for row in rows):
            text = cell.text if cell else "-"
            bold = f"[bold]{text}[/bold]" if cell and cell.best else text
            cells.append(f"{bold} {escape(cell.interval if cell else '')}".rstrip())
        if shown == KEY:
            times = [p.means[method]["seconds"] for p in parts if "seconds" in p.means[method]]
            total = sum(time.pictures for time in times)
            cells.append(f"{sum(t.mean * t.pictures for t in times) / total:.2f}" if total else "-")
        if failing:
            failed = sum(part.failed[method] for part in parts)
            cells.append(f"{failed} of {len(report.names) * len(parts)}" if failed else "-")
        lines.add_row(printable(method), *cells)
    return lines


def _kind(options: argparse.Namespace) -> str:
    """The kind of test set that is meant."""
    if options.test_set is not None:
        return str(options.test_set)
    alone = any("harmonize" in names.split(",") for names in options.methods)
    return "harmonization" if alone or options.photographs else "syntest"


def _test_set_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the test set is opened with; UsageError for an option of another, or one missing."""
    kind = _kind(options)
    given = {name: getattr(options, name) for names in _OPTIONS.values() for name in names}
    values = {name: value for name, value in given.items() if value is not None}
    for name in values:
        if name not in _OPTIONS[kind]:
            sets = " and ".join(each for each, names in _OPTIONS.items() if name in names)
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is an option of --test-set {sets}, not of {kind}")
    if kind == "taught" and "triplets" not in values:
        raise UsageError("--test-set taught needs --triplets: shards that teach has written")
    if kind == "folders" and "folder" not in values:
        raise UsageError("--test-set folders needs --folder, with foreground/ and background/")
    if kind == "harmonization" and "photographs" not in values:
        raise UsageError("--test-set harmonization needs --photographs, which have masks")
    if len({"mattes", "backgrounds"} & set(values)) == 1:
        one, other = sorted(("mattes", "backgrounds"), key=lambda name: name not in values)
        raise UsageError(f"--{one} needs --{other}")
    for name in ("mattes", "backgrounds", "triplets", "folder", "photographs"):
        paths = values.get(name, [])
        for path in [paths] if isinstance(paths, str) else paths:
            plain = not any(sign in path for sign in "*?[{:")  # patterns and URLs are not looked up
            if plain and not Path(path).expanduser().exists():
                raise UsageError(f"there is no {path} (--{name})")
    if values.get("split") == "all":
        values["split"] = None
    return {_PARAMETERS.get(name, name): value for name, value in values.items()}
