"""Data sets as published into shards: ``deep-image-compositing shards``.

The plan (which sample goes into which shard) follows from the files and the seed alone, and every
shard is made by itself, so the bytes are the same for any number of processes, and a run that was
ended goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deep_image_compositing.data import layouts, pool
from deep_image_compositing.data.encoding import Options, file_names, make_sample
from deep_image_compositing.data.folders import quiet
from deep_image_compositing.data.layouts import Entry
from deep_image_compositing.data.shards import INDEX, Index, ShardEntry, ShardWriter
from deep_image_compositing.errors import (
    CompositingError,
    DataError,
    MissingExtraError,
    UsageError,
)
from deep_image_compositing.files import write_bytes

PLAN = ".plan.json"
SHARDS = 32
"""Shards of the training split by default: enough for eight devices of four workers each."""

FEWEST, MOST = 4, {"segmentation": 500, "mattes": 100, "backgrounds": 500}
"""Bounds of the samples in a shard by default."""

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """One shard to be made: its file, the entries that go into it, and how."""

    path: Path
    split: str
    entries: tuple[Entry, ...]
    options: Options


@dataclass(frozen=True)
class Result:
    """A finished shard (None when nothing was left of it) and what was left out of it."""

    name: str
    shard: ShardEntry | None
    skipped: list[dict[str, str]]


def convert(
    kind: str,
    layout: str,
    root: str | Path,
    out: str | Path,
    *,
    validation: float = 0.1,
    seed: int = 0,
    shard_samples: int | None = None,
    max_side: int | None = None,
    lossless: bool = False,
    source: str | None = None,
    licence: str | None = None,
    workers: int | None = None,
    show: bool = False,
) -> Index:
    """Write the data set below ``root`` as shards into ``out``, with their index.

    Shards that an earlier run with the same arguments has finished are kept.

    Args:
        kind: segmentation, mattes or backgrounds.
        layout: one of ``LAYOUTS`` of that kind.
        root: where the data set lies.
        out: folder of the shards; made if need be.
        validation: share of what the set itself has not put into a split.
        seed: of the split and of the order.
        shard_samples: most samples in a shard; by default what makes ``SHARDS`` shards.
        max_side: shrink what is longer; None keeps sizes.
        lossless: write mattes as RGBA PNG.
        source: where the set comes from, instead of what the layout says.
        licence: of the set, instead of what the layout says.
        workers: processes; by default one a core.
        show: draw a progress bar on standard error.

    Raises:
        UsageError: a wrong argument; a root of another layout; a folder with other shards in it.
        CompositingError: the work was cut short; what is finished is kept.
    """
    if not 0 <= validation < 1:
        raise UsageError(f"validation is a share from 0 to below 1, got {validation}")
    for name, value in (("shard_samples", shard_samples), ("max_side", max_side)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if lossless and kind != "mattes":
        raise UsageError(f"only mattes can be lossless, not {kind}")
    chosen, root, out = layouts.get(kind, layout), Path(root), Path(out)
    entries = chosen.entries(root)
    source = chosen.source if source is None else source
    licence = chosen.licence if licence is None else licence
    options = Options(kind, root, source, licence, max_side, lossless)
    splits = assign_splits(entries, seed, validation)
    size = shard_samples or _default_samples(kind, len(splits["train"]))
    tasks = [
        Task(out / f"{split}-{number:06d}.tar", split, part, options)
        for split in _SPLITS
        for number, part in enumerate(_parts(splits[split], size))
    ]
    about = {
        "layout": chosen.name,
        "source": source,
        "licence": licence,
        "seed": seed,
        "validation": validation,
        "shard_samples": size,
        "max_side": max_side,
        "lossless": lossless,
        "entries": len(entries),
        "files": _fingerprint(entries, root),
    }
    _prepare(out, kind, about)
    results = _finished(out, tasks)
    todo = [task for task in tasks if task.path.name not in results]
    if todo or not (out / INDEX).exists():
        total = sum(len(task.entries) for task in todo)
        with pool.progress(f"{kind} {chosen.name}", total, show) as advance:
            for result in pool.run(make_shard, todo, workers, advance):
                results[result.name] = result
        _write_index(out, kind, about, tasks, results)
    return Index.read(out)


# The plan


def assign_splits(entries: Sequence[Entry], seed: int, validation: float) -> dict[str, list[Entry]]:
    """Entries by split, each in an order drawn by ``seed``.

    A set's own splits are kept. The others are drawn by the hash of their group, so that more
    photographs do not move those that were there; where there are two groups or more and
    ``validation`` is above 0, neither side stays empty.
    """
    loose = sorted({e.group for e in entries if not e.split}, key=lambda g: _draw(seed, g))
    share = sum(_draw(seed, group) < validation for group in loose)
    if validation and len(loose) > 1:
        share = min(max(share, 1), len(loose) - 1)
    held_out = set(loose[:share])
    splits: dict[str, list[Entry]] = {split: [] for split in _SPLITS}
    for entry in sorted(entries, key=lambda e: (_draw(seed, "order of " + e.key), e.key)):
        drawn = "validation" if entry.group in held_out else "train"
        splits[entry.split or drawn].append(entry)
    return splits


def _draw(seed: int, text: str) -> float:
    """A number in [0, 1) that follows from both."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8]) / 2**64


