"""The command ``shards``: data sets into shards, and shards checked."""

from __future__ import annotations

import argparse
import sys
import time

from deep_image_compositing.errors import UsageError
from deep_image_compositing.messages import say, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``shards`` to its parser."""
    actions = parser.add_subparsers(metavar="KIND", dest="action", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        return sub

    for kind, what in (
        ("segmentation", "photographs and masks of their subjects"),
        ("mattes", "subjects with soft alphas and straight colour"),
        ("backgrounds", "photographs to set subjects into"),
        ("harmonization", "photographs, masks, and the same with subjects of other colours"),
    ):
        sub = action(kind, what)
        sub.add_argument(
            "--layout", metavar="NAME", help="how the set lies on disk: shards layouts"
        )
        sub.add_argument("--root", required=True, metavar="DIR", help="where the set lies")
        sub.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
        sub.add_argument(
            "--validation", type=float, default=0.1, metavar="SHARE", help="of what the set itself "
            "has not split; default: 0.1",
        )  # fmt: skip
        sub.add_argument("--seed", type=int, default=0, help="of split and order; default: 0")
        sub.add_argument(
            "--shard-samples", type=int, metavar="N", help="most samples in a shard; default: as "
            "many as make 32 shards, at most 500 (mattes: 100)",
        )  # fmt: skip
        sub.add_argument("--max-side", type=int, metavar="PIXELS", help="shrink what is longer")
        if kind == "mattes":
            sub.add_argument("--lossless", action="store_true", help="write RGBA PNG, not JPEG")
        sub.add_argument("--source", metavar="TEXT", help="where the set comes from, to record")
        sub.add_argument("--licence", metavar="TEXT", help="what it may be used for, to record")
        sub.add_argument(
            "--max-skipped", type=float, default=0.01, metavar="SHARE", help="of unusable samples "
            "above which the exit code is 1; default: 0.01",
        )  # fmt: skip
        sub.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core")
    verify = action("verify", "read shards again and compare them with their index")
    verify.add_argument("folder", help="folder of shards with their index.json")
    verify.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core")
    action("layouts", "list the layouts of data sets")


def run(options: argparse.Namespace) -> int:
    """Convert a data set, verify shards or list layouts; returns the exit code."""
    if options.action == "layouts":
        return _layouts()
    if options.action == "verify":
        return _verify(options)
    from deep_image_compositing.data.convert import convert

    if not 0 <= options.max_skipped <= 1:
        raise UsageError(f"--max-skipped is a share from 0 to 1, got {options.max_skipped}")
    start = time.perf_counter()
    own = ("action", "run", "debug", "max_skipped")
    arguments = {name: value for name, value in vars(options).items() if name not in own}
    index = convert(options.action, **arguments, show=True)
    size, seconds = sum(shard.bytes for shard in index.shards) / 1e6, time.perf_counter() - start
    show(
        f"{options.out}: {index.counts()} samples in {len(index.shards)} shards "
        f"({size:.1f} MB, {seconds:.1f} s)"
    )
    if not index.skipped:
        return 0
    total = index.about["entries"]
    say(f"{len(index.skipped)} of {total} samples were skipped:")
    for item in index.skipped:
        show(f"  {item['key']}: {item['reason']}", file=sys.stderr)
    return int(len(index.skipped) > options.max_skipped * total)


def _verify(options: argparse.Namespace) -> int:
    from deep_image_compositing.data.shards import Index
    from deep_image_compositing.data.verify import verify

    problems = verify(options.folder, workers=options.workers, show=True)
    for problem in problems:
        show(problem)
    if not problems:
        counts = Index.read(options.folder).counts()
        show(f"{options.folder}: {counts} samples, all as the index says")
    return int(bool(problems))


def _layouts() -> int:
    from rich.console import Console
    from rich.table import Table

    from deep_image_compositing.data.layouts import LAYOUTS

    table = Table("kind", "layout", "files", "source", "licence")
    for layout in LAYOUTS:
        table.add_row(
            layout.kind, layout.name, layout.expects, layout.source or "-", layout.licence
        )
    Console().print(table)
    return 0
