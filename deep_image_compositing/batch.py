"""Composites of many photographs over one background; ``composite`` calls it for a folder.

While one photograph goes through the stages, threads decode the next and encode the last. Process
*r* of *n* takes the photographs *r*, *r + n*, ..., and waits for no other before the end. A record
beside the composites says what each was made of, so that a run that was stopped goes on.
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
"""File that says what each composite was made of, next to the composites."""

AHEAD = 2
"""Photographs that are read ahead, and composites that wait to be written."""

_THREAD = "compositing"
_FORMAT = 2  # raised whenever the record says something else of the same composite
_ASIDE = re.compile(r"\.[0-9a-f]{16}\.part(\.\w+)?")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_FAREWELL = "stopped; finished composites stay, and the same command with --resume goes on"
_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True)
class Job:
    """One composite that is to be made, of a photograph and maybe its mask.

    ``outputs`` are files to write, by the arguments of ``Composite.save``.
    """

    foreground: Path
    outputs: Mapping[str, Path]
    mask: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How many composites were ``made``, or ``kept`` from an earlier run.

    ``failures`` are reasons why others failed, by the number of the job.
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
    """Make composites of many photographs over one background, and write them as they are made.

    A photograph that fails does not stop the others. On several devices, this is run by every
    process, with the same arguments::

        jobs = [Job(path, {"path": out / f"{path.stem}.png"}) for path in list_images("portraits")]
        stages = {"segmenter": ("pyramid", {}), "refiner": ("none", {}), "fuser": ("alpha", {})}
        outcome = composite_all(
            jobs, "beach.jpg", lambda device: Compositor(**stages, device=device),
            record=out / RECORD, settings=describe_stages(stages), resume=True,
        )

    Args:
        jobs: whose outputs lie in folders that are there.
        background: read once.
        make: gives the compositor of a device.
        record: file in which to note what each composite was made of.
        settings: whatever decides how a composite looks besides the photographs and the placement,
            as JSON has it; for stages and their weights see ``stages.making.describe_stages``.
        frame: as for ``Compositor.__call__``.
        scale: likewise.
        position: likewise.
        resume: leave alone what the record says was made of the same photograph, mask, background
            and settings, when its outputs are all there as they were written; and clear away what
            a run that was killed has left half-written.
        device: as for ``Compositor``; where there are several, of what kind.
        devices: GPUs, or processes on a CPU; -1 for all GPUs.
        accelerator: as for Lightning's Trainer: auto, cpu, cuda, gpu, mps; the same as ``device``.
        show: draw a progress bar on standard error.

    Returns:
        What has become of them; None in every process but the first.

    Raises:
        UsageError: a wrong argument, or devices that are not there.
        ImageError: a background that cannot be read, or a full disk; what is finished stays.
        KeyboardInterrupt: the run was told to stop; what is finished stays.
    """
    wanted = one_device(device, devices, accelerator)
    place = check_placement(frame, scale, position)
    if not jobs:
        return Outcome(0, 0, {})
    # What is wrong with the stages is told before any process is started.
    compositor = make(wanted if devices == 1 else "cpu")
    own, theirs = longest_sides(compositor.max_side, frame, scale)
    new = read_image(background, max_pixels=compositor.max_pixels, max_side=theirs)
    placement = {"frame": frame, "scale": scale, "position": place}
    same = [_FORMAT, __version__, settings, placement, _digest_of_pixels(new)]
    about = json.dumps(same, sort_keys=True, default=str)
    plan = _Plan(jobs, new, make, Ledger(Path(record)), about, placement, own, resume)
    run = _Run(plan, compositor)
    numbered: int | list[int] = devices
    if devices == 1:
        wanted = compositor.device.type
        numbered = 1 if compositor.device.index is None else [compositor.device.index]
    with quiet(), warnings.catch_warnings():
        # Pillow's warnings are silenced around each reading, which threads do to each other.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        guard = run.guard = Guard(run.finish, show, "photographs")
        trainer = make_trainer(guard, devices=numbered, nodes=1, accelerator=wanted)
        with guard.ending(trainer, _FAREWELL):
            trainer.predict(run, return_predictions=False)
    if not trainer.is_global_zero:
        return None
    if run.full:
        raise ImageError(
            f"{run.full[0]}: the disk is full. Finished composites stay; make room, and --resume "
            "(resume=True) goes on"
        )
    return run.outcome


def writing() -> bool:
    """Whether threads of a run that was stopped twice are still at work."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


