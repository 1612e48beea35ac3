"""Fuzzing of all readers: hostile input generated from a seed and read in monitored processes.

    python tests/fuzz.py --cases 10000                 # of all readers, in turn
    python tests/fuzz.py --cases 1000 --only shards
    python tests/fuzz.py --seed 0 --case 123           # repeat one case with its full output

A case is determined by its number and the seed. It fails if reading it raises anything but one of
the library's own errors, takes ten seconds of CPU time, a minute of wall time or two gigabytes,
prints a traceback, or accepts what must be rejected. The cases come from ``tests.hostile``;
``tests/test_fuzz.py`` runs 500 of them.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from deep_image_compositing.errors import CompositingError
from tests.cases import Read, Reader

READ, REFUSED = "read", "refused"
PATIENCE = 300
"""Timeout in seconds for the imports of a process."""


@dataclass(frozen=True)
class Limits:
    """Limits for a case.

    Attributes:
        computing: CPU time in seconds, independent of the machine's load (needs /proc).
        waiting: wall time in seconds.
        memory: additional memory in bytes (needs /proc).
    """

    computing: float = 10.0
    waiting: float = 60.0
    memory: float = 2e9


@dataclass(frozen=True)
class Outcome:
    """How a case ended: ``READ``, ``REFUSED`` or a one-line reason for the failure."""

    number: int
    reader: str
    result: str
    detail: str
    seconds: float
    memory: float

    @property
    def failed(self) -> bool:
        """Whether the case ended neither in success nor in an error of the library."""
        return self.result not in (READ, REFUSED)


def make(number: int, seed: int, turns: Sequence[Reader], folder: Path) -> Read:
    """Make case ``number`` of the reader whose turn it is; returns a function that reads it."""
    return turns[number % len(turns)](random.Random(f"{seed} {number}"), folder)


# In a reading process


def serve(
    pipe: Any, home: Path, seed: int, turns: Sequence[Reader], warm: Callable[[], None]
) -> None:
    """Read the cases whose numbers arrive through ``pipe``, and send back their results.

    All files are below ``home``; printed output goes to its file ``log``.
    """
    tempfile.tempdir = str(home)
    with open(home / "log", "w+b", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        faulthandler.register(signal.SIGUSR1, file=log)
        warm()
        pipe.send(None)
        while True:
            number = pipe.recv()
            os.truncate(log.fileno(), 0)
            log.seek(0)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                result, detail = try_to(make(number, seed, turns, Path(folder)))
            log.seek(0)
            output = log.read().decode(errors="replace")
            if result in (READ, REFUSED) and "Traceback (most recent call last)" in output:
                result, detail = f"printed a traceback: {output.split()[-1]}", output
            pipe.send((result, detail))


def try_to(read: Read) -> tuple[str, str]:
    """Read a case; returns the result in short and in full."""
    try:
        read()
    except CompositingError as error:
        return REFUSED, str(error)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}, {f.name}" for f in frames if "/deep_image" in f.filename]
        cause = f"{type(error).__name__} in {ours[-1] if ours else 'no file of ours'}"
        return f"{cause}: {' '.join(str(error).split())[:160]}", traceback.format_exc()
    return READ, ""


# In the monitoring process


class Watched:
    """A process that reads one case after another and is replaced when a case exceeds a limit."""

    def __init__(self, limits: Limits, *arguments: Any) -> None:
        self.limits, self.arguments = limits, arguments
        self.start()

    def start(self) -> None:
        """Start a process and wait until it is ready."""
        context = multiprocessing.get_context("spawn")
        self.home = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.pipe, child_end = context.Pipe()
        arguments = (child_end, self.home, *self.arguments)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        child_end.close()
        if not self.pipe.poll(PATIENCE):
            raise TimeoutError(f"a reading process was not ready after {PATIENCE} s")
        self.pipe.recv()

    def run(self, number: int) -> tuple[str, str, float, float]:
        """Run a case; returns its result, detail, CPU seconds and bytes of memory."""
        pid, start, answer = self.process.pid, time.monotonic(), None
        with contextlib.suppress(OSError):  # reset the peak memory
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        computed, _, resident = usage(pid)
        self.pipe.send(number)
        while answer is None:
            ready = self.pipe.poll(0.05)
            total, peak, _ = usage(pid)
            seconds, memory = total - computed, peak - resident
            if seconds > self.limits.computing:
                answer = self.replace(f"computed for {self.limits.computing:g} s")
            elif memory > self.limits.memory:
                answer = self.replace(f"took {self.limits.memory / 1e9:g} GB")
            elif ready:
                try:
                    answer = self.pipe.recv()
                except EOFError:
                    self.process.join()
                    answer = self.replace(f"ended the process with {self.process.exitcode}")
            elif time.monotonic() - start > self.limits.waiting:
                answer = self.replace(f"took {self.limits.waiting:g} s")
        return *answer, seconds, memory

    def replace(self, result: str) -> tuple[str, str]:
        """Replace the process; returns the result with the place where it was, and its log."""
        with contextlib.suppress(OSError):
            os.kill(self.process.pid or 0, signal.SIGUSR1)
            time.sleep(0.5)
        log = (self.home / "log").read_text(errors="replace")
        self.end()
        self.start()
        frames = re.findall(r'File ".*?(\w+\.py)", line \d+ in (\S+)', log)[:3]
        return f"{result} in {' < '.join(f'{file}, {name}' for file, name in frames)}", log

    def end(self) -> None:
        """Kill the process and remove its files."""
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.home, ignore_errors=True)


def usage(pid: int | None) -> tuple[float, int, int]:
    """CPU seconds, and peak and current resident bytes of a process; zeros without /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        peak, now = (int(re.findall(rf"{key}:\s+(\d+)", status)[0]) for key in ("VmHWM", "VmRSS"))
    except (OSError, IndexError):
        return 0.0, 0, 0
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK"), peak * 1024, now * 1024


