"""The bench: every method on every sample of a test set, one record each, kept as it is made.

The work goes method by method, not sample by sample: so the weights of one method are in memory at
a time, and a run that is stopped leaves whole rows of the table. Process *r* of *n* takes the
samples *r*, *r + n*, ...: each counts exactly once, and no process waits for another before the
end. Everything finished is a file, written aside and renamed, so that the same command goes on
where it was stopped, with as many processes as it likes. ``deep-image-compositing evaluate`` calls
:func:`evaluate`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from deep_image_compositing import __version__
from deep_image_compositing.compositor import Composite, Compositor
from deep_image_compositing.errors import CompositingError, ImageError, UsageError
from deep_image_compositing.evaluation import pages
from deep_image_compositing.evaluation import sheets as drawing
from deep_image_compositing.evaluation.costs import Cost
from deep_image_compositing.evaluation.measures import (
    measure_alpha,
    measure_composite,
    measure_mask,
    prepare,
)
from deep_image_compositing.evaluation.methods import Method
from deep_image_compositing.evaluation.report import Report
from deep_image_compositing.evaluation.testsets import Sample, TestSet
from deep_image_compositing.images import write_bytes, write_image
from deep_image_compositing.running import end_launched, make_trainer, quiet, stop_on_sigterm

WORK = "work"
"""Folder of the records and result pictures, inside the report's."""

RECORD = 1
"""Raised whenever a record says something else about the same work."""

SHEETS = 12
"""Samples that get contact sheets, spread over a set whose truth is known."""

ROOM = 1_000_000_000
"""Bytes of samples that each process keeps in memory."""

_MARK = "bench.json"
_NOTHING = (-1, -1)
_FAREWELL = "stopped; what is finished stays in %s, and the same command goes on from there"
_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and where it goes.

    Attributes:
        methods: in the order of tables.
        test_set: the samples.
        out: folder of the report.
        grades: of the test set, those that are wanted.
        reference: name of the method that the others are compared with.
        sheets: samples that get contact sheets; None for :data:`SHEETS`. Those without a truth
            get theirs in any case, unless it is 0.
        lpips_weights: as for :func:`~deep_image_compositing.evaluation.measures.prepare`.
        overwrite: begin anew, whatever ``out`` holds of an earlier evaluation.
    """

    methods: tuple[Method, ...]
    test_set: TestSet
    out: Path
    grades: tuple[str, ...]
    reference: str
    sheets: int | None = None
    lpips_weights: str | None = None
    overwrite: bool = False

    def record(self, sample: str, grade: str, method: str) -> Path:
        """The file of one record; the pictures next to it have suffixes of their own."""
        return self.out / WORK / sample / grade / f"{method}.json"


def read_record(path: Path, identity: str) -> dict[str, Any] | None:
    """The record in a file, when it is there and belongs to ``identity``."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("identity") == identity else None


