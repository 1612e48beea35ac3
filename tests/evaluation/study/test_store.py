"""The answers in SQLite: kept as given, by many at once, and by nobody else's study."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation.study.folder import Answer, Store

ABC = ("a", "b", "c")


def test_answers_are_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Store(path, "study") as store:
        ann, bob = store.join("Ann"), store.join()
        store.save(ann, "set-1", ("a", None, None), confirmed=False)
        store.save(bob, "set-1", ABC, confirmed=True)
    with Store(path, "study") as store:
        assert store.people() == [ann, bob]
        assert (ann.name, bob.name) == ("Ann", "")
        assert store.person(ann.token) == ann
        assert store.person("nobody") is None
        assert store.answers(ann) == [Answer(ann.id, "set-1", ("a", None, None), None, None)]
        (answer,) = store.answers(bob)
        assert answer.ranking == answer.draft == ABC
        assert answer.confirmed is not None
        assert len(store.answers()) == 2


def test_an_answer_is_changed_by_confirming_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.sqlite", "study") as store:
        ann = store.join("Ann")
        store.save(ann, "set-1", ABC, confirmed=True)
        store.save(ann, "set-1", ("c", None, None), confirmed=False)
        (answer,) = store.answers()
        assert (answer.draft, answer.ranking) == (("c", None, None), ABC)
        store.save(ann, "set-1", ("c", "b", "a"), confirmed=True)
        (answer,) = store.answers()
        assert answer.draft == answer.ranking == ("c", "b", "a")


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
                store.save(people[i], f"set-{number}", ("a", None, None), confirmed=False)
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
        store._run("UPDATE answers SET ranking = '{}'")
        with pytest.raises(DataError, match="no ranking"):
            store.answers()
