"""The ledger: what is finished is there again, whatever ended the job before."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deep_image_compositing.errors import ImageError
from deep_image_compositing.ledger import Ledger, differences, digest


def test_entries_are_there_again_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    assert Ledger(path).about is None
    ledger = Ledger(path)
    ledger.begin({"seed": 3})
    ledger.add("a", {"error": "dark"})
    ledger.add("b", {"value": 2})
    ledger.add("a", {"value": 1})
    again = Ledger(path)
    assert again.about == {"seed": 3}
    assert again.entries == ledger.entries == {"a": {"value": 1}, "b": {"value": 2}}
    again.begin({"seed": 4})
    assert len(path.read_text().splitlines()) == 3
    assert Ledger(path).entries == again.entries


@pytest.mark.parametrize("cut", [1, 9, 20])
def test_a_torn_line_is_not_done_and_spoils_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "work.jsonl"
    ledger = Ledger(path)
    ledger.begin({})
    ledger.add("a", {"value": 1})
    ledger.add("b", {"value": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    again = Ledger(path)
    again.begin({})
    assert again.entries == {"a": {"value": 1}} or cut == 1  # the end of a line is no loss
    again.add("c", {"value": 3})
    assert {"a", "c"} <= set(Ledger(path).entries)
    path.write_text('[]\n7\n{"key": []}\n' + path.read_text())
    assert {"a", "c"} <= set(Ledger(path).entries)


def test_many_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    ledgers = [Ledger(path) for _ in range(4)]
    ledgers[0].begin({})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ledgers[i % 4].add(f"{i}", {"text": "x" * 5000}), range(80)))
    assert len(Ledger(path).entries) == 80
    ledgers[0].read()
    assert len(ledgers[0].entries) == 80


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "missing" / "work.jsonl")
    with pytest.raises(ImageError, match="does not exist"):
        ledger.begin({})
    with pytest.raises(ImageError, match=r"work\.jsonl could not be written"):
        ledger.add("a", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="cannot be read"):
        Ledger(tmp_path / "folder")


def test_differences_are_those_of_json() -> None:
    before = json.loads(json.dumps({"size": (3, 4), "seed": 1, "old": True}))
    assert differences(before, {"size": (3, 4), "seed": 2}) == {
        "seed": (1, 2),
        "old": (True, None),
    }


def test_a_digest_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert digest(tmp_path / "empty").startswith("e3b0c44298fc1c14")
