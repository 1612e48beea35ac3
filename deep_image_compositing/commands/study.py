"""The command ``study``: its arguments and its work; imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import check_regular
from deep_image_compositing.messages import show

PROGRAM = "deep-image-compositing study"


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``study`` to its parser."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                         help=argparse.SUPPRESS)
        return sub

    add = action("make", "render every method on every pair of photographs").add_argument
    add("pairs", metavar="PAIRS",
        help="a folder of pairs, or a .tsv or .csv file with the columns foreground, background "
             "and, if wanted, mask and name")
    add("--methods", action="append", default=[], metavar="SET[,...]",
        help="sets of methods or single ones, as evaluate takes them; one that is left out has a - "
             "before it; default: paper, if no --method is given")
    add("--method", action="append", default=[], metavar="NAME=SEGMENTER,REFINER,FUSER",
        help="one more method; repeatable")
    add("--out", required=True, metavar="DIR", help="folder of the study")
    add("--max-side", type=int, default=1024, metavar="PIXELS",
        help="shrink photographs that are longer, before the methods see them; default: 1024")
    add("--seed", type=int, metavar="N",
        help="draw the pictures' names by number, to make the same study twice; default: names "
             "that nobody can guess")
    add("--device", default="auto", help="auto, cpu, cuda, ...; default: auto")

    add = action("serve", "open the web page on which people choose").add_argument
    add("folder", help="what study make made")
    add("--host", default="127.0.0.1",
        help="address to listen at, 0.0.0.0 for the whole network; default: 127.0.0.1, this "
             "machine only")
    add("--port", type=int, default=8000, help="0 for any free one; default: 8000")
    add("--intro", metavar="FILE",
        help="text of the first page in place of ours; its lines stay as they are")
    add("--allowed-host", action="append", default=[], metavar="NAME",
        help="one more name under which people reach it, that of a web server in front of it, say; "
             "repeatable")

    add = action("score", "turn the answers into tables and a figure").add_argument
    add("folder", help="what study make made and people have answered")
    add("--out", metavar="DIR", help="where to write; default: scores in the folder")
# fmt: on


def run(options: argparse.Namespace) -> int:
    """Do what ``study`` was asked for; returns the exit code."""
    return {"make": _make, "serve": _serve, "score": _score}[options.action](options)


def _make(options: argparse.Namespace) -> int:
    from deep_image_compositing.evaluation.methods import choose
    from deep_image_compositing.evaluation.study.make import make
    from deep_image_compositing.evaluation.testsets import read_pairs

    study = make(
        read_pairs(options.pairs),
        choose(options.methods, options.method),
        options.out,
        max_side=options.max_side,
        seed=options.seed,
        device=options.device,
        show=True,
    )
    left_out = [item for item in study.sets if item.left_out]
    sets = f"{len(study.shown)} of {len(study.sets)} sets"
    show(f"{options.out}: {sets}, {len(study.methods)} methods")
    if left_out:
        show(f"{PROGRAM}: error: {len(left_out)} sets are left out:", file=sys.stderr)
        for item in left_out:
            for reason in item.left_out:
                show(f"  {item.name}: {reason}", file=sys.stderr)
    return 1 if left_out else 0


def _serve(options: argparse.Namespace) -> int:
    for package in ("starlette", "uvicorn"):
        import_extra(package, "study serve", "study")
    from deep_image_compositing.evaluation.study.server import serve

    serve(
        options.folder,
        options.host,
        options.port,
        intro="" if options.intro is None else _read_intro(Path(options.intro)),
        allowed_hosts=options.allowed_host,
    )
    return 0


def _read_intro(path: Path) -> str:
    check_regular(path, UsageError)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    if not text:
        raise UsageError(f"{path} is empty; it is to tell people what they take part in")
    return text


def _score(options: argparse.Namespace) -> int:
    from deep_image_compositing.evaluation.study.score import write_scores

    out = Path(options.out or Path(options.folder) / "scores")
    write_scores(options.folder, out)
    show((out / "scores.md").read_text(encoding="utf-8").rstrip(), lines=True)
    show(f"wrote {out}")
    return 0
