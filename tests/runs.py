"""The command line in processes of its own, and training runs of a tiny network on tiny shards."""

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
"""Seconds after which a run of a few seconds is said to hang; it then ends with all it started."""

HEAVY = [
    "deep_image_compositing.benchmark.training",
    "deep_image_compositing.cli",
    "deep_image_compositing.batch",
    "deep_image_compositing.data.convert",
    "deep_image_compositing.data.teach",
    "deep_image_compositing.evaluation.bench",
    "deep_image_compositing.training",
]
"""What the process imports from which others are forked: each then begins at once."""

_forks = multiprocessing.get_context("forkserver")


class Fork:
    """Work in a process that has imported everything; from outside as ``subprocess.Popen``.

    Args:
        work: is called with ``argv`` as ``sys.argv``; the command line's ``main`` by default.
        argv: a program's name, and its arguments.
        environment: of the process, besides what is there.
        folder: in which it works; this process's own by default.
        errors: keep what it says on standard error apart.
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
        said = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, said, ignore_errors=True)
        self.out, self.err = said / "out", said / ("err" if errors else "out")
        for path in (self.out, self.err):
            path.touch()
        where, around = str(folder or Path.cwd()), {**os.environ, **environment}
        given = list(argv), around, where, self.out, self.err
        self._process = _forks.Process(target=_begin, args=(work or _command, *given))
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
    for stream, path, how in ((0, os.devnull, os.O_RDONLY), (1, out, _WRITE), (2, err, _WRITE)):
        os.dup2(os.open(path, how), stream)
    multiprocessing.set_start_method(None, force=True)  # loaders fork, as in any process
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    sys.argv = argv
    # What launches further processes starts this program again.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("deep_image_compositing.__main__")
    work()


_WRITE = os.O_WRONLY | os.O_APPEND


def _command() -> None:
    from deep_image_compositing.cli import main

    sys.exit(main())


def make_data(root: Path, held_out: int = 3) -> Path:
    """Shards of photographs with masks, 12 for training, and a folder of backgrounds."""
    trees.shards(root / "people", "segmentation", 12, held_out, each=3)
    trees.scenes(root / "scenes")
    return root


def fit(
    out: Path, model: str, network: dict[str, Any], module: str, data: dict[str, Any],
    saving: dict[str, Any], **trainer: Any,
) -> list[str]:  # fmt: skip
    """``fit`` of a stage on a data module, each a class with its arguments, into a folder."""
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
    path.write_text(json.dumps(config))  # which is YAML
    return ["fit", f"--config={path}"]


TINY = {"backbone": "test_efficientnet", "width": 8, "pretrained": None}
"""What makes a segmenter or refiner small."""


def arguments(data: Path, out: Path, **trainer: Any) -> list[str]:
    """``fit`` of a segmenter on ``make_data``, 8 batches an epoch, into the folder ``out``."""
    given = {
        "train": str(data / "people"), "backgrounds": str(data / "scenes"), "size": 32,
        "batch_size": 2, "epoch_length": 16, "num_workers": 2, "shuffle": 3,
    }  # fmt: skip
    network, model = {**TINY, "picture_every": 0}, "segmentation.PyramidSegmenter"
    saving = {"every_n_train_steps": 5, "save_top_k": -1, "save_last": True}
    trainer = {"max_steps": 30, "val_check_interval": 6, **trainer}
    return fit(out, model, network, "SegmentationData", given, saving, **trainer)


def start(given: Sequence[str], launcher: Sequence[str] = (), **environment: str) -> Process:
    """The command line in a process group of its own; what it says is read by ``communicate``."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    if not launcher:
        return Fork(["deep-image-compositing", *given], own)
    command = [sys.executable, "-m", *launcher, "deep_image_compositing", *given]
    return subprocess.Popen(
        command,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_two(given: Sequence[str], code: str | None = None, *, nodes: int = 1) -> str:
    """Two processes as torchrun starts them, on one machine or two; what the first one said.

    They run the command line, or ``code`` with ``given`` as its arguments.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": port}
    common |= {"WORLD_SIZE": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        local, group = (rank, "0") if nodes == 1 else ("0", rank)
        own = {"RANK": rank, "LOCAL_RANK": local, "GROUP_RANK": group}
        own |= {**common, "LOCAL_WORLD_SIZE": str(2 // nodes)}
        work = None if code is None else functools.partial(exec, code, {"__name__": "__main__"})
        processes.append(Fork(["deep-image-compositing", *given], own, work))
    said = [finish(process) for process in processes]
    assert not any(process.returncode for process in processes), said
    return said[0]


def wait_until(happened: Callable[[], object], process: Process) -> None:
    """Wait for something that the process is to do; an error when it ends before, or hangs."""
    last = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None:
            raise AssertionError("\n".join(process.communicate()))
        if time.monotonic() > last:
            raise AssertionError(f"it hangs: {kill(process)}")
        time.sleep(0.01)


def finish(process: Process, patience: float = PATIENCE) -> str:
    """What a run said, once it has ended; an error when it hangs."""
    try:
        return process.communicate(timeout=patience)[0]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it hangs: {kill(process)}") from None


def kill(process: Process) -> str:
    """End a run and all that it started, whose groups torchrun makes their own; what it said."""
    family = [process.pid]
    for pid in family:
        found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
        family += map(int, found.stdout.split())
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return process.communicate()[0]


def has_ended(pid: int) -> bool:
    """Whether a process is no more, or soon."""
    for _ in range(1000):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


class Stop(Callback):
    """Tells the run to stop while it works on a batch, counted from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            signal.raise_signal(signal.SIGTERM)


def progress(out: Path) -> Callable[[], bool]:
    """Whether the run in ``out`` has written a checkpoint since this was called."""
    before = set(out.glob("checkpoints/*step=*"))
    return lambda: bool(set(out.glob("checkpoints/*step=*")) - before)


def losses(out: Path) -> dict[int, set[float]]:
    """Losses of a run by step, of all its parts; of parts that overlap all values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, set[float]] = {}
    for path in out.glob("events.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            for event in events.Scalars("train/loss"):
                found.setdefault(event.step, set()).add(event.value)
    return found


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    """The parameters in the checkpoint of a step."""
    (path,) = out.glob(f"checkpoints/*step={step}.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if value.is_floating_point()}
