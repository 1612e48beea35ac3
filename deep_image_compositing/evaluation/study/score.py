"""Scores a study as the paper does: a person's best three results count 1, 2 and 3, all others 8.

A method's score is the mean over all confirmed answers (a person and a set); lower is better. The
page and the figure are made from the templates ``scores.md`` and ``scores.svg``.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation import statistics
from deep_image_compositing.evaluation.rendering import render
from deep_image_compositing.evaluation.study.folder import ANSWERS, PLACES, Store, Study
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import make_folder, write_files

OTHERS = 8  # the score of a result that is not among a person's best three
_WORDS = ("first", "second", "third")


def write_scores(folder: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Score the study in ``folder`` and write ``scores.md``, ``.json``, ``.csv`` and ``.svg``.

    Also writes ``answers.csv`` with all answers, in which numbers stand for people. ``out`` is by
    default ``scores`` in the folder. The study may be served at the same time. Returns the content
    of ``scores.json``. UsageError if there is no study or answer, DataError if an answer is broken,
    ImageError if a file cannot be written, MissingExtraError without scipy.
    """
    import_extra("scipy.stats", "study score", "study")
    study, database = Study.read(folder), Path(folder) / ANSWERS
    if not database.exists():
        raise UsageError(f"nobody has taken part in the study in {folder} yet: study serve it")
    with Store(database, study.id) as store:
        answers, joined = read_answers(study, store), len(store.people())
    scores = score(study, answers, joined)
    target = Path(folder) / "scores" if out is None else Path(out)
    make_folder(target)
    values = {"scores": scores, "others": OTHERS}
    texts = {
        "scores.md": render("scores.md", **values),
        "scores.svg": render("scores.svg", **values),
        "scores.json": json.dumps(scores, indent=2) + "\n",
        "scores.csv": _csv(scores["methods"]),
        "answers.csv": _csv(answers),
    }
    write_files((target / name, text.encode()) for name, text in texts.items())
    return scores


def read_answers(study: Study, store: Store) -> list[dict[str, Any]]:
    """The rows of ``answers.csv``: each method's score in every confirmed answer.

    DataError for an answer that does not fit the study.
    """
    sets, rows = {item.id: item for item in study.shown}, []
    for person, picture_set, ranking, confirmed in store.answers():
        item = sets.get(picture_set)
        if item is None:
            raise DataError(f"an answer is of a set that the study lacks: {picture_set!r}")
        try:
            item.check(ranking)
        except UsageError as error:
            answer = f"person {person}'s answer on {item.name!r}"
            raise DataError(f"{answer} is broken: {error}") from error
        places = {item.results[token]: place for place, token in enumerate(ranking, 1)}
        for method in study.methods:
            row = {"person": person, "set": item.name, "method": method}
            rows.append({**row, "score": places.get(method, OTHERS), "confirmed": confirmed})
    return rows


def score(study: Study, answers: list[dict[str, Any]], joined: int) -> dict[str, Any]:
    """The content of ``scores.json``, from the rows of ``read_answers``; UsageError for no rows.

    ``joined`` people started. Friedman's test is over the sets' mean scores, and None for one set.
    """
    if not answers:
        raise UsageError("nobody has confirmed an answer yet, so there is nothing to score")
    count = len(study.methods)
    table = np.array([row["score"] for row in answers]).reshape(-1, count)
    sets = np.array([row["set"] for row in answers[::count]])
    answered = [item.name for item in study.shown if item.name in sets]
    means = np.array([table[sets == name].mean(0) for name in answered])
    won = statistics.wins(dict(zip(study.methods, means.T.tolist(), strict=True)), "lower")
    methods = []
    for name, values in zip(study.methods, table.T, strict=True):
        low, high = statistics.bootstrap_interval(values)
        row = {"method": name, "score": float(values.mean()), "low": low, "high": high}
        counts = {word: int((values == place).sum()) for place, word in enumerate(_WORDS, 1)}
        methods.append({**row, "sets_won": won[name], **counts})
    statistic, p = statistics.friedman(means) if len(answered) > 1 else (None, None)
    per_person = np.unique([row["person"] for row in answers[::count]], return_counts=True)[1]
    return {
        "methods": sorted(methods, key=lambda row: row["score"]),  # best first
        "people": len(per_person),  # with at least one confirmed answer
        "people_complete": int((per_person == len(study.shown)).sum()),
        "people_joined": joined,
        "answers": len(table),
        "sets": len(study.shown),
        "sets_answered": len(answered),
        "sets_left_out": len(study.sets) - len(study.shown),
        "level": statistics.LEVEL,  # of the confidence intervals
        "chance": (sum(range(1, PLACES + 1)) + OTHERS * (count - PLACES)) / count,  # if all equal
        "friedman": statistic,
        "p": p,
        "kendall_w": None if statistic is None else statistic / (len(answered) * (count - 1)),
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
