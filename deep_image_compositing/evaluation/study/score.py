"""Scoring a study as the paper does: a person's best three count 1, 2 and 3, all others 8.

A method's score is the mean over all answers, so lower is better. Only confirmed answers count; an
answer is what one person said of one set.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation.study.folder import ANSWERS, PLACES, Study
from deep_image_compositing.evaluation.study.store import Store

OTHERS = 8
"""The score of a result that is not among a person's best three."""


@dataclass(frozen=True)
class MethodScore:
    """What people thought of one method.

    Attributes:
        method: its name.
        score: mean over all answers, from 1, always first, to 8, never among three.
        low: lower end of its confidence interval, by drawing answers anew.
        high: upper end.
        sets_won: sets in which its mean score was the lowest; a tie is shared.
        first: how often it was chosen as the best.
        second: as the second best.
        third: as the third best.
    """

    method: str
    score: float
    low: float
    high: float
    sets_won: float
    first: int
    second: int
    third: int


@dataclass(frozen=True)
class Scores:
    """A scored study.

    Attributes:
        methods: best first.
        people: who confirmed at least one answer.
        people_complete: who answered every set.
        people_joined: who began, answers or not.
        answers: confirmed ones.
        answers_incomplete: begun and never confirmed; they do not count.
        sets: that people are shown.
        sets_answered: of which at least one answer was confirmed.
        sets_left_out: that could not be made.
        level: of the confidence intervals.
        chance: the mean score of a method among equals.
        friedman: the statistic of Friedman's test over the sets' mean scores; None below two
            answered sets.
        p: probability of one at least as large if people could not tell the methods apart.
        kendall_w: Kendall's coefficient of concordance, from 0, the sets disagree, to 1, every set
            puts the methods in the same order.
    """

    methods: tuple[MethodScore, ...]
    people: int
    people_complete: int
    people_joined: int
    answers: int
    answers_incomplete: int
    sets: int
    sets_answered: int
    sets_left_out: int
    level: float
    chance: float
    friedman: float | None
    p: float | None
    kendall_w: float | None


@dataclass(frozen=True)
class Vote:
    """One confirmed answer: who, which set, and the methods in three places, best first."""

    person: int
    picture_set: str
    methods: tuple[str, ...]
    confirmed: str

    def score(self, method: str) -> int:
        """1, 2 or 3 for the places, else :data:`OTHERS`."""
        return self.methods.index(method) + 1 if method in self.methods else OTHERS


def read_votes(study: Study, store: Store) -> tuple[list[Vote], int]:
    """All confirmed answers, with methods in the place of tokens, and the number of others begun.

    Raises:
        DataError: an answer that does not belong to the study.
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


def score(
    study: Study, votes: list[Vote], *, joined: int = 0, begun: int = 0, level: float = 0.95
) -> Scores:
    """Score a study.

    Args:
        study: finished.
        votes: from :func:`read_votes`.
        joined: people who began.
        begun: answers that were never confirmed.
        level: of the confidence intervals, in (0, 1).

    Raises:
        UsageError: no vote at all, or as
            :func:`~deep_image_compositing.evaluation.statistics.bootstrap_interval`.
    """
    from deep_image_compositing.evaluation.statistics import bootstrap_interval, friedman, wins

    if not votes:
        raise UsageError("nobody has confirmed an answer yet, so there is nothing to score")
    names = [item.name for item in study.shown]
    answered = [name for name in names if any(vote.picture_set == name for vote in votes)]
    by_set = {
        method: [_mean([v.score(method) for v in votes if v.picture_set == s]) for s in answered]
        for method in study.methods
    }
    won = wins(by_set, "lower")
    rows = []
    for method in study.methods:
        values = [vote.score(method) for vote in votes]
        low, high = bootstrap_interval(values, level)
        places = (values.count(place) for place in range(1, PLACES + 1))
        rows.append(MethodScore(method, _mean(values), low, high, won[method], *places))
    count = len(study.methods)
    statistic = p = agreement = None
    if len(answered) > 1:
        table = list(zip(*by_set.values(), strict=True))
        statistic, p = friedman(table)
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
        level=level,
        chance=(sum(range(1, PLACES + 1)) + OTHERS * (count - PLACES)) / count,
        friedman=statistic,
        p=p,
        kendall_w=agreement,
    )


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
    """
    from deep_image_compositing.evaluation.study.figure import draw
    from deep_image_compositing.images import write_bytes, write_image

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
    for name, text in (
        ("scores.json", json.dumps(asdict(scores), indent=2) + "\n"),
        ("scores.csv", _table_csv(scores)),
        ("answers.csv", _answers_csv(study, votes)),
        ("scores.md", markdown(scores)),
    ):
        write_bytes(target / name, text.encode())
    return scores


def markdown(scores: Scores) -> str:
    """The scores as a page of Markdown, with the figure of :func:`write_scores` in it."""
    lines = [
        "# User study",
        "",
        f"{summary(scores)} The best three results of an answer score 1, 2 and 3, all others "
        f"{OTHERS}; lower is better, and a method among equals would have {scores.chance:.2f}.",
        "",
        f"| method | score | {scores.level:.0%} interval | sets won | first | second | third |",
        "|---|--:|:-:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.method} | {row.score:.2f} | {row.low:.2f} – {row.high:.2f} | {row.sets_won:.4g} "
        f"| {row.first} | {row.second} | {row.third} |"
        for row in scores.methods
    ]
    lines += [
        "",
        "![Mean score of every method](scores.png)",
        "",
        friedman_sentence(scores),
        "",
        "Intervals come from the bootstrap over answers (a person and a set), which takes the "
        "answers of one person as independent. A set is won by the method of the lowest mean score "
        "in it; ties are shared.",
    ]
    if scores.answers_incomplete:
        lines += [
            "",
            f"{_count(scores.answers_incomplete, 'answer')} begun but not confirmed: not counted.",
        ]
    if scores.sets_left_out:
        lines += [
            "",
            f"{_count(scores.sets_left_out, 'set')} left out: not all its pictures could be made."
            if scores.sets_left_out == 1
            else f"{scores.sets_left_out} sets left out: not all of their pictures could be made.",
        ]
    return "\n".join(lines) + "\n"


def summary(scores: Scores) -> str:
    """Who said how much, as one or two sentences."""
    return (
        f"{_count(scores.people, 'person', 'people')} gave {_count(scores.answers, 'answer')} on "
        f"{_count(scores.sets_answered, 'set')}; {scores.people_complete} of them answered "
        f"{'the only set' if scores.sets == 1 else f'all {scores.sets}'}."
    )


def friedman_sentence(scores: Scores) -> str:
    """What Friedman's test says, as a sentence."""
    if scores.friedman is None or scores.p is None or scores.kendall_w is None:
        return "Friedman's test needs answers on at least two sets."
    p = f"p = {scores.p:.3g}" if scores.p >= 1e-4 else "p < 0.0001"
    return (
        f"Friedman's test over {scores.sets_answered} sets: chi-square "
        f"{scores.friedman:.2f} with {len(scores.methods) - 1} degrees of freedom, {p}; Kendall's "
        f"W {scores.kendall_w:.2f}."
    )


def _table_csv(scores: Scores) -> str:
    names = [field.name for field in fields(MethodScore)]
    return _csv(names, [asdict(row) for row in scores.methods])


def _answers_csv(study: Study, votes: list[Vote]) -> str:
    rows = [
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
    return _csv(["person", "set", "method", "score", "confirmed"], rows)


def _csv(names: list[str], rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _mean(values: list[int]) -> float:
    return math.fsum(values) / len(values)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
