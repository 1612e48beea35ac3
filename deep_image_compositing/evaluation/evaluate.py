"""Evaluates methods on a test set; the command ``evaluate`` calls it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation import pages
from deep_image_compositing.evaluation.bench import Bench
from deep_image_compositing.evaluation.methods import ALONE, Method
from deep_image_compositing.evaluation.report import Report
from deep_image_compositing.evaluation.testsets.base import TestSet, check_counts
from deep_image_compositing.extras import import_extra
from deep_image_compositing.running import Guard, make_trainer, quiet

_STOPPED = "stopped; finished results are kept in {}; run the same command to continue"


def evaluate(
    methods: Sequence[Method],
    test_set: TestSet,
    out: str | os.PathLike[str],
    *,
    grades: Sequence[str] | str | None = None,
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
    """Measure methods on a test set, and write and return the report, in the first process.

    Args:
        methods: methods with different names, such as ``choose`` returns.
        test_set: the samples.
        out: folder for the report, contact sheets and records, created if missing; a run with the
            same folder resumes.
        grades: grades of the test set to measure, or their names joined by commas; None for all.
        reference: name of the method that the others are compared with; None for ``ours``, or
            else the last one.
        devices: number of GPUs, or of processes on a CPU.
        accelerator: as for Lightning's Trainer: auto, cpu, gpu.
        threads: CPU threads per process; None for torch's default, divided among processes.
        sheets: number of samples that get contact sheets; None for ``bench.SHEETS`` and all
            samples without truth.
        lpips_weights: file of torchvision's AlexNet.
        overwrite: delete an earlier evaluation in ``out`` and start again.
        show: show progress on standard error.
        command: the command line, for the report.

    Raises:
        UsageError: an argument is wrong, or ``out`` holds the evaluation of another test set or
            files that no evaluation wrote.
        ImageError: a folder or file cannot be written.
        WeightsError: ``lpips_weights`` cannot be used.
        MissingExtraError: scipy is not installed.
        KeyboardInterrupt: the run was stopped; finished results are kept.
    """
    import_extra("scipy.stats", "evaluate", "evaluate")
    names = [method.name for method in methods]
    if not names:
        raise UsageError("there is no method to run")
    check_counts(devices=(devices, 1), threads=(threads, 1), sheets=(sheets, 0))
    if reference is None:
        reference = "ours" if "ours" in names else names[-1]
    if len({name.casefold() for name in names}) < len(names):
        raise UsageError(f"methods need names of their own, got {', '.join(names)}")
    if reference not in names:
        raise UsageError(f"--reference is one of the methods, {', '.join(names)}: {reference!r}")
    if wrong := [method.name for method in methods if method.slots != test_set.slots]:
        kind = "harmonizers alone" if test_set.slots == ALONE else "whole methods"
        raise UsageError(
            f"the test set {test_set.name} is for {kind}, which {', '.join(wrong)} "
            f"{'is' if len(wrong) == 1 else 'are'} not"
        )
    if isinstance(grades, str):
        grades = [grade.strip() for grade in grades.split(",")]
    chosen = tuple(grade for grade in test_set.grades if grades is None or grade in grades)
    if not chosen or not set(grades or ()) <= set(chosen):
        raise UsageError(
            f"the grades here are some of {', '.join(test_set.grades)}, got "
            f"{', '.join(grades or ()) or 'none'}"
        )
    if not len(test_set):
        raise UsageError(f"the test set {test_set.name} holds no samples")
    guard = Guard(show=show)
    with quiet(), ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        trainer = make_trainer(guard, devices=devices, nodes=1, accelerator=accelerator)
        bench = Bench(
            methods, test_set, Path(out), guard.advance, grades=chosen, reference=reference,
            sheets=sheets, lpips_weights=lpips_weights, overwrite=overwrite, threads=threads,
        )  # fmt: skip
        with guard.ending(trainer, _STOPPED.format(out)):
            trainer.test(bench, verbose=False)
    if not trainer.is_global_zero:
        return None
    report = bench.report(command)
    pages.write(report, Path(out))
    return report
