"""Making a study: what is rendered, what is kept, and what is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deep_image_compositing.cli import main
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.methods import parse_method
from deep_image_compositing.evaluation.study import make as making
from deep_image_compositing.evaluation.study.folder import ANSWERS, Store, Study, picture_path
from deep_image_compositing.evaluation.study.make import make
from deep_image_compositing.evaluation.testsets import PairFiles
from deep_image_compositing.images import read_image
from tests.conftest import noise
from tests.evaluation.study.made import token

TEXTS = [f"{name}=disc,none,{name}" for name in ("copy_paste", "feather", "alpha")]
METHODS = [parse_method(text) for text in TEXTS]
pytestmark = pytest.mark.usefixtures("stub_stages")


@pytest.fixture
def pairs(save: Callable[..., Path]) -> list[PairFiles]:
    """Three pairs of odd sizes; the last has a mask."""
    mask = np.zeros((45, 33), np.uint8)
    mask[20:] = 255
    return [
        PairFiles("wide", save("a.png", noise(40, 61, 1)), save("b.png", noise(50, 50, 2))),
        PairFiles("small", save("c.png", noise(20, 30, 3)), save("d.png", noise(9, 99, 4))),
        PairFiles(
            "given", save("e.png", noise(45, 33, 5)), save("f.png", noise(45, 33, 6)),
            save("m.png", mask),
        ),
    ]  # fmt: skip


def test_every_picture_is_the_method_s_own(
    tmp_path: Path, pairs: list[PairFiles], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "study"
    study = make(pairs, METHODS, folder, max_side=40)
    assert caplog.text.count("running on") == 1
    assert Study.open(folder) == study
    assert [item.name for item in study.shown] == ["wide", "small", "given"]
    assert [item.size for item in study.sets] == [(26, 40), (20, 30), (40, 29)]
    files = {path.name for path in (folder / "pictures").iterdir()}
    assert files == {f"{name}.webp" for item in study.sets for name in item.tokens()}
    assert len(files) == 3 * 5
    for item, pair in zip(study.sets, pairs, strict=True):
        shown, background = (read_image(path) for path in item.paths(folder)[:2])
        assert shown.size == item.size
        for method in METHODS:
            compositor = Compositor("disc", "none", method.name, device="cpu")
            expected = compositor(shown.pixels, background.pixels, pair.mask).composite_pixels
            made = read_image(picture_path(folder, token(item, method.name))).pixels
            assert np.array_equal(made, expected.permute(1, 2, 0).numpy())
    small = read_image(picture_path(folder, study.sets[1].foreground)).pixels
    assert np.array_equal(small, noise(20, 30, 3)), "what is small enough stays as it was"


def test_names_follow_from_the_seed_or_from_nothing(
    tmp_path: Path, pairs: list[PairFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_render", lambda *_: iter(()))
    ids = [
        tuple(make(pairs[:1], METHODS, tmp_path / name, seed=seed).sets[0].tokens())
        for name, seed in (("one", 5), ("two", 5), ("three", 6), ("four", None), ("five", None))
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert all(len(name) == 32 for names in ids for name in names)


def test_a_stopped_run_goes_on_and_keeps_what_is_done(
    tmp_path: Path, pairs: list[PairFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    calls = []
    call = Compositor.__call__

    def stopping(self: Compositor, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Compositor, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(pairs, METHODS, folder, device="cpu")
    with pytest.raises(UsageError, match="not finished"):
        Study.open(folder)
    done = {path: path.stat().st_mtime_ns for path in (folder / "pictures").iterdir()}
    assert len(done) == 6 + 4
    study = make(pairs, METHODS, folder, device="cpu")
    assert len(calls) == 5 + 5
    assert Study.open(folder) == study
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    make(pairs, METHODS, folder, device="cpu")
    assert len(calls) == 10


def test_what_fails_leaves_its_set_out_and_no_other(
    tmp_path: Path, pairs: list[PairFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    call = Compositor.__call__
    broken = True

    def failing(self: Compositor, foreground: Any, *args: Any, **kwargs: Any) -> Any:
        result = call(self, foreground, *args, **kwargs)
        if broken and result.size == (20, 30) and "feather" in type(self.fuser).__name__.lower():
            raise ValueError("out of luck")
        return result

    monkeypatch.setattr(Compositor, "__call__", failing)
    pairs[0].background.write_bytes(b"no picture")
    study = make(pairs, METHODS, folder, device="cpu")
    wide, small, given = study.sets
    assert len(wide.left_out) == 1
    assert str(pairs[0].background) in wide.left_out[0]
    assert small.left_out == ["feather: ValueError: out of luck"]
    assert Study.open(folder).shown == (given,)
    # Once the reason is gone, the same call makes the rest.
    broken = False
    study = make(pairs, METHODS, folder, device="cpu")
    assert [item.name for item in study.shown] == ["small", "given"]
    assert Study.open(folder) == study


def test_a_study_with_answers_is_never_touched(tmp_path: Path, pairs: list[PairFiles]) -> None:
    folder = tmp_path / "study"
    study = make(pairs, METHODS, folder, device="cpu")
    with Store(folder / ANSWERS, study.id):
        pass
    make(pairs, METHODS, folder, device="cpu")  # nobody has come yet
    with Store(folder / ANSWERS, study.id) as store:
        store.join("Ann")
    before = {path: path.read_bytes() for path in (folder / "pictures").iterdir()}
    with pytest.raises(UsageError, match="stays as it is"):
        make(pairs, METHODS, folder, device="cpu")
    with pytest.raises(UsageError, match="stays as it is"):
        make(pairs[:1], METHODS, folder, device="cpu")
    assert Study.open(folder) == study
    assert before == {path: path.read_bytes() for path in (folder / "pictures").iterdir()}


def test_another_study_s_folder_is_refused(
    tmp_path: Path, pairs: list[PairFiles], save: Callable[..., Path]
) -> None:
    folder = tmp_path / "study"
    make(pairs[:1], METHODS, folder, device="cpu")
    other = [*METHODS[:2], parse_method("alpha=disc,none,laplacian")]
    for given, methods, options, reason in (
        (pairs[:1], other, {}, "other methods"),
        (pairs[:2], METHODS, {}, "other pairs"),
        (pairs[:1], METHODS, {"max_side": 500}, "other max_side"),
        (pairs[:1], METHODS, {"seed": 1}, "other seed"),
    ):
        with pytest.raises(UsageError, match=reason):
            make(given, methods, folder, device="cpu", **options)
    save("full/letter.png", noise(4, 4))
    with pytest.raises(UsageError, match="not empty"):
        make(pairs, METHODS, tmp_path / "full", device="cpu")


def test_calls_that_cannot_be_are_refused(tmp_path: Path, pairs: list[PairFiles]) -> None:
    for given, methods, options, reason in (
        (pairs, METHODS[:2], {}, "at least 3 methods, got 2"),
        ([], METHODS, {}, "at least one pair"),
        (pairs, METHODS, {"max_side": 8}, "at least 32 pixels, got 8"),
    ):
        with pytest.raises(UsageError, match=reason):
            make(given, methods, tmp_path / "study", **options)
    assert not (tmp_path / "study").exists()


def test_the_command_reports_what_is_left_out(
    tmp_path: Path, pairs: list[PairFiles], capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "pairs.tsv"
    rows = [f"{pair.name}\t{pair.foreground}\t{pair.background}\n" for pair in pairs[:2]]
    table.write_text("name\tforeground\tbackground\n" + "".join(rows))
    methods = [f"--method={text}" for text in TEXTS]
    command = ["study", "make", str(table), *methods, "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "study")]) == 0
    assert "2 of 2 sets, 3 methods" in capsys.readouterr().out
    Image.new("RGB", (30, 20)).save(pairs[1].foreground)
    pairs[1].background.write_bytes(b"no picture")
    assert main([*command, "--out", str(tmp_path / "other")]) == 1
    out, err = capsys.readouterr()
    assert "1 of 2 sets" in out
    assert f"small: {pairs[1].background}" in err
    assert main([*command, "--out", str(tmp_path / "study")]) == 2
    assert "other pairs" in capsys.readouterr().err
