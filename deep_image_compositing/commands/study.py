"""The command ``study``: its arguments and its work; imports nothing heavy before it runs."""

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
        "foreground, background and, if wanted, mask and name")
    add("--methods", list, "SET[,...]", "sets of methods or single ones, as evaluate takes them; "
        "one that is left out has a - before it; default: paper, if no --method is given")
    add("--method", list, "NAME=SEGMENTER,REFINER,FUSER", "one more method")
    add("--out", str, "DIR", "folder of the study", required=True)
    add("--max-side", 1024, "PIXELS",
        "shrink photographs that are longer, before the methods see them")
    add("--seed", int, "N", "draw the pictures' names by number, to make the same study twice; "
        "default: names that nobody can guess")
    add("--device", "auto", "", "auto, cpu, cuda, ...")

    add = action("serve", "open the web page on which people choose")
    add("folder", str, "", "what study make made")
    add_address(add)
    add("--intro", str, "FILE",
        "text of the first page in place of ours; its lines stay as they are")

    add = action("score", "turn the answers into tables and a figure")
    add("folder", str, "", "what study make made and people have answered")
    add("--out", str, "DIR", "where to write; default: scores in the folder")
# fmt: on


def run(given: argparse.Namespace) -> int:
    """Do what ``study`` was asked for; returns the exit code."""
    return {"make": _make, "serve": _serve, "score": _score}[given.action](given)


def _make(given: argparse.Namespace) -> int:
    from deep_image_compositing.evaluation.methods import choose
    from deep_image_compositing.evaluation.study.make import make
    from deep_image_compositing.evaluation.testsets import read_pairs

    study = make(
        read_pairs(given.pairs),
        choose(given.methods, given.method),
        given.out,
        max_side=given.max_side,
        seed=given.seed,
        device=given.device,
        show=True,
    )
    left_out = [item for item in study.sets if item.left_out]
    sets = f"{len(study.shown)} of {len(study.sets)} sets"
    show(f"{given.out}: {sets}, {len(study.methods)} methods")
    if left_out:
        say(f"error: {len(left_out)} sets are left out:")
    for item in left_out:
        for reason in item.left_out:
            show(f"  {item.name}: {reason}", file=sys.stderr)
    return 1 if left_out else 0


def _serve(given: argparse.Namespace) -> int:
    for package in ("starlette", "uvicorn"):
        import_extra(package, "study serve", "study")
    from deep_image_compositing.evaluation.study.server import serve

    intro = "" if given.intro is None else _read_intro(Path(given.intro))
    serve(given.folder, given.host, given.port, intro=intro, allowed_hosts=given.allowed_host)
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


def _score(given: argparse.Namespace) -> int:
    from deep_image_compositing.evaluation.study.score import write_scores

    out = Path(given.out or Path(given.folder) / "scores")
    write_scores(given.folder, out)
    show((out / "scores.md").read_text(encoding="utf-8").rstrip(), lines=True)
    show(f"wrote {out}")
    return 0
