"""The command ``evaluate``: its arguments and its work; imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import UsageError

_TEST_SETS = ("syntest", "taught", "folders")
_OF = {
    "mattes": ("syntest",),
    "backgrounds": ("syntest",),
    "hold_out": ("syntest",),
    "background_hold_out": ("syntest",),
    "per_subject": ("syntest",),
    "size": ("syntest",),
    "seed": ("syntest",),
    "triplets": ("taught",),
    "folder": ("folders",),
    "samples": ("syntest", "taught"),
    "split": ("syntest", "taught"),
    "cache": ("syntest", "taught"),
}
"""Options of test sets, and which sets take them."""

_CALLED = {"triplets": "shards", "folder": "path"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate`` to its parser."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report")
    what = parser.add_argument_group("methods")
    what.add_argument(
        "--methods",
        action="append",
        default=[],
        metavar="NAME,...",
        help="sets (paper, ablations, fast) or methods of sets; -NAME leaves one out; default: "
        "paper, or none where --method names some",
    )
    what.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME=SEGMENTER,REFINER,FUSER",
        help="one more, its stages with options if need be: mine=pyramid,none,"
        "'multi_stream(weights=runs/mine)'; repeatable",
    )
    what.add_argument("--reference", metavar="NAME", help="the method that the others are compared "
                      "with; default: ours, or the last one")  # fmt: skip
    what.add_argument("--runs", default="runs", metavar="DIR", help="training runs for the set "
                      "ablations; default: runs")  # fmt: skip
    data = parser.add_argument_group("test set")
    data.add_argument("--test-set", choices=_TEST_SETS, default="syntest", help="syntest: made of "
                      "mattes; taught: made by a network; folders: one's own pictures; default: "
                      "syntest")  # fmt: skip
    for flag, text in (("mattes", "subjects with their alpha"), ("backgrounds", "photographs")):
        data.add_argument(
            f"--{flag}",
            nargs="+",
            metavar="PATH",
            help=f"of syntest, {text}: folders, shards or patterns of shards; default: made of "
            "noise",
        )
    data.add_argument("--triplets", nargs="+", metavar="PATH", help="of taught: shards that teach "
                      "has written")  # fmt: skip
    data.add_argument("--folder", metavar="DIR", help="of folders: foreground/, background/ and, "
                      "where there are any, mask/, composite/ and alpha/")  # fmt: skip
    for flag, kind, metavar, text in (
        ("hold-out", float, "SHARE", "of plain folders of mattes, what training with this hold_out "
         "has not seen; default: all of them"),
        ("background-hold-out", float, "SHARE", "the same of plain folders of backgrounds"),
        ("split", str, "NAME", "of folders of shards; default: validation"),
        ("samples", int, "N", "how many; default: all, in syntest every subject --per-subject "
         "times"),
        ("per-subject", int, "N", "samples with other backgrounds of each subject; default: 2"),
        ("size", int, "PX", "long side to which larger subjects are reduced; default: 768"),
        ("seed", int, "S", "of backgrounds and masks; default: 0"),
        ("cache", str, "DIR", "keep shards from elsewhere here"),
    ):  # fmt: skip
        data.add_argument(f"--{flag}", type=kind, metavar=metavar, help=text)
    data.add_argument("--grades", metavar="NAME,...", help="of the masks that methods are given: "
                      "exact, rough, bad, none (taught: exact, rough, none; folders: given, none); "
                      "default: all")  # fmt: skip
    made = parser.add_argument_group("report")
    made.add_argument("--sheets", type=int, metavar="N", help="samples that get contact sheets; "
                      "default: 12, and all without truth")  # fmt: skip
    made.add_argument("--no-sheets", action="store_true", help="as --sheets 0")
    made.add_argument("--lpips-weights", metavar="FILE", help="torchvision's AlexNet; default: the "
                      "copy in torch hub's folder, if there is one")  # fmt: skip
    made.add_argument("--overwrite", action="store_true", help="begin anew, whatever --out holds "
                      "of an earlier evaluation")  # fmt: skip
    where = parser.add_argument_group("resources")
    where.add_argument("--devices", type=int, metavar="N", help="GPUs, or processes on a CPU; "
                       "default: 1, or as many as torchrun has started")  # fmt: skip
    where.add_argument("--accelerator", default="auto", help="auto, cpu, gpu; default: auto")
    where.add_argument("--threads", type=int, metavar="N", help="CPU threads of each process; "
                       "default: torch's, divided among processes")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Do what ``evaluate`` was asked for; returns the exit code: 1 when nothing was measured.

    Raises:
        UsageError: what can be seen to be wrong before anything is run.
        CompositingError: files that cannot be used.
    """
    given = _test_set_options(options)
    for name, least in (("sheets", 0), ("devices", 1), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}, got {value}")
    if options.no_sheets and options.sheets:
        raise UsageError("--no-sheets and --sheets contradict each other")
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder")
    if options.lpips_weights is not None and not Path(options.lpips_weights).expanduser().is_file():
        raise UsageError(f"there is no file {options.lpips_weights} (--lpips-weights)")
    from deep_image_compositing.evaluation.methods import choose

    sets = options.methods or ([] if options.method else ["paper"])
    methods = choose(sets, options.method, runs=options.runs)
    names = [method.name for method in methods]
    if options.reference is not None and options.reference not in names:
        raise UsageError(
            f"--reference is one of the methods, {', '.join(names)}: got {options.reference!r}"
        )
    from deep_image_compositing.evaluation.bench import evaluate
    from deep_image_compositing.evaluation.pages import console_table
    from deep_image_compositing.evaluation.testsets import open_test_set
    from deep_image_compositing.evaluation.wording import failures, verdicts

    report = evaluate(
        methods,
        open_test_set(options.test_set, **given),
        out,
        # Not asked of the test set: another choice would make another set of it.
        grades=_grades(options.grades),
        reference=options.reference,
        devices=_launched(options.devices),
        accelerator=options.accelerator,
        threads=options.threads,
        sheets=0 if options.no_sheets else options.sheets,
        lpips_weights=options.lpips_weights,
        overwrite=options.overwrite,
        show=True,
        command=_typed(),
    )
    if report is None:
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(console_table(report))
    for line in (*verdicts(report), *failures(report)):
        console.print(line, markup=False, highlight=False)
    print(f"wrote {out / 'report.html'}")
    measured = sum(sum(part.measured.values()) for part in report.summary.values())
    return int(measured == 0)