@dataclass(frozen=True)
class _Plan:
    """What is to be done: the arguments of ``composite_all``, read and checked."""

    jobs: Sequence[Job]
    background: Photograph
    make: Callable[[str], Compositor]
    ledger: Ledger
    about: str
    placement: Mapping[str, Any]
    max_side: int | None
    resume: bool


class _Run(LightningModule):
    """``Trainer.predict`` of all jobs: a step composites one photograph that has been read.

    Paths in the ledger are as seen from its folder, so that a whole folder may be moved; an output
    counts as long as its size and time are as they were.
    """

    guard: Guard

    def __init__(self, plan: _Plan, compositor: Compositor) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.prepare_data_per_node = False
        self.plan, self.compositor, self.ledger = plan, compositor, plan.ledger
        self.full: list[str] = []
        self.outcome = Outcome(0, 0, {})
        self._made = self._kept = 0
        self._failures: dict[int, str] = {}
        self._stopped = False
        self._reading: deque[Future[tuple[str, Photograph | None, Any]]] = deque()
        self._writing: deque[tuple[int, Future[None]]] = deque()
        # Never more at once than may be read ahead, asked for, and wait to be written.
        self._threads = ThreadPoolExecutor(2 * AHEAD + 1, _THREAD)

    def prepare_data(self) -> None:
        """Clear away what a killed run has left; Lightning calls one process, before the others."""
        outputs = (target for job in self.plan.jobs for target in job.outputs.values())
        if self.plan.resume:
            for folder in {target.parent for target in outputs}:
                for path in filter(lambda path: _ASIDE.fullmatch(path.name), folder.iterdir()):
                    path.unlink(missing_ok=True)
        self.ledger.begin({"format": _FORMAT})

    def setup(self, stage: str) -> None:
        """Make the stages of this process's device, and read what is done."""
        self.ledger.read()
        if self.trainer.world_size > 1 and self.trainer.is_global_zero:
            _log.info("running on %d devices (%s)", self.trainer.world_size, self.device.type)
        made, here = self.compositor.device, self.device
        if made.type != here.type or made.index not in (None, here.index):
            self.compositor = self.plan.make(str(here))

    def predict_dataloader(self) -> Sequence[int]:
        """The numbers of this process's photographs, in their order."""
        own = range(self.trainer.global_rank, len(self.plan.jobs), self.trainer.world_size)
        self._count, self._unread = len(own), iter(own)
        return own

    def on_predict_start(self) -> None:
        """Show that it begins."""
        self._advance()

    def _read(self, job: Job) -> tuple[str, Photograph | None, Any]:
        """What a composite is made of, and the photograph and mask unless it is there already."""
        made_of = "" if self._stopped else self._made_of(job)
        if self._stopped or (self.plan.resume and self._is_done(job, made_of)):
            return made_of, None, None
        limit = self.compositor.max_pixels
        photograph = read_image(job.foreground, max_pixels=limit, max_side=self.plan.max_side)
        if job.mask is None:
            return made_of, photograph, None
        return made_of, photograph, read_mask(job.mask, size=photograph.size, max_pixels=limit)

    def _made_of(self, job: Job) -> str:
        """SHA-256 of all that decides what a composite looks like, before the files are read."""
        files = [None if path is None else _digest(path) for path in (job.foreground, job.mask)]
        return hashlib.sha256(json.dumps([self.plan.about, files]).encode()).hexdigest()

    def _is_done(self, job: Job, made_of: str) -> bool:
        """Whether all outputs are there, as they were written, and made of this."""
        entry = self.ledger.entries.get(self._key(job), {})
        files = entry.get("files")
        if entry.get("made_of") != made_of or not isinstance(files, dict):
            return False
        try:
            return self._stamps(job).items() <= files.items()
        except OSError:
            return False

    def _save(self, job: Job, made_of: str, composite: Composite) -> None:
        with torch.inference_mode():
            composite.save(**job.outputs)
        name, files = self._key(job), self._stamps(job)
        self.ledger.add(name, {"made_of": made_of, "files": files})
        self.ledger.entries.pop(name)  # nobody asks again, and memory stays flat

    def _stamps(self, job: Job) -> dict[str, list[Any]]:
        """Name, size and time of each output; OSError where one is not there."""
        found = {key: (self._name(path), path.stat()) for key, path in job.outputs.items()}
        return {key: [name, at.st_size, at.st_mtime_ns] for key, (name, at) in found.items()}

    def _key(self, job: Job) -> str:
        return self._name(job.outputs.get("path") or next(iter(job.outputs.values())))

    def _name(self, path: Path) -> str:
        try:
            return Path(os.path.relpath(path, self.ledger.path.parent)).as_posix()
        except ValueError:  # on another drive
            return path.absolute().as_posix()

    def predict_step(self, number: int, batch_idx: int) -> bool:
        """Composite one photograph; True, because Lightning asks why nothing is returned."""
        if self._stopped:
            return True
        for ahead in itertools.islice(self._unread, AHEAD + 1 - len(self._reading)):
            self._reading.append(self._threads.submit(self._read, self.plan.jobs[ahead]))
        reading = self._reading.popleft()
        try:
            made_of, photograph, mask = reading.result()
            if photograph is None:
                self._kept += 1
                self._advance()
                return True
            pair = photograph, self.plan.background
            composite = self.compositor(*pair, mask, **self.plan.placement)
        except Exception as error:  # one bad file must not stop the others
            self._fail(number, error)
            return True
        self._settle(AHEAD - 1)
        future = self._threads.submit(self._save, self.plan.jobs[number], made_of, composite)
        self._writing.append((number, future))
        return True

    def _settle(self, most: int) -> None:
        """See what has become of results, until no more than ``most`` are still being written."""
        while self._writing and (len(self._writing) > most or self._writing[0][1].done()):
            number, future = self._writing[0]
            error = future.exception()
            self._writing.popleft()
            if error is None:
                self._made += 1
                self._advance()
                continue
            if _is_full(error):
                # The others will find out by themselves, and all of them end together.
                self.full.append(str(error))
                self._stopped = True
            self._fail(number, error)

    def _fail(self, number: int, error: BaseException) -> None:
        _log.debug("%s", "".join(traceback.format_exception(error)))
        self._failures[number] = error_text(error)
        self._advance()

    def _advance(self) -> None:
        done = self._made + self._kept + len(self._failures)
        self.guard.advance("compositing", done, self._count)

    def finish(self) -> None:
        """Write what is finished, and start nothing new."""
        self._stopped = True
        self._threads.shutdown(wait=False)
        self._settle(0)
        self._threads.shutdown()

    on_predict_end = finish

    def teardown(self, stage: str) -> None:
        """Learn what has become of the jobs of all processes, once all are done."""
        mine = (self._made, self._kept, self._failures, self.full)
        parts: list[Any] = [mine] * self.trainer.world_size
        if self.trainer.world_size > 1:
            self._wait_for_all()
            torch.distributed.all_gather_object(parts, mine)
        made, kept, failures, full = zip(*parts, strict=True)
        together = {number: reason for part in failures for number, reason in part.items()}
        self.outcome = Outcome(sum(made), sum(kept), dict(sorted(together.items())))
        self.full = [text for part in full for text in part]

    def _wait_for_all(self) -> None:
        """Meet the other processes, asking again and again, so that Ctrl-C is heard meanwhile."""
        here = [self.device.index or 0] if self.device.type == "cuda" else None
        met = torch.distributed.barrier(async_op=True, device_ids=here)
        while not met.is_completed():
            time.sleep(0.05)
        try:
            met.wait()
        except RuntimeError as error:
            raise CompositingError(
                "another process of this run has ended; the same command with --resume goes on"
            ) from error


def _is_full(error: BaseException | None) -> bool:
    """Whether an error comes from a disk or a quota that is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def _digest(path: Path) -> str:
    """SHA-256 of a file; nothing when it cannot be read, which reading the picture will tell."""
    try:
        check_regular(path, ImageError)
        return digest(path)
    except (OSError, ImageError):
        return ""


def _digest_of_pixels(photograph: Photograph) -> str:
    """SHA-256 of what a photograph shows."""
    sha = hashlib.sha256(repr(photograph.size).encode())
    for plane in (photograph.pixels, photograph.alpha):
        if plane is not None:
            sha.update(plane.tobytes())
    return sha.hexdigest()
