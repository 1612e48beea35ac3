"""The report of a comparison: what the bench's records come to, as figures and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from deep_image_compositing import registry
from deep_image_compositing.evaluation.measures import COLOR_KEY, KEY, MEASURES
from deep_image_compositing.evaluation.statistics import (
    Difference,
    bootstrap_interval,
    paired_difference,
    ratio_interval,
    wins,
)
from deep_image_compositing.evaluation.testsets.harmonization import SHARES, STRENGTHS

MAIN = (KEY, "psnr", "ssim", "lpips", "band_error", "halo", "exact", "sad", "seconds",
        "peak_memory")  # fmt: skip
"""Measures of the main table of a grade; the next, of harmonizers alone."""

COLOR_MAIN = ("psnr", "gain", "fmse", "fmse_share", "square_error", "ssim", "foreground_ssim",
              "change", "outside", "harmonization_seconds")  # fmt: skip

PUBLISHED = (
    ("composite", 31.39, 1462),
    ("PCT-Net ViT", 39.29, 238),
    ("PCT-Net CNN", 38.30, 283),
    ("DCCF", 38.01, 303),
    ("Harmonizer", 37.23, 339),
)
"""PSNR in dB and fMSE of harmonizers on iHarmony4 at full resolution, as papers report them.

The PSNR of PCT-Net's code is relative to the truth's brightest value, ours to 255.
"""

GROUPINGS = {
    "strength": "by how far the composites are off",
    "subject": "by the subject's share of the picture",
    "photographs": "by where the photographs come from",
}
"""Groups of samples that a set may name, in words."""

_STEPS = [name for name, _ in (*STRENGTHS, *SHARES)]

GROUPS = {
    "composite": "Composites",
    "color": "Colours",
    "alpha": "Alphas",
    "mask": "The segmenter's masks",
    "cost": "Costs",
}
"""Headings of the tables of all measures."""


@dataclass(frozen=True)
class Mean:
    """A mean over pictures, the ends of its 95 % interval, and the number of pictures."""

    mean: float
    low: float
    high: float
    pictures: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """That of some values, one a picture."""
        return cls(sum(values) / len(values), *bootstrap_interval(values), len(values))


@dataclass(frozen=True)
class Summary:
    """What the records of one grade come to."""

    measured: dict[str, int]  # pictures by method
    failed: dict[str, int]  # pictures that the method failed on
    means: dict[str, dict[str, Mean]]  # by method, then by measure
    wins: dict[str, dict[str, float]]  # by measure, then by method; ties count in parts
    # in the report's key, of the reference minus each other method, on the pictures that both have
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Report:
    """A finished comparison."""

    about: dict[str, Any]  # versions, device and the command
    test_set: dict[str, Any]  # what makes it again
    methods: list[dict[str, Any]]  # as ``Method.describe`` gives them
    grades: tuple[str, ...]  # in the order of tables
    names: list[str]  # of the samples
    reference: str  # the method that the others are compared with
    records: list[dict[str, Any]]  # what the bench wrote, without what only it needs
    left_out: dict[str, str] = field(default_factory=dict)  # measures that could not be had: why
    # ``grade``, ``sample`` and ``file`` of each contact sheet, relative to the report
    sheets: list[dict[str, str]] = field(default_factory=list)

    @property
    def method_names(self) -> list[str]:
        """The methods' names in the order of tables."""
        return [method["name"] for method in self.methods]

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that its methods fill."""
        return tuple(s for s in registry.SLOTS if any(s in method for method in self.methods))

    @property
    def alone(self) -> bool:
        """Whether it is of harmonizers alone."""
        return self.test_set.get("kind") == "harmonization"

    @property
    def key(self) -> str:
        """The measure by which methods are compared and pictures won."""
        return COLOR_KEY if self.alone else KEY

    @property
    def published(self) -> tuple[tuple[str, float, float], ...]:
        """What others have published, on other data; see ``PUBLISHED``."""
        return PUBLISHED if self.alone else ()

    @cached_property
    def summary(self) -> dict[str, Summary]:
        """The figures by grade."""
        return {grade: self._summarize(grade) for grade in self.grades}

    @property
    def measured(self) -> set[str]:
        """The measures that any composite has, by key."""
        means = (m for summary in self.summary.values() for m in summary.means.values())
        return {key for found in means for key in found}

    @property
    def has_truth(self) -> bool:
        """Whether any composite could be measured."""
        return bool({self.key, "psnr"} & self.measured)

    def _summarize(self, grade: str) -> Summary:
        found = {(r["method"], r["sample"]): r for r in self.records if r["grade"] == grade}
        rows = {m: [found.get((m, name), {}) for name in self.names] for m in self.method_names}
        figures = {m: [record.get("measures", {}) for record in own] for m, own in rows.items()}
        table = {
            key: {m: [one.get(key, float("nan")) for one in own] for m, own in figures.items()}
            for key in MEASURES
            if any(key in one for own in figures.values() for one in own)
        }
        means: dict[str, dict[str, Mean]] = {method: {} for method in rows}
        for key, columns in table.items():
            for method, column in columns.items():
                if values := [value for value in column if value == value]:
                    means[method][key] = Mean.of(values)
        for method, own in rows.items():  # how much of the error that was given is left
            known = [r for r in own if "given_fmse" in r and "fmse" in r.get("measures", {})]
            parts = ([r["measures"]["fmse"] for r in known], [r["given_fmse"] for r in known])
            if sum(parts[1]):
                share = Mean(sum(parts[0]) / sum(parts[1]), *ratio_interval(*parts), len(known))
                means[method]["fmse_share"] = share
        return Summary(
            measured={m: sum("measures" in record for record in own) for m, own in rows.items()},
            failed={m: sum("error" in record for record in own) for m, own in rows.items()},
            means=means,
            wins={key: wins(columns, MEASURES[key].better) for key, columns in table.items()},
            differences={
                method: paired_difference(table[self.key][self.reference], table[self.key][method])
                for method in rows
                if self.key in table and method != self.reference
            },
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        summary = {}
        for grade, part in self.summary.items():
            others = {m: asdict(d) for m, d in part.differences.items() if d.count}
            differences = {"measure": self.key, "of": self.reference, "from": others}
            summary[grade] = {**asdict(part), "differences": differences}
        content = {**vars(self), "samples": self.names, "summary": summary}
        content["measures"] = {key: asdict(measure) for key, measure in MEASURES.items()}
        if self.published:
            keys = ("name", "psnr", "fmse")
            content["published"] = [dict(zip(keys, row, strict=True)) for row in self.published]
        del content["names"]
        return content


# Tables, without their form


class Cell(NamedTuple):
    """One figure: as text, its interval as text or nothing, its value, and whether it is best."""

    text: str
    interval: str = ""
    value: float = float("nan")
    best: bool = False

    @classmethod
    def of(cls, key: str, mean: Mean, column: Sequence[Mean]) -> Cell:
        """A mean among those of all methods; one that failed on some pictures is never best."""
        measure, digits = MEASURES[key], MEASURES[key].digits
        whole = max(other.pictures for other in column)
        rivals = [round(other.mean, digits) for other in column if other.pictures == whole]
        top = max(rivals) if measure.better == "higher" else min(rivals)
        best = len(column) > 1 and mean.pictures == whole and round(mean.mean, digits) == top
        interval = ""
        if measure.group != "cost" and mean.pictures > 1:
            interval = f"[{mean.low:.{digits}f}, {mean.high:.{digits}f}]"
        return cls(f"{mean.mean:.{digits}f}", interval, mean.mean, best)


class Row(NamedTuple):
    """One row: its label, what is to be said beside it, and a cell or nothing a column."""

    label: str
    note: str
    cells: list[Cell | None]


class Head(NamedTuple):
    """The head of a column: its name, an arrow to where it is good, and its unit."""

    name: str
    arrow: str = ""
    unit: str = ""


def head(key: str) -> Head:
    """The head of a measure's column."""
    measure = MEASURES[key]
    return Head(measure.name, "↑" if measure.better == "higher" else "↓", measure.unit)