def _test_set_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the test set is opened with.

    Raises:
        UsageError: an option of another set, or one that is missing.
    """
    chosen = options.test_set
    given = {name: getattr(options, name) for name in _OF if getattr(options, name) is not None}
    for name in given:
        if chosen not in _OF[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} is an option of --test-set {' and '.join(_OF[name])}, "
                f"not of {chosen}"
            )
    if chosen == "taught" and "triplets" not in given:
        raise UsageError("--test-set taught needs --triplets: shards that teach has written")
    if chosen == "folders" and "folder" not in given:
        raise UsageError("--test-set folders needs --folder, with foreground/ and background/")
    for one, other in (("mattes", "backgrounds"), ("backgrounds", "mattes")):
        if one in given and other not in given:
            raise UsageError(f"--{one} needs --{other}")
    for name in ("mattes", "backgrounds", "triplets", "folder"):
        paths = given.get(name, [])
        for path in [paths] if isinstance(paths, str) else paths:
            plain = not any(sign in path for sign in "*?[{:")  # patterns and URLs are not looked up
            if plain and not Path(path).expanduser().exists():
                raise UsageError(f"there is no {path} (--{name})")
    if given.get("split") == "all":
        given["split"] = None
    return {_CALLED.get(name, name): value for name, value in given.items()}


def _grades(given: str | None) -> list[str] | None:
    return None if given is None else [part.strip() for part in given.split(",") if part.strip()]


def _launched(given: int | None) -> int:
    """The number of devices: as given, else as torchrun says, else 1."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if given is None else given


def _typed() -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["deep-image-compositing", *sys.argv[1:]])
