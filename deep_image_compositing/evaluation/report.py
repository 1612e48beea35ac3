"""The report of a comparison: what the bench's records come to; nothing is measured here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from deep_image_compositing.evaluation.measures import KEY, MEASURES
from deep_image_compositing.evaluation.statistics import (
    Difference,
    bootstrap_interval,
    paired_difference,
    wins,
)


class Mean(NamedTuple):
    """A mean over pictures, the ends of its 95 % interval, and the number of pictures."""

    mean: float
    low: float
    high: float
    pictures: int


@dataclass(frozen=True)
class Summary:
    """What the records of one grade come to."""

    measured: dict[str, int]  # pictures by method
    failed: dict[str, int]  # pictures that the method failed on
    means: dict[str, dict[str, Mean]]  # by method, then by measure
    # by measure, then by method; pictures on which several tie count in parts
    wins: dict[str, dict[str, float]]
    # in ``KEY``, of the reference minus each other method, on the pictures that both have
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
    # for each measure that could not be had, the reason
    left_out: dict[str, str] = field(default_factory=dict)
    # ``grade``, ``sample`` and ``file`` of each contact sheet, relative to the report
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
    def measured(self) -> set[str]:
        """The measures that any composite has, by key."""
        means = (m for summary in self.summary.values() for m in summary.means.values())
        return {key for found in means for key in found}

    @property
    def has_truth(self) -> bool:
        """Whether any composite could be measured."""
        return bool({KEY, "psnr"} & self.measured)

    def _summarize(self, grade: str) -> Summary:
        records: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.method_names}
        for record in self.records:
            if record["grade"] == grade and record["method"] in records:
                records[record["method"]][record["sample"]] = record
        measures = {
            method: [by_sample.get(name, {}).get("measures", {}) for name in self.names]
            for method, by_sample in records.items()
        }
        table = {
            key: {m: [row.get(key, float("nan")) for row in rows] for m, rows in measures.items()}
            for key in MEASURES
            if any(key in row for rows in measures.values() for row in rows)
        }
        means: dict[str, dict[str, Mean]] = {method: {} for method in records}
        for key, columns in table.items():
            for method, column in columns.items():
                values = [value for value in column if value == value]
                if values:
                    mean = sum(values) / len(values)
                    means[method][key] = Mean(mean, *bootstrap_interval(values), len(values))
        return Summary(
            measured={m: sum("measures" in r for r in rs.values()) for m, rs in records.items()},
            failed={m: sum("error" in r for r in rs.values()) for m, rs in records.items()},
            means=means,
            wins={key: wins(columns, MEASURES[key].better) for key, columns in table.items()},
            differences={
                method: paired_difference(table[KEY][self.reference], table[KEY][method])
                for method in records
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
                    "from": {m: asdict(d) for m, d in part.differences.items() if d.count},
                },
            }
            for grade, part in self.summary.items()
        }
        content = {**vars(self), "samples": self.names, "summary": summary}
        content["measures"] = {key: asdict(measure) for key, measure in MEASURES.items()}
        del content["names"]
        return content
