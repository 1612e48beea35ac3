"""Shards against their index, byte by byte and sample by sample: ``shards verify``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deep_image_compositing.data import pool
from deep_image_compositing.data.folders import quiet
from deep_image_compositing.data.shards import Index, Record, ShardEntry, describe
from deep_image_compositing.data.tars import read_records
from deep_image_compositing.errors import CompositingError, DataError
from deep_image_compositing.images import read_image

_SIGNATURES = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_ONE_SIZE = ("image", "mask", "alpha", "foreground")
"""Pictures of a sample that lie on top of each other."""


@dataclass(frozen=True)
class Task:
    """One shard to be read."""

    folder: Path
    kind: str
    shard: ShardEntry


@dataclass
class Report:
    """What was found in a shard."""

    name: str
    keys: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def verify(folder: str | Path, *, workers: int | None = None, show: bool = False) -> list[str]:
    """Read every shard of ``folder`` again and compare it with the index.

    Args:
        folder: shards and their ``index.json``.
        workers: processes; by default one a core.
        show: draw a progress bar on standard error.

    Returns:
        The problems that were found, one line each; empty when all is well.

    Raises:
        DataError: there is no index, or it cannot be read.
    """
    folder, index = Path(folder), Index.read(folder)
    shards = [shard for part in index.splits.values() for shard in part]
    names = [shard.name for shard in shards]
    problems = [
        f"{path.name}: the index does not know it"
        for path in sorted(folder.glob("*.tar*"))
        if path.name not in names
    ]
    problems += [f"{name}: the index has it twice" for name in sorted(_repeated(names))]
    tasks = [Task(folder, index.kind, shard) for shard in shards]
    total = sum(shard.samples for shard in shards)
    with pool.progress("verifying", total, show) as advance:
        reports = {report.name: report for report in pool.run(check_shard, tasks, workers, advance)}
    homes: dict[str, str] = {}
    for name in sorted(reports):
        problems += [f"{name}: {problem}" for problem in reports[name].problems]
        for key in reports[name].keys:
            home = homes.setdefault(key, name)
            if home != name:
                problems.append(f"{name}: {key} is also in {home}")
    return problems


def _repeated(names: list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


def check_shard(task: Task, tick: pool.Tick) -> Report:
    """Everything that is wrong with one shard; ``tick`` is called after every sample."""
    report = Report(task.shard.name)
    path = task.folder / task.shard.name
    if not path.is_file():
        report.problems.append("the file is missing")
        return report
    found = describe(path, task.shard.samples)
    if found.bytes != task.shard.bytes:
        report.problems.append(f"has {found.bytes} bytes, the index says {task.shard.bytes}")
    elif found.sha256 != task.shard.sha256:
        report.problems.append(f"its SHA-256 is {found.sha256}, the index says otherwise")
    try:
        with quiet(), open(path, "rb") as stream:
            for record in read_records(stream, ""):
                report.keys.append(record.key)
                report.problems += check_record(record, task.kind)
                tick()
    except (DataError, OSError) as error:
        report.problems.append(str(error).strip())
    if len(report.keys) != task.shard.samples:
        report.problems.append(
            f"has {len(report.keys)} readable samples, the index says {task.shard.samples}"
        )
    return report


def check_record(record: Record, kind: str) -> list[str]:
    """What is wrong with one sample: its fields, its json, its pictures and their sizes."""
    problems = []
    for check in (lambda: record.check(kind), record.info):
        try:
            check()
        except DataError as error:
            problems.append(str(error))
    sizes = {}
    for name, data in sorted(record.fields.items()):
        role, _, suffix = name.partition(".")
        if suffix not in _SIGNATURES:
            continue
        if not data.startswith(_SIGNATURES[suffix]):
            problems.append(f"{record.name}.{name} is no {suffix} file")
            continue
        try:
            size = read_image(data).size
        except CompositingError as error:
            problems.append(f"{record.name}.{name}: {error}")
            continue
        if role in _ONE_SIZE:
            sizes[name] = f"{size[1]} x {size[0]}"
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{name} {size}" for name, size in sizes.items())
        problems.append(f"{record.name} has pictures of different sizes: {each}")
    return problems
