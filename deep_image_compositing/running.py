"""Trainers of ``composite``, ``teach`` and ``evaluate``, and what Lightning says in any command."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from deep_image_compositing.errors import UsageError
from deep_image_compositing.messages import reporting

_GRACE = 60.0  # seconds in which a process that was told to stop should have written its results
_PATIENCE = timedelta(days=7)  # processes wait for the last one at the end
_log = logging.getLogger("deep_image_compositing")


def make_trainer(
    *callbacks: Callback, devices: int | str | list[int], nodes: int, accelerator: str
) -> Trainer:
    """A trainer that predicts or tests, and leaves nothing behind but what it is given writes.

    ``devices`` are how many, or their numbers; ``UsageError`` where there are none such.
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
    """Without what Lightning says of choices made here on purpose, and its log below ``least``."""
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

    def stop(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        # Lightning would note it for the end of a training step; it gives SIGTERM back itself.
        signal.signal(signal.SIGTERM, stop)


def end_launched(trainer: Trainer, number: int = signal.SIGTERM) -> None:
    """Signal the processes that this one has launched, which would go on without it."""
    end = getattr(trainer.strategy.launcher, "kill", None)
    if end is not None:
        end(number)


class Guard(Callback):
    """Shows how far a run is, and ends one that is told to stop: in order, at once the second time.

    ``finish`` is called to finish what is under way, and to start nothing new. With ``show``,
    ``advance`` shows what is being done, counted in ``unit``; see ``messages.reporting``.
    """

    def __init__(
        self, finish: Callable[[], None] | None = None, show: bool = False, unit: str = "results"
    ) -> None:
        self._finish, self._show, self._unit = finish, show, unit
        self.interrupted = False
        self._launched: list[subprocess.Popen[bytes]] = []
        self._exit = ExitStack()
        self._advance: Callable[[str, int, int], None] | None = None

    def advance(self, label: str, done: int, total: int) -> None:
        """Show what is being done, how many of it are done, and how many there are."""
        if self._advance is not None:
            self._advance(label, done, total)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_sigterm()
        if self._show and trainer.is_global_zero:
            count = trainer.world_size
            share = f", 1 of {count} processes" if count > 1 else ""
            self._advance = self._exit.enter_context(reporting(self._unit, share))

    on_test_start = on_predict_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._advance = None
        self._exit.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        self.teardown(trainer, pl_module, "")
        if threading.current_thread() is threading.main_thread():
            # Lightning has Ctrl-C ignored from here on, but a second one ends the waiting below.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # The first process tells the others to stop, who may have heard it themselves.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_launched(trainer)
        procs = getattr(trainer.strategy.launcher, "procs", [])
        self._launched = list(procs)
        procs.clear()  # Lightning watches this list, and would kill this process once one has ended
        if self._finish is not None:
            self._finish()
        for process in self._launched:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)

    @contextmanager
    def ending(self, trainer: Trainer, farewell: str) -> Iterator[None]:
        """Around the run: leaves by ``KeyboardInterrupt`` after Ctrl-C, and no process behind.

        Handlers of signals are as they were, however Lightning was stopped.
        """
        here = threading.current_thread() is threading.main_thread()
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)} if here else {}
        try:
            yield
        except (SystemExit, KeyboardInterrupt):
            if trainer.is_global_zero:
                _log.warning("%s", farewell)
            # Lightning has made an exit of the first Ctrl-C.
            if self.interrupted and trainer.is_global_zero:
                raise KeyboardInterrupt from None
            raise
        else:
            if trainer.world_size > 1 and torch.distributed.is_initialized():
                # Its threads would else meet the interpreter's end, which may abort the process.
                torch.distributed.destroy_process_group()
        finally:
            for process in self._launched:  # what has not ended by itself
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
