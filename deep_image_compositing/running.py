"""Trainers of ``composite``, ``teach`` and ``evaluate``, and what Lightning says in any command."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from deep_image_compositing.errors import UsageError

_GRACE = 60.0  # seconds in which a process that was told to stop should have written its results
_PATIENCE = timedelta(days=7)  # processes wait for the last one at the end


def make_trainer(
    *callbacks: Callback, devices: int | str | list[int], nodes: int, accelerator: str
) -> Trainer:
    """A trainer that predicts or tests, and leaves nothing behind but what it is given writes.

    Args:
        callbacks: of the trainer.
        devices: how many, or the numbers of those that are meant.
        nodes: machines.
        accelerator: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        UsageError: devices that are not there, or not as many as were launched.
    """
    count = len(devices) if isinstance(devices, list) else devices
    alone = count in (1, "1") and nodes == 1
    # Left to itself, Lightning would answer SLURM's signal with a checkpoint to go on from.
    slurm = SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
    try:
        return Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy="auto" if alone else DDPStrategy(timeout=_PATIENCE),
            callbacks=list(callbacks),
            plugins=slurm,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"--devices, --nodes or --accelerator cannot be had: {error}") from None


@contextmanager
def quiet(least: int = logging.ERROR) -> Iterator[None]:
    """Without what Lightning says of choices that are made here on purpose.

    Args:
        least: level below which its log is not shown.
    """
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(least)
    with warnings.catch_warnings():
        # Work is shared out whole: a process may well have none, and no sampler is asked.
        warnings.filterwarnings("ignore", message=r"Total length of `\w+` across ranks")
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        # Lightning 2.6 asks torch's tree utilities in a way that torch 2.15 deprecates.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def stop_on_sigterm() -> None:
    """Let SIGTERM end the run as Ctrl-C does; call when Lightning has set its own handlers."""
    if threading.current_thread() is threading.main_thread():
        # Lightning would note it for the end of a training step; it gives SIGTERM back itself.
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def end_launched(trainer: Trainer, number: int = signal.SIGTERM) -> None:
    """Signal the processes that this one has launched, which would go on without it."""
    end = getattr(trainer.strategy.launcher, "kill", None)
    if end is not None:
        end(number)


class Guard(Callback):
    """Ends a run that is told to stop: in order the first time, at once the second.

    Args:
        finish: called to finish what is under way, and to start nothing new.
    """

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self.interrupted = False
        self._launched: list[subprocess.Popen[bytes]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_sigterm()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        if threading.current_thread() is threading.main_thread():
            # Lightning has Ctrl-C ignored from here on, but a second one ends the waiting below.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # The first process tells the others to stop, who may have heard it themselves.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_launched(trainer)
        procs = getattr(trainer.strategy.launcher, "procs", [])
        self._launched = list(procs)
        procs.clear()  # Lightning watches this list, and would kill this process once one has ended
        self._finish()
        for process in self._launched:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)

    def end(self) -> None:
        """Kill what has not ended by itself."""
        for process in self._launched:
            process.kill()


@contextmanager
def signals_restored() -> Iterator[None]:
    """Handlers as they were, also where Lightning was stopped before it put them back."""
    here = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)} if here else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