class Table(NamedTuple):
    """A table: its heading, the heads of its columns, and its rows."""

    title: str
    columns: list[Head]
    rows: list[Row]


def tables(report: Report, grade: str) -> Iterator[Table]:
    """The main table of a grade, then those of all the measures that it leaves out."""
    measured = {key for means in report.summary[grade].means.values() for key in means}
    if main := [key for key in (COLOR_MAIN if report.alone else MAIN) if key in measured]:
        yield table(report, grade, "", main)
    for group, title in GROUPS.items():
        # SAD again, so that the four errors of alphas stand together.
        shown = measured if group == "alpha" else measured - set(main)
        if keys := [key for key in MEASURES if key in shown and MEASURES[key].group == group]:
            yield table(report, grade, title, keys)
    for key in ("fmse", "psnr", "change") if report.alone else ():
        # What is left alone has errors of its own, which say nothing beside its change.
        if key in measured and ("change" in measured) == (key == "change"):
            yield from grouped_tables(report, grade, key)


def grouped_tables(report: Report, grade: str, key: str) -> Iterator[Table]:
    """The means of a measure, a column a group of samples, for every way of grouping them."""
    records = [record for record in report.records if record["grade"] == grade]
    for kind, words in GROUPINGS.items():
        members: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            if kind in record.get("groups", ()):
                members.setdefault(record["groups"][kind], []).append(record)
        if len(members) < 2:
            continue
        names = sorted(members, key=lambda name: _STEPS.index(name) if name in _STEPS else -1)
        heads, rows = [], {method: Row(method, "", []) for method in report.method_names}
        for name in names:
            count = len({record["sample"] for record in members[name]})
            heads.append(Head(f"{name} ({count})", *head(key)[1:]))
            means = _means(members[name], key)
            for method, row in rows.items():
                found = means.get(method)
                row.cells.append(Cell.of(key, found, [*means.values()]) if found else None)
        yield Table(f"{MEASURES[key].name} {words}", heads, [*rows.values()])


