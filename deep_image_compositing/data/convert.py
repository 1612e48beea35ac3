"""Data sets as published into shards: ``deep-image-compositing shards``.

The plan (which sample goes into which shard) follows from the files and the seed alone, and every
shard is made by itself, so the bytes are the same for any number of processes, and a run that was
ended goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deep_image_compositing.data import layouts, pool
from deep_image_compositing.data.encoding import Options, file_names, make_sample
from deep_image_compositing.data.folders import quiet
from deep_image_compositing.data.layouts import Entry
from deep_image_compositing.data.shards import (
    INDEX,
    Index,
    ShardEntry,
    ShardWriter,
    check_same,
    remove_unfinished,
)
from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.ledger import Ledger
from deep_image_compositing.messages import progress

LEDGER = ".ledger.jsonl"
"""What is finished already, in the folder of shards that have no index yet."""

SHARDS = 32
"""Shards of the training split by default: enough for eight devices of four workers each."""

FEWEST, MOST = 4, {"segmentation": 500, "mattes": 100, "backgrounds": 500, "harmonization": 500}
"""Bounds of the samples in a shard by default."""

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """One shard to be made: its file, its split, and the entries that go into it."""

    path: Path
    split: str
    entries: tuple[Entry, ...]


Result = dict[str, Any]
"""A finished ``shard``, as the index has it (None if nothing was left), and what it ``skipped``."""


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
        kind: segmentation, mattes, backgrounds or harmonization.
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
    few = min(MOST[kind], math.ceil(len(splits["train"]) / SHARDS))
    size = shard_samples or max(FEWEST, few)
    tasks = [
        Task(out / f"{split}-{number:06d}.tar", split, part)
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
    ledger = _claim(out, kind, about)
    results = _finished(out, tasks, ledger)
    todo = [task for task in tasks if task.path.name not in results]
    if todo or not (out / INDEX).exists():
        ledger.entries = results
        ledger.begin({"kind": kind, **about})
        left = [entry for task in todo for entry in task.entries]
        made = pool.run(partial(_fields, options), left, workers)
        with progress(f"{kind} {chosen.name}", len(left), show) as advance:
            for task in todo:
                ledger.add(task.path.name, _write(task, made, advance))
        index = Index(kind, about=about)
        for task in tasks:
            result = ledger.entries[task.path.name]
            if result["shard"]:
                entry = ShardEntry(**result["shard"])
                index.splits.setdefault(task.split, []).append(entry)
            index.skipped.extend(result["skipped"])
        index.write(out)
        ledger.path.unlink()
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


def _claim(out: Path, kind: str, about: dict[str, Any]) -> Ledger:
    """The ledger of ``out``, which is made if need be; UsageError where it holds another set."""
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out / LEDGER)
    found = ledger.about
    if (out / INDEX).exists():
        index = Index.read(out)
        found = {"kind": index.kind, **index.about}
    if found is not None:
        check_same(out, found, {"kind": kind, **about})
    elif stray := sorted(out.glob("*.tar")):
        raise UsageError(
            f"{out} holds {stray[0].name} but no {INDEX}: give another folder, or empty this one"
        )
    remove_unfinished(out)
    return ledger


def _finished(out: Path, tasks: Sequence[Task], ledger: Ledger) -> dict[str, Result]:
    """The shards that are there already, by name: from the index, or from the ledger."""
    results = ledger.entries
    if (out / INDEX).exists():
        index = Index.read(out)
        shards = {shard.name: asdict(shard) for shard in index.shards}
        skipped = {item["key"]: item for item in index.skipped}
        for name, task in ((task.path.name, task) for task in tasks):
            left_out = [skipped[e.key] for e in task.entries if e.key in skipped]
            if name in shards or len(left_out) == len(task.entries):
                results[name] = {"shard": shards.get(name), "skipped": left_out}
    sizes = {path.name: path.stat().st_size for path in out.glob("*.tar")}
    return {
        name: result
        for name, result in results.items()
        if not result["shard"] or sizes.get(name) == result["shard"]["bytes"]
    }


# One shard


def _fields(options: Options, entry: Entry) -> tuple[dict[str, bytes], str]:
    """The fields of an entry's sample, or none and why it cannot be used."""
    try:
        with quiet():  # notes stand in the sample's json
            return make_sample(entry, options), ""
    except CompositingError as error:
        return {}, str(error).replace(f"{options.root}/", "")


def _write(
    task: Task, samples: Iterator[tuple[dict[str, bytes], str]], advance: Callable[[int], None]
) -> Result:
    """Write a shard of the next samples, as far as they can be used."""
    skipped = []
    with ShardWriter(task.path) as writer:
        for entry in task.entries:
            fields, reason = next(samples)
            if fields:
                writer.write(entry.key, fields)
            else:
                skipped.append({"key": entry.key, "reason": reason})
            advance(1)
    if len(skipped) < len(task.entries):
        return {"shard": asdict(writer.entry()), "skipped": skipped}
    task.path.unlink()
    return {"shard": None, "skipped": skipped}
