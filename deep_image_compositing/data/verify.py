"""Check shards against their index, byte by byte and sample by sample: ``shards verify``."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from deep_image_compositing.data.folders import quiet
from deep_image_compositing.data.loading import in_order
from deep_image_compositing.data.shards import Index, Record, ShardEntry, describe
from deep_image_compositing.data.tars import read_records
from deep_image_compositing.errors import CompositingError, DataError
from deep_image_compositing.images import read_image
from deep_image_compositing.messages import progress

_SIGNATURES = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_ONE_SIZE = ("image", "mask", "alpha", "foreground", "composite")  # must agree within a sample


def verify(folder: str | Path, *, workers: int | None = None, show: bool = False) -> list[str]:
    """Read every shard of ``folder`` and compare it with the index.

    Args:
        folder: shards and their ``index.json``.
        workers: number of processes; by default one per core.
        show: draw a progress bar on standard error.

    Returns:
        The problems, one line each; empty if there are none.

    Raises:
        DataError: the index is missing or cannot be read.
    """
    folder, index = Path(folder), Index.read(folder)
    names = Counter(shard.name for shard in index.shards)
    stray = sorted(path.name for path in folder.glob("*.tar*") if path.name not in names)
    problems = [f"{name}: not listed in the index" for name in stray]
    problems += [f"{name}: listed twice in the index" for name in sorted(names) if names[name] > 1]
    reports = {}
    results = in_order(partial(_check_shard, folder, index.kind), index.shards, workers)
    with progress("verifying", sum(shard.samples for shard in index.shards), show) as advance:
        for shard, report in zip(index.shards, results, strict=True):
            reports[shard.name] = report
            advance(shard.samples)
    owners: dict[str, str] = {}
    for name, (keys, shard_problems) in sorted(reports.items()):
        problems += [f"{name}: {problem}" for problem in shard_problems]
        for key in keys:
            if (owner := owners.setdefault(key, name)) != name:
                problems.append(f"{name}: {key} is also in {owner}")
    return problems


def _check_shard(folder: Path, kind: str, shard: ShardEntry) -> tuple[list[str], list[str]]:
    """The keys in a shard of a ``kind``, and its problems."""
    path, keys = folder / shard.name, []
    if not path.is_file():
        return [], ["the file is missing"]
    problems = []
    try:
        actual = describe(path, shard.samples)
        if actual.bytes != shard.bytes:
            problems.append(f"has {actual.bytes} bytes, the index says {shard.bytes}")
        elif actual.sha256 != shard.sha256:
            problems.append(f"its SHA-256 is {actual.sha256}, the index says otherwise")
        with quiet(), open(path, "rb") as stream:
            for record in read_records(stream, ""):
                keys.append(record.key)
                problems += check_record(record, kind)
    except (DataError, OSError) as error:
        problems.append(str(error).strip())
    if len(keys) != shard.samples:
        problems.append(f"has {len(keys)} readable samples, the index says {shard.samples}")
    return keys, problems


def check_record(record: Record, kind: str) -> list[str]:
    """The problems of one sample: its fields, its json, its pictures and their sizes."""
    problems = []
    for check in (lambda: record.check(kind), record.info):
        try:
            check()
        except DataError as error:
            problems.append(str(error))
    sizes = {}
    for name, data in sorted(record.fields.items()):
        role, _, suffix = name.partition(".")
        if not data.startswith(_SIGNATURES.get(suffix, b"")):
            problems.append(f"{record.name}.{name} is no {suffix} file")
        elif suffix in _SIGNATURES:
            try:
                height, width = read_image(data).size
                if role in _ONE_SIZE:
                    sizes[name] = f"{width} x {height}"
            except CompositingError as error:
                problems.append(f"{record.name}.{name}: {error}")
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        problems.append(f"{record.name} has pictures of different sizes: {text}")
    return problems
