"""Scoring a study as the paper does: a person's best three count 1, 2 and 3, all others 8.

A method's score is the mean over all confirmed answers, each what one person said of one set, so
lower is better. The page and the figure are the templates ``scores.md`` and ``scores.svg``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation import statistics
from deep_image_compositing.evaluation.pages import counted, render
from deep_image_compositing.evaluation.study.folder import ANSWERS, PLACES, Store, Study
from deep_image_compositing.files import write_bytes

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

    @property
    def summary(self) -> str:
        """Who said how much, in a sentence."""
        whole = "the only set" if self.sets == 1 else f"all {self.sets}"
        return (
            f"{counted(self.people, 'person', 'people')} gave {counted(self.answers, 'answer')} on "
            f"{counted(self.sets_answered, 'set')}; {self.people_complete} of them answered "
            f"{whole}."
        )

    @property
    def friedman_sentence(self) -> str:
        """What Friedman's test says, as a sentence."""
        if self.friedman is None or self.p is None or self.kendall_w is None:
            return "Friedman's test needs answers on at least two sets."
        p = f"p = {self.p:.3g}" if self.p >= 1e-4 else "p < 0.0001"
        return (
            f"Friedman's test over {self.sets_answered} sets: chi-square {self.friedman:.2f} with "
            f"{len(self.methods) - 1} degrees of freedom, {p}; Kendall's W {self.kendall_w:.2f}."
        )


@dataclass(frozen=True)
class Vote:
    """One confirmed answer: who, which set, and the methods in three places, best first."""

    person: int
    picture_set: str
    methods: tuple[str, ...]
    confirmed: str

    def score(self, method: str) -> int:
        """1, 2 or 3 for the places, else ``OTHERS``."""
        return self.methods.index(method) + 1 if method in self.methods else OTHERS


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
    answers = (
        {"person": vote.person, "set": vote.picture_set, "method": method,
         "score": vote.score(method), "confirmed": vote.confirmed}
        for vote in votes
        for method in study.methods
    )  # fmt: skip
    for name, text in (
        ("scores.json", json.dumps(asdict(scores), indent=2) + "\n"),
        ("scores.csv", _csv(map(asdict, scores.methods))),
        ("answers.csv", _csv(answers)),
        ("scores.md", page(scores, "scores.md")),
        ("scores.svg", page(scores, "scores.svg")),
    ):
        write_bytes(target / name, text.encode())
    return scores


def page(scores: Scores, template: str) -> str:
    """The scores as a page, ``scores.md``, or as its figure, ``scores.svg``."""
    return render(template, scores=scores, others=OTHERS)


def read_votes(study: Study, store: Store) -> tuple[list[Vote], int]:
    """All confirmed answers, with methods in the place of tokens, and how many others were begun.

    DataError for an answer that does not belong to the study.
    """
    sets = {item.id: item for item in study.shown}
    votes, begun = [], 0
    for answer in store.answers():
        item = sets.get(answer.picture_set)
        if item is None:
            raise DataError(f"an answer is of a set that the study lacks: {answer.picture_set!r}")
        if answer.ranking is None:
            begun += any(token is not None for token in answer.draft)
            continue
        try:
            ranking = item.check(answer.ranking, complete=True)
        except UsageError as error:
            raise DataError(
                f"person {answer.person}'s answer on {item.name!r} is broken: {error}"
            ) from error
        methods = tuple(item.results[token] for token in ranking if token is not None)
        votes.append(Vote(answer.person, item.name, methods, answer.confirmed or ""))
    return votes, begun


def score(study: Study, votes: list[Vote], *, joined: int = 0, begun: int = 0) -> Scores:
    """Score a study by the votes of ``read_votes``; UsageError where there is none.

    Args:
        study: finished.
        votes: confirmed answers.
        joined: people who began.
        begun: answers that were never confirmed.
    """
    if not votes:
        raise UsageError("nobody has confirmed an answer yet, so there is nothing to score")
    names = [item.name for item in study.shown]
    answered = [name for name in names if any(vote.picture_set == name for vote in votes)]
    by_set = {
        method: [_mean([v.score(method) for v in votes if v.picture_set == s]) for s in answered]
        for method in study.methods
    }
    won = statistics.wins(by_set, "lower")
    rows = []
    for method in study.methods:
        values = [vote.score(method) for vote in votes]
        interval = statistics.bootstrap_interval(values)
        places = (values.count(place) for place in range(1, PLACES + 1))
        rows.append(MethodScore(method, _mean(values), *interval, won[method], *places))
    count = len(study.methods)
    statistic = p = agreement = None
    if len(answered) > 1:
        statistic, p = statistics.friedman([*zip(*by_set.values(), strict=True)])
        agreement = statistic / (len(answered) * (count - 1))
    per_person = [sum(v.person == person for v in votes) for person in {v.person for v in votes}]
    return Scores(
        methods=tuple(sorted(rows, key=lambda row: row.score)),
        people=len(per_person),
        people_complete=sum(number == len(names) for number in per_person),
        people_joined=max(joined, len(per_person)),
        answers=len(votes),
        answers_incomplete=begun,
        sets=len(names),
        sets_answered=len(answered),
        sets_left_out=len(study.sets) - len(names),
        level=statistics.LEVEL,
        chance=(sum(range(1, PLACES + 1)) + OTHERS * (count - PLACES)) / count,
        friedman=statistic,
        p=p,
        kendall_w=agreement,
    )


def _mean(values: list[int]) -> float:
    return math.fsum(values) / len(values)


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    first, *rest = rows
    file = io.StringIO()
    writer = csv.DictWriter(file, list(first), lineterminator="\n")
    writer.writeheader()
    writer.writerows([first, *rest])
    return file.getvalue()
