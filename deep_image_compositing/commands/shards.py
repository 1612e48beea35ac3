"""The command ``shards``: data sets into shards, and shards checked."""

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
    "backgrounds": "photographs to set subjects into",
    "harmonization": "photographs, masks, and the same with subjects of other colours",
}


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    action = add_actions(parser, "KIND")
    for kind, what in _KINDS.items():
        add = action(kind, what)
        add("--layout", str, "NAME", "how the set lies on disk: shards layouts")
        add("--root", str, "DIR", "where the set lies", required=True)
        add("--out", str, "DIR", "folder of the shards", required=True)
        add("--validation", 0.1, "SHARE", "of what the set itself has not split")
        add("--seed", 0, "N", "of split and order")
        add("--shard-samples", int, "N", "most samples in a shard; default: as many as make 32 "
            "shards, at most 500 (mattes: 100)")
        add("--max-side", int, "PIXELS", "shrink what is longer")
        if kind == "mattes":
            add("--lossless", bool, "", "write RGBA PNG, not JPEG")
        add("--source", str, "TEXT", "where the set comes from, to record")
        add("--licence", str, "TEXT", "what it may be used for, to record")
        add("--max-skipped", 0.01, "SHARE",
            "of unusable samples above which the exit code is 1")
        add("--workers", int, "N", "processes; default: one a core")
    add = action("verify", "read shards again and compare them with their index")
    add("folder", str, "", "folder of shards with their index.json")
    add("--workers", int, "N", "processes; default: one a core")
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
    start, own = time.perf_counter(), ("action", "run", "debug", "max_skipped")
    arguments = {name: value for name, value in vars(args).items() if name not in own}
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
    for one in LAYOUTS:
        table.add_row(one.kind, one.name, one.expects, one.source or "-", one.licence)
    Console().print(table)
    return 0
