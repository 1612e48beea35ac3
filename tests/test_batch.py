"""Folders of photographs: read ahead, written behind, resumed, stopped and full disks."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deep_image_compositing import batch
from deep_image_compositing.batch import RECORD, Job, Outcome, composite_all
from deep_image_compositing.cli import main
from deep_image_compositing.composite import Composite
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.images import decoding, read_image
from deep_image_compositing.registry import register
from tests import photographs, runs
from tests.conftest import PlainFuser, disc, noise
from tests.memory import fit_growth, resident

NAMES = ["a", "b", "c", "d", "e"]


def ellipse(image: Tensor) -> Tensor:
    return disc(image.shape[-2], image.shape[-1])


def make(device: str = "cpu", segmenter: Any = ellipse, **kwargs: Any) -> Compositor:
    return Compositor(segmenter, "none", "alpha", device=device, **kwargs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five small photographs in ``in`` and an empty folder ``out``."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    for number, name in enumerate(NAMES):
        Image.fromarray(noise(20 + number, 30, number)).save(tmp_path / "in" / f"{name}.png")
    Image.fromarray(noise(24, 24, 99)).save(tmp_path / "back.png")
    return tmp_path


def jobs(folder: Path, **more: str) -> list[Job]:
    found = []
    for path in sorted((folder / "in").iterdir()):
        outputs = {"path": folder / "out" / f"{path.stem}.png"}
        outputs |= {key: folder / "out" / f"{path.stem}.{text}.png" for key, text in more.items()}
        found.append(Job(path, outputs))
    return found


def run(folder: Path, given: list[Job] | None = None, **kwargs: Any) -> Outcome:
    options = {"make": make, "settings": {}, "device": "cpu", **kwargs}
    background = options.pop("background", folder / "back.png")
    outcome = composite_all(
        jobs(folder) if given is None else given,
        background,
        record=folder / "out" / RECORD,
        **options,
    )
    assert outcome is not None
    return outcome


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in ``out`` but the record."""
    found = (folder / "out").iterdir()
    return {path.name: path.read_bytes() for path in found if path.name != RECORD}


# What is made


def test_each_composite_is_what_the_compositor_makes(folder: Path) -> None:
    assert run(folder, jobs(folder, alpha="alpha")) == Outcome(5, 0, {})
    assert set(files(folder)) == {f"{n}{k}.png" for n in NAMES for k in ("", ".alpha")}
    background = read_image(folder / "back.png")
    for name in NAMES:
        composite = make()(folder / "in" / f"{name}.png", background)
        composite.save(folder / "again.png", alpha=folder / "alpha.png")
        written = folder / "out" / f"{name}.png"
        assert written.read_bytes() == (folder / "again.png").read_bytes()
        alpha = written.with_suffix(".alpha.png")
        assert alpha.read_bytes() == (folder / "alpha.png").read_bytes()


def test_masks_placement_and_sides_are_passed_on(folder: Path) -> None:
    mask = folder / "mask.png"
    Image.fromarray(photographs.disk(24, 30)).save(mask)
    job = Job(folder / "in" / "e.png", {"path": folder / "out" / "e.png"}, mask)
    placed: dict[str, Any] = {"frame": "background", "scale": 0.5, "position": (0.5, 1.0)}
    run(folder, [job], **placed)
    expected = make()(job.foreground, folder / "back.png", mask, **placed)
    np.testing.assert_array_equal(
        read_image(folder / "out" / "e.png").pixels,
        expected.composite_pixels.permute(1, 2, 0).numpy(),
    )
    Image.fromarray(noise(80, 60)).save(folder / "in" / "a.png")
    run(folder, make=lambda device: make(device, max_side=40))
    assert read_image(folder / "out" / "a.png").size == (40, 30)
    assert read_image(folder / "out" / "b.png").size == (21, 30)


def test_the_background_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_ = decoding._opened
    monkeypatch.setattr(
        decoding, "_opened", lambda *given: opened.append(given[1]) or open_(*given)
    )
    run(folder)
    assert opened.count(str(folder / "back.png")) == 1
    assert len(opened) == 6


