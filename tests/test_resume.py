"""A run that was stopped in any way goes on, and makes what it would have made anyway."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deep_image_compositing.cli import main
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.resuming import (
    Interruptible,
    check_hyper_parameters,
    newest_checkpoint,
)
from tests import runs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # Lightning, of every loader whose processes are fewer than the cores.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning, of a second run into a folder with checkpoints, which is what --resume is.
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_data(tmp_path_factory.mktemp("resume"))


@pytest.mark.slow
def test_a_run_stopped_in_every_way_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = runs.arguments(data, parts)
    # With nothing to go on from, --resume begins.
    uninterrupted = runs.start([*runs.arguments(data, whole), "--resume"])
    process = runs.start(given)
    runs.wait_until(runs.progress(parts), process)
    runs.kill(process)
    said = runs.finish(uninterrupted)
    assert uninterrupted.returncode == 0, said
    expected = runs.losses(whole)
    assert sorted(expected) == list(range(30))
    assert all(len(values) == 1 for values in expected.values())

    # Only with --resume does it go on.
    capsys.readouterr()
    assert main(given) == 2
    assert "holds a run already" in capsys.readouterr().err

    queue = tmp_path / "bin"
    queue.mkdir()
    scontrol = queue / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path}/said\n")
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    path = f"{queue}{os.pathsep}{os.environ['PATH']}"
    process = runs.start([*given, "--resume"], PATH=path, SLURM_JOB_ID="17")
    runs.wait_until(runs.progress(parts), process)
    os.killpg(process.pid, signal.SIGUSR1)  # the loader processes get it too, as in SLURM
    said = runs.finish(process)
    assert process.returncode == 0, said
    assert (tmp_path / "said").read_text() == "requeue 17\n"
    assert "told to stop: saved" in said

    process = runs.start([*given, "--resume"])
    runs.wait_until(runs.progress(parts), process)
    os.killpg(process.pid, signal.SIGTERM)
    said = runs.finish(process)
    assert process.returncode == 128 + signal.SIGTERM, said
    newest = newest_checkpoint(parts)
    assert newest is not None
    assert newest.name == "interrupted.ckpt"
    stopped = torch.load(newest, weights_only=True)["global_step"]
    assert 15 <= stopped < 30

    # A checkpoint that a kill has left half written is passed over.
    torn = parts / "checkpoints" / "torn.ckpt"
    torn.write_bytes(newest.read_bytes()[:5000])
    process = runs.start([*given, "--resume"])
    said = runs.finish(process)
    assert process.returncode == 0, said
    assert re.search(r"passed over: .*torn\.ckpt", said)

    found = runs.losses(parts)
    # What was trained on twice, before a kill and after it, had the same loss; of the batch in
    # which a run was told to stop, none is in the log.
    assert {step: expected[step] for step in found} == found
    assert set(range(stopped, 30)) <= set(found)
    ends = runs.weights(whole, 30), runs.weights(parts, 30)
    assert all(torch.equal(ends[1][key], value) for key, value in ends[0].items())


@pytest.mark.slow
def test_a_run_stopped_while_it_gathers_gradients_ends_as_one_that_was_not(
    data: Path, tmp_path: Path
) -> None:
    """Two steps of four batches an epoch, stopped in the second batch of the second step."""
    last = {"every_n_train_steps": 4, "save_top_k": -1}
    saving = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": last}
    stopping = {"class_path": "tests.runs.Stop", "init_args": {"batch": 5}}

    def arguments(name: str, *callbacks: dict[str, Any]) -> list[str]:
        given: dict[str, Any] = {"accumulate_grad_batches": 4, "max_steps": 4}
        given |= {"val_check_interval": 8, "callbacks": [saving, *callbacks]}
        return [*runs.arguments(data, tmp_path / name, **given), "--data.num_workers=0"]

    assert main(arguments("whole")) == 0
    assert main(arguments("parts", stopping)) == 128 + signal.SIGTERM
    stopped = newest_checkpoint(tmp_path / "parts")
    assert stopped is not None
    assert torch.load(stopped, weights_only=True)["global_step"] == 2
    assert main([*arguments("parts"), "--resume"]) == 0
    whole, parts = (runs.weights(tmp_path / name, 4) for name in ("whole", "parts"))
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 8])  # 8 ends the epoch
def test_a_run_stopped_while_it_validates_repeats_the_validation(
    step: int, data: Path, tmp_path: Path
) -> None:
    callbacks = "lightning.pytorch.callbacks"
    last = {"every_n_train_steps": 1, "save_top_k": -1}
    saving = {"class_path": f"{callbacks}.ModelCheckpoint", "init_args": last}
    averaging = {"class_path": f"{callbacks}.EMAWeightAveraging", "init_args": {"decay": 0.9}}
    stopping = {"class_path": "tests.runs.StopValidation", "init_args": {"step": step}}

    def arguments(name: str, *more: dict[str, Any]) -> list[str]:
        given: dict[str, Any] = {"callbacks": [saving, averaging, *more], "val_check_interval": 2}
        return [
            *runs.arguments(data, tmp_path / name, max_steps=10, **given), "--data.num_workers=0"
        ]  # fmt: skip

    assert main(arguments("whole")) == 0
    assert main(arguments("parts", stopping)) == 128 + signal.SIGTERM
    stopped = newest_checkpoint(tmp_path / "parts")
    assert stopped is not None
    assert stopped.name == "interrupted.ckpt"
    assert torch.load(stopped, weights_only=True)["global_step"] == step
    assert main([*arguments("parts"), "--resume"]) == 0
    for tag in ("train/loss", "val/mae"):
        found = [runs.losses(tmp_path / name, tag) for name in ("whole", "parts")]
        assert found[0]
        assert found[0] == found[1]
    ends = [torch.load(path, weights_only=True) for path in tmp_path.glob("*/*/*step=10.ckpt")]
    assert len(ends) == 2
    for state in ("state_dict", "current_model_state"):
        for key, value in ends[0][state].items():
            assert torch.equal(ends[1][state][key], value)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "signals"), [(2, "TERM"), (0, "INT INT")])
def test_a_run_whose_source_hangs_can_be_stopped(
    workers: int, signals: str, data: Path, tmp_path: Path
) -> None:
    stuck, pid = tmp_path / "stuck", tmp_path / "pid"
    # Each shard is whole until there is a checkpoint; then nothing comes any more.
    shard = data / "people" / "train-000000.tar"
    hang = f"if [ -e {stuck} ]; then echo $$ > {pid}; sleep 1000; fi"
    options = [f"--data.train=pipe:{hang}; cat {shard}", f"--data.validation={data / 'people'}"]
    out = tmp_path / "run"
    given = runs.arguments(data, out, max_steps=10_000, limit_val_batches=0)
    process = runs.start([*given, *options, f"--data.num_workers={workers}"])
    runs.wait_until(runs.progress(out), process)
    stuck.touch()
    runs.wait_until(lambda: pid.exists() and pid.read_text(), process)
    for number, name in enumerate(signals.split()):
        time.sleep(1 + number)  # as people do
        process.send_signal(getattr(signal, f"SIG{name}"))
    last = {"TERM": signal.SIGTERM, "INT": signal.SIGINT}[name]
    said = runs.finish(process, 30)
    assert process.returncode == 128 + last, said
    assert "Traceback" not in said
    if last == signal.SIGTERM:
        assert "no data arrive: stopped without another checkpoint" in said
    assert runs.has_ended(int(pid.read_text()))
    assert newest_checkpoint(out) is not None


class Costly:
    """A value that could be read back only by running code."""


@pytest.mark.parametrize("held", [Decimal("0.1"), Costly()])
def test_a_folder_whose_run_cannot_go_on_is_left_as_it_is(
    held: object, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    folder = out / "checkpoints"
    folder.mkdir(parents=True)
    for age, (name, value) in enumerate((("last", held), ("older", 0.1))):
        path = folder / f"{name}.ckpt"
        torch.save({"state_dict": {}, "hyper_parameters": {"x": value}}, path)
        os.utime(path, (1000 - age, 1000 - age))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    given = runs.arguments(data, out)
    for more, code, said in (
        ([], 2, "holds a run already (last.ckpt)"),
        (["--resume"], 1, "holds a run that cannot be resumed: "),
    ):
        assert main([*given, *more]) == code
        assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(out.iterdir()) == [folder]


@pytest.mark.parametrize("held", [Decimal("0.1"), Costly(), lambda: 1])
def test_what_would_make_checkpoints_unreadable_is_found_before_the_run(held: object) -> None:
    part: Any = SimpleNamespace(hparams={"rate": 0.1, "widths": (1, 2), "x": held})
    with pytest.raises(UsageError, match=r"x of SimpleNamespace is .*: a checkpoint that holds it"):
        check_hyper_parameters(part)
    part.hparams["x"] = {"a": [1, None, "b", True]}
    check_hyper_parameters(part)


# Parts


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    saved: list[Path] = []
    epoch_loop = SimpleNamespace(_should_accumulate=lambda: False)
    return SimpleNamespace(
        world_size=1,
        fit_loop=SimpleNamespace(epoch_loop=epoch_loop),
        is_global_zero=True,
        local_rank=0,
        strategy=SimpleNamespace(launcher=None),
        default_root_dir=str(tmp_path),
        saved=saved,
        save_checkpoint=saved.append,
    )


HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)


@pytest.fixture
def handlers() -> Iterator[list[Any]]:
    before = [signal.getsignal(number) for number in HANDLED]
    yield before
    assert [signal.getsignal(number) for number in HANDLED] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("end", ["teardown", "on_exception", "told"])
def test_handlers_are_put_back(end: str, trainer: Any, handlers: list[Any]) -> None:
    callback = Interruptible()
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert [signal.getsignal(number) for number in HANDLED] != handlers
    callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert not trainer.saved
    if end == "told":
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit, match="143"):
            callback.on_train_batch_end(trainer, None, None, None, 1)  # type: ignore[arg-type]
        assert [path.name for path in trainer.saved] == ["interrupted.ckpt"]
    else:
        getattr(callback, end)(trainer, None, "fit")


def test_without_a_queue_the_signal_of_slurm_just_ends_the_run(
    trainer: Any, handlers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    callback = Interruptible()
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGUSR1)):
        callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]


def test_the_newest_checkpoint_that_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_checkpoint(tmp_path) is None
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in enumerate(("a", "b", "c")):
        path = folder / f"{name}.ckpt"
        torch.save({"state_dict": {"x": torch.zeros(1000)}}, path)
        os.utime(path, (1000 - age, 1000 - age))
    assert newest_checkpoint(tmp_path) == folder / "a.ckpt"
    torn = folder / "a.ckpt"
    torn.write_bytes(torn.read_bytes()[:2000])
    os.utime(torn, (2000, 2000))
    assert newest_checkpoint(tmp_path) == folder / "b.ckpt"
    assert "a.ckpt" in caplog.text
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"cannot be resumed: .*\.ckpt is not a check"):
        newest_checkpoint(tmp_path)
