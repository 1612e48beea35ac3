"""Scores against numbers that were worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scipy.stats import friedmanchisquare

from deep_image_compositing.cli import main
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation.study.folder import ANSWERS, Store, Study
from deep_image_compositing.evaluation.study.score import write_scores
from tests.evaluation.study.made import METHODS, made_study, token

ANN = (("ours", "alpha", "laplacian"), ("ours", "feather", "alpha"), ("alpha", "ours", "feather"))
BOB = (("alpha", "ours", "feather"), ("ours", "alpha", "feather"))


def answer(folder: Path, study: Study, *rankings: tuple[str, ...], name: str = "") -> None:
    """Somebody joins, and says of the first sets which methods are the best."""
    with Store(folder / ANSWERS, study.id) as store:
        person = store.join(name)
        for item, best in zip(study.sets, rankings, strict=False):
            store.save(person, item.id, [token(item, method) for method in best])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ann answered three sets, Bob two, Cid none."""
    study = made_study(tmp_path)
    for name, rankings in (("Ann", ANN), ("Bob", BOB), ("Cid", ())):
        answer(tmp_path, study, *rankings, name=name)
    return tmp_path


def test_a_case_worked_out_by_hand(folder: Path) -> None:
    scores = write_scores(folder)
    by_method = {row["method"]: row for row in scores["methods"]}
    assert list(by_method) == ["ours", "alpha", "feather", "laplacian", "copy_paste"]
    assert {method: row["score"] for method, row in by_method.items()} == {
        #        Ann's sets 0  1  2, then Bob's 0  1
        "ours": (1 + 1 + 2 + 2 + 1) / 5,
        "alpha": (2 + 3 + 1 + 1 + 2) / 5,
        "feather": (8 + 2 + 3 + 3 + 3) / 5,
        "laplacian": (3 + 8 + 8 + 8 + 8) / 5,
        "copy_paste": 8,
    }
    # Set 0: ours (1 + 2) / 2 ties with alpha (2 + 1) / 2; set 1: ours 1; set 2: alpha 1.
    counts = ("sets_won", "first", "second", "third")
    assert {method: tuple(row[key] for key in counts) for method, row in by_method.items()} == {
        "ours": (1.5, 3, 2, 0), "alpha": (1.5, 2, 2, 1), "feather": (0, 0, 1, 3),
        "laplacian": (0, 0, 0, 1), "copy_paste": (0, 0, 0, 0),
    }  # fmt: skip
    assert (scores["people"], scores["people_complete"], scores["people_joined"]) == (2, 1, 3)
    assert scores["answers"] == 5
    assert (scores["sets"], scores["sets_answered"], scores["sets_left_out"]) == (3, 3, 0)
    assert scores["chance"] == (1 + 2 + 3 + 8 + 8) / 5
    for row in scores["methods"]:
        assert 1 <= row["low"] <= row["score"] <= row["high"] <= 8
    assert (by_method["copy_paste"]["low"], by_method["copy_paste"]["high"]) == (8, 8)
    means = ((1.5, 2.5, 1), (8, 8, 8), (5.5, 2.5, 3), (5.5, 8, 8), (1.5, 1, 2))  # by set
    expected = friedmanchisquare(*means)
    assert scores["friedman"] == pytest.approx(expected.statistic)
    assert scores["p"] == pytest.approx(expected.pvalue)
    assert scores["kendall_w"] == pytest.approx(expected.statistic / (3 * 4))


def test_sets_that_agree_have_a_concordance_of_one(tmp_path: Path) -> None:
    study = made_study(tmp_path, methods=("a", "b", "c"))
    answer(tmp_path, study, *[("b", "a", "c")] * 3)
    scores = write_scores(tmp_path)
    assert scores["kendall_w"] == pytest.approx(1)
    assert [row["score"] for row in scores["methods"]] == [1, 2, 3]
    assert scores["chance"] == 2


def test_the_files_say_the_same(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    scores = write_scores(folder, out)

    def rows(name: str) -> list[dict[str, Any]]:
        return list(csv.DictReader((out / name).read_text().splitlines()))

    assert json.loads((out / "scores.json").read_text()) == scores
    expected = [(row["method"], row["score"]) for row in scores["methods"]]
    assert [(row["method"], float(row["score"])) for row in rows("scores.csv")] == expected
    assert len(rows("answers.csv")) == 5 * len(METHODS)
    mine = [int(row["score"]) for row in rows("answers.csv") if row["method"] == "feather"]
    assert sorted(mine) == [2, 3, 3, 3, 8]
    text = (out / "scores.md").read_text()
    assert "| ours | 1.40 |" in text
    assert "2 people gave 5 answers on 3 sets; 1 of them answered all 3." in text
    for file in out.iterdir():
        assert b"Ann" not in file.read_bytes(), "names stay in the database"


@pytest.mark.parametrize("count", [3, 12])
def test_the_figure_has_a_bar_for_every_method(tmp_path: Path, count: int) -> None:
    methods = (*(f"method_{i}" for i in range(count - 1)), "a_name<of>sixty_characters" * 2)
    answer(tmp_path, made_study(tmp_path, 2, methods), methods[:3], methods[:3])
    scores = write_scores(tmp_path)
    figure = [*ElementTree.parse(tmp_path / "scores" / "scores.svg").iter()]
    widths = [float(part.get("width", "")) for part in figure if part.get("class") == "bar"]
    assert len(widths) == count
    assert widths == sorted(widths)  # best on top
    worst = scores["methods"][-1]["score"] - 0.5
    assert widths[0] / widths[-1] == pytest.approx(0.5 / worst, rel=0.01)
    assert "a_name<of>sixty_characters" + "a_n…" in [part.text for part in figure]


def test_few_answers_or_none(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    with pytest.raises(UsageError, match="nobody has taken part"):
        write_scores(tmp_path)
    assert not (tmp_path / ANSWERS).exists()
    answer(tmp_path, study)
    with pytest.raises(UsageError, match="nobody has confirmed"):
        write_scores(tmp_path)
    answer(tmp_path, study, ("ours", "alpha", "feather"))
    scores = write_scores(tmp_path)
    assert scores["friedman"] is scores["p"] is scores["kendall_w"] is None
    page, figure = ((tmp_path / "scores" / f"scores.{kind}").read_text() for kind in ("md", "svg"))
    assert "at least two sets" in page
    assert "at least two sets" in figure
    assert "1 person gave 1 answer on 1 set; 0 of them" in page


def test_answers_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    with Store(tmp_path / ANSWERS, study.id) as store:
        ann = store.join()
        store.save(ann, study.sets[0].id, [*study.sets[1].results][:3])
        with pytest.raises(DataError, match="'pair-0' is broken"):
            write_scores(tmp_path)
        store.save(ann, study.sets[0].id, [*study.sets[0].results][:3])
        store.save(ann, "unknown", [*study.sets[0].results][:3])
        with pytest.raises(DataError, match="'unknown'"):
            write_scores(tmp_path)


def test_the_command_prints_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "score", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "1.40" in printed
    assert "chi-square" in printed
    assert (folder / "scores" / "scores.md").is_file()
    assert main(["study", "score", str(folder / "nothing")]) == 2
    assert "holds no study" in capsys.readouterr().err
