"""Harmonizers alone: the test set, what is measured of them, and what the report says."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deep_image_compositing import registry
from deep_image_compositing.data.items import Source
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation import pages
from deep_image_compositing.evaluation.evaluate import evaluate
from deep_image_compositing.evaluation.methods import choose, parse_method
from deep_image_compositing.evaluation.report import PUBLISHED, Report, grouped_tables
from deep_image_compositing.evaluation.study.make import make as make_study
from deep_image_compositing.evaluation.testsets import Harmonization, open_test_set
from deep_image_compositing.evaluation.testsets.harmonization import (
    LEAST,
    RECOLORED,
    UNTOUCHED,
    fmse,
)
from deep_image_compositing.metrics.composites import foreground_error
from deep_image_compositing.models.base import HarmonizerModel
from tests.data import published, trees


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four photographs with masks, of which one is held out."""
    return str(trees.pairs(tmp_path_factory.mktemp("data") / "photographs"))


# The test set


def test_subjects_get_other_colours_and_nothing_else_does(photographs: str) -> None:
    for sample in Harmonization(photographs):
        given, behind, mask = sample.inputs(RECOLORED)
        left, _, same = sample.inputs(UNTOUCHED)
        assert given is behind
        assert left is sample.composite
        assert mask is same is not None
        outside = (mask == 0).expand_as(given)
        assert outside.any()
        assert torch.equal(given[outside], left[outside])
        about = sample.about(RECOLORED)
        error = float(foreground_error(*(x[None] / 255 for x in (given, left, mask))))
        assert about["given_fmse"] == fmse(given, left, mask) == pytest.approx(error)
        assert error >= LEAST
        assert about["groups"]["subject"] == "above 15 %"
        steps = {"faint": (0, 200), "middle": (200, 1000), "strong": (1000, 1e6)}
        low, high = steps[about["groups"]["strength"]]
        assert low < error <= high
        assert "given_fmse" not in sample.about(UNTOUCHED)


def test_colours_follow_from_the_seed_and_the_name(photographs: str) -> None:
    first = {s.name: s.foreground for s in Harmonization(photographs)}
    again = pickle.loads(pickle.dumps(Harmonization(photographs, samples=2)))
    assert len(again) == 2
    for sample in (again[1], again[0]):
        assert torch.equal(sample.foreground, first[sample.name])
    other = Harmonization(photographs, seed=1)
    assert other.fingerprint() != Harmonization(photographs).fingerprint()
    assert not any(torch.equal(s.foreground, first[s.name]) for s in other)


def test_only_what_is_held_out_is_used(photographs: str) -> None:
    everything = Harmonization(photographs).names
    (held,) = Harmonization(photographs, hold_out=0.1).names
    (known,) = Harmonization([Source(photographs, hold_out=0.1)]).names
    assert held == known
    assert held in everything
    with pytest.raises(UsageError, match="nothing is left to measure"):
        Harmonization(photographs, hold_out=0.0001)


def test_groups_are_named_or_those_of_the_folders_and_sizes_can_be_reduced(
    photographs: str,
) -> None:
    for given, options, group, size in (
        (photographs, {}, "photographs", (56, 72)),
        ({"people": [Source(photographs)]}, {"size": 36}, "people", (28, 36)),
    ):
        test_set = Harmonization(given, **options)
        assert {s.about(UNTOUCHED)["groups"]["photographs"] for s in test_set} == {group}
        assert {s.foreground.shape[1:] for s in test_set} == {size}


def test_what_has_a_composite_of_its_own_keeps_it(tmp_path: Path) -> None:
    shards = Harmonization(str(trees.shards(tmp_path / "shards", "harmonization", 4, 2)))
    published.make("images and composites", tmp_path / "folders")
    folders = Harmonization(tmp_path / "folders")
    for test_set in (shards, folders):
        assert len(test_set) == 2
        for sample in test_set:
            given, _, mask = sample.inputs(RECOLORED)
            darker = (sample.composite.float() - given.float())[:, mask[0] > 200].mean()
            assert float(darker) > 20


def test_iharmony4_as_published_is_measured_on_its_own_split(tmp_path: Path) -> None:
    published.make("iharmony4", tmp_path / "all")
    found = Harmonization(tmp_path / "all")
    assert sorted(name.removeprefix("all-") for name in found.names) == ["a3630_1_5", "c5_18_1"]
    assert found.about["sources"][0]["split"] == "test"
    assert found[0].about(RECOLORED)["given_fmse"] > 0


def test_shards_of_segmentation_are_recoloured_and_cut_outs_refused(tmp_path: Path) -> None:
    (sample,) = Harmonization(str(trees.shards(tmp_path / "shards", "segmentation", 4, 1)))
    assert sample.about(RECOLORED)["given_fmse"] >= LEAST
    with pytest.raises(DataError, match="cut-out"):
        Harmonization(trees.cutouts(tmp_path / "cutouts"))[0]


