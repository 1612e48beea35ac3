"""Scores against numbers that were worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from deep_image_compositing.cli import main
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation.study.folder import ANSWERS, Store, Study
from deep_image_compositing.evaluation.study.score import write_scores
from tests.evaluation.study.made import METHODS, made_study, token

ANN = (("ours", "alpha", "laplacian"), ("ours", "feather", "alpha"), ("alpha", "ours", "feather"))
BOB = (("alpha", "ours", "feather"), ("ours", "alpha", "feather"))


def scored(folder: Path, study: Study, *best: str, sets: int = 99) -> Any:
    """The scores where one person says of some sets that these methods are the best."""
    with Store(folder / ANSWERS, study.id) as store:
        person = store.join()
        for item in study.sets[:sets]:
            store.save(person, item.id, [token(item, method) for method in best])
    return write_scores(folder)


def page(folder: Path, name: str) -> str:
    return (folder / "scores" / name).read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ann answered three sets, Bob two, Cid none."""
    folder = tmp_path / "study"
    study = made_study(folder)
    with Store(folder / ANSWERS, study.id) as store:
        ann, bob, _ = store.join("Ann"), store.join("Bob"), store.join("Cid")
        for person, rankings in ((ann, ANN), (bob, BOB)):
            for item, ranking in zip(study.sets, rankings, strict=False):
                store.save(person, item.id, [token(item, method) for method in ranking])
    return folder


def test_a_case_worked_out_by_hand(folder: Path) -> None:
    scores = write_scores(folder)
    by_method = {row["method"]: row for row in scores["methods"]}
    #  Ann's sets, then Bob's:        0  1  2 | 0  1
    assert by_method["ours"]["score"] == (1 + 1 + 2 + 2 + 1) / 5
    assert by_method["alpha"]["score"] == (2 + 3 + 1 + 1 + 2) / 5
    assert by_method["feather"]["score"] == (8 + 2 + 3 + 3 + 3) / 5
    assert by_method["laplacian"]["score"] == (3 + 8 + 8 + 8 + 8) / 5
    assert by_method["copy_paste"]["score"] == 8
    assert [row["method"] for row in scores["methods"]] == [
        "ours", "alpha", "feather", "laplacian", "copy_paste",
    ]  # fmt: skip
    # Set 0: ours (1 + 2) / 2 ties with alpha (2 + 1) / 2; set 1: ours 1; set 2: alpha 1.
    assert {row["method"]: row["sets_won"] for row in scores["methods"]} == {
        "ours": 1.5, "alpha": 1.5, "feather": 0, "laplacian": 0, "copy_paste": 0,
    }  # fmt: skip
    places = {m: (r["first"], r["second"], r["third"]) for m, r in by_method.items()}
    assert places == {
        "ours": (3, 2, 0), "alpha": (2, 2, 1), "feather": (0, 1, 3), "laplacian": (0, 0, 1),
        "copy_paste": (0, 0, 0),
    }  # fmt: skip
    assert (scores["people"], scores["people_complete"], scores["people_joined"]) == (2, 1, 3)
    assert scores["answers"] == 5
    assert (scores["sets"], scores["sets_answered"], scores["sets_left_out"]) == (3, 3, 0)
    assert scores["chance"] == (1 + 2 + 3 + 8 + 8) / 5
    for row in scores["methods"]:
        assert 1 <= row["low"] <= row["score"] <= row["high"] <= 8
    assert (by_method["copy_paste"]["low"], by_method["copy_paste"]["high"]) == (8, 8)


def test_friedman_s_test_is_over_the_sets_means(folder: Path) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = write_scores(folder)
    means = {  # by set
        "alpha": (1.5, 2.5, 1), "copy_paste": (8, 8, 8), "feather": (5.5, 2.5, 3),
        "laplacian": (5.5, 8, 8), "ours": (1.5, 1, 2),
    }  # fmt: skip
    expected = stats.friedmanchisquare(*means.values())
    assert scores["friedman"] == pytest.approx(expected.statistic)
    assert scores["p"] == pytest.approx(expected.pvalue)
    assert scores["kendall_w"] == pytest.approx(expected.statistic / (3 * 4))


