"""The bench runs every method on every sample of a test set; ``evaluate`` calls it.

Methods run one after another, so only one has its weights in memory. Process *r* of *n* takes the
samples *r*, *r + n*, .... Each result is recorded in a ledger at once, so a stopped run can resume,
also with another number of processes.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import platform
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from deep_image_compositing import __version__
from deep_image_compositing.composite import Composite
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.errors import DataError, UsageError, error_text
from deep_image_compositing.evaluation import measures, pages, sheets
from deep_image_compositing.evaluation.methods import ALONE, Method
from deep_image_compositing.evaluation.report import Report
from deep_image_compositing.evaluation.testsets import Sample, TestSet
from deep_image_compositing.evaluation.testsets.base import json_digest
from deep_image_compositing.files import at_home, make_folder
from deep_image_compositing.images import write_image
from deep_image_compositing.ledger import Ledger, differences, digest
from deep_image_compositing.metrics.lpips import find_lpips

WORK = "work"  # folder of the ledger and the result pictures, inside the report's
LEDGER = "records.jsonl"

# All outputs. The ledger is deleted last: while it exists, the rest is known to be an evaluation's.
OUTPUTS = (*pages.FILES, sheets.FOLDER, WORK)
RECORD = 2  # version of the records; raise it when their content changes
SHEETS = 12  # default number of contact sheets for a set with truth
CACHE = 1_000_000_000  # bytes of samples, without masks, that each process caches

_NOTHING = (-1, -1)
_log = logging.getLogger("deep_image_compositing")


class Bench(LightningModule):
    """Module for ``Trainer.test`` whose step runs one method on one sample in every grade.

    Failures are recorded and do not stop the run; the next run tries them again. Arguments are
    those of ``evaluate``, checked, and ``advance``, which is called with a label, the number of
    finished items, and their total.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        test_set: TestSet,
        out: Path,
        advance: Callable[[str, int, int], None],
        *,
        grades: tuple[str, ...],
        reference: str,
        sheets: int | None = None,
        lpips_weights: str | None = None,
        overwrite: bool = False,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self.methods, self.test_set, self.out, self.advance = methods, test_set, out, advance
        self.grades, self.reference, self.sheets = grades, reference, sheets
        self.lpips_weights, self.overwrite, self.threads = lpips_weights, overwrite, threads
        self.prepare_data_per_node = False
        self.names = test_set.names
        self.about = {"fingerprint": test_set.fingerprint(), "test_set": test_set.about}
        self.alone = test_set.slots == ALONE
        lpips, reason = find_lpips(lpips_weights)
        self.left_out = {} if lpips else dict.fromkeys(("lpips", "band_lpips"), reason)
        self._lpips = (lpips,)  # in a tuple, so that it is not registered as a submodule
        self._done = self._total = 0
        self._method: Method | None = None
        self._compositor: Compositor | None = None
        self._warm: set[Any] = set()
        self._cache: dict[int, Sample] = {}
        self._free = CACHE

    # Pending work

    def prepare_data(self) -> None:
        """Prepare the folder and the ledger, in one process."""
        out, ledger = self.out, Ledger(self.out / WORK / LEDGER)
        if not ledger.path.exists():
            if existing := next((name for name in OUTPUTS if (out / name).exists()), None):
                raise UsageError(
                    f"{out} holds {existing}, which no evaluation has written: give another --out"
                )
        elif self.overwrite:
            for path in (out / name for name in OUTPUTS):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)
            ledger.read()
        else:
            self._check_same(ledger)
        make_folder(make_folder(out) / WORK)
        partial = f".{'[0-9a-f]' * 16}.part"  # temporary files of a killed process
        subfolders = ((out / name).rglob(partial) for name in (WORK, sheets.FOLDER))
        for path in chain(out.glob(partial), *subfolders):
            path.unlink(missing_ok=True)
        ledger.begin(self.about)

    def _check_same(self, ledger: Ledger) -> None:
        """Raise ``UsageError`` if the ledger is of another test set."""
        if ledger.about is None or not isinstance(ledger.about.get("test_set"), dict):
            raise UsageError(f"{ledger.path} is damaged: give another --out, or --overwrite")
        if ledger.about.get("fingerprint") != self.about["fingerprint"]:
            changes = differences(ledger.about["test_set"], self.test_set.about)
            texts = [f"{name} {old!r}, now {new!r}" for name, (old, new) in changes.items()]
            how = "; ".join(text for text in texts if len(text) < 200) or "other pictures"
            raise UsageError(
                f"{self.out} holds the evaluation of another test set ({how}): give another "
                "--out, or --overwrite to start again"
            )

    def setup(self, stage: str) -> None:
        """Read the ledger, and compute for each method the identity that valid records have."""
        self.ledger = Ledger(self.out / WORK / LEDGER)
        cuda = self.device.type == "cuda"  # Lightning resets the device at the end
        self.made_on = torch.cuda.get_device_name(self.device) if cuda else self.device.type
        lpips = self.lpips_weights and at_home(self.lpips_weights)
        common = {
            "record": RECORD,
            "version": __version__,
            "test_set": self.about["fingerprint"],
            "device": self.device.type,
            "lpips": None if self._lpips[0] is None else digest(lpips) if lpips else "cached",
        }
        self.identities = {m.name: json_digest({**common, **m.describe()}) for m in self.methods}
        processes = self.trainer.world_size
        if self.threads is None and self.device.type == "cpu" and processes > 1:
            self.threads = max(1, (os.cpu_count() or 1) // processes)
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def test_dataloader(self) -> DataLoader[tuple[int, int]]:
        """The indices of method and sample of each unfinished step of this process."""
        share = range(self.trainer.global_rank, len(self.names), self.trainer.world_size)
        jobs = [(m, i) for m in range(len(self.methods)) for i in share if self._pending(m, i)]
        self._total = sum(len(self._pending(*job)) for job in jobs)
        # With an empty loader, Lightning would skip the test and with it the sheets.
        return DataLoader(jobs or [_NOTHING], batch_size=None)  # type: ignore[arg-type]

    def _pending(self, number: int, index: int) -> list[str]:
        """The grades in which a method has not been measured on a sample."""
        name, method = self.names[index], self.methods[number].name
        return [g for g in self.grades if "measures" not in self._record(name, g, method)]

    def _record(self, sample: str, grade: str, method: str) -> dict[str, Any]:
        """The record of a run; empty if there is none or it is out of date."""
        record = self.ledger.entries.get(_key(sample, grade, method), {})
        return record if record.get("identity") == self.identities[method] else {}

    # Running

    def on_test_start(self) -> None:
        self.advance("evaluating", 0, self._total)

    def test_step(self, job: tuple[int, int], batch_idx: int) -> None:
        """Run a method on a sample, given by their indices, in each pending grade."""
        if job == _NOTHING:
            return
        method, name = self.methods[job[0]], self.names[job[1]]
        for grade in self._pending(*job):
            key = _key(name, grade, method.name)
            notes: list[str] = []
            record: dict[str, Any] = {
                "identity": self.identities[method.name],
                "sample": name,
                "grade": grade,
                "method": method.name,
                "device": str(self.device),
                "threads": torch.get_num_threads(),
            }
            try:
                compositor, sample = self._use(method), self._sample(job[1])
                record |= sample.about(grade)
                with _warnings(notes):
                    result, figures = self._run(compositor, sample, grade)
                record["size"] = list(result.size)
                _write(self.out / key, result, sample.masks[grade] is None)
                record["measures"] = {k: v for k, v in figures.items() if math.isfinite(v)}
            except Exception as error:  # one method on one sample must not stop the others
                _log.debug("%s", traceback.format_exc())
                record["error"] = error_text(error)
                self._free_memory()  # too little may have been the cause
            if notes:
                record["warnings"] = list(dict.fromkeys(notes))
            self.ledger.add(key, record)
            self._done += 1
            self.advance(method.name, self._done, self._total)

    def _use(self, method: Method) -> Compositor:
        """The method's compositor, in place of that of another method."""
        if self._method is not method or self._compositor is None:
            self._method, self._compositor = method, None
            self._free_memory()
            self._warm.clear()
            self._compositor = method.compositor(device=str(self.device))
        return self._compositor

    def _sample(self, index: int) -> Sample:
        """A sample, cached for the next methods while memory allows."""
        if index not in self._cache:
            try:
                sample = self.test_set[index]
            except Exception as error:
                raise DataError(f"the sample cannot be read: {error_text(error)}") from error
            size = sum(x.nbytes for x in vars(sample).values() if isinstance(x, Tensor))
            if size > self._free:
                return sample
            self._free -= size
            self._cache[index] = sample
        return self._cache[index]

    def _run(
        self, compositor: Compositor, sample: Sample, grade: str
    ) -> tuple[Composite, dict[str, float]]:
        """The method's result and all its figures.

        An untimed run comes first, for lazy loading and compilation: once per method with and once
        without the segmenter, on a GPU for each size.
        """
        inputs = sample.inputs(grade)
        size = tuple(sample.foreground.shape) if self.device.type == "cuda" else ()
        if (size, inputs[2] is None) not in self._warm:
            self._warm.add((size, inputs[2] is None))
            compositor(*inputs)
        with measures.measure_cost(self.device) as cost:
            result = compositor(*inputs)
        seconds = result.seconds
        if self.alone:  # the other stages only pass the composite on
            seconds = {"harmonization": seconds.get("harmonization", 0.0)}
        figures = {**sample.measure(grade, result, self._lpips[0]), **cost}
        return result, figures | {f"{stage}_seconds": value for stage, value in seconds.items()}

    def _free_memory(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()  # nothing without CUDA

    # The sheets and the report

    def on_test_end(self) -> None:
        """Draw this process's share of the sheets once all records are written."""
        self._compositor = None
        self.trainer.strategy.barrier("records")
        self.ledger.read()
        jobs = [(name, grade) for name in self._shown() for grade in self.grades]
        share = jobs[self.trainer.global_rank :: self.trainer.world_size]
        for done, (name, grade) in enumerate(share, start=1):
            self._draw(name, grade)
            self.advance("contact sheets", done, len(share))
        self.trainer.strategy.barrier("sheets")

    def _records(self, sample: str, grade: str) -> dict[str, dict[str, Any]]:
        """The existing records of one sample in one grade, by method."""
        records = ((m.name, self._record(sample, grade, m.name)) for m in self.methods)
        return {name: record for name, record in records if record}

    def _shown(self) -> list[str]:
        """The samples that get sheets: evenly spaced ones with truth, and those without."""
        limit = SHEETS if self.sheets is None else self.sheets
        keys: dict[str, set[str]] = {}  # the measures of each sample; none if all methods failed
        for name in self.names if limit else []:
            records = [r for grade in self.grades for r in self._records(name, grade).values()]
            keys[name] = {key for record in records for key in record.get("measures", ())}
        judged = [name for name in keys if "psnr" in keys[name]]
        others = [name for name in keys if keys[name] and "psnr" not in keys[name]]
        count = min(limit, len(judged))
        chosen = {judged[round(k * (len(judged) - 1) / max(1, count - 1))] for k in range(count)}
        chosen |= set(others if self.sheets is None else others[: limit - count])
        return [name for name in self.names if name in chosen]

    def _draw(self, name: str, grade: str) -> None:
        """Draw one sheet, unless the existing one shows the same records."""
        records, file, out = self._records(name, grade), _sheet(name, grade), self.out
        made_of = {"made_of": json_digest([sheets.LAYOUT, records])}
        if (out / file).exists() and self.ledger.entries.get(file) == made_of:
            return
        try:
            rows = [sheets.Row(m, out / _key(name, grade, m), r) for m, r in records.items()]
            sample = self._sample(self.names.index(name))
            sheet = sheets.draw(sample, grade, rows, rim=not self.alone)
        except Exception as error:  # a missing sheet must not cost the report
            _log.debug("%s", traceback.format_exc())
            _log.warning("no contact sheet of %s (%s): %s", name, grade, error_text(error))
            return
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        write_image(out / file, sheet, quality=90)
        self.ledger.add(file, made_of)

    def report(self, command: str = "") -> Report:
        """The report of all existing records."""
        records = [
            {key: value for key, value in record.items() if key != "identity"}
            for grade in self.grades
            for name in self.names
            for record in self._records(name, grade).values()
        ]
        about = {
            "version": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "device": self.made_on,
            "threads": sorted({record["threads"] for record in records}),
            "command": command,
        }
        contact_sheets = [
            {"grade": grade, "sample": name, "file": _sheet(name, grade)}
            for name in self._shown()
            for grade in self.grades
            if (self.out / _sheet(name, grade)).exists()
        ]
        return Report(
            about, {"fingerprint": self.about["fingerprint"], **self.test_set.about},
            [method.describe() for method in self.methods], self.grades, self.names,
            self.reference, records, self.left_out, contact_sheets,
        )  # fmt: skip


def _write(base: Path, result: Composite, with_mask: bool) -> None:
    """Write the pictures of a result as ``base`` with different suffixes."""
    base.parent.mkdir(parents=True, exist_ok=True)
    pictures = {"composite": result.composite_pixels, "alpha": result.cutout_alpha}
    pictures |= {"mask": result.mask} if with_mask else {}
    for kind, picture in pictures.items():
        write_image(base.with_name(f"{base.name}.{kind}.png"), picture)


def _key(sample: str, grade: str, method: str) -> str:
    """A record's key: the path of its pictures within ``out`` without suffixes."""
    return f"{WORK}/{sample}/{grade}/{method}"


def _sheet(sample: str, grade: str) -> str:
    """The path of a contact sheet within ``out``."""
    return f"{sheets.FOLDER}/{grade}/{sample}.jpg"


@contextmanager
def _warnings(notes: list[str]) -> Iterator[None]:
    """Append warnings and logged warnings to ``notes`` instead of showing them."""

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            notes.append(record.getMessage())
        return False

    _log.addFilter(note)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        _log.removeFilter(note)
        # Deprecations say nothing about a picture.
        internal = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
        notes.extend(str(w.message) for w in caught if not issubclass(w.category, internal))
