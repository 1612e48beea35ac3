"""A report as JSON, Markdown and HTML pages, and as a table on the terminal; the bench calls this.

The pages are the templates beside this file, filled with what ``tables`` and ``wording`` make of a
report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing.evaluation import tables, wording
from deep_image_compositing.evaluation.measures import KEY
from deep_image_compositing.evaluation.report import Report, Summary
from deep_image_compositing.evaluation.tables import Cell, Column
from deep_image_compositing.files import write_bytes
from deep_image_compositing.messages import printable

if TYPE_CHECKING:
    from rich.table import Table

FILES = ("report.json", "report.md", "report.html")


def write(report: Report, out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into the folder ``out``.

    Raises:
        ImageError: a file could not be written.
    """
    content = json.dumps(report.to_json(), indent=1, allow_nan=False)
    for name, text in zip(FILES, (content, to_markdown(report), to_html(report)), strict=True):
        write_bytes(out / name, text.encode())


def to_markdown(report: Report) -> str:
    """The report as a Markdown page."""
    return _report_page("report.md", report)


def to_html(report: Report) -> str:
    """The report as one page without outside resources; sheets are linked relative to it."""
    return _report_page("report.html", report)


def _report_page(template: str, report: Report) -> str:
    by_grade = {grade: list(tables.tables(report, grade)) for grade in report.grades}
    methods = tables.stages(report)
    return render(template, report=report, words=wording, tables=by_grade, methods=methods)


def render(template: str, **values: Any) -> str:
    """A page made from one of the templates; the study's scores are one too."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("deep_image_compositing.evaluation"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, autoescape=template.endswith(".html"),
    )  # fmt: skip
    pages.filters |= {"line": _one_line, "escaped": _escaped}
    return pages.get_template(template).render(**values).rstrip() + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _escaped(text: str) -> str:
    """``text`` without what Markdown takes for its own."""
    for character in "\\|*_<>[]`":
        text = text.replace(character, f"\\{character}")
    return text


def console_table(report: Report) -> Table:
    """A compact table: for each grade the mean of ``KEY`` with its interval, and seconds."""
    from rich.table import Table

    shown = KEY if report.has_truth else "seconds"
    parts = [report.summary[grade] for grade in report.grades]
    failing = any(sum(part.failed.values()) for part in parts)
    table = Table("method", title=str(Column.of(shown)))
    for column in (
        *report.grades,
        *([str(Column.of("seconds"))] if shown == KEY else []),
        *(["failed"] if failing else []),
    ):
        table.add_column(column, justify="right")
    for method in report.method_names:
        cells = [_console_cell(part, method, shown) for part in parts]
        if shown == KEY:
            times = [p.means[method]["seconds"] for p in parts if "seconds" in p.means[method]]
            total = sum(time.pictures for time in times)
            cells.append(f"{sum(t.mean * t.pictures for t in times) / total:.2f}" if total else "-")
        if failing:
            failed = sum(part.failed[method] for part in parts)
            cells.append(f"{failed} of {len(report.names) * len(parts)}" if failed else "-")
        table.add_row(printable(method), *cells)
    return table


def _console_cell(part: Summary, method: str, key: str) -> str:
    from rich.markup import escape

    if key not in part.means[method]:
        return "-"
    column = [means[key] for means in part.means.values() if key in means]
    cell = Cell.of(key, part.means[method][key], column)
    text = f"[bold]{cell.text}[/bold]" if cell.best else cell.text
    return f"{text} {escape(cell.interval)}".rstrip()
