"""Training runs of a tiny network on tiny shards, in this process or in others.

Other processes are forked from one that has imported torch and all the rest, each with its own
arguments, working folder, warnings and log, as if typed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.data import trees

ROOT = Path(__file__).parents[1]
PATIENCE = 300
"""Seconds after which a run of a few seconds is said to hang; it then ends with all it started."""

HEAVY = [
    "deep_image_compositing.benchmark.training",
    "deep_image_compositing.cli",
    "deep_image_compositing.compositor",
    "deep_image_compositing.data.convert",
    "deep_image_compositing.data.teach",
    "deep_image_compositing.evaluation.bench",
    "deep_image_compositing.training",
]
"""What the process imports from which the others are forked."""

_processes = multiprocessing.get_context("forkserver")


def make_data(root: Path, held_out: int = 3) -> Path:
    """Shards of photographs with masks, 12 for training, and a folder of backgrounds."""
    trees.shards(root / "people", "segmentation", 12, held_out, each=3)
    trees.scenes(root / "scenes")
    return root


def arguments(data: Path, out: Path, **trainer: Any) -> list[str]:
    """``fit`` of a segmenter on ``make_data``, 8 batches an epoch, into the folder ``out``."""
    checkpoints = {"every_n_train_steps": 5, "save_top_k": -1, "save_last": True}
    config = {
        "model": {
            "class_path": "deep_image_compositing.stages.segmentation.PyramidSegmenter",
            "init_args": {
                "backbone": "test_efficientnet",
                "width": 8,
                "pretrained": None,
                "picture_every": 0,
            },
        },
        "data": {
            "class_path": "deep_image_compositing.data.modules.SegmentationData",
            "init_args": {
                "train": str(data / "people"),
                "backgrounds": str(data / "scenes"),
                "size": 32,
                "batch_size": 2,
                "epoch_length": 16,
                "num_workers": 2,
                "shuffle": 3,
            },
        },
        "trainer": {
            "max_steps": 30,
            "val_check_interval": 6,
            "default_root_dir": str(out),
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": checkpoints,
                }
            ],
            **trainer,
        },
    }
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(config))  # which is YAML
    return ["fit", f"--config={path}"]


class Forked:
    """A command of the library, a script or Python code in a process group of its own, as Popen."""

    def __init__(
        self, argv: list[str], environment: dict[str, str], code: str | None = None
    ) -> None:
        self.said, writer = _processes.Pipe(duplex=False)
        _processes.set_forkserver_preload(HEAVY)
        given = (writer, os.getcwd(), {**os.environ, **environment}, argv, code)
        self.process = _processes.Process(target=_child, args=given)
        self.process.start()
        writer.close()
        self.pid = int(self.process.pid or 0)

    @property
    def returncode(self) -> int | None:
        """As that of Popen; None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """``returncode``."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To this process alone."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Tell it to stop."""
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it, and all that it started, said, once they have ended."""
        said, last = b"", time.monotonic() + (timeout or PATIENCE)
        while self.said.poll(max(0, last - time.monotonic())):
            if not (part := os.read(self.said.fileno(), 1 << 16)):
                self.process.join()
                return said.decode(), None
            said += part
        raise subprocess.TimeoutExpired(said.decode(), timeout or PATIENCE)


def _child(
    said: Connection, folder: str, environment: dict[str, str], argv: list[str], code: str | None
) -> None:
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    said.close()
    multiprocessing.set_start_method(None, force=True)  # loaders fork, as in any process
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv = argv
    if code is not None:
        exec(compile(code, argv[0], "exec"), {"__name__": argv[0]})
    elif argv[0].endswith(".py"):
        sys.path.insert(0, str(Path(argv[0]).parent))
        runpy.run_path(argv[0], run_name="__main__")
    else:
        from deep_image_compositing.cli import main

        spec = importlib.util.find_spec("deep_image_compositing.__main__")
        sys.modules["__main__"].__spec__ = spec  # which Lightning starts beside it
        sys.exit(main())


Process = Forked | subprocess.Popen[str]


def start(given: Sequence[str], launcher: Sequence[str] = (), **environment: str) -> Process:
    """The command line in a process group of its own; what it says is read by ``communicate``."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    if not launcher:
        return Forked(["deep-image-compositing", *given], own)
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
    """Two processes as torchrun starts them, on one machine or two; what the first one said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": port}
    common |= {"WORLD_SIZE": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        local, group = (rank, "0") if nodes == 1 else ("0", rank)
        own = {"RANK": rank, "LOCAL_RANK": local, "GROUP_RANK": group}
        argv = ["deep-image-compositing", *given]
        processes.append(Forked(argv, {**common, **own, "LOCAL_WORLD_SIZE": str(2 // nodes)}, code))
    said = [finish(process) for process in processes]
    assert not any(process.returncode for process in processes), said
    return said[0]


def wait_until(happened: Callable[[], object], process: Process) -> None:
    """Wait for something that the process is to do; an error when it ends before, or hangs."""
    last = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
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
