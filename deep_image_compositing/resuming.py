"""What lets a training run be stopped in any way and go on as if it had not been."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from deep_image_compositing.data.loading import seconds_without_data
from deep_image_compositing.data.modules import batches_trained
from deep_image_compositing.data.sampler import seed_of
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.weights import read_state

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints inside its own."""

INTERRUPTED = "interrupted.ckpt"
"""The checkpoint that a run leaves when it is told to stop."""

_EVERY = 10  # batches between two agreements of several processes
_PATIENCE = 5.0  # seconds without data after which a run that was told to stop ends at once
_log = logging.getLogger("deep_image_compositing")


def checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = Path(run, CHECKPOINTS).glob("*.ckpt")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint of a run; None when the run has none.

    One that a kill has cut short is named in the log and passed over for the one before it;
    ``WeightsError`` when it is whole and cannot be read, or when none can be.
    """
    problem = ""
    for path in checkpoints(run):
        try:
            read_state(path)
        except WeightsError as error:
            problem = problem or str(error)
            if zipfile.is_zipfile(path):
                break
            _log.warning("passed over: %s", error)
        else:
            return path
    if problem:
        raise WeightsError(
            f"{run} holds a run from which none can go on: {problem}. Nothing was changed: begin "
            "another run with --trainer.default_root_dir, or remove that checkpoint"
        )
    return None


class Interruptible(Callback):
    """Leaves a checkpoint after the step in which the run ends, or is told to stop, and stops.

    SIGTERM and Ctrl-C do so (a second one stops at once), and SIGUSR1, which SLURM sends ahead of
    the time limit, upon which the job is also put back in the queue. The handlers only take note: a
    checkpoint from inside one could fall between two parameters of a step. Processes agree to
    stop, so that none waits for another. Where no data arrive, no step is waited for.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def take_note(number: int, frame: Any) -> None:
            if number == signal.SIGINT == self._signal:
                raise SystemExit(128 + number)
            self._signal = number
            if number == signal.SIGINT:
                _log.warning("stopping after this batch; Ctrl-C again stops at once")
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE, 1)

        def give_up(number: int, frame: Any) -> None:
            if seconds_without_data() >= _PATIENCE:
                _log.warning(
                    "told to stop, and no data arrive: stopped without another checkpoint; "
                    "--resume goes on from the last one"
                )
                self._leave(trainer, self._signal == signal.SIGUSR1)

        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), take_note)
        for number, handler in {**handlers, signal.SIGALRM: give_up}.items():
            self._before[number] = signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients that wait for the rest of their step are in no checkpoint.
        epoch_loop: Any = trainer.fit_loop.epoch_loop
        if epoch_loop._should_accumulate():
            return
        if trainer.world_size > 1 and batch_idx % _EVERY >= trainer.accumulate_grad_batches:
            return
        told, queued = self._signal is not None, self._signal == signal.SIGUSR1
        if trainer.world_size > 1:  # perhaps only some were told, and by different signals
            agree = trainer.strategy.reduce_boolean_decision
            told, queued = agree(told, all=False), agree(queued, all=False)
        if not told:
            return
        path = Path(trainer.default_root_dir, CHECKPOINTS, INTERRUPTED)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _log.warning("told to stop: saved %s; go on with --resume", path)
        # Lightning's launcher kills the first process of a machine when another one fails.
        self._leave(trainer, queued, quietly=trainer.local_rank > 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end of the run too, which may fall between two regular checkpoints."""
        for keeper in trainer.checkpoint_callbacks if trainer.fit_loop.done else []:
            if not isinstance(keeper, ModelCheckpoint) or keeper._every_n_epochs:
                continue
            if keeper.save_last and keeper._last_global_step_saved != trainer.global_step:
                keeper._save_last_checkpoint(trainer, keeper._monitor_candidates(trainer))

    def _leave(self, trainer: Trainer, queued: bool, quietly: bool = False) -> NoReturn:
        """End the process, ``quietly`` as if all were well; put its job back where ``queued``."""
        self._restore()
        if (queued and _requeue(trainer)) or quietly:
            raise SystemExit(0)
        raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()
        # The others would wait for this one in their next exchange of gradients. Whoever else
        # launched them (torchrun, SLURM) ends them itself; so does Lightning, but not for this one.
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
            # Seeing them gone, Lightning would kill this one too, before it has said what is wrong.
            launcher.procs.clear()

    def _restore(self) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        while self._before:
            signal.signal(*self._before.popitem())


def _requeue(trainer: Trainer) -> bool:
    """Put a SLURM job back in the queue; whether this process belongs to one."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if trainer.is_global_zero:
        done = subprocess.run(["scontrol", "requeue", job], check=False)
        if done.returncode:
            _log.warning("scontrol could not put job %s back in the queue", job)
    return True


def check_hyper_parameters(part: LightningModule | LightningDataModule) -> None:
    """Raise ``UsageError`` for a value that could only be read back by running code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "value.ckpt")
        for name, value in part.hparams.items():
            try:
                torch.save({"state_dict": {}, "hyper_parameters": {name: value}}, path)
                read_state(path)
            except (WeightsError, pickle.PicklingError, AttributeError, TypeError):
                raise UsageError(
                    f"{name} of {type(part).__name__} is {value!r}: a checkpoint that holds it "
                    "could not be read again without running code; make it a number, text, or a "
                    "list or dict of these"
                ) from None


class Reseed(Callback):
    """Seeds torch before each batch: a resumed run draws what the first would have, as dropout."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        torch.manual_seed(seed_of(seed, trainer.global_rank, batches_trained(trainer)))
