"""The report: its figures are those of the records, its words those of the figures."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from deep_image_compositing.commands.evaluate import table_of
from deep_image_compositing.evaluation import pages
from deep_image_compositing.evaluation import report as tables
from deep_image_compositing.evaluation.report import Report

NAMES = [f"p-{i}" for i in range(8)]


def make(
    values: dict[str, list[float | str]], grades: tuple[str, ...] = ("rough",), **options: Any
) -> Report:
    """A report of these band PSNRs by method; text is the message of a failure."""
    records = []
    for grade, (method, row) in itertools.product(grades, values.items()):
        for name, value in zip(NAMES, row, strict=False):
            record: dict[str, Any] = {"sample": name, "grade": grade, "method": method}
            if isinstance(value, str):
                record["error"] = value
            else:
                measures = {"psnr": value + 6, "band_psnr": value, "halo": 1 / value}
                measures |= {"sad": value / 10, "seconds": 0.25, "fusion_seconds": 0.125}
                record["measures"] = measures
            records.append(record)
    stage = {"name": "pyramid", "options": {}, "sha256": {"weights": "0123456789abcdef"}}
    slots = ("segmenter", "refiner", "fuser")
    given: dict[str, Any] = {
        "about": {"version": "1", "torch": "2", "python": "3", "device": "cpu", "threads": [2]},
        "test_set": {"kind": "syntest", "fingerprint": "f" * 64, "seed": 3},
        "methods": [{"name": name, **dict.fromkeys(slots, stage)} for name in values],
        "grades": grades,
        "names": NAMES[: max(map(len, values.values()))],
        "reference": "ours",
        "records": records,
    }
    return Report(**{**given, **options})


def row(report: Report, method: str) -> list[str]:
    """The cells of a method's row in the first of the Markdown tables."""
    lines = pages.page(report, "report.md").splitlines()
    line = next(line for line in lines if line.startswith(f"| {method}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


OURS = [24.0, 26.0, 25.0, 27.0, 23.0, 25.0, 26.0, 24.0]
BETTER = [value + gap for value, gap in zip(OURS, [1, 2] * 4, strict=True)]
WORSE = [value - gap for value, gap in zip(OURS, [2, 4] * 4, strict=True)]
ALIKE = [value + gap for value, gap in zip(OURS, [1, -1] * 4, strict=True)]


# Figures


def test_means_and_wins_are_those_of_the_records() -> None:
    summary = make({"ours": [*OURS], "other": [*ALIKE]}).summary["rough"]
    mean = summary.means["ours"]["band_psnr"]
    assert mean.mean == pytest.approx(np.mean(OURS))
    assert mean.low < mean.mean < mean.high
    assert mean.pictures == 8
    assert summary.wins["band_psnr"] == {"ours": 4, "other": 4}
    assert summary.wins["halo"] == {"ours": 4, "other": 4}


def test_what_failed_counts_nowhere_but_there() -> None:
    report = make({"ours": [*OURS], "other": [30.0, 30.0, *["out of memory"] * 6]})
    summary = report.summary["rough"]
    assert summary.measured == {"ours": 8, "other": 2}
    assert summary.failed == {"ours": 0, "other": 6}
    assert summary.means["other"]["band_psnr"].mean == 30
    assert summary.differences["other"].count == 2
    cells = row(report, "other")
    assert cells[0] == "other (failed 6 of 8)"
    assert cells[1].startswith("30.00")  # the best mean, but not of all pictures: not bold
    assert row(report, "ours")[1].startswith("**25.00**")
    report = make({"ours": [*OURS], "other": [*ALIKE[:5]]})
    assert row(report, "other")[0] == "other (missing 3 of 8)"


def test_the_json_holds_all_of_it() -> None:
    report = make({"ours": [*OURS], "other": ["gone", *ALIKE[1:]]}, left_out={"lpips": "no file"})
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["summary"]["rough"]["means"]["ours"]["band_psnr"]["mean"] == 25
    difference = content["summary"]["rough"]["differences"]["from"]["other"]
    assert difference["count"] == 7
    assert math.isclose(difference["mean"], 1 / 7)
    assert len(content["records"]) == 16
    assert content["left_out"] == {"lpips": "no file"}
    assert content["measures"]["band_psnr"]["unit"] == "dB"


# Words


def test_verdicts_say_where_the_reference_loses_first() -> None:
    rows = {"worse": [*WORSE], "better": [*BETTER], "alike": [*ALIKE], "ours": [*OURS]}
    said = pages.verdicts(make(rows))
    assert len(said) == 3
    assert said[0].startswith("Given the rough mask, ours is behind better by 1.50 dB [1.")
    assert said[1].startswith("Given the rough mask, ours cannot be told apart from alike (+0.00 ")
    assert said[2].startswith("Given the rough mask, ours is ahead of worse by 3.00 dB [2.")
    assert all(line.endswith("in band PSNR.") for line in said)


def test_few_pictures_allow_no_verdict() -> None:
    for count, few in ((3, "3 pictures are too few"), (1, "1 picture is too few")):
        said = pages.verdicts(make({"better": [*BETTER[:count]], "ours": [*OURS[:count]]}))
        assert said == [f"Given the rough mask, {few} to compare ours with other methods."]


def test_failures_and_warnings_are_counted_by_message() -> None:
    report = make({"ours": [*OURS], "other": ["dark", "dark", *ALIKE[2:]]})
    report.records[0]["warnings"] = ["did not converge", "slow"]
    assert pages.failures(report) == ["other failed on 2 of 8 composites: dark"]
    assert pages.failures(report, "warnings", "warned on") == [
        "ours warned on 1 of 8 composites: did not converge; slow"
    ]


def test_what_could_not_be_measured_is_in_the_legend() -> None:
    report = make({"ours": [*OURS]}, left_out={"lpips": "no weights", "band_lpips": "no weights"})
    legend = pages.page(report, "report.md").partition("## Legend")[2]
    assert "- **LPIPS and band LPIPS**: Not measured: no weights." in legend
    assert "ties are shared" in legend
    assert "SSIM" not in legend


# Pages


def test_markdown_tables_hold_the_figures() -> None:
    report = make({"under_score": [*WORSE], "ours": [*OURS]})
    page = pages.page(report, "report.md")
    head = next(line for line in page.splitlines() if line.startswith("| method |"))
    assert head.startswith("| method | band PSNR (dB) ↑ | wins | PSNR (dB) ↑ | halo ↓ |")
    cells = row(report, "ours")
    assert cells[1].startswith("**25.00** [24.")
    assert (cells[2], cells[-1]) == ("**8**", "**0.25**")
    assert row(report, "under\\_score")[2] == "0"
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("| method")]
    assert len(tables) == 4
    for lines in tables:
        assert len({line.count(" | ") for line in lines}) == 1


class Page(HTMLParser):
    """Reads a page; an error where tags do not close what they opened."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tables = 0
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.tables += tag == "table"
        self.links += [v for k, v in attrs if k in ("href", "src") and v is not None]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    sheet = tmp_path / "sheets" / "rough" / "p-0 &.jpg"
    sheet.parent.mkdir(parents=True)
    sheet.write_bytes(b"")
    report = make(
        {"<odd>": [*WORSE], "ours": ["<b>gone</b>", *OURS[1:]]},
        sheets=[{"grade": "rough", "sample": "p-0 &", "file": "sheets/rough/p-0 &.jpg"}],
    )
    pages.write(report, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "<b>gone" not in text
    assert "<odd>" in page.text
    inner = [link[1:] for link in page.links if link.startswith("#")]
    assert inner == ["rough", "legend", "sheets"]
    assert all(f'id="{name}"' in text for name in inner)
    assert page.links[len(inner) :] == ["sheets/rough/p-0%20%26.jpg"] * 2
    assert "://" not in text  # nothing from elsewhere
    assert page.tables == 4  # main, alphas, costs, methods
    assert json.loads((tmp_path / "report.json").read_text())["reference"] == "ours"
    assert "(<sheets/rough/p-0 &.jpg>)" in (tmp_path / "report.md").read_text()


def test_masks_are_listed_by_segmenter() -> None:
    report = make({"one": [*WORSE], "ours": [*OURS]}, grades=("none",))
    for record in report.records:
        record["measures"]["iou"] = 0.9
    table = next(t for t in tables.tables(report, "none") if t.title == tables.GROUPS["mask"])
    assert [line.label for line in table.rows] == ["pyramid"]


def test_a_report_without_truth_says_so() -> None:
    report = make({"ours": [*OURS], "other": [*OURS]})
    for record in report.records:
        record["measures"] = {"seconds": 1.5}
    assert not report.has_truth
    assert "has no truth, so nothing but costs was measured" in pages.verdicts(report)[-1]
    alphas = [{**record, "measures": {"sad": 1.0, "seconds": 1.5}} for record in report.records]
    assert pages.verdicts(replace(report, records=alphas)) == [
        "The set has no true composites: judge by the contact sheets."
    ]
    failed = make({"ours": ["dark"] * 8, "other": ["dark"] * 8})
    assert pages.verdicts(failed) == []
    assert row(report, "ours")[1] == "**1.50**"
    assert Page(pages.page(report, "report.html")).tables == 2


def printed(report: Report) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table_of(tables.overview(report)))
    return console.export_text()


def test_the_terminal_s_table_is_as_wide_as_it_needs() -> None:
    grades = ("exact", "rough", "bad", "none")
    report = make({"ours": [*OURS], "other": ["dark", *ALIKE[1:]]}, grades)
    text = printed(report)
    assert "25.00 [24." in text
    assert "…" not in text
    for record in report.records:  # where no picture has a rim
        record.get("measures", {}).pop("band_psnr", None)
    assert "ours" in printed(replace(report))
