"""Five hundred hostile cases of ``tests.fuzz``, and that it catches what it watches for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest

from tests import fuzz
from tests.hostile import TURNS, warm


@pytest.mark.slow
def test_no_hostile_input_ends_in_a_crash_a_hang_or_a_traceback() -> None:
    outcomes = fuzz.run(range(500), 0, TURNS, warm, workers=2 if (os.cpu_count() or 1) > 1 else 1)
    failed = [fuzz.describe(outcome, 0) for outcome in outcomes if outcome.failed]
    assert not failed, "\n".join(failed)
    results = {(outcome.reader, outcome.result) for outcome in outcomes}
    # A reader that refuses everything, or nothing, is not tried by what it is given.
    assert results == {(reader.__name__, end) for reader in TURNS for end in ("read", "refused")}


def test_a_number_always_makes_the_same_case(tmp_path: Path) -> None:
    def files(seed: int, name: str) -> list[tuple[str, bytes | None]]:
        folder = tmp_path / name
        for number in range(len(TURNS)):
            (folder / str(number)).mkdir(parents=True)
            fuzz.make(number, seed, TURNS, folder / str(number))
        found = sorted(path for path in folder.rglob("*") if not path.is_symlink())
        return [
            (str(path.relative_to(folder)), path.read_bytes() if path.is_file() else None)
            for path in found
        ]

    assert files(7, "first") == files(7, "again") != files(8, "other")


def hangs(rng: Random, folder: Path) -> fuzz.Read:
    return lambda: time.sleep(60)


def computes(rng: Random, folder: Path) -> fuzz.Read:
    return lambda: sum(1 for _ in iter(int, 1))


def fills_memory(rng: Random, folder: Path) -> fuzz.Read:
    return lambda: [bytearray(b"x" * 2**20) for _ in range(2**20)]


def dies(rng: Random, folder: Path) -> fuzz.Read:
    return lambda: os._exit(3)


def raises(rng: Random, folder: Path) -> fuzz.Read:
    return lambda: [][rng.randrange(1)]


def prints(rng: Random, folder: Path) -> fuzz.Read:
    return lambda: os.write(2, b"Traceback (most recent call last):\n  ...\nKeyError\n")


def sound(rng: Random, folder: Path) -> fuzz.Read:
    return lambda: None


def rest() -> None:
    """Nothing to be imported."""


def test_what_a_case_may_not_do_is_caught_and_told() -> None:
    turns = (hangs, computes, fills_memory, dies, raises, prints, sound)
    limits = fuzz.Limits(computing=0.5, waiting=8, memory=2e8)
    told: list[str] = []
    outcomes = fuzz.run(range(len(turns)), 5, turns, rest, limits=limits, say=told.append)
    results = [outcome.result for outcome in outcomes]
    expected = (
        "took 8 s in ", "computed for 0.5 s in test_fuzz.py", "took 0.2 GB in test_fuzz.py",
        "ended the process with 3", "IndexError in no file of ours: list index out of range",
        "printed a traceback: KeyError", "read",
    )  # fmt: skip
    assert all(map(str.startswith, results, expected)), results
    assert len(told) == 6
    assert "reproduce: python tests/fuzz.py --seed 5 --case 4" in told[4]