def run(
    numbers: Iterable[int],
    seed: int,
    turns: Sequence[Reader],
    warm: Callable[[], None],
    *,
    workers: int = 1,
    limits: Limits = Limits(),
    say: Callable[[str], object] = lambda line: None,
) -> list[Outcome]:
    """Run cases in processes that first call ``warm``; ``say`` receives failures at once."""
    remaining, lock = iter(numbers), threading.Lock()

    def work(_: int) -> list[Outcome]:
        outcomes, process = [], Watched(limits, seed, turns, warm)
        try:
            while True:
                with lock:
                    number = next(remaining, None)
                if number is None:
                    return outcomes
                reader = turns[number % len(turns)].__name__
                outcome = Outcome(number, reader, *process.run(number))
                outcomes.append(outcome)
                if outcome.failed:
                    say(describe(outcome, seed))
        finally:
            process.end()

    with ThreadPoolExecutor(workers) as pool:
        return [outcome for part in pool.map(work, range(workers)) for outcome in part]


def describe(outcome: Outcome, seed: int) -> str:
    """Describe how a case failed and how to reproduce it."""
    command = f"python tests/fuzz.py --seed {seed} --case {outcome.number}"
    return f"{outcome.reader}: {outcome.result}\n    reproduce: {command}"


def summary(outcomes: Iterable[Outcome]) -> str:
    """One line per reader and one per kind of failure."""
    lines, readers, kinds = [], defaultdict(list), defaultdict(list)
    for outcome in outcomes:
        readers[outcome.reader].append(outcome)
        if outcome.failed:
            kinds[f"{outcome.reader}: {outcome.result.partition(':')[0]}"].append(outcome.number)
    for name, part in readers.items():
        results = Counter("failed" if case.failed else case.result for case in part)
        seconds, memory = max(case.seconds for case in part), max(case.memory for case in part)
        counts = ", ".join(f"{results[key]} {key}" for key in (READ, REFUSED, "failed"))
        lines.append(f"{name}: {counts}; at most {seconds:.1f} s and {memory / 1e6:.0f} MB")
    for kind, numbers in sorted(kinds.items()):
        lines.append(f"  {len(numbers)} x {kind} (cases {', '.join(map(str, numbers[:5]))})")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; returns 1 if a case failed."""
    from tests.hostile import TURNS, warm

    names = list(dict.fromkeys(reader.__name__ for reader in TURNS))
    parser = argparse.ArgumentParser(description="Read hostile input of all kinds.")
    parser.add_argument("--cases", type=int, default=500, metavar="N", help="default: 500")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="first case number")
    parser.add_argument("--only", choices=names, metavar="READER", help=", ".join(names))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes; default: 1")
    parser.add_argument("--case", type=int, metavar="N", help="run one case, show its output")
    parser.add_argument("--keep", metavar="DIR", help="with --case: write its files, do not read")
    options = parser.parse_args()
    if options.keep is not None:
        Path(options.keep).mkdir(parents=True)
        make(options.case, options.seed, TURNS, Path(options.keep))
        return 0
    numbers: Iterable[int] = itertools.count(options.first)
    if options.only is not None:
        numbers = (n for n in numbers if TURNS[n % len(TURNS)].__name__ == options.only)
    if options.case is not None:
        numbers = [options.case]
    outcomes = run(
        itertools.islice(numbers, options.cases),
        options.seed,
        TURNS,
        warm,
        workers=options.workers,
        say=functools.partial(print, flush=True),
    )
    if options.case is not None:
        print(outcomes[0].detail)
    print(summary(outcomes))
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
