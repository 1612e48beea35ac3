"""The command ``evaluate``: what it writes and says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from deep_image_compositing.cli import _parse, main
from deep_image_compositing.commands import evaluate
from tests.data import trees
from tests.evaluation import tiny
from tests.evaluation.tiny import Odd, Tiny


@pytest.fixture
def prepared(own_registry: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the tiny set standing for ``syntest``, and stages that are known by heart."""
    from deep_image_compositing.evaluation import testsets

    tiny.register()
    monkeypatch.setattr(testsets, "open_test_set", lambda name, **options: Tiny(**options))
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLAIN = ["--method", "plain=disc,none,plain", "--accelerator", "cpu", "--out", "out"]


def test_it_writes_a_report_and_says_where(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", *PLAIN, "--method", "bright=disc,none,brighter", "--reference", "plain"]
    assert main([*given, "--sheets", "1"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("wrote out/report.html\n")
    table = [re.sub(r"\W+", " ", line).strip() for line in said.out.splitlines()]
    assert [line.split()[0] for line in table if line[:5] in ("plain", "brigh")] == [
        "plain",
        "bright",
    ]
    assert "3 pictures are too few to compare plain with other methods." in said.out
    assert "plain: 6 of 6" not in said.err  # there are twelve
    assert "12 of 12 are done" in said.err
    report = json.loads((prepared / "out" / "report.json").read_text())
    assert report["reference"] == "plain"
    assert len(report["records"]) == 12
    assert len(list((prepared / "out" / "sheets").rglob("*.jpg"))) == 2
    assert (prepared / "out" / "report.html").is_file()


def test_harmonizers_alone_are_measured_on_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trees.pairs(tmp_path / "photographs")
    given = ["--methods", "none,white_balance", "--photographs", "photographs", "--out", "out"]
    assert main(["evaluate", *given, "--accelerator", "cpu", "--no-sheets"]) == 0
    said = capsys.readouterr().out
    assert "4 pictures of harmonization" in said
    assert "Published elsewhere, on other data" in said
    table = [re.sub(r"[^\w.]+", " ", line).split() for line in said.splitlines()]
    (none,) = (row for row in table if row[:1] == ["none"])
    assert none[2] == "0.00"  # gains
    assert none[-1] == "0.00"  # and changes nothing
    (found,) = (row for row in table if row[:1] == ["white_balance"])
    assert len(found) == len(none)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["summary"]["recolored"]["differences"]["measure"] == "psnr"


def test_all_that_fails_is_an_error(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["evaluate", "--method", "odd=disc,none,odd(fail=1)", *PLAIN[2:], "--no-sheets"]
    assert main(given) == 1
    assert "odd failed on 6 of 6 composites: no more" in capsys.readouterr().out
    assert main([*given, *PLAIN[:2]]) == 0


def test_ctrl_c_says_how_to_go_on(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["evaluate", "--method", "odd=disc,none,odd(fail=4, kind=stop)", *PLAIN[2:]]
    assert main(given) == 130
    said = capsys.readouterr().err
    assert "finished results are kept in out; run the same command to continue" in said
    assert said.count("interrupted") == 1
    Odd.calls = -100
    assert main(given) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "papr"], "no method and no set of methods called 'papr'"),
        (["--methods", "fast,-knn"], "'-knn' leaves out what was not chosen"),
        (["--method", "odd=pyramid,none"], "a method is NAME=SEGMENTER,REFINER,FUSER"),
        (["--method", "a=pyramid,none,copy_past"], "no fuser called 'copy_past'; did you mean"),
        (["--methods", "fast", "--reference", "knn"], "--reference is one of the methods"),
        (["--mattes", "m"], "there are no backgrounds"),
        (["--mattes", "m", "--backgrounds", "b"], "no folder of training pairs at m"),
        (["--test-set", "taught"], "'taught' needs the option 'triplets'"),
        (["--test-set", "folders"], "'folders' needs the option 'folder'"),
        (
            ["--test-set", "folders", "--folder", "f", "--seed", "1"],
            "the test set 'folders' takes no option 'seed'",
        ),
        (["--test-set", "imagenet"], "invalid choice: 'imagenet'"),
        (["--methods", "harmonize,-color_map"], "needs the option 'photographs'"),
        (["--method", "mine=reinhard", "--photographs", "p"], "no folder of training pairs at p"),
        (
            ["--method", "mine=reinhard", "--photographs", "f", "--mattes", "f"],
            "'harmonization' takes no option 'mattes'",
        ),
        (["--method", "mine=reinhard"], "'harmonization' needs the option 'photographs'"),
        (["--method", "mine=reinhard", "--test-set", "syntest"], "is for whole methods, which"),
        (["--strength", "1"], "'syntest' takes no option 'strength'"),
        (
            ["--grades", "exact,awful"],
            "the grades here are some of exact, rough, bad, none, got",
        ),
        (["--samples", "0"], "samples must be at least 1"),
        (["--devices", "0"], "devices must be at least 1"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--sheets", "-1"], "sheets must be at least 0"),
        (["--accelerator", "abacus"], "--accelerator is not available"),
    ],
)
def test_what_cannot_be_right_is_told_before_anything_is_written(
    given: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "f").mkdir()
    method = [] if any(x.startswith("--method") for x in given) else ["--methods", "copy_paste"]
    out = [] if "--out" in given else ["--out", "out"]
    assert main(["evaluate", *method, *out, *given]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "file"]


def test_files_that_do_not_fit_are_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for given, message in (
        (["--method", "a=pyramid,none,multi_stream(weights=gone.ckpt)"], "no weights 'gone.ckpt'"),
        (["--methods", "copy_paste", "--lpips-weights", "gone.pth"], "there is no file gone.pth"),
        (["--methods", "copy_paste", "--out", "file"], "folder file cannot be made: File exists"),
    ):
        assert main(["evaluate", "--out", "out", *given]) == 1
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_extra_is_told_before_anything_is_written(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert main(["evaluate", *PLAIN]) == 1
    said = capsys.readouterr().err
    assert "evaluate needs scipy" in said
    assert "deep-image-compositing[evaluate]" in said
    assert not list(prepared.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared.chmod(0o500)
    assert main(["evaluate", *PLAIN]) == 1
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--samples", "3", "--size", "64"], {"samples": 3, "size": 64}),
        (["--split", "all"], {"split": None}),
        (["--hold-out", "0.2"], {"hold_out": 0.2}),
        (["--test-set", "taught", "--triplets", "a{0..3}.tar"], {"triplets": ["a{0..3}.tar"]}),
        (["--test-set", "folders", "--folder", "."], {"folder": "."}),
        (["--test-set", "folders", "--folder", "~"], {"folder": "."}),
        (["--photographs", "~/docs"], {"photographs": ["./docs"]}),
        (
            ["--methods", "harmonize", "--photographs", ".", "--strength", "0.5"],
            {"photographs": ["."], "strength": 0.5},
        ),
    ],
)
def test_test_sets_get_their_options(
    given: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", ".")
    options = _parse(["evaluate", "--out", "out", *given])
    assert evaluate._test_set_options(options) == expected
