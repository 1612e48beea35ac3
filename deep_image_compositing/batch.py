"""Composite many photographs over one background; the command ``composite`` calls it for a folder.

Threads decode the next photographs and encode finished composites while the stages run. Process *r*
of *n* handles photographs *r*, *r + n*, ..., and synchronizes only at the end. A record next to the
composites contains a fingerprint of the inputs of each, so that a stopped run can be resumed.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule

from deep_image_compositing import __version__
from deep_image_compositing.composite import Composite
from deep_image_compositing.compositor import Compositor
from deep_image_compositing.errors import CompositingError, ImageError, error_text
from deep_image_compositing.files import check_regular
from deep_image_compositing.images import (
    ImageSource,
    Photograph,
    longest_sides,
    read_image,
    read_mask,
)
from deep_image_compositing.ledger import Ledger, digest
from deep_image_compositing.running import Guard, make_trainer, quiet
from deep_image_compositing.settings import check_placement, one_device

RECORD = "composites.jsonl"
"""Name of the record, next to the composites."""

AHEAD = 2
"""Photographs to read ahead, and composites that may wait to be written."""

_THREAD = "compositing"
_FORMAT = 2  # increase when fingerprints in the record change
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part(\.\w+)?")
_STOPPED = "stopped; finished composites are kept; run the same command with --resume to continue"
_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True)
class Job:
    """A composite to make, of a photograph and optionally its mask.

    ``outputs`` are the files to write, as keyword arguments of ``Composite.save``.
    """

    foreground: Path
    outputs: Mapping[str, Path]
    mask: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """Numbers of composites ``made``, and ``kept`` from an earlier run.

    ``failures`` maps the index of each failed job to the error message.
    """

    made: int
    kept: int
    failures: Mapping[int, str]


def composite_all(
    jobs: Sequence[Job],
    background: ImageSource,
    make: Callable[[str], Compositor],
    *,
    record: str | os.PathLike[str],
    settings: Mapping[str, Any],
    frame: Literal["foreground", "background"] = "foreground",
    scale: float = 1.0,
    position: tuple[float, float] | str = (0.5, 0.5),
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    accelerator: str = "auto",
    show: bool = False,
) -> Outcome | None:
    """Composite many photographs over one background, writing each when it is finished.

    Photographs that fail do not stop the others. With several devices, every process calls this
    function with the same arguments::

        jobs = [Job(path, {"path": out / f"{path.stem}.png"}) for path in list_images("portraits")]
        stages = {"segmenter": ("pyramid", {}), "refiner": ("none", {}), "fuser": ("alpha", {})}
        outcome = composite_all(
            jobs, "beach.jpg", lambda device: Compositor(**stages, device=device),
            record=out / RECORD, settings=describe_stages(stages), resume=True,
        )

    Args:
        jobs: composites to make; the folders of their outputs must exist.
        background: the new background.
        make: creates the compositor for a device.
        record: path of the record file.
        settings: everything that affects composites besides the photographs and the placement, as
            JSON values; for stages and their weights see ``stages.making.describe_stages``.
        frame: as for ``Compositor.__call__``.
        scale: likewise.
        position: likewise.
        resume: keep unchanged files that the record says were made from the same photograph, mask,
            background and settings; delete temporary files of a killed run.
        device: as for ``Compositor``; its kind if there are several devices.
        devices: number of GPUs, or of processes on a CPU; -1 for all GPUs.
        accelerator: kind of device as for Lightning: auto, cpu, cuda, gpu, mps; may replace
            ``device``.
        show: show a progress bar on standard error.

    Returns:
        The outcome in the first process; None in the others.

    Raises:
        UsageError: an invalid argument, or unavailable devices.
        ImageError: the background cannot be read, or the disk is full; finished composites stay.
        KeyboardInterrupt: the run was stopped; finished composites stay.
    """
    device = one_device(device, devices, accelerator)
    place = check_placement(frame, scale, position)
    if not jobs:
        return Outcome(0, 0, {})
    # Report errors in the stages before starting any process.
    compositor = make(device if devices == 1 else "cpu")
    placement = {"frame": frame, "scale": scale, "position": place}
    run = _Run(jobs, background, make, compositor, Path(record), settings, placement, resume)
    trainer_devices: int | list[int] = devices
    if devices == 1:
        device = compositor.device.type
        trainer_devices = 1 if compositor.device.index is None else [compositor.device.index]
    with quiet(), warnings.catch_warnings():
        # ``read_image`` silences Pillow's warnings, but catch_warnings is not thread-safe.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        guard = run.guard = Guard(run.finish, show, "photographs")
        trainer = make_trainer(guard, devices=trainer_devices, nodes=1, accelerator=device)
        with guard.ending(trainer, _STOPPED):
            trainer.predict(run, return_predictions=False)
    if not trainer.is_global_zero:
        return None
    if run.disk_full:
        raise ImageError(
            f"{run.disk_full[0]}: the disk is full. Finished composites are kept; free some space "
            "and continue with --resume (resume=True)"
        )
    return run.outcome


def writing() -> bool:
    """Whether threads of an interrupted run are still working."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


