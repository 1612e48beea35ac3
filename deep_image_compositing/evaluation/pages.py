"""Writes a report as JSON, Markdown and HTML.

Sentences that depend on the figures are composed here; headings and layout are in ``templates``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from deep_image_compositing.evaluation.measures import MEASURES, Measure
from deep_image_compositing.evaluation.rendering import capital, counted, listed, render
from deep_image_compositing.evaluation.report import Report, published, tables
from deep_image_compositing.evaluation.statistics import Difference
from deep_image_compositing.files import write_files

FILES = ("report.json", "report.md", "report.html")
FEW = 6  # with fewer pictures, an interval says little

_MASKS = {
    "exact": "given the exact mask",
    "rough": "given the rough mask",
    "bad": "given the bad mask",
    "given": "given the set's own mask",
    "none": "with the segmenter's own mask",
    "recolored": "given recoloured subjects",
    "untouched": "given photographs as they are",
}


def write(report: Report, out: Path) -> None:
    """Write ``FILES`` to the folder ``out``; ImageError if they cannot be written."""
    content = json.dumps(report.to_json(), indent=1, allow_nan=False)
    texts = (content, *(page(report, name) for name in FILES[1:]))
    write_files((out / name, text.encode()) for name, text in zip(FILES, texts, strict=True))


def page(report: Report, template: str) -> str:
    """The report as ``report.md``, or as ``report.html``, which needs no other file but sheets."""
    return render(
        template, report=report, measures=MEASURES, key=report.key, slots=report.slots, mask=_mask,
        tables={grade: list(tables(report, grade)) for grade in report.grades},
        verdicts=verdicts(report), failures=failures(report),
        published=published() if report.alone else None,
        warnings=failures(report, "warnings", "warned on"),
    )  # fmt: skip


# Words


def _mask(grade: str) -> str:
    return _MASKS.get(grade, f"in the grade {grade}")


def verdicts(report: Report) -> list[str]:
    """Sentences that compare the reference with the other methods; its defeats come first."""
    measure, reference, sentences = MEASURES[report.key], report.reference, []
    for grade, summary in report.summary.items():
        start = capital(_mask(grade))
        changes = {m: means["change"] for m, means in summary.means.items() if "change" in means}
        if changes:  # pictures that should stay as they are
            parts = listed([f"{m} by {change.mean:.2f}" for m, change in changes.items()])
            sentences.append(f"{start}, subjects are changed by {parts} of 255 steps on average.")
            continue
        pairs = [(m, d) for m, d in summary.differences.items() if d.count]
        pairs.sort(key=lambda pair: pair[1].mean)
        count = max((d.count for _, d in pairs), default=FEW)
        if count < FEW:
            few = f"{counted(count, 'picture')} {'is' if count == 1 else 'are'} too few"
            sentences.append(f"{start}, {few} to compare {reference} with other methods.")
            continue
        rivals = {
            "is behind": [f"{m} by {_distance(d, measure)}" for m, d in pairs if d.high < 0],
            "cannot be told apart from": [
                f"{m} ({_signed(d, measure)})" for m, d in pairs if not d.clear
            ],
            "is ahead of": [f"{m} by {_distance(d, measure)}" for m, d in pairs if d.low > 0],
        }
        sentences += [
            f"{start}, {reference} {verb} {listed(parts)} in {measure.name}."
            for verb, parts in rivals.items()
            if parts
        ]
    if report.measured and not report.has_truth:
        costs = all(MEASURES[key].group == "cost" for key in report.measured)
        lacking = "no truth, so nothing but costs was measured" if costs else "no true composites"
        sentences.append(f"The set has {lacking}: judge by the contact sheets.")
    return sentences


def _signed(difference: Difference, measure: Measure) -> str:
    interval = f"[{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"{difference.mean:+.2f} {measure.unit} {interval}"


def _distance(difference: Difference, measure: Measure) -> str:
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return f"{abs(difference.mean):.2f} {measure.unit} [{low:.2f}, {high:.2f}]"


def failures(report: Report, key: str = "error", verb: str = "failed on") -> list[str]:
    """For each method, its most frequent errors (or warnings) and how many composites had them."""
    lines = []
    for method in report.method_names:
        records = [record for record in report.records if record["method"] == method]
        texts = [record[key] for record in records if key in record]
        counts = Counter(text if isinstance(text, str) else "; ".join(text) for text in texts)
        lines += [
            f"{method} {verb} {count} of {len(records)} composites: {message}"
            for message, count in counts.most_common(3)
        ]
        if rest := sum(count for _, count in counts.most_common()[3:]):
            lines.append(f"{method} {verb} {rest} more with other messages, see report.json")
    return lines
