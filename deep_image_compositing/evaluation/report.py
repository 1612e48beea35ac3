"""The report of a comparison: summarizes the bench's records as figures and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import nan
from typing import Any, NamedTuple

from deep_image_compositing import registry
from deep_image_compositing.evaluation.measures import COLOR_KEY, KEY, MEASURES
from deep_image_compositing.evaluation.rendering import counted
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
"""Measures in the main table of a grade."""

COLOR_MAIN = ("psnr", "gain", "fmse", "fmse_share", "square_error", "ssim", "foreground_ssim",
              "change", "outside", "harmonization_seconds")  # fmt: skip
"""The same for harmonizers alone."""

COLOR_OVERVIEW = {
    "recolored": ("psnr", "gain", "fmse", "fmse_share", "square_error", "ssim",
                  "harmonization_seconds"),
    "untouched": ("change",),
}  # fmt: skip
"""Measures by grade in the overview of harmonizers alone."""

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
"""How samples can be grouped, by key in records, with the words for table headings."""

_STEPS = [name for name, _ in (*STRENGTHS, *SHARES)]

GROUPS = {
    "composite": "Composites",
    "color": "Colours",
    "alpha": "Alphas",
    "mask": "The segmenter's masks",
    "cost": "Costs",
}
"""Headings of the tables with all measures."""


@dataclass(frozen=True)
class Mean:
    """A mean over pictures with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    pictures: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of values, one per picture."""
        return cls(sum(values) / len(values), *bootstrap_interval(values), len(values))


@dataclass(frozen=True)
class Summary:
    """The figures of one grade."""

    measured: dict[str, int]  # number of pictures by method
    failed: dict[str, int]  # number of pictures by method
    means: dict[str, dict[str, Mean]]  # by method, then by measure
    wins: dict[str, dict[str, float]]  # by measure, then by method; ties share the win
    differences: dict[str, Difference]  # of the reference minus each other method, in ``key``


@dataclass(frozen=True)
class Report:
    """A finished comparison."""

    about: dict[str, Any]  # versions, device and the command
    test_set: dict[str, Any]  # its fingerprint and ``TestSet.about``
    methods: list[dict[str, Any]]  # from ``Method.describe``
    grades: tuple[str, ...]  # in table order
    names: list[str]  # of the samples
    reference: str  # the method that the others are compared with
    records: list[dict[str, Any]]  # the bench's records
    left_out: dict[str, str] = field(default_factory=dict)  # missing measures, and why
    # ``grade``, ``sample`` and ``file`` of each contact sheet, relative to the report
    sheets: list[dict[str, str]] = field(default_factory=list)

    @property
    def method_names(self) -> list[str]:
        """The methods' names in table order."""
        return [method["name"] for method in self.methods]

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that the methods fill."""
        return tuple(s for s in registry.SLOTS if any(s in method for method in self.methods))

    @property
    def alone(self) -> bool:
        """Whether the methods are harmonizers alone."""
        return self.test_set.get("kind") == "harmonization"

    @property
    def key(self) -> str:
        """The measure that decides comparisons and wins."""
        return COLOR_KEY if self.alone else KEY

    @cached_property
    def summary(self) -> dict[str, Summary]:
        """All figures by grade."""
        return {grade: self._summarize(grade) for grade in self.grades}

    @property
    def measured(self) -> set[str]:
        """Keys of the measures that at least one composite has."""
        means = (m for summary in self.summary.values() for m in summary.means.values())
        return {key for by_measure in means for key in by_measure}

    @property
    def has_truth(self) -> bool:
        """Whether any composite was compared with a true one."""
        return bool({self.key, "psnr"} & self.measured)

    def _summarize(self, grade: str) -> Summary:
        records = [record for record in self.records if record["grade"] == grade]
        rows = {m: [r for r in records if r["method"] == m] for m in self.method_names}
        means = {method: _means(row, MEASURES) for method, row in rows.items()}
        figures = {
            method: {record["sample"]: record.get("measures", {}) for record in row}
            for method, row in rows.items()
        }
        table = {
            key: {
                method: [values.get(name, {}).get(key, nan) for name in self.names]
                for method, values in figures.items()
            }
            for key in MEASURES
            if any(key in by_measure for by_measure in means.values())
        }
        for method, row in rows.items():
            known = [r for r in row if "given_fmse" in r and "fmse" in r.get("measures", {})]
            after = [record["measures"]["fmse"] for record in known]
            before = [record["given_fmse"] for record in known]
            if sum(before):
                interval = ratio_interval(after, before)
                means[method]["fmse_share"] = Mean(sum(after) / sum(before), *interval, len(known))
        return Summary(
            measured={m: sum("measures" in record for record in row) for m, row in rows.items()},
            failed={m: sum("error" in record for record in row) for m, row in rows.items()},
            means=means,
            wins={key: wins(columns, MEASURES[key].better) for key, columns in table.items()},
            differences={
                method: paired_difference(table[self.key][self.reference], table[self.key][method])
                for method in rows
                if self.key in table and method != self.reference
            },
        )

    def to_json(self) -> dict[str, Any]:
        """The whole report as a JSON object."""
        summaries = {}
        for grade, summary in self.summary.items():
            others = {m: asdict(d) for m, d in summary.differences.items() if d.count}
            differences = {"measure": self.key, "of": self.reference, "from": others}
            summaries[grade] = {**asdict(summary), "differences": differences}
        content = {**vars(self), "samples": self.names, "summary": summaries}
        content["measures"] = {key: asdict(measure) for key, measure in MEASURES.items()}
        if self.alone:
            keys = ("name", "psnr", "fmse")
            content["published"] = [dict(zip(keys, row, strict=True)) for row in PUBLISHED]
        del content["names"]
        return content


def _means(records: Sequence[dict[str, Any]], keys: Iterable[str]) -> dict[str, Mean]:
    """The means of some measures, without those that no record has."""
    columns = {
        key: [r["measures"][key] for r in records if key in r.get("measures", ())] for key in keys
    }
    return {key: Mean.of(values) for key, values in columns.items() if values}


# Tables


class Cell(NamedTuple):
    text: str
    interval: str = ""  # as text; empty if there is none
    value: float = nan
    best: bool = False

    @classmethod
    def of(cls, key: str, mean: Mean, column: Sequence[Mean]) -> Cell:
        """The cell of ``mean`` in a column; a method that lacks some pictures is never best."""
        measure, digits = MEASURES[key], MEASURES[key].digits
        total = max(other.pictures for other in column)
        means = [round(other.mean, digits) for other in column if other.pictures == total]
        top = max(means) if measure.better == "higher" else min(means)
        best = len(column) > 1 and mean.pictures == total and round(mean.mean, digits) == top
        interval = ""
        if measure.group != "cost" and mean.pictures > 1:
            interval = f"[{mean.low:.{digits}f}, {mean.high:.{digits}f}]"
        return cls(f"{mean.mean:.{digits}f}", interval, mean.mean, best)


class Row(NamedTuple):
    label: str
    note: str  # shown beside the label
    cells: list[Cell | None]  # one per column


class Head(NamedTuple):
    name: str
    arrow: str = ""  # towards better values
    unit: str = ""


def head(key: str) -> Head:
    """The heading of a measure's column."""
    measure = MEASURES[key]
    return Head(measure.name, "↑" if measure.better == "higher" else "↓", measure.unit)


