"""What ``study.json`` keeps, in which order people see things, and the answers in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation.study.folder import (
    KEY,
    Answer,
    Store,
    Study,
    picture_path,
)
from tests.evaluation.study.made import made_study

ABC = ["a", "b", "c"]


def test_a_study_reads_back_as_it_was_written(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study")
    assert Study.read(tmp_path / "study") == study
    assert Study.open(tmp_path / "study") == study


def test_every_person_sees_all_in_an_order_of_their_own(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", sets=6)
    people = [f"person-{i}" for i in range(200)]
    item = study.sets[0]
    orders = [item.order(person) for person in people]
    assert all(sorted(order) == sorted(item.results) for order in orders)
    assert orders == [item.order(person) for person in people]
    assert item.order("a") != study.sets[1].order("a")
    first = Counter(item.results[order[0]] for order in orders)
    assert set(first) == set(study.methods)
    assert max(first.values()) < 2 * 200 / len(study.methods)  # no method stands first for most
    sets = [study.order(person) for person in people]
    assert all(sorted(s.id for s in order) == sorted(s.id for s in study.sets) for order in sets)
    assert len({order[0].id for order in sets}) == 6


def test_the_order_stays_the_same_in_later_versions(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study")
    order = [study.sets[0].results[t] for t in study.sets[0].order("somebody")]
    assert order == ["feather", "laplacian", "copy_paste", "ours", "alpha"]
    assert [item.name for item in study.order("somebody")] == ["pair-0", "pair-1", "pair-2"]


def test_sets_that_are_left_out_are_not_shown(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study")
    broken = replace(study.sets[1], left_out=("poisson: out of memory",))
    rest = replace(study, sets=(study.sets[0], broken, study.sets[2]))
    rest.write(tmp_path / "study")
    picture_path(tmp_path / "study", broken.foreground).unlink()
    opened = Study.open(tmp_path / "study")
    assert [item.name for item in opened.shown] == ["pair-0", "pair-2"]
    assert {item.name for item in opened.order("x")} == {"pair-0", "pair-2"}


@pytest.mark.parametrize(
    ("ranking", "complete", "reason"),
    [
        (["a", "b"], False, "3 places"),
        ("abc", False, "3 places"),
        ({"a": 1, "b": 2, "c": 3}, False, "3 places"),
        (["a", "b", "z"], False, "its own set"),
        (["a", "b", 3], False, "its own set"),
        (["a", "b", ["c"]], False, "its own set"),
        (["a", "b", "a"], False, "twice"),
        (["a", None, "b"], True, "3 places"),
    ],
)
def test_what_is_no_ranking(tmp_path: Path, ranking: object, complete: bool, reason: str) -> None:
    item = replace(made_study(tmp_path / "study").sets[0], results={t: t.upper() for t in "abcd"})
    with pytest.raises(UsageError, match=reason):
        item.check(ranking, complete=complete)
    assert item.check(["b", None, "a"], complete=False) == ["b", None, "a"]
    assert item.check(["d", "b", "a"], complete=True) == ["d", "b", "a"]


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no study"):
        Study.read(tmp_path)
    folder = tmp_path / "study"
    study = made_study(folder)
    replace(study, finished=False).write(folder)
    with pytest.raises(UsageError, match="not finished"):
        Study.open(folder)
    replace(study, sets=tuple(replace(s, left_out=("no",)) for s in study.sets)).write(folder)
    with pytest.raises(UsageError, match="no set that is complete"):
        Study.open(folder)
    study.write(folder)
    picture_path(folder, study.sets[2].background).unlink()
    with pytest.raises(DataError, match="'pair-2' is missing"):
        Study.open(folder)
    content = json.loads((folder / KEY).read_text())
    (folder / KEY).write_text(json.dumps({**content, "version": 7}))
    with pytest.raises(DataError, match="version 7"):
        Study.read(folder)
    del content["sets"][0]["size"]
    (folder / KEY).write_text(json.dumps(content))
    with pytest.raises(DataError, match="not what study make writes"):
        Study.read(folder)
    (folder / KEY).write_text("{")
    with pytest.raises(DataError, match="not what study make writes"):
        Study.read(folder)


# Answers


def test_answers_are_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Store(path, "study") as store:
        ann, bob = store.join("Ann"), store.join()
        store.save(ann, "set-1", ["a", None, None], confirmed=False)
        store.save(bob, "set-1", ABC, confirmed=True)
    with Store(path, "study") as store:
        assert store.people() == [ann, bob]
        assert (ann.name, bob.name) == ("Ann", "")
        assert store.person(ann.token) == ann
        assert store.person("nobody") is None
        assert store.answers(ann) == [Answer(ann.id, "set-1", ["a", None, None], None, None)]
        (answer,) = store.answers(bob)
        assert answer.ranking == answer.draft == ABC
        assert answer.confirmed is not None
        assert len(store.answers()) == 2


def test_an_answer_is_changed_by_confirming_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.sqlite", "study") as store:
        ann = store.join("Ann")
        store.save(ann, "set-1", ABC, confirmed=True)
        store.save(ann, "set-1", ["c", None, None], confirmed=False)
        (answer,) = store.answers()
        assert (answer.draft, answer.ranking) == (["c", None, None], ABC)
        store.save(ann, "set-1", ["c", "b", "a"], confirmed=True)
        (answer,) = store.answers()
        assert answer.draft == answer.ranking == ["c", "b", "a"]


def test_tokens_are_long_and_never_the_same(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.sqlite", "study") as store:
        tokens = {store.join().token for _ in range(50)}
    assert len(tokens) == 50
    assert min(map(len, tokens)) >= 32


def test_many_threads_and_two_processes_worth_of_stores_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Store(path, "study") as one, Store(path, "study") as other:
        people = [one.join(str(i)) for i in range(8)]

        def answer(i: int) -> None:
            store = (one, other)[i % 2]
            for number in range(10):
                store.save(people[i], f"set-{number}", ["a", None, None], confirmed=False)
                store.save(people[i], f"set-{number}", ABC, confirmed=True)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(answer, range(8)))
        assert len(one.answers()) == 80
        assert all(answer.ranking == ABC for answer in other.answers())


def test_commits_reach_the_disk(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.sqlite", "study") as store:
        pragmas = {
            name: store._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


def test_what_is_no_database_of_this_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    Store(path, "study").close()
    with pytest.raises(UsageError, match="another study"):
        Store(path, "other")
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(DataError, match="version 9"):
        Store(path, "study")
    text = tmp_path / "text"
    text.write_text("no database" * 100)
    with pytest.raises(DataError, match="cannot be used"):
        Store(text, "study")
    with pytest.raises(DataError, match="cannot be used"):
        Store(tmp_path / "no" / "folder", "study")


def test_a_broken_row_is_said(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.sqlite", "study") as store:
        ann = store.join()
        store.save(ann, "set-1", ABC, confirmed=True)
        store._run("UPDATE answers SET ranking = '{'")
        with pytest.raises(DataError, match="an answer that is none"):
            store.answers()
