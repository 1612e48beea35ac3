"""Lightning trainers for ``composite``, ``teach`` and ``evaluate``, their progress and shutdown."""

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

_GRACE = 60.0  # seconds that a process has to write its results after being told to stop
_PATIENCE = timedelta(days=7)  # processes wait for the slowest one at the end
_log = logging.getLogger("deep_image_compositing")


def make_trainer(
    *callbacks: Callback, devices: int | str | list[int], nodes: int, accelerator: str
) -> Trainer:
    """Create a trainer for prediction or testing, without logs and checkpoints.

    ``devices`` is their number or their indices. Raises ``UsageError`` for unavailable devices.
    """
    count = len(devices) if isinstance(devices, list) else devices
    one_process = count in (1, "1") and nodes == 1
    # By default, Lightning answers SLURM's signal by saving a checkpoint and requeueing the job.
    slurm = SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
    try:
        return Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy="auto" if one_process else DDPStrategy(timeout=_PATIENCE),
            callbacks=list(callbacks),
            plugins=slurm,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"--devices, --nodes or --accelerator is not available: {error}") from None


@contextmanager
def quiet(least: int = logging.ERROR) -> Iterator[None]:
    """Silence Lightning's warnings about deliberate choices, and its log below level ``least``."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(least)
    with warnings.catch_warnings():
        # Work is distributed without a sampler, and a process may have none.
        warnings.filterwarnings("ignore", message=r"Total length of `\w+` across ranks")
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        # Lightning 2.6 asks torch's tree utilities in a way that torch 2.15 deprecates.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _stop(number: int, frame: Any) -> NoReturn:
    """Let a signal end the run like Ctrl-C."""
    raise SystemExit(128 + number)


class Guard(Callback):
    """Shows a run's progress, and shuts down gracefully on the first signal, at once on the second.

    Args:
        finish: called on shutdown to complete work in progress without starting any more.
        show: whether ``advance`` shows progress; see ``messages.reporting``.
        unit: what is counted, such as ``photographs``.
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
        """Show that ``done`` of ``total`` are done."""
        if self._advance is not None:
            self._advance(label, done, total)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Lightning's handler waits for the end of a training step. It restores SIGTERM itself.
            signal.signal(signal.SIGTERM, _stop)
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
            # Lightning ignores Ctrl-C from here on, but a second one must end the waiting below.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # The first process signals the others, which may have received the signal already.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:  # the processes that it has started would outlive this one
            launcher.kill(signal.SIGTERM)
            self._launched = list(launcher.procs)
            launcher.procs.clear()  # Lightning would kill this process as soon as one of it ends
        if self._finish is not None:
            self._finish()
        for process in self._launched:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)

    @contextmanager
    def ending(self, trainer: Trainer, message: str) -> Iterator[None]:
        """Context manager for a run that restores signal handlers and leaves no process behind.

        Logs ``message`` if the run is stopped; raises ``KeyboardInterrupt`` after Ctrl-C.
        """
        is_main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        handlers = {number: signal.getsignal(number) for number in signals}
        try:
            yield
        except (SystemExit, KeyboardInterrupt):
            if trainer.is_global_zero:
                _log.warning("%s", message)
            # Lightning turns the first Ctrl-C into SystemExit.
            if self.interrupted and trainer.is_global_zero:
                raise KeyboardInterrupt from None
            raise
        else:
            if trainer.world_size > 1 and torch.distributed.is_initialized():
                # Its threads may abort the process if they outlive the interpreter.
                torch.distributed.destroy_process_group()
        finally:
            for process in self._launched:
                process.kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)