class Table(NamedTuple):
    title: str
    columns: list[Head]
    rows: list[Row]


def tables(report: Report, grade: str) -> Iterator[Table]:
    """The main table of a grade, then tables of the measures that it omits."""
    measured = {key for means in report.summary[grade].means.values() for key in means}
    if main := [key for key in (COLOR_MAIN if report.alone else MAIN) if key in measured]:
        yield table(report, grade, "", main)
    for group, title in GROUPS.items():
        # SAD is repeated, so that the four alpha errors stand together.
        shown = measured if group == "alpha" else measured - set(main)
        if keys := [key for key in MEASURES if key in shown and MEASURES[key].group == group]:
            yield table(report, grade, title, keys)
    for key in ("fmse", "psnr", "change") if report.alone else ():
        # Where colours should not change, other errors add nothing to the change itself.
        if key in measured and ("change" in measured) == (key == "change"):
            yield from grouped_tables(report, grade, key)


def grouped_tables(report: Report, grade: str, key: str) -> Iterator[Table]:
    """For each grouping of samples, a table of a measure's means with a column per group."""
    records = [record for record in report.records if record["grade"] == grade]
    for kind, words in GROUPINGS.items():
        members: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            if kind in record.get("groups", ()):
                members.setdefault(record["groups"][kind], []).append(record)
        if len(members) < 2:
            continue
        heads, rows = [], {method: Row(method, "", []) for method in report.method_names}
        for name in sorted(members, key=lambda name: _STEPS.index(name) if name in _STEPS else -1):
            count = len({record["sample"] for record in members[name]})
            heads.append(Head(f"{name} ({count})", *head(key)[1:]))
            means = {m: _means([r for r in members[name] if r["method"] == m], [key]) for m in rows}
            column = [mean[key] for mean in means.values() if mean]
            for method, mean in means.items():
                rows[method].cells.append(Cell.of(key, mean[key], column) if mean else None)
        yield Table(f"{MEASURES[key].name} {words}", heads, [*rows.values()])


