"""The files of a scored study: a page with its figure, tables, and every answer."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation import statistics
from deep_image_compositing.evaluation.pages import render
from deep_image_compositing.evaluation.study.figure import draw
from deep_image_compositing.evaluation.study.folder import ANSWERS, Study
from deep_image_compositing.evaluation.study.score import (
    OTHERS,
    MethodScore,
    Scores,
    counted,
    read_votes,
    score,
)
from deep_image_compositing.evaluation.study.store import Store
from deep_image_compositing.files import write_bytes
from deep_image_compositing.images import write_image


def write_scores(folder: str | Path, out: str | Path | None = None) -> Scores:
    """Score the study in ``folder`` and write ``scores.md``, ``.json``, ``.csv`` and ``.png``.

    ``answers.csv`` holds every answer, with numbers in the place of people's names.

    Args:
        folder: a study that was made; it may be served meanwhile.
        out: where to write; by default ``scores`` in the folder.

    Raises:
        UsageError: no study, or no answer.
        DataError: answers that cannot be read.
        ImageError: a file that cannot be written.
        MissingExtraError: scipy is not installed.
    """
    statistics.require("study score", "study")
    study = Study.read(folder)
    database = Path(folder) / ANSWERS
    if not database.exists():
        raise UsageError(f"nobody has taken part in the study in {folder} yet: study serve it")
    with Store(database, study.id) as store:
        votes, begun = read_votes(study, store)
        scores = score(study, votes, joined=len(store.people()), begun=begun)
    target = Path(folder) / "scores" if out is None else Path(out)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {target} cannot be made: {error.strerror}") from error
    write_image(target / "scores.png", draw(scores))
    answers = [
        {
            "person": vote.person,
            "set": vote.picture_set,
            "method": method,
            "score": vote.score(method),
            "confirmed": vote.confirmed,
        }
        for vote in votes
        for method in study.methods
    ]
    for name, text in (
        ("scores.json", json.dumps(asdict(scores), indent=2) + "\n"),
        ("scores.csv", _csv([f.name for f in fields(MethodScore)], map(asdict, scores.methods))),
        ("answers.csv", _csv(list(answers[0]), answers)),
        ("scores.md", markdown(scores)),
    ):
        write_bytes(target / name, text.encode())
    return scores


def markdown(scores: Scores) -> str:
    """The scores as a page of Markdown, with the figure of ``write_scores`` in it."""
    return render("scores.md", scores=scores, others=OTHERS, counted=counted)


def _csv(names: list[str], rows: Any) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
