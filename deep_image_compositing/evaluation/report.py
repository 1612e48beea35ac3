"""The report of a comparison: summary figures, verdicts, and its JSON, Markdown and HTML pages.

Everything here is computed from the bench's records; nothing is measured. The bench calls it.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deep_image_compositing.evaluation.measures import MEASURES
from deep_image_compositing.evaluation.statistics import (
    Difference,
    bootstrap_interval,
    paired_difference,
    wins,
)
from deep_image_compositing.images import write_bytes
from deep_image_compositing.messages import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

FILES = ("report.json", "report.md", "report.html")

KEY = "band_psnr"
"""The measure by which methods are compared and pictures won."""

MAIN = (KEY, "psnr", "ssim", "lpips", "band_error", "halo", "exact", "sad", "seconds",
        "peak_memory")  # fmt: skip
"""Measures of the main table of a grade."""

FEW = 6
"""Pictures below which an interval says little."""

GROUPS = {
    "composite": "Composites",
    "alpha": "Alphas",
    "mask": "The segmenter's masks",
    "cost": "Costs",
}
"""Headings of the tables of all measures."""

_GIVEN = {
    "exact": "given the exact mask",
    "rough": "given the rough mask",
    "bad": "given the bad mask",
    "given": "given the set's own mask",
    "none": "with the segmenter's own mask",
}


class Mean(NamedTuple):
    """A mean over pictures, the ends of its 95 % interval, and the number of pictures."""

    mean: float
    low: float
    high: float
    pictures: int


@dataclass(frozen=True)
class Summary:
    """What the records of one grade come to.

    Attributes:
        measured: pictures by method.
        failed: pictures that the method failed on.
        means: by method, then by measure.
        wins: by measure, then by method; pictures on which several tie count in parts.
        differences: in :data:`KEY`, of the reference minus each other method, on the pictures
            that both have.
    """

    measured: dict[str, int]
    failed: dict[str, int]
    means: dict[str, dict[str, Mean]]
    wins: dict[str, dict[str, float]]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Report:
    """A finished comparison.

    Attributes:
        about: versions, device and the command.
        test_set: what makes it again.
        methods: as :meth:`Method.describe` gives them.
        grades: in the order of tables.
        names: of the samples.
        reference: the method that the others are compared with.
        records: what the bench wrote, without what only it needs.
        left_out: for each measure that could not be had, the reason.
        sheets: ``grade``, ``sample`` and ``file`` of each contact sheet, relative to the report.
    """

    about: dict[str, Any]
    test_set: dict[str, Any]
    methods: list[dict[str, Any]]
    grades: tuple[str, ...]
    names: list[str]
    reference: str
    records: list[dict[str, Any]]
    left_out: dict[str, str] = field(default_factory=dict)
    sheets: list[dict[str, str]] = field(default_factory=list)

    @property
    def method_names(self) -> list[str]:
        """The methods' names in the order of tables."""
        return [method["name"] for method in self.methods]

    @cached_property
    def summary(self) -> dict[str, Summary]:
        """The figures by grade."""
        return {grade: self._summarize(grade) for grade in self.grades}

    @property
    def has_truth(self) -> bool:
        """Whether any composite could be measured."""
        return any(KEY in means or "psnr" in means for means in self._all_means())

    def _all_means(self) -> Iterator[dict[str, Mean]]:
        return (m for summary in self.summary.values() for m in summary.means.values())

    def _summarize(self, grade: str) -> Summary:
        found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.method_names}
        for record in self.records:
            if record["grade"] == grade and record["method"] in found:
                found[record["method"]][record["sample"]] = record

        def column(method: str, key: str) -> list[float]:
            records = (found[method].get(name, {}) for name in self.names)
            return [record.get("measures", {}).get(key, float("nan")) for record in records]

        table = {
            key: {method: column(method, key) for method in found}
            for key in MEASURES
            if any(key in r.get("measures", {}) for rs in found.values() for r in rs.values())
        }
        means: dict[str, dict[str, Mean]] = {method: {} for method in found}
        for key, rows in table.items():
            for method, values in rows.items():
                there = [value for value in values if value == value]
                if there:
                    low, high = bootstrap_interval(there)
                    means[method][key] = Mean(sum(there) / len(there), low, high, len(there))
        return Summary(
            measured={m: sum("measures" in r for r in rs.values()) for m, rs in found.items()},
            failed={m: sum("error" in r for r in rs.values()) for m, rs in found.items()},
            means=means,
            wins={key: wins(rows, MEASURES[key].better) for key, rows in table.items()},
            differences={
                method: paired_difference(table[KEY][self.reference], table[KEY][method])
                for method in found
                if KEY in table and method != self.reference
            },
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        summary = {
            grade: {
                "measured": part.measured,
                "failed": part.failed,
                "means": {
                    m: {key: mean._asdict() for key, mean in means.items()}
                    for m, means in part.means.items()
                },
                "wins": part.wins,
                "differences": {
                    "measure": KEY,
                    "of": self.reference,
                    "from": {m: vars(d) for m, d in part.differences.items() if d.count},
                },
            }
            for grade, part in self.summary.items()
        }
        return {
            "about": self.about,
            "test_set": self.test_set,
            "methods": self.methods,
            "grades": list(self.grades),
            "samples": self.names,
            "reference": self.reference,
            "summary": summary,
            "measures": {key: vars(measure) for key, measure in MEASURES.items()},
            "left_out": self.left_out,
            "sheets": self.sheets,
            "records": self.records,
        }


def write(report: Report, out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into the folder ``out``.

    Raises:
        ImageError: a file could not be written.
    """
    content = json.dumps(report.to_json(), indent=1, allow_nan=False)
    for name, text in zip(FILES, (content, to_markdown(report), to_html(report)), strict=True):
        write_bytes(out / name, text.encode())


# What is said in words


def given(grade: str) -> str:
    """Which mask the methods had, in words."""
    return _GIVEN.get(grade, f"in the grade {grade}")


def verdicts(report: Report) -> list[str]:
    """What the figures say of the reference, in sentences; where it loses comes first."""
    name, unit = MEASURES[KEY].name, MEASURES[KEY].unit
    said = []
    for grade, summary in report.summary.items():
        found = {m: d for m, d in summary.differences.items() if d.count}
        few = max((d.count for d in found.values()), default=0)
        if not found:
            continue
        groups = {
            "is behind": {m: d for m, d in found.items() if d.clear and d.mean < 0},
            "cannot be told apart from": {m: d for m, d in found.items() if not d.clear},
            "is ahead of": {m: d for m, d in found.items() if d.clear and d.mean > 0},
        }
        if few < FEW:
            groups = {"lies": found}
        for verb, group in groups.items():
            signed = verb not in ("is behind", "is ahead of")
            parts = [
                f"{method} by {_gap(d, unit, signed)}"
                for method, d in sorted(group.items(), key=lambda item: item[1].mean)
            ]
            if not parts:
                continue
            if few < FEW:
                said.append(
                    f"{_capital(given(grade))}, {report.reference} differs in {name} from "
                    f"{_listed(parts)}; {few} {_plural('picture', few)} are too few to say more."
                    if few > 1
                    else f"{_capital(given(grade))}, on the one picture there is, "
                    f"{report.reference} differs in {name} from {_listed(parts)}."
                )
            else:
                parts = [part.replace(" by ", " (") + ")" if signed else part for part in parts]
                said.append(
                    f"{_capital(given(grade))}, {report.reference} {verb} {_listed(parts)} in "
                    f"{name}."
                )
    if not report.has_truth:
        said.append(
            "The set has no truth, so nothing but costs was measured: judge by the contact sheets."
        )
    return said


def failures(report: Report) -> list[str]:
    """Which methods failed on how many composites, and with what message."""
    return _counted(report, "error", "failed on")


def warned(report: Report) -> list[str]:
    """What was warned of, on how many composites, by method."""
    return _counted(report, "warnings", "warned on")


def _counted(report: Report, key: str, verb: str) -> list[str]:
    said = []
    for method in report.method_names:
        own = [record for record in report.records if record["method"] == method]
        messages: Counter[str] = Counter()
        for record in own:
            if key in record:
                told = record[key]
                messages[told if isinstance(told, str) else "; ".join(told)] += 1
        for message, count in messages.most_common(3):
            said.append(f"{method} {verb} {count} of {len(own)} composites: {message}")
        rest = sum(count for _, count in messages.most_common()[3:])
        if rest:
            said.append(f"{method} {verb} {rest} more with other messages, see report.json")
    return said


def _gap(difference: Difference, unit: str, signed: bool) -> str:
    """``0.7 dB [0.2, 1.1]``; unsigned, the ends are of the distance."""
    mean, low, high = difference.mean, difference.low, difference.high
    if signed:
        return f"{mean:+.2f} {unit} [{low:+.2f}, {high:+.2f}]"
    low, high = sorted((abs(low), abs(high)))
    return f"{abs(mean):.2f} {unit} [{low:.2f}, {high:.2f}]"


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


# Tables, without their form


class Cell(NamedTuple):
    """One figure: as text, its interval as text or nothing, its value, and whether it is best."""

    text: str
    interval: str
    value: float
    best: bool


class Line(NamedTuple):
    """One row of a table."""

    label: str
    note: str
    cells: list[Cell | None]


class Column(NamedTuple):
    """The head of a column: its name, with an arrow to where it is good, and its unit."""

    name: str
    unit: str = ""

    def __str__(self) -> str:
        name, space, arrow = self.name.rpartition(" ")
        return f"{name} ({self.unit}){space}{arrow}" if self.unit else self.name


class Table(NamedTuple):
    """A table: its heading, the heads of its columns, and its rows."""

    title: str
    columns: list[Column]
    lines: list[Line]


def tables(report: Report, grade: str) -> Iterator[Table]:
    """The main table of a grade, then those of all the measures that it leaves out."""
    summary = report.summary[grade]
    found = {key for means in summary.means.values() for key in means}
    main = [key for key in MAIN if key in found]
    if main:
        yield _table(report, grade, "", main, wins_of=KEY if KEY in found else "")
    for group, title in GROUPS.items():
        rest = [
            key for key in MEASURES if key in found - set(main) and MEASURES[key].group == group
        ]
        if group == "alpha":  # SAD again, so that the four errors of alphas stand together
            rest = [key for key in MEASURES if key in found and MEASURES[key].group == group]
        if rest:
            yield _table(report, grade, title, rest, by_segmenter=group == "mask")


def _table(
    report: Report,
    grade: str,
    title: str,
    keys: Sequence[str],
    wins_of: str = "",
    by_segmenter: bool = False,
) -> Table:
    summary = report.summary[grade]
    methods = report.method_names
    labels = {method: method for method in methods}
    if by_segmenter:
        # Methods with one segmenter have one mask.
        names = {m["name"]: m["segmenter"]["name"] for m in report.methods}
        best = sorted(methods, key=lambda m: -summary.measured[m])
        firsts = {names[m]: m for m in reversed(best)}
        methods = [m for m in methods if firsts[names[m]] == m]
        labels = {m: names[m] for m in methods}
    columns = [heading(key) for key in keys]
    if wins_of:
        columns.insert(keys.index(wins_of) + 1, Column("wins"))
    whole = len(report.names)
    lines = []
    for method in methods:
        means = summary.means[method]
        cells: list[Cell | None] = [
            _cell(means[key], key, [summary.means[m].get(key) for m in methods])
            if key in means
            else None
            for key in keys
        ]
        if wins_of:
            own = summary.wins[wins_of]
            won = own[method]
            cell = Cell(f"{won:.4g}", "", won, won == max(own.values()))
            cells.insert(keys.index(wins_of) + 1, cell if wins_of in means else None)
        failed = summary.failed[method]
        missing = whole - failed - summary.measured[method]
        note = "; ".join(
            f"{word} {count} of {whole}"
            for word, count in (("failed", failed), ("missing", missing))
            if count
        )
        lines.append(Line(labels[method], note, cells))
    return Table(title, columns, lines)


def _cell(mean: Mean, key: str, others: Sequence[Mean | None]) -> Cell:
    """A figure among those of the same column."""
    measure = MEASURES[key]
    there = [other for other in others if other is not None]
    # A mean over the pictures that a method did not fail on is no record.
    whole = max(other.pictures for other in there)
    rivals = [round(other.mean, measure.digits) for other in there if other.pictures == whole]
    top = max(rivals) if measure.better == "higher" else min(rivals)
    best = len(there) > 1 and mean.pictures == whole and round(mean.mean, measure.digits) == top
    shown = f"{mean.mean:.{measure.digits}f}"
    interval = ""
    if measure.group != "cost" and mean.pictures > 1:
        interval = f"[{mean.low:.{measure.digits}f}, {mean.high:.{measure.digits}f}]"
    return Cell(shown, interval, mean.mean, best)


def heading(key: str) -> Column:
    """The head of a measure's column."""
    measure = MEASURES[key]
    return Column(f"{measure.name} {'↑' if measure.better == 'higher' else '↓'}", measure.unit)


def legend(report: Report) -> dict[str, str]:
    """What each measure in the tables means, and why those that are missing are."""
    found = {key for means in report._all_means() for key in means}
    said = {MEASURES[key].name: MEASURES[key].about for key in MEASURES if key in found}
    if KEY in found:
        said["wins"] = (
            f"Pictures on which the method has the best {MEASURES[KEY].name}; ties are shared."
        )
    by_reason: dict[str, list[str]] = {}
    for key, reason in report.left_out.items():
        by_reason.setdefault(reason, []).append(MEASURES[key].name)
    return said | {_listed(names): f"Not measured: {why}." for why, names in by_reason.items()}


def facts(report: Report) -> dict[str, str]:
    """What was compared, on what, with what, in a few lines."""
    about, count = report.about, len(report.names)
    named = about["device"]
    threads = _listed([str(n) for n in about["threads"]]) or "?"
    lines = {
        "test set": f"{report.test_set['kind']}, {count} {_plural('picture', count)}",
        "grades of masks": ", ".join(report.grades),
        "methods": str(len(report.methods)),
        "reference": report.reference,
        "made by": f"deep-image-compositing {about['version']}, torch {about['torch']}, "
        f"Python {about['python']}, on {named} with {threads} CPU threads a process",
    }
    if about.get("command"):
        lines["command"] = about["command"]
    if report.test_set.get("note"):
        lines["note"] = report.test_set["note"]
    return lines


def origin(report: Report) -> list[str]:
    """Where the test set's pictures come from, a line each."""
    lines = []
    for source in report.test_set.get("sources", []):
        told = [str(source.get("kind", "")), str(source.get("path", ""))]
        if "samples" in source:
            used = source.get("used", source["samples"])
            told.append(f"{used} of {source['samples']} used")
        if source.get("hold_out") is not None:
            told.append(f"the share {source['hold_out']:g} that training holds out")
        if source.get("split"):
            told.append(f"split {source['split']}")
        if source.get("licences"):
            told.append(f"licence: {', '.join(source['licences'])}")
        lines.append(", ".join(part for part in told if part))
    for key in ("path", "seed", "size"):
        if key in report.test_set:
            lines.append(f"{key} {report.test_set[key]}")
    return [*lines, f"fingerprint {report.test_set['fingerprint'][:16]}"]


def described(report: Report) -> Table:
    """Which stages each method has, with their options and the digests of their files."""
    slots = ("segmenter", "refiner", "fuser")
    lines = []
    for method in report.methods:
        cells: list[Cell | None] = []
        for slot in slots:
            stage = method[slot]
            options = ", ".join(f"{key}={value}" for key, value in stage["options"].items())
            text = f"{stage['name']}({options})" if options else stage["name"]
            digests = ", ".join(digest[:8] for digest in stage["sha256"].values())
            cells.append(Cell(text, digests, float("nan"), False))
        lines.append(Line(method["name"], "", cells))
    return Table("Methods", list(map(Column, slots)), lines)


_INTERVALS = (
    "Figures are means over pictures with bootstrap intervals of 95 %; the best of those that "
    "failed on no picture is bold. The stage's digits are the beginning of its weights' SHA-256."
)


# Markdown


def to_markdown(report: Report) -> str:
    """The report as a Markdown page."""
    parts = [f"# {_title(report)}", _bullets(f"{k}: {v}" for k, v in facts(report).items())]
    parts += ["## What the figures say", _bullets(verdicts(report))]
    for heading_, lines in (("Failures", failures(report)), ("Warnings", warned(report))):
        if lines:
            parts += [f"### {heading_}", _bullets(map(_escaped, lines))]
    for grade in report.grades:
        parts.append(f"## {_capital(given(grade))}")
        for table in tables(report, grade):
            parts += [f"### {table.title}"] if table.title else []
            parts.append(_markdown_table(table))
    parts += ["## Legend", _INTERVALS]
    parts.append(_bullets(f"**{name}**: {text}" for name, text in legend(report).items()))
    parts += ["## Methods", _markdown_table(described(report), "method")]
    parts += ["## Test set", _bullets(map(_escaped, origin(report)))]
    if report.sheets:
        parts.append("## Contact sheets")
        by_sample: dict[str, list[str]] = {}
        for sheet in report.sheets:
            link = f"[{sheet['grade']}](<{sheet['file']}>)"
            by_sample.setdefault(sheet["sample"], []).append(link)
        parts.append(_bullets(f"{_escaped(n)}: {', '.join(x)}" for n, x in by_sample.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table, corner: str = "method") -> str:
    rows = [[corner, *map(str, table.columns)], ["---", *("---:" for _ in table.columns)]]
    for line in table.lines:
        label = _escaped(line.label) + (f" ({line.note})" if line.note else "")
        rows.append([label, *map(_markdown_cell, line.cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"**{_escaped(cell.text)}**" if cell.best else _escaped(cell.text)
    return f"{text} {cell.interval}".rstrip()


def _bullets(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(line.splitlines())}" for line in lines)


def _escaped(text: str) -> str:
    for character in "\\|*_<>[]`":
        text = text.replace(character, f"\\{character}")
    return text


def _title(report: Report) -> str:
    count, methods = len(report.names), len(report.methods)
    return (
        f"{methods} {_plural('method', methods)} on {count} {_plural('picture', count)} of "
        f"{report.test_set['kind']}"
    )


# HTML

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #666c74; --paper: #fff; --line: #dcdfe4;
  --shade: #f4f5f7; --best: #0b6b3a; --mark: #e7f5ec; --link: #1a56b0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --soft: #9aa1ab; --paper: #16181b;
  --line: #33373d; --shade: #1f2226; --best: #7fdca6; --mark: #1c3226; --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 110rem; padding: 1.5rem clamp(1rem, 3vw, 3rem) 4rem;
  color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; } nav { margin: 1rem 0; }
a { color: var(--link); } p, ul, dl { max-width: 75rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-top: 1px solid var(--line);
  vertical-align: top; }
thead th { border-top: 0; background: var(--shade); white-space: nowrap; font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
thead th:first-child { background: var(--shade); }
tbody th { font-weight: 500; white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
small { display: block; color: var(--soft); white-space: nowrap; font-size: .8em; }
td.best { background: var(--mark); } td.best b { color: var(--best); }
tr.reference th { font-weight: 700; }
table.words td { text-align: left; overflow-wrap: anywhere; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--link); }
.sheets { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.sheets figure { margin: 0; } .sheets img { width: 100%; height: 15rem; object-fit: cover;
  object-position: top left; border: 1px solid var(--line); border-radius: 6px; }
figcaption { overflow-wrap: anywhere; color: var(--soft); }
code { background: var(--shade); padding: .1em .3em; border-radius: 3px; overflow-wrap: anywhere; }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const up = head.ariaSort === "descending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
  const value = row => {
    const text = row.children[head.cellIndex].dataset.value;
    return text === undefined ? NaN : +text;
  };
  const label = row => row.children[0].textContent;
  const compare = (a, b) => head.cellIndex
    ? isNaN(value(a)) - isNaN(value(b)) || value(a) - value(b) || 0
    : label(a).localeCompare(label(b));
  const rows = [...body.rows].sort((a, b) => {
    const missing = head.cellIndex ? isNaN(value(a)) - isNaN(value(b)) : 0;
    return missing || (up ? 1 : -1) * compare(a, b);
  });
  body.append(...rows);
};
"""


def to_html(report: Report) -> str:
    """The report as one page without outside resources; sheets are linked relative to it."""
    title = html.escape(_title(report))
    parts = [f"<h1>{title}</h1>", _html_facts(facts(report))]
    links = [*((grade, given(grade)) for grade in report.grades), ("legend", "legend")]
    links += [("sheets", "contact sheets")] if report.sheets else []
    parts.append(
        "<nav>"
        + " · ".join(f'<a href="#{html.escape(k)}">{html.escape(v)}</a>' for k, v in links)
        + "</nav>"
    )
    parts += ["<h2>What the figures say</h2>", _html_list(verdicts(report))]
    for heading_, lines in (("Failures", failures(report)), ("Warnings", warned(report))):
        if lines:
            parts += [f"<h3>{heading_}</h3>", _html_list(lines)]
    for grade in report.grades:
        parts.append(f'<h2 id="{html.escape(grade)}">{html.escape(_capital(given(grade)))}</h2>')
        main, *rest = [*tables(report, grade)] or [Table("", [], [])]
        parts.append(_html_table(main, report.reference))
        if rest:
            inner = "".join(
                f"<h3>{html.escape(table.title)}</h3>{_html_table(table, report.reference)}"
                for table in rest
            )
            parts.append(f"<details><summary>All measures</summary>{inner}</details>")
    parts += [
        '<h2 id="legend">Legend</h2>',
        f"<p>{html.escape(_INTERVALS)} A click on a heading sorts.</p>",
    ]
    parts += [_html_facts(legend(report)), "<h2>Methods</h2>"]
    parts += [_html_words(described(report)), "<h2>Test set</h2>", _html_list(origin(report))]
    names = ", ".join(html.escape(name) for name in report.names)
    parts.append(f"<details><summary>Names of the pictures</summary><p>{names}</p></details>")
    if report.sheets:
        parts.append('<h2 id="sheets">Contact sheets</h2>')
        for grade in report.grades:
            own = [sheet for sheet in report.sheets if sheet["grade"] == grade]
            figures = "".join(map(_html_sheet, own))
            opened = " open" if grade == report.grades[0] else ""
            parts.append(
                f"<details{opened}><summary>{html.escape(_capital(given(grade)))}</summary>"
                f'<div class="sheets">{figures}</div></details>'
            )
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _html_table(table: Table, reference: str) -> str:
    if not table.columns:
        return ""
    heads = "".join(
        f'<th scope="col"><button type="button">{html.escape(column.name)}</button>'
        f"<small>{html.escape(column.unit)}</small></th>"
        for column in (Column("method"), *table.columns)
    )
    rows = []
    for line in table.lines:
        note = f"<small>{html.escape(line.note)}</small>" if line.note else ""
        cells = "".join(map(_html_cell, line.cells))
        kind = ' class="reference"' if line.label == reference else ""
        rows.append(f'<tr{kind}><th scope="row">{html.escape(line.label)}{note}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _html_cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td></td>"
    text = f"<b>{html.escape(cell.text)}</b>" if cell.best else html.escape(cell.text)
    interval = f"<small>{html.escape(cell.interval)}</small>" if cell.interval else ""
    kind = ' class="best"' if cell.best else ""
    return f'<td data-value="{cell.value!r}"{kind}>{text}{interval}</td>'


def _html_words(table: Table) -> str:
    heads = "".join(f'<th scope="col">{html.escape(c.name)}</th>' for c in table.columns)
    heads = f"<td></td>{heads}"
    rows = []
    for line in table.lines:
        cells = "".join(
            f"<td>{html.escape(cell.text)}<small>{html.escape(cell.interval)}</small></td>"
            for cell in line.cells
            if cell is not None
        )
        rows.append(f'<tr><th scope="row">{html.escape(line.label)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="words"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _html_sheet(sheet: Mapping[str, str]) -> str:
    from urllib.parse import quote

    name, file = html.escape(sheet["sample"]), html.escape(quote(sheet["file"]))
    return (
        f'<figure><a href="{file}"><img src="{file}" loading="lazy" alt="contact sheet of {name}">'
        f"</a><figcaption>{name}</figcaption></figure>"
    )


def _html_facts(pairs: Mapping[str, str]) -> str:
    inner = "".join(
        f"<dt>{html.escape(key)}</dt><dd>"
        + (f"<code>{html.escape(value)}</code>" if key == "command" else html.escape(value))
        + "</dd>"
        for key, value in pairs.items()
    )
    return f"<dl>{inner}</dl>"


def _html_list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>" if lines else ""


# The terminal


def console_table(report: Report) -> RichTable:
    """A compact table: for each grade the mean of :data:`KEY` with its interval, and seconds."""
    from rich.table import Table as RichTable

    shown = KEY if report.has_truth else "seconds"
    table = RichTable("method", title=str(heading(shown)))
    for grade in report.grades:
        table.add_column(grade, justify="right")
    if shown != "seconds":
        table.add_column(str(heading("seconds")), justify="right")
    failing = any(sum(summary.failed.values()) for summary in report.summary.values())
    if failing:
        table.add_column("failed", justify="right")
    for method in report.method_names:
        parts = [report.summary[grade] for grade in report.grades]
        cells = []
        for part in parts:
            mean = part.means[method].get(shown)
            others = [part.means[m].get(shown) for m in report.method_names]
            cell = None if mean is None else _cell(mean, shown, others)
            bold = ("[bold]", "[/bold]") if cell and cell.best else ("", "")
            interval = cell.interval.replace("[", "\\[") if cell else ""
            cells.append(f"{bold[0]}{cell.text}{bold[1]} {interval}".rstrip() if cell else "-")
        if shown != "seconds":
            times = [p.means[method]["seconds"] for p in parts if "seconds" in p.means[method]]
            total = sum(t.pictures for t in times)
            cells.append(f"{sum(t.mean * t.pictures for t in times) / total:.2f}" if total else "-")
        if failing:
            failed = sum(part.failed[method] for part in parts)
            cells.append(f"{failed} of {len(report.names) * len(parts)}" if failed else "-")
        table.add_row(printable(method), *cells)
    return table