def table(report: Report, grade: str, title: str, keys: Sequence[str]) -> Table:
    """A table of some measures with a row per method, or per segmenter for mask measures."""
    summary, total, main = report.summary[grade], len(report.names), report.key
    with_wins = main in keys and main in summary.wins
    labels = {name: name for name in report.method_names}
    if title == GROUPS["mask"]:  # one method per segmenter: the one with the most pictures
        segmenters = {m["name"]: m["segmenter"]["name"] for m in report.methods}
        fullest = sorted(labels, key=lambda m: -summary.measured[m])
        chosen = {segmenters[m]: m for m in reversed(fullest)}
        labels = {m: s for m, s in segmenters.items() if chosen[s] == m}
    rows = []
    for method, label in labels.items():
        means, cells = summary.means[method], list[Cell | None]()
        for key in keys:
            column = [summary.means[m][key] for m in labels if key in summary.means[m]]
            cells.append(Cell.of(key, means[key], column) if key in means else None)
        if with_wins:
            won = summary.wins[main][method]
            best = won == max(summary.wins[main].values())
            cells.insert(1, Cell(f"{won:.4g}", "", won, best) if main in means else None)
        failed = summary.failed[method]
        counts = {"failed": failed, "missing": total - failed - summary.measured[method]}
        note = "; ".join(f"{word} {count} of {total}" for word, count in counts.items() if count)
        rows.append(Row(label, note, cells))
    columns = [head(key) for key in keys]
    if with_wins:
        columns.insert(1, Head("wins"))
    return Table(title, columns, rows)


def overview(report: Report) -> Table:
    """The main measures of all grades side by side, and the last one's time, for the terminal."""
    grades = {**dict.fromkeys(report.grades, (KEY,)), report.grades[-1]: (KEY, "seconds")}
    heads, rows = [], [Row(method, "", []) for method in report.method_names]
    for grade, keys in (COLOR_OVERVIEW if report.alone else grades).items():
        means = report.summary[grade].means.values() if grade in report.grades else ()
        for key in (key for key in keys if any(key in mean for mean in means)):
            name, arrow, unit = head(key)
            heads.append(Head(f"{grade}: {name}", arrow, unit))
            for row, line in zip(rows, table(report, grade, "", [key]).rows, strict=True):
                cell = line.cells[0]
                # Many columns leave no room for intervals.
                row.cells.append(cell._replace(interval="") if cell and report.alone else cell)
    title = f"{counted(len(report.names), 'picture')} of {report.test_set['kind']}"
    return Table(title, heads, rows)


def published() -> Table:
    """``PUBLISHED`` as a table."""
    rows = [Row(name, "", [Cell(f"{psnr:.2f}", "", psnr), Cell(f"{fmse}", "", fmse)])
            for name, psnr, fmse in PUBLISHED]  # fmt: skip
    heads = [Head("PSNR", "↑", "dB"), Head("fMSE", "↓")]
    return Table("Published elsewhere, on other data: iHarmony4, full resolution", heads, rows)