def _default_samples(kind: str, count: int) -> int:
    return max(FEWEST, min(MOST[kind], math.ceil(count / SHARDS)))


def _parts(entries: Sequence[Entry], size: int) -> Iterator[tuple[Entry, ...]]:
    """As few parts of at most ``size`` as there can be, their lengths differing by one at most."""
    count = math.ceil(len(entries) / size)
    for part in range(count):
        yield tuple(entries[part * len(entries) // count : (part + 1) * len(entries) // count])


def _fingerprint(entries: Sequence[Entry], root: Path) -> str:
    """SHA-256 of what the entries are called and which files they name."""
    lines = [
        [entry.key, entry.split, entry.group, *file_names(entry, root).values()]
        for entry in entries
    ]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


# What an earlier run has left


def _prepare(out: Path, kind: str, about: dict[str, Any]) -> None:
    """Make ``out`` this plan's folder.

    Raises:
        UsageError: it is the folder of another plan, or of shards without one.
    """
    wanted = {"kind": kind, **about}
    plan, index = out / PLAN, out / INDEX
    if index.exists():
        old = Index.read(out)
        found: dict[str, Any] | None = {"kind": old.kind, **old.about}
    elif plan.exists():
        try:
            found = dict(json.loads(plan.read_bytes()))
        except (ValueError, TypeError):
            raise DataError(f"{plan} is damaged; empty {out} and run it again") from None
    else:
        found = None
    if found is not None and found != wanted:
        names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        differences = "; ".join(f"{n} {found.get(n)!r}, now {wanted.get(n)!r}" for n in names)
        raise UsageError(
            f"{out} holds shards that were made with {differences}: give another folder, "
            "or empty this one"
        )
    if found is None:
        stray = sorted(path.name for path in out.glob("*.tar"))
        if stray:
            raise UsageError(
                f"{out} holds {stray[0]} but no {INDEX}: give another folder, or empty this one"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(plan, json.dumps(wanted).encode())
    for aside in out.glob(".*.tar.*.part"):  # of a run that was killed
        aside.unlink(missing_ok=True)


def _finished(out: Path, tasks: Sequence[Task]) -> dict[str, Result]:
    """The shards that are there already, by name: from the index, or from their side records."""
    results: dict[str, Result] = {}
    if (out / INDEX).exists():
        index = Index.read(out)
        shards = {shard.name: shard for part in index.splits.values() for shard in part}
        skipped = {item["key"]: item for item in index.skipped}
        for task in tasks:
            name = task.path.name
            left_out = [skipped[e.key] for e in task.entries if e.key in skipped]
            if name in shards or len(left_out) == len(task.entries):
                results[name] = Result(name, shards.get(name), left_out)
    else:
        for task in tasks:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                content = json.loads(_side(task.path).read_bytes())
                shard = content["shard"]
                entry = ShardEntry(**shard) if shard else None
                results[task.path.name] = Result(task.path.name, entry, content["skipped"])
    return {name: r for name, r in results.items() if r.shard is None or _is_there(out, r.shard)}


def _is_there(out: Path, shard: ShardEntry) -> bool:
    path = out / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes


def _side(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _write_index(
    out: Path, kind: str, about: dict[str, Any], tasks: Sequence[Task], results: dict[str, Result]
) -> None:
    index = Index(kind, about=about)
    for task in tasks:
        result = results[task.path.name]
        if result.shard is not None:
            index.splits.setdefault(task.split, []).append(result.shard)
        index.skipped.extend(result.skipped)
    index.write(out)
    for path in [out / PLAN, *(_side(task.path) for task in tasks)]:
        path.unlink(missing_ok=True)


# One shard


def make_shard(task: Task, tick: pool.Tick) -> Result:
    """Write the shard of ``task`` and its side record; ``tick`` is called after every sample."""
    skipped = []
    with quiet(), ShardWriter(task.path) as writer:  # notes stand in the sample's json
        for entry in task.entries:
            try:
                fields = make_sample(entry, task.options)
            except MissingExtraError:
                raise
            except CompositingError as error:
                reason = str(error).replace(f"{task.options.root}/", "")
                skipped.append({"key": entry.key, "reason": reason})
            else:
                writer.write(entry.key, fields)
            tick()
    shard = None
    if len(skipped) < len(task.entries):
        shard = writer.entry()
    else:
        task.path.unlink()
    record = {"shard": None if shard is None else asdict(shard), "skipped": skipped}
    write_bytes(_side(task.path), json.dumps(record).encode())
    return Result(task.path.name, shard, skipped)