def _means(records: Sequence[dict[str, Any]], key: str) -> dict[str, Mean]:
    """The mean of a measure by method."""
    values: dict[str, list[float]] = {}
    for record in records:
        if key in record.get("measures", ()):
            values.setdefault(record["method"], []).append(record["measures"][key])
    return {method: Mean.of(own) for method, own in values.items()}


def table(report: Report, grade: str, title: str, keys: Sequence[str]) -> Table:
    """The table of some measures: a row a method, or a segmenter where masks are measured."""
    summary, whole, main = report.summary[grade], len(report.names), report.key
    with_wins = main in keys and main in summary.wins
    labels = {name: name for name in report.method_names}
    if title == GROUPS["mask"]:  # methods with one segmenter have one mask: of the most whole one
        segmenters = {m["name"]: m["segmenter"]["name"] for m in report.methods}
        fullest = sorted(labels, key=lambda m: -summary.measured[m])
        first = {segmenters[m]: m for m in reversed(fullest)}
        labels = {m: s for m, s in segmenters.items() if first[s] == m}
    rows = []
    for method, label in labels.items():
        means, cells = summary.means[method], list[Cell | None]()
        for key in keys:
            column = [summary.means[m][key] for m in labels if key in summary.means[m]]
            cells.append(Cell.of(key, means[key], column) if key in means else None)
        if with_wins:
            won, most = summary.wins[main][method], max(summary.wins[main].values())
            cells.insert(1, Cell(f"{won:.4g}", "", won, won == most) if main in means else None)
        failed = summary.failed[method]
        counts = {"failed": failed, "missing": whole - failed - summary.measured[method]}
        note = "; ".join(f"{word} {count} of {whole}" for word, count in counts.items() if count)
        rows.append(Row(label, note, cells))
    columns = [head(key) for key in keys]
    if with_wins:
        columns.insert(1, Head("wins"))
    return Table(title, columns, rows)
