"""Convert published data sets into shards: ``deep-image-compositing shards``.

The plan (which sample goes into which shard) depends only on the files and the seed, so any number
of processes writes the same bytes, and an interrupted run can be resumed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from deep_image_compositing.data import layouts, shards
from deep_image_compositing.data.encoding import Options, make_sample
from deep_image_compositing.data.folders import Pair, quiet
from deep_image_compositing.data.loading import in_order
from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.files import make_folder
from deep_image_compositing.ledger import Ledger
from deep_image_compositing.messages import progress

LEDGER = ".ledger.jsonl"  # record of the finished shards, in a folder that has no index yet
SHARDS = 32  # default number for training: enough for eight devices with four workers each

# Limits of the default number of samples in a shard.
FEWEST, MOST = 4, {"segmentation": 500, "mattes": 100, "backgrounds": 500, "harmonization": 500}

_SPLITS = ("train", "validation", "test")
Plan = Mapping[str, tuple[str, Sequence[Pair]]]
"""Split and samples of each shard, by file name."""


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
) -> shards.Index:
    """Write the data set below ``root`` as shards into ``out``, with their index.

    Finished shards of an earlier run with the same arguments are kept.

    Args:
        kind: segmentation, mattes, backgrounds or harmonization.
        layout: name of one of the ``LAYOUTS`` of that kind.
        root: folder of the data set.
        out: folder of the shards.
        validation: share of the samples without a split of their own, in [0, 1).
        seed: of the splits and of the order.
        shard_samples: most samples in a shard; by default so many that there are ``SHARDS``.
        max_side: longest side in pixels, to which larger pictures are shrunk; None keeps sizes.
        lossless: write mattes as RGBA PNG.
        source: origin of the set, instead of the layout's.
        licence: terms of the set, instead of the layout's.
        workers: number of processes; by default one per core.
        show: draw a progress bar on standard error.

    Raises:
        UsageError: a wrong argument; a root of another layout; a folder with other shards in it.
        CompositingError: a process was killed; finished shards are kept.
    """
    if not 0 <= validation < 1:
        raise UsageError(f"validation is a share from 0 to below 1, got {validation}")
    counts = {"shard_samples": shard_samples, "max_side": max_side, "workers": workers}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if lossless and kind != "mattes":
        raise UsageError(f"only mattes can be lossless, not {kind}")
    published, root, out = layouts.get(kind, layout), Path(root), Path(out)
    pairs = published.pairs(root)
    source = published.source if source is None else source
    licence = published.licence if licence is None else licence
    splits = assign_splits(pairs, seed, validation)
    default = min(MOST[kind], math.ceil(len(splits["train"]) / SHARDS))
    size = shard_samples or max(FEWEST, default)
    plan = {
        f"{split}-{number:06d}.tar": (split, part)
        for split in _SPLITS
        for number, part in enumerate(_parts(splits[split], size))
    }
    lines = [[pair.key, pair.split, pair.group, *pair.files(root).values()] for pair in pairs]
    about = {
        "layout": published.name,
        "source": source,
        "licence": licence,
        "seed": seed,
        "validation": validation,
        "shard_samples": size,
        "max_side": max_side,
        "lossless": lossless,
        "entries": len(pairs),
        "files": hashlib.sha256(json.dumps(lines).encode()).hexdigest(),
    }
    ledger = _open_ledger(out, {"kind": kind, **about})
    results = _finished(out, plan, ledger)
    missing = [name for name in plan if name not in results]
    if missing or not (out / shards.INDEX).exists():
        ledger.entries = results
        ledger.begin({"kind": kind, **about})
        remaining = [pair for name in missing for pair in plan[name][1]]
        options = Options(kind, root, source, licence, max_side, lossless)
        samples = in_order(partial(_encode, options), remaining, workers)
        with progress(f"{kind} {published.name}", len(remaining), show) as advance:
            for name in missing:
                ledger.add(name, _write(out / name, plan[name][1], samples, advance))
        index = shards.Index(kind, about=about)
        for name, (split, _) in plan.items():
            result = ledger.entries[name]
            if result["shard"]:
                index.splits.setdefault(split, []).append(shards.ShardEntry(**result["shard"]))
            index.skipped.extend(result["skipped"])
        index.write(out)
        ledger.path.unlink()
    return shards.Index.read(out)


def assign_splits(pairs: Sequence[Pair], seed: int, validation: float) -> dict[str, list[Pair]]:
    """Pairs by split, each in a random order by ``seed``.

    A set's own splits are kept. Other pairs are assigned by the hash of their group, so that added
    photographs do not move existing ones. With two or more groups and ``validation`` above 0,
    neither ``train`` nor ``validation`` is empty.
    """
    groups = sorted({p.group for p in pairs if not p.split}, key=lambda group: _draw(seed, group))
    count = sum(_draw(seed, group) < validation for group in groups)
    if validation and len(groups) > 1:
        count = min(max(count, 1), len(groups) - 1)
    held_out = set(groups[:count])
    splits: dict[str, list[Pair]] = {split: [] for split in _SPLITS}
    for pair in sorted(pairs, key=lambda p: (_draw(seed, "order of " + p.key), p.key)):
        drawn = "validation" if pair.group in held_out else "train"
        splits[pair.split or drawn].append(pair)
    return splits


def _draw(seed: int, text: str) -> float:
    """A pseudo-random number in [0, 1) from the hash of both."""
    data = f"{seed}:{text}".encode(errors="surrogateescape")  # file names may not be UTF-8
    return int.from_bytes(hashlib.sha256(data).digest()[:8]) / 2**64


def _parts(pairs: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    """Split into as few parts of at most ``size`` as possible, of nearly equal lengths."""
    count = math.ceil(len(pairs) / size)
    for part in range(count):
        yield pairs[part * len(pairs) // count : (part + 1) * len(pairs) // count]


def _open_ledger(out: Path, settings: dict[str, Any]) -> Ledger:
    """Create the folder ``out`` and open its ledger; UsageError if it holds another set."""
    make_folder(out)
    ledger = Ledger(out / LEDGER)
    existing = shards.Index.read(out).made_with() if (out / shards.INDEX).exists() else ledger.about
    if existing is not None:
        shards.check_same(out, existing, settings)
    elif stray := sorted(out.glob("*.tar")):
        raise UsageError(
            f"{out} holds {stray[0].name} but no {shards.INDEX}: give another folder, or empty "
            "this one"
        )
    shards.remove_unfinished(out)
    return ledger


def _finished(out: Path, plan: Plan, ledger: Ledger) -> dict[str, dict[str, Any]]:
    """The existing shards by name, from the index or from the ledger.

    Each has its index entry ``shard``, None if it would be empty, and the ``skipped`` samples.
    """
    results = ledger.entries
    if (out / shards.INDEX).exists():
        index = shards.Index.read(out)
        entries = {shard.name: asdict(shard) for shard in index.shards}
        by_key = {item["key"]: item for item in index.skipped}
        for name, (_, pairs) in plan.items():
            skipped = [by_key[pair.key] for pair in pairs if pair.key in by_key]
            if name in entries or len(skipped) == len(pairs):
                results[name] = {"shard": entries.get(name), "skipped": skipped}
    sizes = {path.name: path.stat().st_size for path in out.glob("*.tar")}
    return {
        name: result
        for name, result in results.items()
        if not result["shard"] or sizes.get(name) == result["shard"]["bytes"]
    }


def _encode(options: Options, pair: Pair) -> tuple[dict[str, bytes], str]:
    """The fields of a sample, or no fields and the reason why it is skipped."""
    try:
        with quiet():  # the sample's json has the notes
            return make_sample(pair, options), ""
    except CompositingError as error:
        return {}, str(error).replace(f"{options.root}/", "")


def _write(
    path: Path,
    pairs: Sequence[Pair],
    samples: Iterator[tuple[dict[str, bytes], str]],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Write a shard of the next samples that are usable; returns its ledger entry."""
    skipped = []
    with shards.ShardWriter(path) as writer:
        for pair in pairs:
            fields, reason = next(samples)
            if fields:
                writer.write(pair.key, fields)
            else:
                skipped.append({"key": pair.key, "reason": reason})
            advance(1)
    if len(skipped) < len(pairs):
        return {"shard": asdict(writer.entry()), "skipped": skipped}
    path.unlink()
    return {"shard": None, "skipped": skipped}
