"""The memory of decoded pictures: bounded by bytes, most recently used last to go."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deep_image_compositing.data import folders, items, memory
from deep_image_compositing.data.memory import Recent


def test_values_are_made_once_while_they_are_held() -> None:
    made = []
    recent = Recent(limit=10)

    def make() -> bytes:
        made.append(1)
        return b"1234"

    assert recent.get("a", make, len) is recent.get("a", make, len)
    assert len(made) == 1
    assert recent.held == 4


def test_the_longest_unused_goes_first() -> None:
    recent = Recent(limit=10)
    for key in "ab":
        recent.get(key, lambda: b"1234", len)
    recent.get("a", lambda: b"another", len)  # held: not made again, and younger than b now
    recent.get("c", lambda: b"1234", len)
    assert recent.held == 8
    assert recent.get("a", lambda: b"new", len) == b"1234"
    assert recent.get("b", lambda: b"new", len) == b"new"


def test_what_exceeds_the_limit_is_answered_but_not_kept() -> None:
    recent = Recent(limit=3)
    recent.get("small", lambda: b"12", len)
    assert recent.get("a", lambda: b"1234", len) == b"1234"
    assert (len(recent), recent.held) == (1, 2)


def test_a_failure_leaves_nothing_behind() -> None:
    recent = Recent()

    def fail() -> bytes:
        raise OSError("damaged")

    with pytest.raises(OSError, match="damaged"):
        recent.get("a", fail, len)
    assert recent.get("a", lambda: b"1", len) == b"1"


def test_pictures_of_plain_folders_stay_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Recent()
    for module in (folders, items):
        monkeypatch.setattr(module, "DECODED", held)
    assert memory.DECODED is not held
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(tmp_path / "a.alpha.png")
    Image.fromarray(rng.integers(0, 256, (8, 9, 4), np.uint8)).save(tmp_path / "cut.png")
    pair = folders.Pair(tmp_path / "a.png", tmp_path / "a.alpha.png")
    assert folders.read_rgb(pair.image) is folders.read_rgb(pair.image)
    assert held.held == 4 * 20 * 30
    assert folders.read_pair(pair)[1] is folders.read_pair(pair)[1]
    assert held.held == (4 + 1) * 20 * 30
    assert items._read_color(pair) is items._read_color(pair)
    assert held.held == (4 + 1 + 4) * 20 * 30
    cutout = folders.Pair(tmp_path / "cut.png", None)
    assert items._read_color(cutout) is folders.read_pair(cutout)[0]
    assert held.held == 9 * 20 * 30 + (4 + 1) * 8 * 9
    assert len(held) == 4
