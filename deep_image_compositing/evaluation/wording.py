"""What a report says in words: verdicts, failures, the legend, and where everything comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from deep_image_compositing.evaluation.measures import KEY, MEASURES
from deep_image_compositing.evaluation.report import Report
from deep_image_compositing.evaluation.statistics import Difference

FEW = 6
"""Pictures below which an interval says little."""

INTERVALS = (
    "Figures are means over pictures with bootstrap intervals of 95 %; the best of those that "
    "failed on no picture is bold. The stage's digits are the beginning of its weights' SHA-256."
)

_MASKS = {
    "exact": "given the exact mask",
    "rough": "given the rough mask",
    "bad": "given the bad mask",
    "given": "given the set's own mask",
    "none": "with the segmenter's own mask",
}


def mask(grade: str) -> str:
    """Which mask the methods had."""
    return _MASKS.get(grade, f"in the grade {grade}")


def heading(grade: str) -> str:
    """The same, to begin with."""
    return mask(grade)[:1].upper() + mask(grade)[1:]


def title(report: Report) -> str:
    """How many methods on how many pictures of what."""
    methods, pictures = counted(len(report.methods), "method"), counted(len(report.names))
    return f"{methods} on {pictures} of {report.test_set['kind']}"


def counted(number: int, noun: str = "picture") -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def verdicts(report: Report) -> list[str]:
    """What the figures say of the reference, in sentences; where it loses comes first."""
    name, sentences = MEASURES[KEY].name, []
    for grade, summary in report.summary.items():
        pairs = [(m, d) for m, d in summary.differences.items() if d.count]
        pairs.sort(key=lambda pair: pair[1].mean)
        most = max((d.count for _, d in pairs), default=FEW)
        if most < FEW:
            gaps = listed([f"{m} by {_signed(d)}" for m, d in pairs])
            differs = f"{report.reference} differs in {name} from {gaps}"
            sentences.append(
                f"{heading(grade)}, {differs}; {counted(most)} are too few to say more."
                if most > 1
                else f"{heading(grade)}, on the one picture there is, {differs}."
            )
            continue
        for verb, parts in (
            ("is behind", [f"{m} by {_distance(d)}" for m, d in pairs if d.high < 0]),
            ("cannot be told apart from", [f"{m} ({_signed(d)})" for m, d in pairs if not d.clear]),
            ("is ahead of", [f"{m} by {_distance(d)}" for m, d in pairs if d.low > 0]),
        ):
            if parts:
                sentences.append(
                    f"{heading(grade)}, {report.reference} {verb} {listed(parts)} in {name}."
                )
    if not report.has_truth:
        sentences.append(
            "The set has no truth, so nothing but costs was measured: judge by the contact sheets."
        )
    return sentences


def _signed(difference: Difference) -> str:
    interval = f"[{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"{difference.mean:+.2f} {MEASURES[KEY].unit} {interval}"


def _distance(difference: Difference) -> str:
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return f"{abs(difference.mean):.2f} {MEASURES[KEY].unit} [{low:.2f}, {high:.2f}]"


def failures(report: Report) -> list[str]:
    """Which methods failed on how many composites, and with what message."""
    return _messages(report, "error", "failed on")


def warned(report: Report) -> list[str]:
    """What was warned of, on how many composites, by method."""
    return _messages(report, "warnings", "warned on")


def _messages(report: Report, key: str, verb: str) -> list[str]:
    lines = []
    for method in report.method_names:
        records = [record for record in report.records if record["method"] == method]
        texts = [record[key] for record in records if key in record]
        counts = Counter(text if isinstance(text, str) else "; ".join(text) for text in texts)
        lines += [
            f"{method} {verb} {count} of {len(records)} composites: {message}"
            for message, count in counts.most_common(3)
        ]
        rest = sum(count for _, count in counts.most_common()[3:])
        if rest:
            lines.append(f"{method} {verb} {rest} more with other messages, see report.json")
    return lines


def legend(report: Report) -> dict[str, str]:
    """What each measure in the tables means, and why those that are missing are."""
    texts = {m.name: m.about for key, m in MEASURES.items() if key in report.measured}
    if KEY in report.measured:
        texts["wins"] = (
            f"Pictures on which the method has the best {MEASURES[KEY].name}; ties are shared."
        )
    by_reason: dict[str, list[str]] = {}
    for key, reason in report.left_out.items():
        by_reason.setdefault(reason, []).append(MEASURES[key].name)
    return texts | {listed(names): f"Not measured: {why}." for why, names in by_reason.items()}


def facts(report: Report) -> dict[str, str]:
    """What was compared, on what, with what, in a few lines."""
    about = report.about
    threads = listed([str(count) for count in about["threads"]] or ["?"])
    lines = {
        "test set": f"{report.test_set['kind']}, {counted(len(report.names))}",
        "grades of masks": ", ".join(report.grades),
        "methods": str(len(report.methods)),
        "reference": report.reference,
        "made by": f"deep-image-compositing {about['version']}, torch {about['torch']}, "
        f"Python {about['python']}, on {about['device']} with {threads} CPU threads a process",
        "command": about.get("command"),
        "note": report.test_set.get("note"),
    }
    return {key: text for key, text in lines.items() if text}


def origin(report: Report) -> list[str]:
    """Where the test set's pictures come from, a line each."""
    lines = []
    for source in report.test_set.get("sources", []):
        parts = [str(source.get("kind", "")), str(source.get("path", ""))]
        if "samples" in source:
            parts.append(f"{source.get('used', source['samples'])} of {source['samples']} used")
        if source.get("hold_out") is not None:
            parts.append(f"the share {source['hold_out']:g} that training holds out")
        if source.get("split"):
            parts.append(f"split {source['split']}")
        if source.get("licences"):
            parts.append(f"licence: {', '.join(source['licences'])}")
        lines.append(", ".join(part for part in parts if part))
    keys = (key for key in ("path", "seed", "size") if key in report.test_set)
    lines += [f"{key} {report.test_set[key]}" for key in keys]
    return [*lines, f"fingerprint {report.test_set['fingerprint'][:16]}"]