def check_folder(out: Path, test_set: TestSet, overwrite: bool = False) -> None:
    """Find before the slow work what would keep the report from being written.

    Raises:
        UsageError: ``out`` is a file, holds the report of another test set, or what no evaluation
            has written.
        ImageError: it cannot be made, or may not be written to.
    """
    real = Path(os.path.realpath(out))
    if real.exists() and not real.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder")
    nearest = next(folder for folder in (real, *real.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ImageError(f"{out} cannot be written to: permission denied in {nearest.name or '/'}")
    mark = out / WORK / _MARK
    if not mark.exists():
        strange = [name for name in (WORK, *pages.FILES, drawing.FOLDER) if (out / name).exists()]
        if strange:
            raise UsageError(
                f"{out} holds {strange[0]}, which no evaluation has written: give another --out"
            )
        return
    if overwrite:
        return
    try:
        found = json.loads(mark.read_bytes())
        same = found["fingerprint"] == test_set.fingerprint()
        before = dict(found["test_set"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{mark} is damaged: give another --out, or --overwrite") from None
    if not same:
        now = json.loads(json.dumps(test_set.describe()))
        names = [n for n in {**before, **now} if before.get(n) != now.get(n) and n != "names"]
        told = (f"{n} {before.get(n)!r}, now {now.get(n)!r}" for n in names)
        how = "; ".join(text for text in told if len(text) < 200) or "other pictures"
        raise UsageError(
            f"{out} holds the evaluation of another test set ({how}): give another --out, or "
            "--overwrite to begin anew"
        )


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
        methods: of different names, as :func:`~deep_image_compositing.evaluation.methods.choose`
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
            :data:`SHEETS` and all without truth.
        lpips_weights: file of torchvision's AlexNet.
        overwrite: begin anew, whatever ``out`` holds of an earlier evaluation.
        show: draw progress on standard error.
        command: what was typed, for the report.

    Returns:
        The report; None in every process but the first.

    Raises:
        UsageError: a wrong argument, or as :func:`check_folder`.
        ImageError: a file that could not be written.
        WeightsError: ``lpips_weights`` that are none.
        KeyboardInterrupt: the run was told to stop; what is finished stays.
    """
    plan = _plan(methods, test_set, Path(out), grades, reference, sheets, lpips_weights, overwrite)
    for name, value in (("devices", devices), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    check_folder(plan.out, test_set, overwrite)
    keeper = _Keeper(show)
    with quiet(), _threads(threads):
        trainer = make_trainer(keeper, devices=devices, nodes=1, accelerator=accelerator)
        bench = Bench(plan, keeper.advance, threads)
        try:
            trainer.test(bench, verbose=False)
        except SystemExit:
            if trainer.is_global_zero:
                _log.warning(_FAREWELL, plan.out)
            if not (keeper.interrupted and trainer.is_global_zero):
                raise
            # Lightning has turned Ctrl-C into an exit and would have it ignored from now on.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
    if not trainer.is_global_zero:
        return None
    made = bench.report(command)
    pages.write(made, plan.out)
    return made


def _plan(
    methods: Sequence[Method],
    test_set: TestSet,
    out: Path,
    grades: Sequence[str] | None,
    reference: str | None,
    sheets: int | None,
    lpips_weights: str | None,
    overwrite: bool,
) -> Plan:
    names = [method.name for method in methods]
    if not names:
        raise UsageError("there is no method to run")
    if len({name.casefold() for name in names}) < len(names):
        raise UsageError(f"methods need names of their own, got {', '.join(names)}")
    if reference is None:
        reference = "ours" if "ours" in names else names[-1]
    elif reference not in names:
        raise UsageError(f"--reference is one of the methods, {', '.join(names)}: {reference!r}")
    chosen = test_set.grades if grades is None else tuple(grades)
    unknown = [grade for grade in chosen if grade not in test_set.grades]
    if unknown or not chosen:
        raise UsageError(
            f"the grades of {test_set.name} are {', '.join(test_set.grades)}, got "
            f"{unknown[0] if unknown else 'none'}"
        )
    if sheets is not None and sheets < 0:
        raise UsageError(f"sheets must be at least 0, got {sheets}")
    if not len(test_set):
        raise UsageError(f"the test set {test_set.name} holds no samples")
    chosen = tuple(grade for grade in test_set.grades if grade in chosen)
    return Plan(tuple(methods), test_set, out, chosen, reference, sheets, lpips_weights, overwrite)


class Bench(LightningModule):
    """``Trainer.test`` of whole methods: a step runs one method on one sample, in every grade.

    A method that fails on a sample is recorded as failed, and the others go on; so is a sample
    that cannot be read. When a run is taken up again, what failed is tried again.

    Args:
        plan: what is measured, and where it goes.
        advance: told what is being done, how many of it are done, and how many there are.
        threads: CPU threads of each process; None for torch's own choice.
    """

    def __init__(
        self,
        plan: Plan,
        advance: Callable[[str, int, int], None] = lambda method, done, left: None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.advance = advance
        self.threads = threads
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.prepare_data_per_node = False
        self.names = plan.test_set.names()
        self.fingerprint = plan.test_set.fingerprint()
        lpips, self.left_out = prepare(plan.lpips_weights)
        self._lpips = (lpips,)  # in a tuple, or Lightning would take it for a part of the module
        self._done = self._total = 0
        self._method: Method | None = None
        self._compositor: Compositor | None = None
        self._broken = ""
        self._warm: set[Any] = set()
        self._samples: dict[int, Sample] = {}
        self._room = ROOM

    # What is left to do

    def prepare_data(self) -> None:
        """Make the folder say which test set it belongs to; Lightning calls one process."""
        out = self.plan.out
        if self.plan.overwrite and (out / WORK / _MARK).exists():
            for name in (WORK, drawing.FOLDER):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in pages.FILES:
                (out / name).unlink(missing_ok=True)
        try:
            (out / WORK).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"the folder {out} cannot be made: {error.strerror}") from error
        for aside in out.rglob(".*.part"):
            aside.unlink(missing_ok=True)
        content = {"fingerprint": self.fingerprint, "test_set": self.plan.test_set.describe()}
        write_bytes(out / WORK / _MARK, _json(content))

    def setup(self, stage: str) -> None:
        """Say who each record belongs to; Lightning has let no process begin before this."""
        lpips = self.plan.lpips_weights
        common = {
            "record": RECORD,
            "version": __version__,
            "test_set": self.fingerprint,
            "device": self.device.type,
            "lpips": None if self._lpips[0] is None else _digest(lpips) if lpips else "cached",
        }
        self.identities = {
            method.name: hashlib.sha256(_json({**common, **method.describe()})).hexdigest()
            for method in self.plan.methods
        }
        if self.threads is None and self.device.type == "cpu" and self.trainer.world_size > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.trainer.world_size))

    def test_dataloader(self) -> DataLoader[tuple[int, int]]:
        """Method and sample of each step of this process, finished ones left out."""
        own = range(self.trainer.global_rank, len(self.names), self.trainer.world_size)
        jobs = [(m, i) for m in range(len(self.plan.methods)) for i in own if self._pending(m, i)]
        self._total = sum(len(self._pending(*job)) for job in jobs)
        # Lightning would skip a test of nothing, and with it the sheets.
        return DataLoader(jobs or [_NOTHING], batch_size=None)  # type: ignore[arg-type]

    def _pending(self, number: int, index: int) -> list[str]:
        """The grades in which a method is still to be run on a sample."""
        method = self.plan.methods[number].name
        found = {grade: self._read(self.names[index], grade, method) for grade in self.plan.grades}
        return [grade for grade, record in found.items() if not record or "error" in record]

    def _read(self, sample: str, grade: str, method: str) -> dict[str, Any] | None:
        return read_record(self.plan.record(sample, grade, method), self.identities[method])

    # Running

    def on_test_start(self) -> None:
        """Tell how much there is to do."""
        self.advance("evaluating", 0, self._total)

    def test_step(self, job: tuple[int, int], batch_idx: int) -> None:
        """Run one method on one sample, in each grade that is left, and write the records.

        Args:
            job: number of the method and of the sample.
            batch_idx: not used.
        """
        number, index = job
        if number < 0:
            return
        method = self.plan.methods[number]
        if self._method is not method:
            self._use(method)
        grades, sample, unread = self._pending(number, index), None, self._broken
        try:
            sample = self._sample(index)
        except Exception as error:  # one bad sample must not stop the others
            unread = f"the sample cannot be read: {_told(error)}"
        for grade in grades:
            record: dict[str, Any] = {
                "identity": self.identities[method.name],
                "sample": self.names[index],
                "grade": grade,
                "method": method.name,
                "device": str(self.device),
                "threads": torch.get_num_threads(),
            }
            path = self.plan.record(self.names[index], grade, method.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if sample is None or self._broken:
                record["error"] = unread
            else:
                self._run(sample, grade, path, record)
            write_bytes(path, _json(record))
            self._done += 1
            self.advance(method.name, self._done, self._total)

    def _sample(self, index: int) -> Sample:
        """A sample, made once where memory allows: every method comes by again."""
        kept = self._samples.get(index)
        if kept is not None:
            return kept
        sample = self.plan.test_set[index]
        size = _bytes(sample)
        if size <= self._room:
            self._room -= size
            self._samples[index] = sample
        return sample

    def on_test_end(self) -> None:
        """Draw the sheets, each process its share, once all records are there."""
        self._compositor = None
        self.trainer.strategy.barrier("records")
        jobs = [(name, grade) for name in self._shown() for grade in self.plan.grades]
        own = jobs[self.trainer.global_rank :: self.trainer.world_size]
        for done, (name, grade) in enumerate(own, start=1):
            self._draw(name, grade)
            self.advance("contact sheets", done, len(own))
        self.trainer.strategy.barrier("sheets")

    def _use(self, method: Method) -> None:
        """Hold the stages of one method, and of no other."""
        if self._compositor is not None:
            self._compositor = None
            _empty(self.device)
        self._method, self._broken = method, ""
        self._warm.clear()
        try:
            self._compositor = method.compositor(device=str(self.device))
        except Exception as error:  # a method that cannot be made must not stop the others
            self._broken = _told(error)

    def _run(self, sample: Sample, grade: str, path: Path, record: dict[str, Any]) -> None:
        """Composite and measure; whatever goes wrong is told in ``record``."""
        assert self._compositor is not None
        notes: list[str] = []
        try:
            if grade not in sample.masks:
                raise CompositingError(f"the sample has no mask of the grade {grade}")
            with _noted(notes):
                self._warm_up(sample, grade)
                result, cost = self._composite(sample, grade)
                record["size"] = list(result.size)
                record["measures"] = self._measures(sample, grade, result, cost)
            _write_pictures(path, result, with_mask=sample.masks[grade] is None)
        except Exception as error:  # one bad sample must not stop the others
            _log.debug("%s", traceback.format_exc())
            record["error"] = _told(error)
            record.pop("measures", None)
            if isinstance(error, MemoryError | torch.OutOfMemoryError):
                _empty(self.device)
        if notes:
            record["warnings"] = list(dict.fromkeys(notes))

    def _composite(self, sample: Sample, grade: str) -> tuple[Composite, Cost]:
        assert self._compositor is not None
        mask = sample.masks[grade]
        foreground, background = _array(sample.foreground), _array(sample.background)
        with Cost(self.device) as cost:
            result = self._compositor(
                foreground, background, None if mask is None else _array(mask)[..., 0]
            )
        return result, cost

    def _warm_up(self, sample: Sample, grade: str) -> None:
        """Run once uncounted: to load what is loaded late, and to compile.

        On a GPU, which prepares for each size, once a size; elsewhere once a method. The grade
        without a mask also needs the segmenter.
        """
        size = tuple(sample.foreground.shape) if self.device.type == "cuda" else ()
        asks = sample.masks[grade] is None
        if not {(size, asks), (size, True)} & self._warm:
            self._warm.add((size, asks))
            self._composite(sample, grade)

    def _measures(
        self, sample: Sample, grade: str, result: Composite, cost: Cost
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        if sample.composite is not None:
            found |= measure_composite(
                result.composite_pixels,
                sample.composite,
                sample.alpha,
                sample.foreground,
                sample.background,
                sample.old_background,
                sample.foreground_color,
                self._lpips[0],
            )
        if sample.alpha is not None:
            # No trimap was given, so nothing of the picture is known beforehand.
            found |= measure_alpha(result.cutout_alpha, sample.alpha)
            if sample.masks[grade] is None:
                found |= measure_mask(result.mask, sample.alpha)
        found["seconds"] = cost.seconds
        found |= {f"{stage}_seconds": value for stage, value in result.seconds.items()}
        if cost.peak_memory is not None:
            found["peak_memory"] = cost.peak_memory
        return {key: value for key, value in found.items() if math.isfinite(value)}

    # The sheets and the report

    def _records(self, sample: str, grade: str) -> dict[str, dict[str, Any]]:
        """The records of one sample in one grade, by method."""
        found = ((m.name, self._read(sample, grade, m.name)) for m in self.plan.methods)
        return {name: record for name, record in found if record is not None}

    def _shown(self) -> list[str]:
        """The samples that get sheets: those without truth, and some spread over the others."""
        most = SHEETS if self.plan.sheets is None else self.plan.sheets
        judged: list[str] = []
        others: list[str] = []
        for name in self.names if most else []:
            records = [r for grade in self.plan.grades for r in self._records(name, grade).values()]
            measures = [record["measures"] for record in records if "measures" in record]
            if measures:  # else all failed, and there is nothing to show
                (judged if any("psnr" in found for found in measures) else others).append(name)
        count = min(most, len(judged))
        some = {judged[round(k * (len(judged) - 1) / max(1, count - 1))] for k in range(count)}
        some |= set(others if self.plan.sheets is None else others[: most - count])
        return [name for name in self.names if name in some]

    def _draw(self, name: str, grade: str) -> None:
        """Draw one sheet, unless the one that is there shows these very records."""
        records = self._records(name, grade)
        folder, path = self.plan.record(name, grade, "").parent, self._sheet(name, grade)
        made_of = hashlib.sha256(_json([drawing.LAYOUT, records])).hexdigest()
        mark = folder / ".sheet"
        if path.exists() and mark.exists() and mark.read_text() == made_of:
            return
        try:
            sample = self._sample(self.names.index(name))
            rows = [drawing.Row(m, folder / m, record) for m, record in records.items()]
            sheet = drawing.draw(sample, grade, rows)
        except Exception as error:  # the figures are there; a sheet is no reason to lose them
            _log.debug("%s", traceback.format_exc())
            _log.warning("no contact sheet of %s (%s): %s", name, grade, _told(error))
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, sheet, quality=90)
        write_bytes(mark, made_of.encode())

    def _sheet(self, sample: str, grade: str) -> Path:
        return self.plan.out / drawing.FOLDER / grade / f"{sample}.jpg"

    def report(self, command: str = "") -> Report:
        """The report of all records that are there."""
        plan = self.plan
        records = [
            {key: value for key, value in record.items() if key != "identity"}
            for grade in plan.grades
            for name in self.names
            for record in self._records(name, grade).values()
        ]
        found = ((g, n, self._sheet(n, g)) for n in self._shown() for g in plan.grades)
        kind = self.device.type
        return Report(
            about={
                "version": __version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
                "device": torch.cuda.get_device_name(self.device) if kind == "cuda" else kind,
                "threads": sorted({record["threads"] for record in records}),
                "command": command,
            },
            test_set={"fingerprint": self.fingerprint, **plan.test_set.describe()},
            methods=[method.describe() for method in plan.methods],
            grades=plan.grades,
            names=self.names,
            reference=plan.reference,
            records=records,
            left_out=self.left_out,
            sheets=[
                {"grade": g, "sample": n, "file": p.relative_to(plan.out).as_posix()}
                for g, n, p in found
                if p.exists()
            ],
        )


class _Keeper(Callback):
    """Shows progress, and ends the run as one when it is told to stop.

    Args:
        show: draw on standard error: a bar on a terminal, lines elsewhere.
    """

    def __init__(self, show: bool) -> None:
        self.show = show
        self.interrupted = False
        self._exit = ExitStack()
        self._tick: Callable[[str, int, int], None] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_on_sigterm()
        if self.show and trainer.is_global_zero:
            share = f", 1 of {trainer.world_size} processes" if trainer.world_size > 1 else ""
            self._tick = self._exit.enter_context(_progress(share))

    def advance(self, label: str, done: int, total: int) -> None:
        """Say what is being done, how many of it are done, and how many there are."""
        if self._tick is not None:
            self._tick(label, done, total)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        self._close()
        end_launched(trainer)

    def _close(self) -> None:
        self._tick = None
        self._exit.close()


_PATIENCE = 60.0
"""Seconds between two lines of progress where there is no terminal."""


@contextmanager
def _progress(share: str) -> Iterator[Callable[[str, int, int], None]]:
    """What shows progress: a bar on a terminal; elsewhere a line a minute and one a method."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("evaluating", total=None)
            yield lambda label, done, total: bar.update(
                task, description=f"{label}{share}", completed=done, total=total
            )
        return
    current, said = "", time.monotonic()

    def tell(label: str, done: int, total: int) -> None:
        nonlocal current, said
        if label == current and time.monotonic() - said < _PATIENCE and done < total:
            return
        current, said = label, time.monotonic()
        _log.info("%s: %d of %d are done%s", label, done, total, share)

    yield tell


# Small parts


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Collect what is warned of meanwhile, instead of showing it."""

    class Note(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.levelno >= logging.WARNING:
                notes.append(record.getMessage())
            return False

    note = Note()
    _log.addFilter(note)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        _log.removeFilter(note)
        # What libraries tell their developers is no finding about a picture.
        quiet_kinds = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
        notes.extend(str(w.message) for w in caught if not issubclass(w.category, quiet_kinds))


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


def _write_pictures(path: Path, result: Composite, with_mask: bool) -> None:
    write_image(path.with_suffix(".composite.png"), _array(result.composite_pixels))
    write_image(path.with_suffix(".alpha.png"), result.cutout_alpha)
    if with_mask:
        write_image(path.with_suffix(".mask.png"), result.mask)


def _array(picture: Tensor) -> Any:
    """(C, H, W) uint8 as a contiguous (H, W, C) array."""
    return picture.permute(1, 2, 0).contiguous().numpy()


def _bytes(sample: Sample) -> int:
    """Bytes of all its pictures."""
    pictures = [*vars(sample).values(), *sample.masks.values()]
    return sum(picture.nbytes for picture in pictures if isinstance(picture, Tensor))


def _told(error: BaseException) -> str:
    """What a record says of an error."""
    known = isinstance(error, CompositingError)
    return str(error) if known and str(error) else f"{type(error).__name__}: {error}".rstrip(": ")


def _empty(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _digest(path: str | Path) -> str:
    with open(Path(path).expanduser(), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode()