@pytest.mark.parametrize(
    "options", [{"samples": 0}, {"size": 3}, {"seed": -1}, {"strength": 0.0}, {"strength": 3.0}]
)
def test_wrong_options_are_refused(photographs: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        open_test_set("harmonization", photographs=photographs, **options)


def test_harmonizers_are_not_compared_with_whole_methods(photographs: str, tmp_path: Path) -> None:
    for method, kind in (("mine=reinhard", "syntest"), ("m=pyramid,none,alpha", "harmonization")):
        given = {"photographs": photographs} if kind == "harmonization" else {}
        with pytest.raises(UsageError, match=f"the test set {kind} is for"):
            evaluate([parse_method(method)], open_test_set(kind, **given), tmp_path / "out")
    with pytest.raises(UsageError, match="harmonizers alone"):
        make_study([], [parse_method(f"{n}=reinhard") for n in "abc"], tmp_path / "study")
    assert not (tmp_path / "out").exists()


# What is measured


class Restores(HarmonizerModel):
    """Takes three quarters of the way back to one photograph."""

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def forward(self, composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        (sample,) = (s for s in Harmonization(self.path) if s.name.endswith(NAME))
        restored = torch.lerp(composite, sample.composite[None] / 255, 0.75)
        return torch.lerp(composite, restored, mask)


NAME = "photo0"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(photographs: str, out: Path) -> Report:
    found = evaluate(
        choose(["harmonize,-color_map"]), Harmonization(photographs), out,
        reference="white_balance", accelerator="cpu", sheets=1,
    )  # fmt: skip
    assert found is not None
    return found


def test_records_hold_what_the_literature_reports(report: Report, photographs: str) -> None:
    assert len(report.records) == 3 * 2 * 4
    samples = {sample.name: sample for sample in Harmonization(photographs)}
    for record in report.records:
        figures, sample = record["measures"], samples[record["sample"]]
        assert figures["outside"] == 0
        assert figures["harmonization_seconds"] >= 0
        if record["method"] != "none":
            continue
        if record["grade"] == UNTOUCHED:
            assert figures["change"] == figures["fmse"] == 0
            continue
        # The composite goes through whole, and comes out in every bit.
        assert figures["fmse"] == pytest.approx(sample.about(RECOLORED)["given_fmse"], rel=1e-6)
        assert figures["gain"] == 0
    means = report.summary[RECOLORED].means
    assert means["none"]["fmse_share"].mean == pytest.approx(1)
    for name in ("reinhard", "white_balance"):
        share = means[name]["fmse"].mean / means["none"]["fmse"].mean
        assert means[name]["fmse_share"].mean == pytest.approx(share)
        gain = means[name]["psnr"].mean - means["none"]["psnr"].mean
        assert means[name]["gain"].mean == pytest.approx(gain)
        assert report.summary[UNTOUCHED].means[name]["change"].mean > 0
    assert report.summary[RECOLORED].wins["psnr"].keys() == set(report.method_names)


def test_what_is_restored_leaves_a_sixteenth(
    photographs: str, tmp_path: Path, own_registry: object
) -> None:
    registry.register("harmonizer", "restores", description="for tests")(Restores)
    method = parse_method(f"mine=restores(path={photographs})")
    test_set = Harmonization(photographs)
    found = evaluate([method], test_set, tmp_path / "out", accelerator="cpu", sheets=0)
    assert found is not None
    (record,) = (r for r in found.records if r["sample"].endswith(NAME) and r["grade"] == RECOLORED)
    share = record["measures"]["fmse"] / record["given_fmse"]
    assert share == pytest.approx(1 / 16, abs=0.02)  # its soft rim is not quite restored
    assert record["measures"]["gain"] == pytest.approx(12.04, abs=1)


# What is said


def test_both_pages_show_figures_groups_sheets_and_what_others_published(
    report: Report, out: Path
) -> None:
    markdown, html = (pages.page(report, f"report.{kind}") for kind in ("md", "html"))
    for page in (markdown, html):
        assert "Published elsewhere, on other data" in page
        assert "PCT-Net ViT" in page
        for heading in ("fMSE left", "PSNR gain", "by how far the composites are off", "change"):
            assert heading in page
        assert "segmenter" not in page
    assert "| harmonizer |\n| --- | ---: |\n" in markdown
    said = pages.verdicts(report)
    assert any("recoloured subjects" in line and "too few to compare" in line for line in said)
    assert any("subjects are changed by none by 0.00" in line for line in said)
    content = json.loads((out / "report.json").read_text())
    assert content["published"] == [
        {"name": name, "psnr": psnr, "fmse": fmse} for name, psnr, fmse in PUBLISHED
    ]
    assert [sheet["grade"] for sheet in report.sheets] == [RECOLORED, UNTOUCHED]
    with Image.open(out / report.sheets[0]["file"]) as sheet:
        assert sheet.width > 6 * 280  # composite, mask, truth, and three methods


def test_groups_are_means_over_their_pictures(report: Report) -> None:
    tables = {table.title: table for table in grouped_tables(report, RECOLORED, "fmse")}
    assert set(tables) <= {f"fMSE {words}" for words in (
        "by how far the composites are off", "by the subject's share of the picture",
    )}  # fmt: skip  # all photographs are of one folder
    for table in tables.values():
        counts = [int(head.name.rsplit("(")[1].rstrip(")")) for head in table.columns]
        assert sum(counts) == 4
        for row in table.rows:
            together = sum(n * c.value for n, c in zip(counts, row.cells, strict=True) if c) / 4
            mean = report.summary[RECOLORED].means[row.label]["fmse"].mean
            assert together == pytest.approx(mean)