def test_reading_and_writing_go_on_meanwhile_and_never_far(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        Image.fromarray(noise(20, 30, number)).save(folder / "in" / f"more{number}.png")
    counts = {"read": 0, "made": 0, "written": 0}
    ahead, behind, in_main = [], [], []
    save, main_thread = Composite.save, threading.main_thread()

    def read(path: Any, **kwargs: Any) -> Any:
        if path is background:
            return path
        counts["read"] += 1
        ahead.append(counts["read"] - counts["made"])
        in_main.append(threading.current_thread() is main_thread)
        return read_image(path, **kwargs)

    def slow(image: Tensor) -> Tensor:
        time.sleep(0.02)
        counts["made"] += 1
        behind.append(counts["made"] - counts["written"])
        return ellipse(image)

    def write(composite: Composite, *args: Any, **kwargs: Any) -> None:
        in_main.append(threading.current_thread() is main_thread)
        time.sleep(0.05)
        save(composite, *args, **kwargs)
        counts["written"] += 1

    background = read_image(folder / "back.png")
    monkeypatch.setattr(batch, "read_image", read)
    monkeypatch.setattr(Composite, "save", write)
    assert run(folder, make=lambda device: make(device, slow), background=background).made == 17
    assert not any(in_main)
    assert 2 <= max(ahead) <= batch.AHEAD + 2  # one is in the stages, one is asked for
    assert 2 <= max(behind) <= batch.AHEAD + 1  # one has just been made


def test_each_failure_is_told_of_its_own_photograph(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "in" / "b.png").write_bytes(b"not a picture")
    save = Composite.save

    def write(composite: Composite, path: Path, **more: Any) -> None:
        if path.name == "d.png":
            raise OSError(errno.EIO, "the disk is odd")
        save(composite, path, **more)

    def choosy(image: Tensor) -> Tensor:
        if image.shape[-2] == 22:
            raise RuntimeError("not this one")
        return ellipse(image)

    monkeypatch.setattr(Composite, "save", write)
    outcome = run(folder, make=lambda device: make(device, choosy))
    assert (outcome.made, list(outcome.failures)) == (2, [1, 2, 3])
    assert "b.png is not an image" in outcome.failures[1]
    assert outcome.failures[2] == "RuntimeError: not this one"
    assert "the disk is odd" in outcome.failures[3]
    assert set(files(folder)) == {"a.png", "e.png"}


def test_a_bad_mask_is_a_failure_and_not_no_mask(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"not a picture")
    Image.fromarray(photographs.disk(90, 30)).save(folder / "tall.png")
    given = jobs(folder)
    given[1] = Job(given[1].foreground, given[1].outputs, folder / "bad.png")
    given[2] = Job(given[2].foreground, given[2].outputs, folder / "tall.png")
    outcome = run(folder, given)
    assert (outcome.made, list(outcome.failures)) == (3, [1, 2])
    assert "bad.png is not an image" in outcome.failures[1]
    assert "aspect" in outcome.failures[2]
    assert set(files(folder)) == {"a.png", "d.png", "e.png"}


def test_nothing_to_do_and_wrong_arguments(folder: Path) -> None:
    assert run(folder, []) == Outcome(0, 0, {})
    for options, message in (
        ({"devices": 0}, "devices must be at least 1"),
        ({"accelerator": "gpu"}, "the device cpu and the accelerator gpu exclude each other"),
        ({"device": "cuda:1", "devices": 2}, "the device cuda:1 is one, but 2 devices"),
        ({"devices": -1}, "--devices.* is not available"),
        ({"position": "left"}, "position must be two numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            run(folder, **options)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="missing"):
        run(folder, background=folder / "missing.png")
    assert files(folder) == {}


# Going on


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photographs that were composited."""
    made: list[str] = []
    call = Compositor.__call__

    def counted(self: Compositor, foreground: Any, *args: Any, **kwargs: Any) -> Composite:
        made.append(Path(foreground.name).stem)
        return call(self, foreground, *args, **kwargs)

    monkeypatch.setattr(Compositor, "__call__", counted)
    return made


def test_what_is_done_is_not_done_again(folder: Path, calls: list[str]) -> None:
    run(folder)
    before = files(folder)
    assert run(folder, resume=True) == Outcome(0, 5, {})
    assert calls == NAMES
    Image.fromarray(noise(20, 30, 50)).save(folder / "in" / "f.png")
    (folder / "out" / "c.png").unlink()
    assert run(folder, resume=True) == Outcome(2, 4, {})
    assert calls[5:] == ["c", "f"]
    after = files(folder)
    assert {name: after[name] for name in before} == before
    run(folder)
    assert len(calls) == 13  # without resume, all anew
    assert len((folder / "out" / RECORD).read_text().splitlines()) == 1 + 6 + 6
    run(folder, resume=True)
    assert len((folder / "out" / RECORD).read_text().splitlines()) == 1 + 6


def test_what_one_composite_was_made_of_counts(folder: Path, calls: list[str]) -> None:
    run(folder)
    for change in ("output", "record", "photograph"):
        expected, written, record = files(folder), folder / "out" / "b.png", folder / "out" / RECORD
        if change == "output":
            Image.fromarray(noise(21, 30, 77)).save(written)
        elif change == "record":  # a line of it is torn
            lines = record.read_text().splitlines(keepends=True)
            torn = lines.pop(next(i for i, line in enumerate(lines) if '"b.png"' in line))
            record.write_text("".join([*lines, torn[: len(torn) // 2]]))
        else:
            path = folder / "in" / "b.png"
            found = path.stat()
            Image.fromarray(noise(21, 30, 77)).save(path)
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # its content counts
        calls.clear()
        assert run(folder, resume=True) == Outcome(1, 4, {}), change
        assert calls == ["b"]
        assert run(folder, resume=True) == Outcome(0, 5, {})
        assert (files(folder) == expected) is (change != "photograph")


def test_what_all_were_made_with_counts(folder: Path) -> None:
    run(folder)
    for changed in (
        {"settings": {"stages": "others"}},
        {"frame": "background"},
        {"frame": "background", "scale": 0.5},
        {"background": noise(24, 24, 98)},
        {},  # they are the others' now
    ):
        assert run(folder, resume=True, **changed) == Outcome(5, 0, {}), changed


def test_masks_and_further_outputs_count(folder: Path, calls: list[str]) -> None:
    run(folder)
    assert run(folder, jobs(folder, cutout="cut"), resume=True).made == 5
    assert run(folder, resume=True) == Outcome(0, 5, {})  # what is there besides does not matter
    mask = folder / "mask.png"
    masked = [Job(job.foreground, job.outputs, mask) for job in jobs(folder)[4:]]
    for pixels in (photographs.disk(24, 30), 255 - photographs.disk(24, 30)):
        Image.fromarray(pixels).save(mask)
        assert run(folder, masked, resume=True) == Outcome(1, 0, {})
        assert run(folder, masked, resume=True) == Outcome(0, 1, {})
    mask.unlink()  # which is not the same as none
    assert "mask.png does not exist" in run(folder, masked, resume=True).failures[0]


def test_a_folder_may_be_moved_and_a_record_be_none(folder: Path) -> None:
    run(folder)
    moved = folder / "moved"
    moved.mkdir()
    for name in ("in", "out", "back.png"):
        (folder / name).rename(moved / name)
    assert run(moved, resume=True) == Outcome(0, 5, {})
    record = moved / "out" / RECORD
    record.write_bytes(b'\xff\xfe\n[]\n{}\n"text"\n{"composite": 1, "files": 3}\n')
    assert run(moved, resume=True) == Outcome(5, 0, {})
    record.unlink()
    record.mkdir()
    with pytest.raises(ImageError, match=re.escape(f"{record} cannot be read")):
        run(moved)


def test_leftovers_are_cleared_away(folder: Path) -> None:
    asides = [".0123456789abcdef.part.png", ".0123456789abcdef.part"]
    others = [".part.png", "0123456789abcdef.part.png", ".hidden"]
    for name in (*asides, *others):
        (folder / "out" / name).write_text("")
    run(folder)
    assert set(asides) <= set(files(folder))
    run(folder, resume=True)
    assert not set(asides) & set(files(folder))
    assert set(others) <= set(files(folder))


# Faults


def test_a_full_disk_ends_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "c.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ImageError, match=r"c\.png could not .*: the disk is full.*--resume"):
            run(folder)
    assert {"a.png", "b.png"} <= set(files(folder)) < {f"{name}.png" for name in NAMES}
    left = len(files(folder))
    assert run(folder, resume=True) == Outcome(5 - left, left, {})
    assert calls[:3] == NAMES[:3]


@pytest.fixture
def little_room(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 400 kB."""
    place = tmp_path / "little"
    place.mkdir()
    given = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run(given, capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(little_room: Path, folder: Path) -> None:
    for number, name in enumerate(NAMES):
        Image.fromarray(noise(200, 200, number)).save(folder / "in" / f"{name}.png")  # 120 kB
    given = [Job(job.foreground, {"path": little_room / job.outputs["path"].name})
             for job in jobs(folder)]  # fmt: skip
    options = {"make": make, "settings": {}, "device": "cpu", "record": little_room / RECORD}
    with pytest.raises(ImageError, match="the disk is full"):
        composite_all(given, folder / "back.png", **options)  # type: ignore[arg-type]
    left = sorted(path.name for path in little_room.iterdir() if path.name != RECORD)
    assert left
    assert set(left) < {f"{name}.png" for name in NAMES}
    for name in left:
        assert read_image(little_room / name).size == (200, 200)
    subprocess.run(["mount", "-o", "remount,size=2m", str(little_room)], check=True)
    outcome = composite_all(given, folder / "back.png", resume=True, **options)  # type: ignore[arg-type]
    assert outcome == Outcome(5 - len(left), len(left), {})


def stop_at(number: int, how: Callable[[], None]) -> Callable[[str], Compositor]:
    """A compositor whose segmenter is interrupted at one photograph, the first time."""
    seen = [0]

    def segment(image: Tensor) -> Tensor:
        seen[0] += 1
        if seen[0] == number:
            how()
        return ellipse(image)

    return lambda device: make(device, segment)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_what_is_told_to_stop_keeps_what_is_finished(
    folder: Path, caplog: pytest.LogCaptureFixture, number: int, kind: type[BaseException]
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(kind):
        run(folder, make=stop_at(3, lambda: os.kill(os.getpid(), number)))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert set(files(folder)) == {"a.png", "b.png"}
    assert caplog.text.count("run the same command with --resume") == 1
    assert not batch.writing()
    assert run(folder, resume=True) == Outcome(3, 2, {})


def test_told_twice_it_does_not_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, save = threading.Event(), Composite.save

    def hang(composite: Composite, path: Path, **more: Any) -> None:
        go_on.wait()
        save(composite, path, **more)

    def twice() -> None:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Composite, "save", hang)
    with pytest.raises(KeyboardInterrupt):
        run(folder, make=stop_at(2, twice))
    assert batch.writing()
    assert files(folder) == {}
    go_on.set()
    while batch.writing():
        time.sleep(0.01)


# On the command line


STUBS = ["--segmenter", "disc", "--refiner", "none", "--fuser", "plain", "--device", "cpu"]


def arguments(folder: Path, *more: str) -> list[str]:
    given = ["composite", str(folder / "in"), str(folder / "back.png"), "-o", str(folder / "out")]
    return [*given, *STUBS, *more]


@pytest.mark.usefixtures("stub_stages")
def test_the_command_goes_on_and_debug_shows_tracebacks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in" / "b.png").write_bytes(b"not a picture")
    for debug, count in (([], 0), (["--debug"], 1)):
        assert main(arguments(folder, "--resume", *debug)) == 1
        said = capsys.readouterr().err
        assert "b.png is not an image" in said
        assert (said.count("errors.ImageError: "), "Traceback" in said) == (count, bool(count))
    Image.fromarray(noise(21, 30, 1)).save(folder / "in" / "b.png")
    assert main(arguments(folder, "--resume", "--max-pixels", "10000")) == 0
    assert "wrote 1 of 5 composites" in (said := capsys.readouterr().out)
    assert ", 4 already there (" in said
    for option in (
        ["--work-side", "64"],
        ["--max-side", "32"],
        ["--harmonizer", "reinhard"],
        ["--harmonizer", "reinhard", "--harmonize-strength", "0.4"],
        ["--segmenter-option", "softness=0.2"],
        ["--fuser", "alpha"],
        ["--save-cutout", str(folder / "cutouts")],
    ):
        assert main(arguments(folder, "--resume", *option)) == 0
        assert "wrote 5 of 5 composites" in capsys.readouterr().out, option


def test_changed_weights_count(
    stub_stages: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @register("refiner", "from-file", description="")
    def refiner(weights: str) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda image, mask: mask

    path = folder / "weights.bin"
    given = arguments(folder, "--resume", "--refiner", "from-file")
    given += ["--refiner-option", f"weights={path}"]
    for content, made in ((b"one", 5), (b"one", 0), (b"two", 5)):
        path.write_bytes(content)
        assert main(given) == 0
        assert f"wrote {made} of 5 composites" in capsys.readouterr().out


def test_the_command_says_how_to_go_on(
    stub_stages: None, folder: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Stop(PlainFuser):
        def forward(self, *given: Tensor) -> Tensor:
            raise KeyboardInterrupt

    register("fuser", "stop", description="")(Stop)
    assert main(arguments(folder, "--fuser", "stop")) == 130
    said = capsys.readouterr().err
    assert said.count("--resume") == 1
    assert said.endswith("deep-image-compositing: interrupted\n")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert main(arguments(folder)) == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1


@pytest.mark.usefixtures("stub_stages")
def test_what_a_folder_is_told_is_not_for_one_photograph_and_none_shares_a_composite(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["composite", str(folder / "in" / "a.png"), str(folder / "back.png"), *STUBS]
    given += ["-o", str(folder / "out" / "a.png")]
    for option in (["--resume"], ["--devices", "1"], ["--accelerator", "cpu"]):
        assert main([*given, *option]) == 2
        assert f"{option[0]} is for a folder" in capsys.readouterr().err
    for name in ("a.jpg", "a.jpg.webp"):
        shutil.copy(folder / "in" / "a.png", folder / "in" / name)
    assert main(arguments(folder)) == 2
    assert "a.jpg.png is also an input or another output" in capsys.readouterr().err
    assert files(folder) == {}


# Processes


def fill(
    folder: Path, count: int, bad: Iterable[int] = (), size: tuple[int, int] = (150, 200)
) -> list[str]:
    """Put ``count`` photographs, of seven kinds, in the place of those that are there.

    Gives the arguments that composite them by a mask that is the same for all.
    """
    for path in (folder / "in").iterdir():
        path.unlink()
    kinds = [photographs.encode(noise(*size, kind)) for kind in range(7)]
    for number in range(count):
        data = b"not a picture" if number in bad else kinds[number % 7]
        (folder / "in" / f"{number:04}.png").write_bytes(data)
    Image.fromarray(photographs.disk(*size)).save(folder / "mask.png")
    return [
        "composite", str(folder / "in"), str(folder / "back.png"), "-o", str(folder / "out"),
        "--mask", str(folder / "mask.png"), "--refiner", "none", "--fuser", "alpha",
        "--device", "cpu",
    ]  # fmt: skip


def stop(folder: Path, process: runs.Process, pause: float = 0.0) -> list[Path]:
    """Stop two processes when they have made some composites; gives these, which are whole."""
    out = folder / "out"
    runs.wait_until(lambda: len(list(out.glob("[!.]*.png"))) >= 4, process)
    time.sleep(pause)
    process.send_signal(signal.SIGINT)  # the first process alone; from a terminal, all of them
    said = runs.finish(process)
    assert process.returncode == 130, said
    assert said.count("--resume") == 1
    assert list(out.glob(".*")) == []
    found = list(out.glob("*.png"))
    assert len(found) < len(list((folder / "in").iterdir()))
    assert all(read_image(path).size == (150, 200) for path in found)
    assert len((out / RECORD).read_text().splitlines()) == 1 + len(found)
    return found


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out, before = [*fill(folder, 30), "--resume"], folder / "out", 0
    for _ in range(2):
        process = runs.start(given)
        least = before + 3
        runs.wait_until(lambda least=least: len(list(out.glob("[!.]*.png"))) >= least, process)
        runs.kill(process)
        found = list(out.glob("[!.]*.png"))
        assert all(read_image(path).size == (150, 200) for path in found)
        before = len(found)
    assert main(given) == 0
    made, kept = map(
        int, re.findall(r"wrote (\d+) of 30 .*, (\d+) already there", capsys.readouterr().out)[0]
    )
    assert made + kept == 30
    assert before - 4 <= kept <= before  # a few were finished, and not noted any more
    assert len(list(out.iterdir())) == 31


@pytest.mark.slow
def test_two_processes_are_stopped_together_and_make_each_once(folder: Path) -> None:
    given = [*fill(folder, 300, bad=[3]), "--devices", "2", "--resume"]
    made = len(stop(folder, runs.start(given)))
    process = runs.start(given)
    said = runs.finish(process)
    assert process.returncode == 1, said
    assert said.count(f"wrote {299 - made} of 300 composites to") == 1, said
    assert f", {made} already there" in said
    assert said.count("error: 1 of 300 failed:") == 1
    assert said.count("0003.png is not an image") == 1
    result = make()(folder / "in" / "0000.png", folder / "back.png", folder / "mask.png")
    result.save(folder / "alone.png")
    found = files(folder)
    assert len(found) == 299
    assert found["0000.png"] == found["0007.png"] == (folder / "alone.png").read_bytes()
    lines = (folder / "out" / RECORD).read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in lines[1:]) == sorted(found)


def test_processes_wait_for_each_other_on_their_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a run, when Lightning has moved the module to the CPU."""
    given: list[Any] = []
    done = SimpleNamespace(is_completed=lambda: True, wait=lambda: None)
    monkeypatch.setattr(torch.distributed, "barrier", lambda **k: given.append(k) or done)
    for device, ids in (("cuda:1", [1]), ("cpu", None)):
        strategy = SimpleNamespace(root_device=torch.device(device))
        run: Any = SimpleNamespace(trainer=SimpleNamespace(strategy=strategy))
        batch._Run._wait_for_all(run)
        assert given.pop() == {"async_op": True, "device_ids": ids}


@pytest.mark.slow
def test_a_process_that_waits_for_another_is_stopped_with_it(folder: Path) -> None:
    given = fill(folder, 300, bad=range(1, 300, 2))  # the second process has soon done its share
    stop(folder, runs.start([*given, "--devices", "2"]), 0.3)


# Memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(folder: Path) -> None:
    most = 600
    fill(folder, most, size=(48, 64))
    given = jobs(folder)
    for job in given:  # a path keeps its text once it was asked for it
        str(job.foreground), str(job.outputs["path"])
    memory = np.ones(most)  # a list would grow, and be what is measured
    seen = [0]

    def segment(image: Tensor) -> Tensor:
        memory[seen[0]] = resident()
        seen[0] += 1
        return ellipse(image)

    assert run(folder, given, make=lambda device: make(device, segment)) == Outcome(most, 0, {})
    kept = memory[most // 3 :]  # the first third fills buffers
    growth = fit_growth(np.arange(len(kept), dtype=float), kept)
    # Some pages in all; the smallest plane of a composite that could be kept has 3072 bytes.
    assert growth.slope - 2 * growth.error < 500, growth
