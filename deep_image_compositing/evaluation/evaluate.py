"""The comparison of whole methods, from Python; the command ``evaluate`` calls it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.evaluation import pages, statistics
from deep_image_compositing.evaluation.bench import OWN, Bench, Plan
from deep_image_compositing.evaluation.methods import ALONE, Method
from deep_image_compositing.evaluation.report import Report
from deep_image_compositing.evaluation.testsets.base import TestSet, check_counts, check_grades
from deep_image_compositing.ledger import differences
from deep_image_compositing.running import Guard, make_trainer, quiet

_FAREWELL = "stopped; what is finished stays in {}, and the same command goes on from there"


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
    """Measure methods on a test set and write the report; None in every process but the first.

    Args:
        methods: of different names, as ``choose`` gives them.
        test_set: the samples.
        out: folder of the report, the contact sheets and the records, of which finished ones are
            kept; made when it is not there.
        grades: of the test set, those to measure; None for all.
        reference: name of the method that the others are compared with; None for ``ours``, or the
            last one where none is called so.
        devices: GPUs, or processes on a CPU.
        accelerator: as for Lightning's Trainer: auto, cpu, gpu.
        threads: CPU threads of each process; None for torch's choice, divided among processes.
        sheets: samples that get contact sheets, spread over the set; 0 for none, None for
            ``bench.SHEETS`` and all without truth.
        lpips_weights: file of torchvision's AlexNet.
        overwrite: begin anew, whatever ``out`` holds of an earlier evaluation.
        show: draw progress on standard error.
        command: what was typed, for the report.

    Raises:
        UsageError: a wrong argument, or an ``out`` that is a file, holds the report of another
            test set, or what no evaluation has written.
        ImageError: a file that could not be written.
        WeightsError: ``lpips_weights`` that are none.
        MissingExtraError: scipy is not installed.
        KeyboardInterrupt: the run was told to stop; what is finished stays.
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
    chosen = check_grades(grades, test_set.grades)
    if not len(test_set):
        raise UsageError(f"the test set {test_set.name} holds no samples")
    plan = Plan(
        tuple(methods), test_set, Path(out), chosen, reference, sheets, lpips_weights, overwrite,
        threads,
    )  # fmt: skip
    _check_folder(plan)
    guard = Guard(show=show)
    with quiet(), ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if threads is not None:
            torch.set_num_threads(threads)
            os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))  # of pymatting's compiler
        trainer = make_trainer(guard, devices=devices, nodes=1, accelerator=accelerator)
        bench = Bench(plan, guard.advance)
        with guard.ending(trainer, _FAREWELL.format(out)):
            trainer.test(bench, verbose=False)
    if not trainer.is_global_zero:
        return None
    report = bench.report(command)
    pages.write(report, plan.out)
    return report


def _check_folder(plan: Plan) -> None:
    """Find before the slow work what would keep the report from being written."""
    out, real = plan.out, Path(os.path.realpath(plan.out))
    if real.exists() and not real.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder")
    nearest = next(folder for folder in (real, *real.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        name = nearest.name or "/"
        raise ImageError(f"{out} cannot be written to: permission denied in {name}")
    ledger = plan.ledger()
    if not ledger.path.exists():
        if found := next((name for name in OWN if (out / name).exists()), None):
            raise UsageError(
                f"{out} holds {found}, which no evaluation has written: give another --out"
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
            "--overwrite to begin anew"
        )
