"""The command ``shards``: convert data sets into shards, and verify shards."""

from __future__ import annotations

import argparse
import sys
import time

from deep_image_compositing.commands.arguments import add_actions
from deep_image_compositing.errors import UsageError
from deep_image_compositing.messages import say, show

_KINDS = {
    "segmentation": "photographs and masks of their subjects",
    "mattes": "subjects with soft alphas and straight colour",
    "backgrounds": "photographs that become backgrounds",
    "harmonization": "photographs, masks, and composites with recoloured subjects",
}


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    action = add_actions(parser, "KIND")
    for kind, description in _KINDS.items():
        add = action(kind, description)
        add("--layout", str, "NAME", "file layout of the data set; see: shards layouts")
        add("--root", str, "DIR", "folder of the data set", required=True)
        add("--out", str, "DIR", "folder of the shards", required=True)
        add("--validation", 0.1, "SHARE", "validation share, where the set has no split itself")
        add("--seed", 0, "N", "seed of split and order")
        add("--shard-samples", int, "N", "maximum samples per shard; default: what makes 32 "
            "shards, at most 500 (mattes: 100)")
        add("--max-side", int, "PIXELS", "reduce larger pictures to this long side")
        if kind == "mattes":
            add("--lossless", bool, "", "write RGBA PNG, not JPEG")
        add("--source", str, "TEXT", "origin of the data set, to record")
        add("--licence", str, "TEXT", "licence of the data set, to record")
        add("--max-skipped", 0.01, "SHARE",
            "share of unusable samples above which the exit code is 1")
        add("--workers", int, "N", "number of processes; default: one per core")
    add = action("verify", "read shards and compare them with their index")
    add("folder", str, "", "folder of shards with their index.json")
    add("--workers", int, "N", "number of processes; default: one per core")
    action("layouts", "list the layouts of data sets")
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Convert a data set, verify shards or list layouts; returns the exit code."""
    if args.action == "layouts":
        return _layouts()
    if args.action == "verify":
        return _verify(args)
    from deep_image_compositing.data.convert import convert

    if not 0 <= args.max_skipped <= 1:
        raise UsageError(f"--max-skipped is a share from 0 to 1, got {args.max_skipped}")
    start, excluded = time.perf_counter(), ("action", "run", "debug", "max_skipped")
    arguments = {name: value for name, value in vars(args).items() if name not in excluded}
    index = convert(args.action, **arguments, show=True)
    size, seconds = sum(shard.bytes for shard in index.shards) / 1e6, time.perf_counter() - start
    show(
        f"{args.out}: {index.counts()} samples in {len(index.shards)} shards "
        f"({size:.1f} MB, {seconds:.1f} s)"
    )
    total = index.about["entries"]
    if index.skipped:
        say(f"{len(index.skipped)} of {total} samples were skipped:")
    for item in index.skipped:
        show(f"  {item['key']}: {item['reason']}", file=sys.stderr)
    return int(len(index.skipped) > args.max_skipped * total)


def _verify(args: argparse.Namespace) -> int:
    from deep_image_compositing.data.shards import Index
    from deep_image_compositing.data.verify import verify

    problems = verify(args.folder, workers=args.workers, show=True)
    for problem in problems:
        show(problem)
    if not problems:
        counts = Index.read(args.folder).counts()
        show(f"{args.folder}: {counts} samples, all as the index says")
    return int(bool(problems))


def _layouts() -> int:
    from rich.console import Console
    from rich.table import Table

    from deep_image_compositing.data.layouts import LAYOUTS

    table = Table("kind", "layout", "files", "source", "licence")
    for layout in LAYOUTS:
        row = (layout.kind, layout.name, layout.expects, layout.source or "-", layout.licence)
        table.add_row(*row)
    Console().print(table)
    return 0
