"""Evaluates methods on a test set; the command ``evaluate`` calls it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.evaluation import pages, statistics
from deep_image_compositing.evaluation.bench import OUTPUTS, Bench, Plan
from deep_image_compositing.evaluation.methods import ALONE, Method
from deep_image_compositing.evaluation.report import Report
from deep_image_compositing.evaluation.testsets.base import TestSet, check_counts, check_grades
from deep_image_compositing.ledger import differences
from deep_image_compositing.running import Guard, make_trainer, quiet

_STOPPED = "stopped; finished results are kept in {}; run the same command to continue"


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
    """Measure methods on a test set, and write and return the report, in the first process.

    Args:
        methods: methods with different names, such as ``choose`` returns.
        test_set: the samples.
        out: folder for the report, contact sheets and records, created if missing; a run with the
            same folder resumes.
        grades: grades of the test set to measure; None for all.
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
        UsageError: an argument is wrong, or ``out`` is a file, holds the evaluation of another
            test set, or holds files that no evaluation wrote.
        ImageError: a file cannot be written.
        WeightsError: ``lpips_weights`` cannot be used.
        MissingExtraError: scipy is not installed.
        KeyboardInterrupt: the run was stopped; finished results are kept.
    """
    statistics.require("evaluate")
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
    grades = check_grades(grades, test_set.grades)
    if not len(test_set):
        raise UsageError(f"the test set {test_set.name} holds no samples")
    plan = Plan(
        tuple(methods), test_set, Path(out), grades, reference, sheets, lpips_weights, overwrite,
        threads,
    )  # fmt: skip
    _check_folder(plan)
    guard = Guard(show=show)
    with quiet(), ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if threads is not None:
            torch.set_num_threads(threads)
            os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))  # for pymatting
        trainer = make_trainer(guard, devices=devices, nodes=1, accelerator=accelerator)
        bench = Bench(plan, guard.advance)
        with guard.ending(trainer, _STOPPED.format(out)):
            trainer.test(bench, verbose=False)
    if not trainer.is_global_zero:
        return None
    report = bench.report(command)
    pages.write(report, plan.out)
    return report


def _check_folder(plan: Plan) -> None:
    """Raise early if the report cannot be written to the folder, or if it has other contents."""
    out, real = plan.out, Path(os.path.realpath(plan.out))
    if real.exists() and not real.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder")
    nearest = next(folder for folder in (real, *real.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        name = nearest.name or "/"
        raise ImageError(f"{out} cannot be written to: permission denied in {name}")
    ledger = plan.ledger()
    if not ledger.path.exists():
        if existing := next((name for name in OUTPUTS if (out / name).exists()), None):
            raise UsageError(
                f"{out} holds {existing}, which no evaluation has written: give another --out"
            )
        return
    if plan.overwrite:
        return
    before, now = ledger.about, plan.about()
    if before is None or not isinstance(before.get("test_set"), dict):
        raise UsageError(f"{ledger.path} is damaged: give another --out, or --overwrite")
    if before.get("fingerprint") != now["fingerprint"]:
        changes = differences(before["test_set"], now["test_set"])
        texts = [f"{name} {old!r}, now {new!r}" for name, (old, new) in changes.items()]
        how = "; ".join(text for text in texts if len(text) < 200) or "other pictures"
        raise UsageError(
            f"{out} holds the evaluation of another test set ({how}): give another --out, or "
            "--overwrite to start again"
        )
