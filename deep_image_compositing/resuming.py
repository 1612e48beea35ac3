"""Callbacks and checkpoints that let an interrupted training run resume exactly."""

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
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

from deep_image_compositing.data.loading import seconds_without_data
from deep_image_compositing.data.modules import StageData, batches_trained
from deep_image_compositing.data.sampler import seed_of
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.weights import read_state

CHECKPOINTS = "checkpoints"
"""Subfolder of a run that holds its checkpoints."""

INTERRUPTED = "interrupted.ckpt"
"""File name of the checkpoint that an interrupted run writes."""

_AGREEMENT_INTERVAL = 10  # batches between two agreements of the processes on whether to stop
_DATA_TIMEOUT = 5.0  # seconds without data after which a stop request ends the run at once
_log = logging.getLogger("deep_image_compositing")


def checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    paths = Path(run, CHECKPOINTS).glob("*.ckpt")
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_checkpoint(run: str | Path) -> Path | None:
    """The newest readable checkpoint of a run; None if the run has no checkpoints.

    Truncated checkpoints are skipped with a warning. Raises ``WeightsError`` for one that is
    complete but unreadable, or if no checkpoint is readable.
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
            f"{run} holds a run that cannot be resumed: {problem}. Nothing was changed: start "
            "another run with --trainer.default_root_dir, or remove that checkpoint"
        )
    return None


class Interruptible(Callback):
    """Saves a checkpoint and stops after the current step when the process receives a signal.

    The signals are SIGTERM, SIGINT (a second Ctrl-C stops at once) and SIGUSR1, which SLURM sends
    before the time limit; upon SIGUSR1 the job is also requeued. Handlers only record the signal,
    as a checkpoint saved inside one could fall between two parameter updates of a step. Processes
    agree to stop, so that none waits for another. A validation is abandoned, and repeated by the
    resumed run. If no data arrive, the run stops without waiting for a step. The last step of a run
    is checkpointed, too.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def record_signal(number: int, frame: Any) -> None:
            if number == signal.SIGINT == self._signal:
                raise SystemExit(128 + number)
            self._signal = number
            if number == signal.SIGINT:
                _log.warning("stopping after this batch; Ctrl-C again stops at once")
            signal.setitimer(signal.ITIMER_REAL, _DATA_TIMEOUT, 1)

        def stop_without_data(number: int, frame: Any) -> None:
            if seconds_without_data() >= _DATA_TIMEOUT:
                _log.warning(
                    "told to stop, and no data arrive: stopped without another checkpoint; "
                    "--resume continues from the last one"
                )
                self._exit(trainer, self._signal == signal.SIGUSR1)

        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), record_signal)
        for number, handler in {**handlers, signal.SIGALRM: stop_without_data}.items():
            self._previous_handlers[number] = signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Accumulated gradients of an unfinished step are not part of a checkpoint.
        epoch_loop: Any = trainer.fit_loop.epoch_loop
        if epoch_loop._should_accumulate():
            return
        distributed, position = trainer.world_size > 1, batch_idx % _AGREEMENT_INTERVAL
        if distributed and position >= trainer.accumulate_grad_batches:
            return
        self._stop_if_told(trainer)

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._previous_handlers or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        # Processes can agree only if they have the same number of batches, as with ``StageData``.
        if trainer.world_size > 1 and (
            batch_idx % _AGREEMENT_INTERVAL or not isinstance(trainer.datamodule, StageData)
        ):
            return
        self._stop_if_told(trainer, pl_module)

    def _stop_if_told(self, trainer: Any, validated: LightningModule | None = None) -> None:
        """Save a checkpoint and end the process if any process has received a signal.

        ``validated`` is the module whose validation has to be repeated, if any.
        """
        stop, requeue = self._signal is not None, self._signal == signal.SIGUSR1
        if trainer.world_size > 1:  # the processes may have received different signals, or none
            agree = trainer.strategy.reduce_boolean_decision
            stop, requeue = agree(stop, all=False), agree(requeue, all=False)
        if not stop:
            return
        if validated is not None:
            for callback in trainer.callbacks:
                if isinstance(callback, WeightAveraging):  # puts back the weights in training
                    callback.on_validation_epoch_end(trainer, validated)
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.reset()
            # From a checkpoint in the middle of a batch, Lightning goes on with the validation.
            progress.total.ready = progress.total.started = 1
        path = Path(trainer.default_root_dir, CHECKPOINTS, INTERRUPTED)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _log.warning("told to stop: saved %s; continue with --resume", path)
        # Lightning's launcher kills the first process of a machine when another one fails.
        self._exit(trainer, requeue, as_success=trainer.local_rank > 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run, which may fall between two regular checkpoints."""
        for callback in trainer.checkpoint_callbacks if trainer.fit_loop.done else []:
            if not isinstance(callback, ModelCheckpoint) or callback._every_n_epochs:
                continue
            if callback.save_last and callback._last_global_step_saved != trainer.global_step:
                callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))

    def _exit(self, trainer: Trainer, requeue: bool, as_success: bool = False) -> NoReturn:
        """End the process; it exits with 0 if its job was requeued, or with ``as_success``."""
        self._restore()
        if (requeue and _requeue(trainer)) or as_success:
            raise SystemExit(0)
        raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()
        # The other processes would wait for this one in their next gradient exchange. torchrun and
        # SLURM end processes that they launched; Lightning does not when the main process fails.
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
            # Otherwise Lightning would kill this process, too, before it has reported the error.
            launcher.procs.clear()

    def _restore(self) -> None:
        if self._previous_handlers:
            signal.setitimer(signal.ITIMER_REAL, 0)
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())


def _requeue(trainer: Trainer) -> bool:
    """Requeue the SLURM job of this process; False if it does not belong to one."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if trainer.is_global_zero:
        process = subprocess.run(["scontrol", "requeue", job], check=False)
        if process.returncode:
            _log.warning("scontrol could not put job %s back in the queue", job)
    return True


def check_hyper_parameters(part: LightningModule | LightningDataModule) -> None:
    """Raise ``UsageError`` for a value that a checkpoint could not restore without running code."""
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
    """Seeds torch before each batch, so that a resumed run draws the same numbers (dropout)."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        torch.manual_seed(seed_of(seed, trainer.global_rank, batches_trained(trainer)))