def test_sets_that_agree_have_a_concordance_of_one(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", methods=("a", "b", "c"))
    scores = scored(tmp_path / "study", study, "b", "a", "c")
    assert scores["kendall_w"] == pytest.approx(1)
    assert [row["score"] for row in scores["methods"]] == [1, 2, 3]
    assert scores["chance"] == 2


def test_the_files_say_the_same(folder: Path, tmp_path: Path) -> None:
    scores = write_scores(folder, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    found = json.loads((out / "scores.json").read_text())
    assert found["answers"] == 5
    assert [row["score"] for row in found["methods"]] == [row["score"] for row in scores["methods"]]
    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], float(row["score"])) for row in rows] == [
        (row["method"], row["score"]) for row in scores["methods"]
    ]
    with open(out / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * len(METHODS)
    mine = [int(row["score"]) for row in rows if row["method"] == "feather"]
    assert sorted(mine) == [2, 3, 3, 3, 8]
    text = (out / "scores.md").read_text()
    assert "| ours | 1.40 |" in text
    assert "2 people gave 5 answers on 3 sets; 1 of them answered all 3." in text
    for file in out.iterdir():
        assert b"Ann" not in file.read_bytes(), "names stay in the database"


@pytest.mark.parametrize("count", [3, 12])
def test_the_figure_has_a_bar_for_every_method(tmp_path: Path, count: int) -> None:
    methods = (*tuple(f"method_{i}" for i in range(count - 1)), "a_name<of>sixty_characters" * 2)
    study = made_study(tmp_path / "other", sets=2, methods=methods)
    scores = scored(tmp_path / "other", study, *methods[:3])
    figure = ElementTree.fromstring(page(tmp_path / "other", "scores.svg"))
    bars = [element for element in figure.iter() if element.get("class") == "bar"]
    assert len(bars) == count
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths == sorted(widths)  # best on top
    worst = scores["methods"][-1]["score"] - 0.5
    assert widths[0] / widths[-1] == pytest.approx(0.5 / worst, rel=0.01)
    said = [element.text for element in figure.iter() if element.text and element.text.strip()]
    assert "a_name<of>sixty_characters" + "a_n…" in said


def test_nothing_to_score_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = made_study(folder)
    with pytest.raises(UsageError, match="nobody has taken part"):
        write_scores(folder)
    assert not (folder / ANSWERS).exists()
    with Store(folder / ANSWERS, study.id) as store:
        store.join()
    with pytest.raises(UsageError, match="nobody has confirmed"):
        write_scores(folder)


def test_one_answer_is_scored_without_a_test(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study")
    scores = scored(tmp_path / "study", study, "ours", "alpha", "feather", sets=1)
    assert scores["friedman"] is scores["p"] is scores["kendall_w"] is None
    assert "at least two sets" in page(tmp_path / "study", "scores.md")
    assert "1 person gave 1 answer on 1 set; 0 of them" in page(tmp_path / "study", "scores.md")
    assert "at least two sets" in page(tmp_path / "study", "scores.svg")


def test_answers_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = made_study(folder)
    with Store(folder / ANSWERS, study.id) as store:
        ann = store.join()
        store.save(ann, study.sets[0].id, [*study.sets[1].results][:3])
        with pytest.raises(DataError, match="'pair-0' is broken"):
            write_scores(folder)
        store.save(ann, study.sets[0].id, [*study.sets[0].results][:3])
        store.save(ann, "unknown", [*study.sets[0].results][:3])
        with pytest.raises(DataError, match="'unknown'"):
            write_scores(folder)


def test_the_command_prints_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "score", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "1.40" in printed
    assert "chi-square" in printed
    assert (folder / "scores" / "scores.md").is_file()
    assert main(["study", "score", str(folder / "nothing")]) == 2
    assert "holds no study" in capsys.readouterr().err
