"""Data sets as published into shards: ``deep-image-compositing shards``.

The plan (which sample goes into which shard) follows from the files and the seed alone, so the
bytes are the same for any number of processes, and a run that was ended goes on where it was.
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
from deep_image_compositing.ledger import Ledger
from deep_image_compositing.messages import progress

LEDGER = ".ledger.jsonl"
"""What is finished already, in the folder of shards that have no index yet."""

SHARDS = 32
"""Shards of the training split by default: enough for eight devices of four workers each."""

FEWEST, MOST = 4, {"segmentation": 500, "mattes": 100, "backgrounds": 500, "harmonization": 500}
"""Bounds of the samples in a shard by default."""

_SPLITS = ("train", "validation", "test")
Plan = Mapping[str, tuple[str, Sequence[Pair]]]
"""Split and samples of each shard, by its file's name."""


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

    Shards that an earlier run with the same arguments has finished are kept.

    Args:
        kind: segmentation, mattes, backgrounds or harmonization.
        layout: one of ``LAYOUTS`` of that kind.
        root: where the data set lies.
        out: folder of the shards.
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
    pairs = chosen.pairs(root)
    source = chosen.source if source is None else source
    licence = chosen.licence if licence is None else licence
    splits = assign_splits(pairs, seed, validation)
    few = min(MOST[kind], math.ceil(len(splits["train"]) / SHARDS))
    size = shard_samples or max(FEWEST, few)
    plan = {
        f"{split}-{number:06d}.tar": (split, part)
        for split in _SPLITS
        for number, part in enumerate(_parts(splits[split], size))
    }
    lines = [[pair.key, pair.split, pair.group, *pair.files(root).values()] for pair in pairs]
    about = {
        "layout": chosen.name,
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
    ledger = _claim(out, {"kind": kind, **about})
    results = _finished(out, plan, ledger)
    todo = [name for name in plan if name not in results]
    if todo or not (out / shards.INDEX).exists():
        ledger.entries = results
        ledger.begin({"kind": kind, **about})
        left = [pair for name in todo for pair in plan[name][1]]
        options = Options(kind, root, source, licence, max_side, lossless)
        made = in_order(partial(_fields, options), left, workers)
        with progress(f"{kind} {chosen.name}", len(left), show) as advance:
            for name in todo:
                ledger.add(name, _write(out / name, plan[name][1], made, advance))
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
    """Pairs by split, each in an order drawn by ``seed``.

    A set's own splits are kept. The others are drawn by the hash of their group, so that more
    photographs do not move those that were there; where there are two groups or more and
    ``validation`` is above 0, neither side stays empty.
    """
    loose = sorted({p.group for p in pairs if not p.split}, key=lambda group: _draw(seed, group))
    share = sum(_draw(seed, group) < validation for group in loose)
    if validation and len(loose) > 1:
        share = min(max(share, 1), len(loose) - 1)
    held_out = set(loose[:share])
    splits: dict[str, list[Pair]] = {split: [] for split in _SPLITS}
    for pair in sorted(pairs, key=lambda p: (_draw(seed, "order of " + p.key), p.key)):
        drawn = "validation" if pair.group in held_out else "train"
        splits[pair.split or drawn].append(pair)
    return splits


def _draw(seed: int, text: str) -> float:
    """A number in [0, 1) that follows from both."""
    data = f"{seed}:{text}".encode(errors="surrogateescape")  # not every file's name is UTF-8
    return int.from_bytes(hashlib.sha256(data).digest()[:8]) / 2**64


def _parts(pairs: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    """As few parts of at most ``size`` as there can be, their lengths differing by one at most."""
    count = math.ceil(len(pairs) / size)
    for part in range(count):
        yield pairs[part * len(pairs) // count : (part + 1) * len(pairs) // count]


def _claim(out: Path, wanted: dict[str, Any]) -> Ledger:
    """The ledger of ``out``, which is made if need be; UsageError where it holds another set."""
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out / LEDGER)
    found = shards.Index.read(out).made_with() if (out / shards.INDEX).exists() else ledger.about
    if found is not None:
        shards.check_same(out, found, wanted)
    elif stray := sorted(out.glob("*.tar")):
        raise UsageError(
            f"{out} holds {stray[0].name} but no {shards.INDEX}: give another folder, or empty "
            "this one"
        )
    shards.remove_unfinished(out)
    return ledger


def _finished(out: Path, plan: Plan, ledger: Ledger) -> dict[str, dict[str, Any]]:
    """The shards that are there already, by name: from the index, or from the ledger.

    Each is a ``shard`` as the index has it, None if nothing was left, and what it ``skipped``.
    """
    results = ledger.entries
    if (out / shards.INDEX).exists():
        index = shards.Index.read(out)
        whole = {shard.name: asdict(shard) for shard in index.shards}
        skipped = {item["key"]: item for item in index.skipped}
        for name, (_, pairs) in plan.items():
            left_out = [skipped[pair.key] for pair in pairs if pair.key in skipped]
            if name in whole or len(left_out) == len(pairs):
                results[name] = {"shard": whole.get(name), "skipped": left_out}
    sizes = {path.name: path.stat().st_size for path in out.glob("*.tar")}
    return {
        name: result
        for name, result in results.items()
        if not result["shard"] or sizes.get(name) == result["shard"]["bytes"]
    }


def _fields(options: Options, pair: Pair) -> tuple[dict[str, bytes], str]:
    """The fields of a pair's sample, or none and why it cannot be used."""
    try:
        with quiet():  # notes stand in the sample's json
            return make_sample(pair, options), ""
    except CompositingError as error:
        return {}, str(error).replace(f"{options.root}/", "")


def _write(
    path: Path,
    pairs: Sequence[Pair],
    samples: Iterator[tuple[dict[str, bytes], str]],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Write a shard of the next samples, as far as they can be used."""
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
