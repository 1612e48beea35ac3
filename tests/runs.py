"""Runs the command line in separate processes, and trains tiny networks on tiny shards."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.data import trees

ROOT = Path(__file__).parents[1]
PATIENCE = 300
"""Timeout in seconds for a run; it is then killed with its child processes."""

HEAVY = [
    "deep_image_compositing.benchmark.training",
    "deep_image_compositing.cli",
    "deep_image_compositing.batch",
    "deep_image_compositing.data.convert",
    "deep_image_compositing.data.teach",
    "deep_image_compositing.evaluation.bench",
    "deep_image_compositing.training",
]
"""Modules that the fork server imports, so that forked processes start at once."""

_forks = multiprocessing.get_context("forkserver")


class Fork:
    """A process forked with everything imported; has the interface of ``subprocess.Popen``.

    Args:
        argv: the program's name and its arguments, for ``sys.argv``.
        environment: variables to add to the current environment.
        work: function to call; by default the command line's ``main``.
        folder: working directory; by default the current one.
        errors: capture standard error separately.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        work: Callable[[], object] | None = None,
        folder: Path | None = None,
        errors: bool = False,
    ) -> None:
        _forks.set_forkserver_preload(HEAVY)
        logs = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, logs, ignore_errors=True)
        self.out, self.err = logs / "out", logs / ("err" if errors else "out")
        for path in (self.out, self.err):
            path.touch()
        variables, cwd = {**os.environ, **environment}, str(folder or Path.cwd())
        arguments = list(argv), variables, cwd, self.out, self.err
        self._process = _forks.Process(target=_begin, args=(work or _command, *arguments))
        self._process.start()
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        return self.out.read_text(errors="replace"), self.err.read_text(errors="replace")

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    terminate = functools.partialmethod(send_signal, signal.SIGTERM)


Process: TypeAlias = Fork | subprocess.Popen[str]


def _begin(
    work: Callable[[], object], argv: list[str], environment: dict[str, str], folder: str,
    out: Path, err: Path,
) -> None:  # fmt: skip
    os.setsid()
    os.chdir(folder)
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, _WRITE), (2, err, _WRITE)):
        os.dup2(os.open(path, flags), stream)
    multiprocessing.set_start_method(None, force=True)  # data loaders use the default, fork
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    sys.argv = argv
    # Launchers of further processes start this program again.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("deep_image_compositing.__main__")
    work()


_WRITE = os.O_WRONLY | os.O_APPEND


def _command() -> None:
    from deep_image_compositing.cli import main

    sys.exit(main())


def make_data(root: Path, held_out: int = 3) -> Path:
    """Write shards of photographs with masks, 12 for training, and a folder of backgrounds."""
    trees.shards(root / "people", "segmentation", 12, held_out, each=3)
    trees.scenes(root / "scenes")
    return root


def fit(
    out: Path, model: str, network: dict[str, Any], module: str, data: dict[str, Any],
    saving: dict[str, Any], **trainer: Any,
) -> list[str]:  # fmt: skip
    """Arguments of ``fit`` for a stage and a data module, given as classes with their arguments."""
    checkpoint = "lightning.pytorch.callbacks.ModelCheckpoint"
    config = {
        "model": {"class_path": f"deep_image_compositing.stages.{model}", "init_args": network},
        "data": {"class_path": f"deep_image_compositing.data.modules.{module}", "init_args": data},
        "trainer": {
            "default_root_dir": str(out), "accelerator": "cpu", "log_every_n_steps": 1,
            "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [{"class_path": checkpoint, "init_args": saving}], **trainer,
        },
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(config))  # JSON is valid YAML
    return ["fit", f"--config={path}"]


TINY = {"backbone": "test_efficientnet", "width": 8, "pretrained": None}
"""Options for a small segmenter or refiner."""


def arguments(data: Path, out: Path, **trainer: Any) -> list[str]:
    """Arguments of ``fit`` for a segmenter on ``make_data``, 8 batches per epoch, into ``out``."""
    data_options = {
        "train": str(data / "people"), "backgrounds": str(data / "scenes"), "size": 32,
        "batch_size": 2, "epoch_length": 16, "num_workers": 2, "shuffle": 3,
    }  # fmt: skip
    network, model = {**TINY, "picture_every": 0}, "segmentation.PyramidSegmenter"
    saving = {"every_n_train_steps": 5, "save_top_k": -1, "save_last": True}
    trainer = {"max_steps": 30, "val_check_interval": 6, **trainer}
    return fit(out, model, network, "SegmentationData", data_options, saving, **trainer)


def start(args: Sequence[str], launcher: Sequence[str] = (), **environment: str) -> Process:
    """Start the command line in its own process group; ``communicate`` returns its output."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    if not launcher:
        return Fork(["deep-image-compositing", *args], variables)
    command = [sys.executable, "-m", *launcher, "deep_image_compositing", *args]
    return subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_two(args: Sequence[str], code: str | None = None, *, nodes: int = 1) -> str:
    """Run two processes as torchrun does, on one node or two; returns the output of the first.

    They run the command line, or ``code``, with ``args`` as arguments.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": port}
    common |= {"WORLD_SIZE": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        local, group = (rank, "0") if nodes == 1 else ("0", rank)
        variables = {"RANK": rank, "LOCAL_RANK": local, "GROUP_RANK": group}
        variables |= {**common, "LOCAL_WORLD_SIZE": str(2 // nodes)}
        work = None if code is None else functools.partial(exec, code, {"__name__": "__main__"})
        processes.append(Fork(["deep-image-compositing", *args], variables, work))
    outputs = [finish(process) for process in processes]
    assert not any(process.returncode for process in processes), outputs
    return outputs[0]


def wait_until(happened: Callable[[], object], process: Process) -> None:
    """Wait until ``happened`` returns true; fails if the process ends before or hangs."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None:
            raise AssertionError("\n".join(process.communicate()))
        if time.monotonic() > deadline:
            raise AssertionError(f"it hangs: {kill(process)}")
        time.sleep(0.01)


def finish(process: Process, patience: float = PATIENCE) -> str:
    """Wait for a run to end and return its output; fails if it hangs."""
    try:
        return process.communicate(timeout=patience)[0]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it hangs: {kill(process)}") from None


def kill(process: Process) -> str:
    """Kill a run with its descendants, which torchrun puts in other groups; returns its output."""
    pids = [process.pid]
    for pid in pids:
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
        pids += map(int, children.stdout.split())
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return process.communicate()[0]


def has_ended(pid: int) -> bool:
    """Whether a process has ended, or ends within ten seconds."""
    for _ in range(1000):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


class Stop(Callback):
    """Raises SIGTERM at the start of a batch, counted from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            signal.raise_signal(signal.SIGTERM)


class StopValidation(Callback):
    """Raises SIGTERM at the start of the validation after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


def progress(out: Path) -> Callable[[], bool]:
    """A function that tells whether the run in ``out`` has written a checkpoint since this call."""
    before = set(out.glob("checkpoints/*step=*"))
    return lambda: bool(set(out.glob("checkpoints/*step=*")) - before)


def losses(out: Path, tag: str = "train/loss") -> dict[int, set[float]]:
    """Losses of a run by step; several values for a step if resumed parts overlap.

    With a ``tag``, the values of that metric instead.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values: dict[int, set[float]] = {}
    for path in out.glob("events.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                values.setdefault(event.step, set()).add(event.value)
    return values


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    """The floating-point parameters in the checkpoint of a step."""
    (path,) = out.glob(f"checkpoints/*step={step}.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if value.is_floating_point()}