class _Run(LightningModule):
    """Runs all jobs by ``Trainer.predict``, one photograph a step.

    Paths in the ledger are relative to its folder, so that the folder can be moved. Outputs count
    as unchanged if their size and modification time are.
    """

    guard: Guard

    def __init__(
        self,
        jobs: Sequence[Job],
        background: ImageSource,
        make: Callable[[str], Compositor],
        compositor: Compositor,
        record: Path,
        settings: Mapping[str, Any],
        placement: Mapping[str, Any],
        resume: bool,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.prepare_data_per_node = False
        self.jobs, self.make, self.compositor = jobs, make, compositor
        self.placement, self.resume = placement, resume
        frame, scale, limit = placement["frame"], placement["scale"], compositor.max_pixels
        self.max_side, side = longest_sides(compositor.max_side, frame, scale)
        self.background = read_image(background, max_pixels=limit, max_side=side)
        shared = [_FORMAT, __version__, settings, placement, _digest_of_pixels(self.background)]
        self.inputs = json.dumps(shared, sort_keys=True, default=str)
        self.ledger = Ledger(record)
        self.disk_full: list[str] = []  # error messages
        self.outcome = Outcome(0, 0, {})
        self._made = self._kept = 0
        self._failures: dict[int, str] = {}
        self._stopped = False
        self._reading: deque[Future[tuple[str, Photograph | None, Any]]] = deque()
        self._writing: deque[tuple[int, Future[None]]] = deque()
        # One for each photograph to read ahead, composite to write, and the one in between.
        self._threads = ThreadPoolExecutor(2 * AHEAD + 1, _THREAD)

    def prepare_data(self) -> None:
        """Delete a killed run's temporary files; called once, before other processes start."""
        outputs = (target for job in self.jobs for target in job.outputs.values())
        if self.resume:
            for folder in {target.parent for target in outputs}:
                for path in folder.iterdir():
                    if _TEMPORARY.fullmatch(path.name):
                        path.unlink(missing_ok=True)
        self.ledger.begin({"format": _FORMAT})

    def setup(self, stage: str) -> None:
        """Read the ledger, and move to this process's device."""
        self.ledger.read()
        if self.trainer.world_size > 1 and self.trainer.is_global_zero:
            _log.info("running on %d devices (%s)", self.trainer.world_size, self.device.type)
        current, device = self.compositor.device, self.device
        if current.type != device.type or current.index not in (None, device.index):
            self.compositor = self.make(str(device))

    def predict_dataloader(self) -> Sequence[int]:
        """Indices of this process's jobs."""
        indices = range(self.trainer.global_rank, len(self.jobs), self.trainer.world_size)
        self._count, self._unread = len(indices), iter(indices)
        return indices

    def on_predict_start(self) -> None:
        self._report_progress()

    def _read(self, job: Job) -> tuple[str, Photograph | None, Any]:
        """A job's fingerprint, and its photograph and mask unless it is finished already."""
        fingerprint = "" if self._stopped else self._fingerprint(job)
        if self._stopped or (self.resume and self._is_done(job, fingerprint)):
            return fingerprint, None, None
        limit = self.compositor.max_pixels
        photograph = read_image(job.foreground, max_pixels=limit, max_side=self.max_side)
        if job.mask is None:
            return fingerprint, photograph, None
        return fingerprint, photograph, read_mask(job.mask, size=photograph.size, max_pixels=limit)

    def _fingerprint(self, job: Job) -> str:
        """SHA-256 of everything that affects a job's composite."""
        files = [None if path is None else _digest(path) for path in (job.foreground, job.mask)]
        return hashlib.sha256(json.dumps([self.inputs, files]).encode()).hexdigest()

    def _is_done(self, job: Job, fingerprint: str) -> bool:
        """Whether the ledger has a job with this fingerprint and its outputs are unchanged."""
        entry = self.ledger.entries.get(self._key(job), {})
        files = entry.get("files")
        if entry.get("made_of") != fingerprint or not isinstance(files, dict):
            return False
        try:
            return self._describe_outputs(job).items() <= files.items()
        except OSError:
            return False

    def _save(self, job: Job, fingerprint: str, composite: Composite) -> None:
        with torch.inference_mode():
            composite.save(**job.outputs)
        key = self._key(job)
        self.ledger.add(key, {"made_of": fingerprint, "files": self._describe_outputs(job)})
        self.ledger.entries.pop(key)  # not needed again; saves memory

    def _describe_outputs(self, job: Job) -> dict[str, list[Any]]:
        """Relative path, size and modification time of each output; OSError if one is missing."""
        stats = {key: (self._relative(path), path.stat()) for key, path in job.outputs.items()}
        return {key: [path, s.st_size, s.st_mtime_ns] for key, (path, s) in stats.items()}

    def _key(self, job: Job) -> str:
        return self._relative(job.outputs.get("path") or next(iter(job.outputs.values())))

    def _relative(self, path: Path) -> str:
        try:
            return os.path.relpath(path, self.ledger.path.parent)
        except ValueError:  # on another drive
            return os.path.abspath(path)

    def predict_step(self, index: int, batch_idx: int) -> bool:
        """Composite one photograph; True, as Lightning warns about None."""
        if self._stopped:
            return True
        for ahead in itertools.islice(self._unread, AHEAD + 1 - len(self._reading)):
            self._reading.append(self._threads.submit(self._read, self.jobs[ahead]))
        reading = self._reading.popleft()
        try:
            fingerprint, photograph, mask = reading.result()
            if photograph is None:
                self._kept += 1
                self._report_progress()
                return True
            composite = self.compositor(photograph, self.background, mask, **self.placement)
        except Exception as error:  # one bad file must not stop the others
            self._fail(index, error)
            return True
        self._collect_written(AHEAD - 1)
        future = self._threads.submit(self._save, self.jobs[index], fingerprint, composite)
        self._writing.append((index, future))
        return True

    def _collect_written(self, limit: int) -> None:
        """Handle finished writes, waiting until at most ``limit`` are pending."""
        while self._writing and (len(self._writing) > limit or self._writing[0][1].done()):
            index, future = self._writing[0]
            error = future.exception()
            self._writing.popleft()
            if error is None:
                self._made += 1
                self._report_progress()
                continue
            if getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                # The other processes will notice themselves, and all end together.
                self.disk_full.append(str(error))
                self._stopped = True
            self._fail(index, error)

    def _fail(self, index: int, error: BaseException) -> None:
        _log.debug("%s", "".join(traceback.format_exception(error)))
        self._failures[index] = error_text(error)
        self._report_progress()

    def _report_progress(self) -> None:
        done = self._made + self._kept + len(self._failures)
        self.guard.advance("compositing", done, self._count)

    def finish(self) -> None:
        """Write finished composites without starting new ones."""
        self._stopped = True
        self._threads.shutdown(wait=False)
        self._collect_written(0)
        self._threads.shutdown()

    on_predict_end = finish

    def teardown(self, stage: str) -> None:
        """Gather the results of all processes."""
        local = (self._made, self._kept, self._failures, self.disk_full)
        parts: list[Any] = [local] * self.trainer.world_size
        if self.trainer.world_size > 1:
            self._wait_for_all()
            torch.distributed.all_gather_object(parts, local)
        made, kept, failures, disk_full = zip(*parts, strict=True)
        by_index = sorted(item for part in failures for item in part.items())
        self.outcome = Outcome(sum(made), sum(kept), dict(by_index))
        self.disk_full = list(itertools.chain(*disk_full))

    def _wait_for_all(self) -> None:
        """Wait for the other processes by polling, so that Ctrl-C can interrupt."""
        device = self.trainer.strategy.root_device  # this module is back on the CPU by now
        device_ids = [device.index or 0] if device.type == "cuda" else None
        barrier = torch.distributed.barrier(async_op=True, device_ids=device_ids)
        while not barrier.is_completed():
            time.sleep(0.05)
        try:
            barrier.wait()
        except RuntimeError as error:
            raise CompositingError(
                "another process of this run has ended; continue with --resume (resume=True)"
            ) from error


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty if unreadable, which ``read_image`` reports later."""
    try:
        check_regular(path, ImageError)
        return digest(path)
    except (OSError, ImageError):
        return ""


def _digest_of_pixels(photograph: Photograph) -> str:
    """SHA-256 of a photograph's pixels and alpha."""
    sha = hashlib.sha256(repr(photograph.size).encode())
    for plane in (photograph.pixels, photograph.alpha):
        if plane is not None:
            sha.update(plane.tobytes())
    return sha.hexdigest()
