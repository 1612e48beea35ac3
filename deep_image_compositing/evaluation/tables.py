"""Tables of a report, without their form: which measures, which rows, which figure is best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deep_image_compositing import registry
from deep_image_compositing.evaluation.measures import KEY, MEASURES
from deep_image_compositing.evaluation.report import Mean, Report

MAIN = (KEY, "psnr", "ssim", "lpips", "band_error", "halo", "exact", "sad", "seconds",
        "peak_memory")  # fmt: skip
"""Measures of the main table of a grade."""

GROUPS = {
    "composite": "Composites",
    "alpha": "Alphas",
    "mask": "The segmenter's masks",
    "cost": "Costs",
}
"""Headings of the tables of all measures."""


class Cell(NamedTuple):
    """One figure: as text, its interval as text or nothing, its value, and whether it is best."""

    text: str
    interval: str = ""
    value: float = float("nan")
    best: bool = False

    @classmethod
    def of(cls, key: str, mean: Mean, column: Sequence[Mean]) -> Cell:
        """A mean among those of all methods; one that failed on some pictures is never best."""
        measure = MEASURES[key]
        digits = measure.digits
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


class Column(NamedTuple):
    """The head of a column: its name, with an arrow to where it is good, and its unit."""

    name: str
    unit: str = ""

    @classmethod
    def of(cls, key: str) -> Column:
        """The head of a measure's column."""
        measure = MEASURES[key]
        return cls(f"{measure.name} {'↑' if measure.better == 'higher' else '↓'}", measure.unit)

    def __str__(self) -> str:
        name, space, arrow = self.name.rpartition(" ")
        return f"{name} ({self.unit}){space}{arrow}" if self.unit else self.name


class Table(NamedTuple):
    """A table: its heading, the heads of its columns, and its rows."""

    title: str
    columns: list[Column]
    rows: list[Row]


def tables(report: Report, grade: str) -> Iterator[Table]:
    """The main table of a grade, then those of all the measures that it leaves out."""
    measured = {key for means in report.summary[grade].means.values() for key in means}
    main = [key for key in MAIN if key in measured]
    if main:
        yield _table(report, grade, "", main, with_wins=KEY in measured)
    for group, title in GROUPS.items():
        # SAD again, so that the four errors of alphas stand together.
        shown = measured if group == "alpha" else measured - set(main)
        keys = [key for key in MEASURES if key in shown and MEASURES[key].group == group]
        if keys:
            yield _table(report, grade, title, keys, by_segmenter=group == "mask")


def _table(
    report: Report,
    grade: str,
    title: str,
    keys: Sequence[str],
    with_wins: bool = False,
    by_segmenter: bool = False,
) -> Table:
    summary = report.summary[grade]
    labels = {name: name for name in report.method_names}
    if by_segmenter:  # methods with one segmenter have one mask: that of the most whole method
        segmenters = {m["name"]: m["segmenter"]["name"] for m in report.methods}
        fullest = sorted(labels, key=lambda m: -summary.measured[m])
        first = {segmenters[m]: m for m in reversed(fullest)}
        labels = {m: s for m, s in segmenters.items() if first[s] == m}
    columns = [Column.of(key) for key in keys]
    rows = []
    for method, label in labels.items():
        cells: list[Cell | None] = []
        for key in keys:
            column = {m: summary.means[m][key] for m in labels if key in summary.means[m]}
            mean = column.get(method)
            cells.append(None if mean is None else Cell.of(key, mean, [*column.values()]))
        if with_wins:
            won = summary.wins[KEY][method]
            cell = Cell(f"{won:.4g}", "", won, won == max(summary.wins[KEY].values()))
            cells.insert(1, cell if KEY in summary.means[method] else None)
        whole, failed = len(report.names), summary.failed[method]
        counts = {"failed": failed, "missing": whole - failed - summary.measured[method]}
        note = "; ".join(f"{word} {count} of {whole}" for word, count in counts.items() if count)
        rows.append(Row(label, note, cells))
    if with_wins:
        columns.insert(1, Column("wins"))
    return Table(title, columns, rows)


def stages(report: Report) -> Table:
    """Which stages each method has, with their options and the digests of their files."""
    rows = []
    for method in report.methods:
        cells: list[Cell | None] = []
        for stage in (method[slot] for slot in registry.SLOTS):
            options = ", ".join(f"{key}={value}" for key, value in stage["options"].items())
            text = f"{stage['name']}({options})" if options else stage["name"]
            cells.append(Cell(text, ", ".join(d[:8] for d in stage["sha256"].values())))
        rows.append(Row(method["name"], "", cells))
    return Table("Methods", list(map(Column, registry.SLOTS)), rows)
