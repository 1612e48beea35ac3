"""The memory of decoded pictures: bounded by bytes, most recently used last to go."""

import pytest

from deep_image_compositing.data.memory import Recent


def test_values_are_made_once_while_they_are_held() -> None:
    made = []
    recent: Recent[bytes] = Recent(len, limit=10)

    def make() -> bytes:
        made.append(1)
        return b"1234"

    assert recent.get("a", make) is recent.get("a", make)
    assert len(made) == 1
    assert recent.held == 4


def test_the_longest_unused_goes_first() -> None:
    recent: Recent[bytes] = Recent(len, limit=10)
    for key in "ab":
        recent.get(key, lambda: b"1234")
    recent.get("a", lambda: b"another")  # held: not made again, and younger than b now
    recent.get("c", lambda: b"1234")
    assert recent.held == 8
    assert recent.get("a", lambda: b"new") == b"1234"
    assert recent.get("b", lambda: b"new") == b"new"


def test_what_exceeds_the_limit_is_answered_but_not_kept() -> None:
    recent: Recent[bytes] = Recent(len, limit=3)
    recent.get("small", lambda: b"12")
    assert recent.get("a", lambda: b"1234") == b"1234"
    assert (len(recent), recent.held) == (1, 2)


def test_a_failure_leaves_nothing_behind() -> None:
    recent: Recent[bytes] = Recent(len)

    def fail() -> bytes:
        raise OSError("damaged")

    with pytest.raises(OSError, match="damaged"):
        recent.get("a", fail)
    assert recent.get("a", lambda: b"1") == b"1"
