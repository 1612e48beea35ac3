"""The command ``study``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deep_image_compositing.commands.arguments import add_actions
from deep_image_compositing.commands.serve import add_address
from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import check_regular
from deep_image_compositing.messages import say, show


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    action = add_actions(parser, "ACTION")
    add = action("make", "render every method on every pair of photographs")
    add("pairs", str, "PAIRS", "a folder of pairs, or a .tsv or .csv file with the columns "
        "foreground, background and, optionally, mask and name")
    add("--methods", list, "NAME,...", "sets or methods of sets, as for evaluate; -NAME leaves one "
        "out; default: paper, or none with --method")
    add("--method", list, "NAME=SEGMENTER,REFINER,FUSER", "another method")
    add("--out", str, "DIR", "folder of the study", required=True)
    add("--max-side", 1024, "PIXELS",
        "reduce larger photographs to this long side before they are composited")
    add("--seed", int, "N", "seed of the pictures' random names, to make the same study again; "
        "default: names that cannot be guessed")
    add("--device", "auto", "", "auto, cpu, cuda, ...")

    add = action("serve", "serve the web page on which participants choose")
    add("folder", str, "", "folder of the study")
    add_address(add)
    add("--intro", str, "FILE",
        "text file that replaces the introduction on the first page; line breaks are kept")

    add = action("score", "turn the answers into tables and a figure")
    add("folder", str, "", "folder of the study")
    add("--out", str, "DIR", "folder to write to; default: scores in the study's folder")
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Make, serve or score a study; returns the exit code."""
    return {"make": _make, "serve": _serve, "score": _score}[args.action](args)


def _make(args: argparse.Namespace) -> int:
    from deep_image_compositing.evaluation.methods import choose
    from deep_image_compositing.evaluation.study.make import make
    from deep_image_compositing.evaluation.testsets import read_pairs

    study = make(
        read_pairs(args.pairs),
        choose(args.methods, args.method),
        args.out,
        max_side=args.max_side,
        seed=args.seed,
        device=args.device,
        show=True,
    )
    left_out = [item for item in study.sets if item.left_out]
    sets = f"{len(study.shown)} of {len(study.sets)} sets"
    show(f"{args.out}: {sets}, {len(study.methods)} methods")
    if left_out:
        say(f"error: {len(left_out)} sets are left out:")
    for item in left_out:
        for reason in item.left_out:
            show(f"  {item.name}: {reason}", file=sys.stderr)
    return 1 if left_out else 0


def _serve(args: argparse.Namespace) -> int:
    for package in ("starlette", "uvicorn"):
        import_extra(package, "study serve", "study")
    from deep_image_compositing.evaluation.study.server import serve

    intro = "" if args.intro is None else _read_intro(Path(args.intro))
    serve(args.folder, args.host, args.port, intro=intro, allowed_hosts=args.allowed_host)
    return 0


def _read_intro(path: Path) -> str:
    check_regular(path, UsageError)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    if not text:
        raise UsageError(f"{path} is empty; it must introduce the study to its participants")
    return text


def _score(args: argparse.Namespace) -> int:
    from deep_image_compositing.evaluation.study.score import write_scores

    out = Path(args.out or Path(args.folder) / "scores")
    write_scores(args.folder, out)
    show((out / "scores.md").read_text(encoding="utf-8").rstrip(), lines=True)
    show(f"wrote {out}")
    return 0
