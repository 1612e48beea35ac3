"""How far an evaluation is, on standard error, and how it ends when it is told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer

from deep_image_compositing.messages import printable
from deep_image_compositing.running import end_launched, stop_on_sigterm

Advance = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and how many there are."""

_BETWEEN_LINES = 60.0  # seconds, where there is no terminal
_log = logging.getLogger("deep_image_compositing")


class Progress(Callback):
    """A bar on a terminal, lines elsewhere; ends the processes of a run as one.

    Attributes:
        interrupted: whether the run was ended by Ctrl-C.
    """

    def __init__(self, show: bool) -> None:
        self.show = show
        self.interrupted = False
        self._exit = ExitStack()
        self._advance: Advance | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_sigterm()
        if self.show and trainer.is_global_zero:
            share = f", 1 of {trainer.world_size} processes" if trainer.world_size > 1 else ""
            self._advance = self._exit.enter_context(_shown(share))

    def advance(self, label: str, done: int, total: int) -> None:
        """Show it, if anything is to be shown."""
        if self._advance is not None:
            self._advance(label, done, total)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._advance = None
        self._exit.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        self.teardown(trainer, pl_module, "test")
        end_launched(trainer)


@contextmanager
def _shown(share: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("evaluating", total=None)
            yield lambda label, done, total: bar.update(
                task, description=escape(printable(label)) + share, completed=done, total=total
            )
        return
    last, when = "", time.monotonic()

    def line(label: str, done: int, total: int) -> None:
        nonlocal last, when
        if label != last or done >= total or time.monotonic() - when >= _BETWEEN_LINES:
            last, when = label, time.monotonic()
            _log.info("%s: %d of %d are done%s", label, done, total, share)

    yield line
