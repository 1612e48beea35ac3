"""What is printed cannot move the cursor or begin lines of its own."""

from __future__ import annotations

import logging

import pytest

from deep_image_compositing.messages import printable, progress, show


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("portrait of Zoë – 肖像.jpg", "portrait of Zoë – 肖像.jpg"),
        ("\U0001f468\u200d\U0001f469 और\u200d", "\U0001f468\u200d\U0001f469 और\u200d"),
        ("a\x1b[2Jb\x07\x9b\x7f", r"a\x1b[2Jb\x07\x9b\x7f"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("gpj.\u202egnp", r"gpj.\u202egnp"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
    ],
)
def test_control_characters_are_shown(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printable(text) == shown
    show(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_a_traceback_keeps_its_lines() -> None:
    assert printable("one\n\x1btwo", lines=True) == "one\n\\x1btwo"


def test_without_a_terminal_progress_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress("packing", 9, show=True) as advance:
        for _ in range(9):
            advance(1)
    with progress("packing", 9, show=False) as advance:
        advance(9)
    assert caplog.messages == ["packing: 0 of 9 are done", "packing: 9 of 9 are done"]
