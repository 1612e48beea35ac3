"""Scoring a study as the paper does: a person's best three count 1, 2 and 3, all others 8.

A method's score is the mean over all confirmed answers, each what one person said of one set, so
lower is better. The page and the figure are the templates ``scores.md`` and ``scores.svg``.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation import statistics
from deep_image_compositing.evaluation.rendering import render
from deep_image_compositing.evaluation.study.folder import ANSWERS, PLACES, Store, Study
from deep_image_compositing.files import write_files

OTHERS = 8  # the score of a result that is not among a person's best three


@dataclass(frozen=True)
class MethodScore:
    """What people thought of one method."""

    method: str  # its name
    score: float  # mean over all answers, from 1, always first, to 8, never among three
    low: float  # lower end of its confidence interval, by drawing answers anew
    high: float  # upper end
    sets_won: float  # sets in which its mean score was the lowest; a tie is shared
    first: int  # how often it was chosen as the best
    second: int  # as the second best
    third: int  # as the third best


@dataclass(frozen=True)
class Scores:
    """A scored study."""

    methods: tuple[MethodScore, ...]  # best first
    people: int  # who confirmed at least one answer
    people_complete: int  # who answered every set
    people_joined: int  # who began, answers or not
    answers: int  # confirmed ones
    answers_incomplete: int  # begun and never confirmed; they do not count
    sets: int  # that people are shown
    sets_answered: int  # of which at least one answer was confirmed
    sets_left_out: int  # that could not be made
    level: float  # of the confidence intervals
    chance: float  # the mean score of a method among equals
    friedman: float | None  # statistic over the sets' mean scores; None below two answered sets
    p: float | None  # probability of one as large if people could not tell the methods apart
    kendall_w: float | None  # Kendall's concordance: 0, the sets disagree, to 1, all have one order


def write_scores(folder: str | Path, out: str | Path | None = None) -> Scores:
    """Score the study in ``folder`` and write ``scores.md``, ``.json``, ``.csv`` and ``.svg``.

    ``answers.csv`` holds every answer, with numbers in the place of people's names. ``out`` is by
    default ``scores`` in the folder. The study may be served meanwhile.

    Raises:
        UsageError: no study, or no answer.
        DataError: answers that cannot be read.
        ImageError: a file that cannot be written.
        MissingExtraError: scipy is not installed.
    """
    statistics.require("study score", "study")
    study, database = Study.read(folder), Path(folder) / ANSWERS
    if not database.exists():
        raise UsageError(f"nobody has taken part in the study in {folder} yet: study serve it")
    with Store(database, study.id) as store:
        answers = read_answers(study, store)
        scores = score(study, store, answers)
    target = Path(folder) / "scores" if out is None else Path(out)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {target} cannot be made: {error.strerror}") from error
    texts = {
        "scores.json": json.dumps(asdict(scores), indent=2) + "\n",
        "scores.csv": _csv([asdict(row) for row in scores.methods]),
        "answers.csv": _csv(answers),
        **{name: page(scores, name) for name in ("scores.md", "scores.svg")},
    }
    write_files((target / name, text.encode()) for name, text in texts.items())
    return scores


def page(scores: Scores, template: str) -> str:
    """The scores as a page, ``scores.md``, or as its figure, ``scores.svg``."""
    return render(template, scores=scores, others=OTHERS)


def read_answers(study: Study, store: Store) -> list[dict[str, Any]]:
    """The rows of ``answers.csv``: of every confirmed answer, what it says of each method.

    DataError for an answer that does not belong to the study.
    """
    sets, rows = {item.id: item for item in study.shown}, []
    for answer in store.answers():
        item = sets.get(answer.picture_set)
        if item is None:
            raise DataError(f"an answer is of a set that the study lacks: {answer.picture_set!r}")
        if answer.ranking is None:
            continue
        about = {"person": answer.person, "set": item.name}
        try:
            ranking = item.check(answer.ranking, complete=True)
        except UsageError as error:
            who = f"person {answer.person}'s answer on {item.name!r}"
            raise DataError(f"{who} is broken: {error}") from error
        places = {item.results[str(token)]: place for place, token in enumerate(ranking, 1)}
        for method in study.methods:
            said = {"method": method, "score": places.get(method, OTHERS)}
            rows.append({**about, **said, "confirmed": answer.confirmed})
    return rows


def score(study: Study, store: Store, answers: list[dict[str, Any]]) -> Scores:
    """Score a study by the rows of ``read_answers``; UsageError where there is none."""
    if not answers:
        raise UsageError("nobody has confirmed an answer yet, so there is nothing to score")
    count = len(study.methods)
    table = np.array([row["score"] for row in answers]).reshape(-1, count)
    sets = np.array([row["set"] for row in answers[::count]])
    answered = [item.name for item in study.shown if item.name in sets]
    means = np.array([table[sets == name].mean(0) for name in answered])
    won = statistics.wins(dict(zip(study.methods, means.T.tolist(), strict=True)), "lower")
    rows = [
        MethodScore(
            name, float(values.mean()), *statistics.bootstrap_interval(values), won[name],
            *(int((values == place).sum()) for place in range(1, PLACES + 1)),
        )
        for name, values in zip(study.methods, table.T, strict=True)
    ]  # fmt: skip
    statistic, p = statistics.friedman(means) if len(answered) > 1 else (None, None)
    per_person = np.unique([row["person"] for row in answers[::count]], return_counts=True)[1]
    drafts = [answer.draft for answer in store.answers() if answer.ranking is None]
    return Scores(
        methods=tuple(sorted(rows, key=lambda row: row.score)),
        people=len(per_person),
        people_complete=int((per_person == len(study.shown)).sum()),
        people_joined=len(store.people()),
        answers=len(table),
        answers_incomplete=sum(any(draft) for draft in drafts),
        sets=len(study.shown),
        sets_answered=len(answered),
        sets_left_out=len(study.sets) - len(study.shown),
        level=statistics.LEVEL,
        chance=(sum(range(1, PLACES + 1)) + OTHERS * (count - PLACES)) / count,
        friedman=statistic,
        p=p,
        kendall_w=None if statistic is None else statistic / (len(answered) * (count - 1)),
    )


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
