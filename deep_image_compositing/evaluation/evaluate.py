"""The comparison of whole methods, from Python; the command ``evaluate`` calls it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation import pages, statistics
from deep_image_compositing.evaluation.bench import Bench
from deep_image_compositing.evaluation.methods import Method
from deep_image_compositing.evaluation.plan import Plan
from deep_image_compositing.evaluation.progress import Progress
from deep_image_compositing.evaluation.report import Report
from deep_image_compositing.evaluation.testsets import TestSet, check_grades
from deep_image_compositing.running import make_trainer, quiet

_FAREWELL = "stopped; what is finished stays in %s, and the same command goes on from there"
_log = logging.getLogger("deep_image_compositing")


def evaluate(
    methods: Sequence[Method],
    test_set: TestSet,
    out: str | os.PathLike[str],
    *,
    grades: Sequence[str] | None = None,
    reference: str | None = None,
    devices: int = 1,
    accelerator: str = "auto",
    threads: int | None = None,
    sheets: int | None = None,
    lpips_weights: str | None = None,
    overwrite: bool = False,
    show: bool = False,
    command: str = "",
) -> Report | None:
    """Measure methods on a test set and write the report; finished work in ``out`` is kept.

    Args:
        methods: of different names, as ``choose``
            gives them.
        test_set: the samples.
        out: folder of ``report.json``, ``report.md``, ``report.html``, the contact sheets and the
            records; made when it is not there.
        grades: of the test set, those to measure; None for all.
        reference: name of the method that the others are compared with; None for ``ours``, or the
            last one where none is called so.
        devices: GPUs, or processes on a CPU.
        accelerator: as for Lightning's Trainer: auto, cpu, gpu.
        threads: CPU threads of each process; None for torch's own choice, which is divided among
            several processes.
        sheets: samples that get contact sheets, spread over the set; 0 for none, None for
            ``SHEETS`` and all without truth.
        lpips_weights: file of torchvision's AlexNet.
        overwrite: begin anew, whatever ``out`` holds of an earlier evaluation.
        show: draw progress on standard error.
        command: what was typed, for the report.

    Returns:
        The report; None in every process but the first.

    Raises:
        UsageError: a wrong argument, or as ``Plan.check_folder``.
        ImageError: a file that could not be written.
        WeightsError: ``lpips_weights`` that are none.
        MissingExtraError: scipy is not installed.
        KeyboardInterrupt: the run was told to stop; what is finished stays.
    """
    statistics.require("evaluate")
    if not methods:
        raise UsageError("there is no method to run")
    for name, value in (("devices", devices), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if reference is None:
        names = [method.name for method in methods]
        reference = "ours" if "ours" in names else names[-1]
    chosen = check_grades(grades, test_set.grades)
    plan = Plan(
        tuple(methods), test_set, Path(out), chosen, reference, sheets, lpips_weights, overwrite
    )
    plan.check_folder()
    progress = Progress(show)
    with quiet(), _threads(threads):
        trainer = make_trainer(progress, devices=devices, nodes=1, accelerator=accelerator)
        bench = Bench(plan, progress.advance, threads)
        try:
            trainer.test(bench, verbose=False)
        except SystemExit:
            if trainer.is_global_zero:
                _log.warning(_FAREWELL, plan.out)
            if not (progress.interrupted and trainer.is_global_zero):
                raise
            # Lightning has turned Ctrl-C into an exit and would have it ignored from now on.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
    if not trainer.is_global_zero:
        return None
    report = bench.report(command)
    pages.write(report, plan.out)
    return report


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch, and pymatting's compiler, use so many threads."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
        os.environ.setdefault("NUMBA_NUM_THREADS", str(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)
