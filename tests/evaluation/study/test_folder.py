"""What ``study.json`` keeps, in which order people see things, and the answers in SQLite."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation.study.folder import (
    KEY,
    PictureSet,
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
    broken = replace(study.sets[1], left_out=["poisson: out of memory"])
    rest = replace(study, sets=(study.sets[0], broken, study.sets[2]))
    rest.write(tmp_path / "study")
    picture_path(tmp_path / "study", broken.foreground).unlink()
    opened = Study.open(tmp_path / "study")
    assert [item.name for item in opened.shown] == ["pair-0", "pair-2"]
    assert {item.name for item in opened.order("x")} == {"pair-0", "pair-2"}


@pytest.mark.parametrize(
    "ranking",
    [["a", "b"], list("abcd"), "abc", {"a": 1, "b": 2, "c": 3}, None, ["a", "b", "z"],
     ["a", "b", 3], ["a", "b", ["c"]], ["a", "b", "a"], ["a", None, "b"]],
)  # fmt: skip
def test_what_is_no_ranking(ranking: object) -> None:
    item = PictureSet("set", "pair", "x", "y", {t: t.upper() for t in "abcd"})
    with pytest.raises(UsageError, match="3 different results of its own set"):
        item.check(ranking)
    assert item.check(["d", "b", "a"]) == ["d", "b", "a"]


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no study"):
        Study.read(tmp_path)
    folder = tmp_path / "study"
    study = made_study(folder)
    replace(study, finished=False).write(folder)
    with pytest.raises(UsageError, match="not finished"):
        Study.open(folder)
    replace(study, sets=tuple(replace(s, left_out=["no"]) for s in study.sets)).write(folder)
    with pytest.raises(UsageError, match="no set of it is complete"):
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
        store.save(ann, "set-1", ABC[::-1])
        store.save(ann, "set-1", ABC)  # changed her mind
        store.save(bob, "set-2", ABC)
        store.save("nobody", "set-2", ABC)
    with Store(path, "study") as store:
        assert store.people() == {ann: "Ann", bob: ""}
        ((number, name, ranking, when),) = store.answers(ann)
        assert (number, name, ranking) == (1, "set-1", ABC)
        assert datetime.now(UTC) - datetime.fromisoformat(when) < timedelta(minutes=5)
        assert [answer[:3] for answer in store.answers()] == [(1, "set-1", ABC), (2, "set-2", ABC)]


def test_drafts_that_older_servers_kept_are_no_answers(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.sqlite", "study") as store:
        ann = store.join()
        store._run("INSERT INTO answers VALUES (1, 'set-1', '[\"a\", null, null]', NULL, NULL)")
        assert store.answers() == store.answers(ann) == []
        store.save(ann, "set-1", ABC)
        assert [answer[2] for answer in store.answers()] == [ABC]
        store._run("UPDATE answers SET ranking = '{'")  # a broken row is said
        with pytest.raises(DataError, match="holds a broken answer"):
            store.answers()


def test_tokens_cannot_be_guessed_and_commits_reach_the_disk(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.sqlite", "study") as store:
        tokens = {store.join() for _ in range(50)}
        assert len(tokens) == 50
        assert min(map(len, tokens)) >= 32
        assert store._run("PRAGMA journal_mode") == [("wal",)]
        assert store._run("PRAGMA synchronous") == [(2,)]


def test_many_threads_and_two_processes_worth_of_stores_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Store(path, "study") as one, Store(path, "study") as other:
        people = [one.join(str(i)) for i in range(8)]

        def answer(i: int) -> None:
            store = (one, other)[i % 2]
            for number in range(10):
                store.save(people[i], f"set-{number}", ABC[::-1])
                store.save(people[i], f"set-{number}", ABC)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(answer, range(8)))
        assert len(one.answers()) == 80
        assert all(answer[2] == ABC for answer in other.answers())


def test_what_is_no_database_of_this_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Store(path, "study"):
        pass
    with pytest.raises(UsageError, match="another study"):
        Store(path, "other")
    text = tmp_path / "text"
    text.write_text("no database" * 100)
    with pytest.raises(DataError, match="cannot be used"):
        Store(text, "study")
    with pytest.raises(DataError, match="cannot be used"):
        Store(tmp_path / "no" / "folder", "study")
