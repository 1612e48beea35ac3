"""How fast training data is read and made, and whether memory stays flat: ``benchmark data``.

The path that training takes (shards, decoding, batches, sent to the training process) is measured
against the decoding alone and against a folder of files. All of them run in the same kind of
loader process and take turns, so whatever else the machine does meets all alike; and each loader
process says how much processor time it has used, which depends less on the neighbours than the
time that passes.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from deep_image_compositing.benchmark import made
from deep_image_compositing.benchmark.pipeline import (
    limit_threads,
    open_console,
    peak_memory,
    synchronise,
)
from deep_image_compositing.data import folders
from deep_image_compositing.data.items import Item, ShardItem, Source
from deep_image_compositing.data.modules import FusionData, SegmentationData, StageData
from deep_image_compositing.data.shards import Record
from deep_image_compositing.data.stream import Draw, Sample, StreamLoader, TrainingStream
from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import UsageError
from deep_image_compositing.images import open_picture

SIZE, BATCH = 256, 8
"""Crops and batches of the loading rows: the paper's for segmentation."""

TRIPLETS = 384
"""Side of the triplets that are made on the device, in batches of the same size."""

AIM = 0.85
"""What reading shards should reach of the bare loop."""

FLAT = 16.0
"""Bytes a sample: memory that surely grows by more is not flat; a thousand epochs of the 10 000
photographs of DUTS would then cost a gigabyte and a half, hidden where nobody would look."""

_ENDLESS = 10**9
_USAGE = "usage"


@dataclass(frozen=True)
class Amounts:
    """How much is measured.

    Attributes:
        photographs: in the made set.
        sides: shortest and longest long side of them, in pixels.
        batches: in one turn of one variant.
        turns: of each variant.
        repeats: of the synthesis.
    """

    photographs: int = 160
    sides: tuple[int, int] = (512, 800)
    batches: int = 40
    turns: int = 7
    repeats: int = 20


QUICK = Amounts(photographs=12, sides=(96, 128), batches=3, turns=1, repeats=1)


def run(
    *,
    workers: int = 2,
    samples: int = 10_000,
    quick: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Measure everything on made data in a temporary folder, and print the tables.

    Args:
        workers: loader processes of the loading rows, next to rows with one.
        samples: over which memory is watched; at least 100.
        quick: tiny pictures, everything once, memory over 400 samples at most.
        threads: of torch in this process, for the synthesis; None leaves its default.
        device: where the synthesis runs.

    Raises:
        UsageError: numbers that cannot be, or a device that is not there.
    """
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    if samples < 100:
        raise UsageError(f"--samples must be at least 100, got {samples}")
    if threads is not None:
        limit_threads(threads)
    place = choose_device(device)
    amounts = QUICK if quick else Amounts()
    console = open_console()
    with tempfile.TemporaryDirectory() as folder:
        console.print(loading_table(Path(folder), workers, amounts))
        console.print(synthesis_table(place, amounts.repeats))
        console.print(memory_table(Path(folder), min(samples, 400) if quick else samples))


# Loading: shards, a bare loop, a folder


def loading_table(root: Path, workers: int, amounts: Amounts) -> Table:
    """Samples a second of each variant with one and with ``workers`` processes, and the ratios."""
    photographs = made.samples("segmentation", amounts.photographs, amounts.sides)
    backgrounds = made.samples("backgrounds", max(4, amounts.photographs // 4), amounts.sides)
    shards = made.write_shards(root / "shards", "segmentation", photographs)
    scenes = made.write_shards(root / "scenes", "backgrounds", backgrounds)
    files = root / "files"
    files.mkdir()
    for key, fields in photographs:
        for name, content in fields.items():
            (files / f"{key}.{name}").write_bytes(content)
    keys = [key for key, _ in photographs]
    data = _segmentation(shards, scenes, SIZE, BATCH)
    variants: dict[tuple[str, int], Turns] = {
        (name, count): Turns(make(count), 2 * count + 2)
        for count in sorted({1, workers})
        for name, make in (
            ("bare loop", lambda count: _bare_loader(files, keys, count)),
            ("shards", lambda count: shard_loader(data, count)),
            ("folder", lambda count: _folder_loader(files, keys, data, count)),
        )
    }
    for _ in range(amounts.turns):
        for turns in variants.values():
            turns.take(amounts.batches)
    bits = [
        8 * len(fields["image.jpg"]) / np.prod(open_picture(fields["image.jpg"]).size)
        for _, fields in photographs
    ]
    table = Table(
        *("loading", "workers", "samples/s", "CPU ms/sample", "ratio", "in CPU time", "to", "aim"),
        title=f"Crops of {SIZE} x {SIZE} of {amounts.photographs} made photographs of "
        f"{amounts.sides[0]} to {amounts.sides[1]} pixels ({np.mean(bits):.1f} bits a pixel), "
        f"median of {amounts.turns} turns",
    )
    for count in sorted({1, workers}):
        table.add_section()
        rows = {name: variants[name, count] for name in ("bare loop", "shards", "folder")}
        for name, turns in rows.items():
            own = [name, str(count), f"{turns.rate:.0f}", f"{1000 * turns.cost:.2f}"]
            if name == "bare loop":
                table.add_row(*own)
            else:
                table.add_row(
                    *own,
                    f"{_ratio(turns.rates, rows['bare loop'].rates):.2f}",
                    f"{_ratio(rows['bare loop'].costs, turns.costs):.2f}",
                    "bare loop",
                    f">= {AIM}" if name == "shards" else "",
                )
        table.add_row(
            "shards", "", "", "", f"{_ratio(rows['shards'].rates, rows['folder'].rates):.2f}",
            f"{_ratio(rows['folder'].costs, rows['shards'].costs):.2f}", "folder", "",
        )  # fmt: skip
    if workers > 1:
        table.add_section()
        for name in ("bare loop", "shards", "folder"):
            one, many = variants[name, 1], variants[name, workers]
            table.add_row(
                name, f"1 to {workers}", "", "", f"{_ratio(many.rates, one.rates):.2f}",
                f"{_ratio(one.costs, many.costs):.2f}", "1 worker", "",
            )  # fmt: skip
    return table


def _segmentation(shards: Path, scenes: Path, size: int, batch_size: int) -> SegmentationData:
    # Nothing is pasted: every variant decodes exactly one photograph and one mask a sample.
    data = SegmentationData(
        Source(str(shards), paste=0.0),
        str(scenes),
        size=size,
        batch_size=batch_size,
        epoch_length=_ENDLESS,
    )
    data.setup("fit")
    return data


@dataclass(frozen=True)
class _Tapped:
    """Draws samples as the data module does, and says what the process has used so far."""

    draw: Draw
    memory: bool

    def __call__(
        self, rng: np.random.Generator, items: Mapping[str, Item], held_out: bool
    ) -> Sample:
        return {**self.draw(rng, items, held_out), _USAGE: usage(self.memory)}


def shard_loader(data: StageData, workers: int, memory: bool = False) -> StreamLoader:
    """The training loader of ``data``, whose samples say what their process has used."""
    stream = data.train_dataloader().stream
    assert isinstance(stream, TrainingStream)
    draw = _Tapped(stream.draw, memory)
    tapped = TrainingStream(stream.feeds, draw, stream.batch_size, stream.length, stream.seed)
    return StreamLoader(tapped, workers)


def usage(memory: bool = False) -> Tensor:
    """(3,) of this process: its number, its processor time in nanoseconds, its memory in bytes.

    The last is 0 unless ``memory`` is asked for, which takes some time itself.
    """
    return torch.tensor([os.getpid(), time.process_time_ns(), (memory and resident()) or 0])


def resident() -> int | None:
    """Bytes of memory that this process occupies; its peak where only that is known."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    return peak_memory()


@dataclass(frozen=True)
class _Plan:
    """What the bare loop does with a photograph: nothing is left to be found out."""

    image: Path
    mask: Path
    whole: tuple[int, int]
    box: folders.Box
    mirrored: bool


class _BareLoop(IterableDataset[Sample]):
    """Photographs and masks of files, decoded and cropped to arrays that nobody gets."""

    def __init__(self, plans: Sequence[_Plan]) -> None:
        self.plans = plans

    def __iter__(self) -> Iterator[Sample]:
        rng = np.random.default_rng(os.getpid())
        while True:
            for number in rng.integers(0, len(self.plans), BATCH):
                _decode(self.plans[int(number)])
            yield {_USAGE: usage()}


def _decode(plan: _Plan) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(H, W, 3) and (H, W): what the shards' path does to the files, in as few calls."""
    image, mask = open_picture(plan.image), open_picture(plan.mask)
    scale = SIZE / min(plan.box[2] - plan.box[0], plan.box[3] - plan.box[1])
    if scale < 1:
        width, height = plan.whole
        image.draft("RGB", (int(np.ceil(width * scale)), int(np.ceil(height * scale))))
    crop = folders.crop(image, plan.box, SIZE, plan.mirrored, plan.whole)
    return np.array(crop), np.array(folders.crop(mask, plan.box, SIZE, plan.mirrored))


def _bare_loader(files: Path, keys: Sequence[str], workers: int) -> DataLoader[Any]:
    plans = []
    for number, key in enumerate(keys):
        mask = files / f"{key}.mask.png"
        with open_picture(mask) as label:
            subject = folders.subject_box(label)
            for again in range(8):
                rng = np.random.default_rng([number, again])
                box = folders.whole_crop(label.size, subject, rng)
                mirrored = bool(rng.random() < 0.5)
                plans.append(_Plan(files / f"{key}.image.jpg", mask, label.size, box, mirrored))
    return DataLoader(_BareLoop(plans), batch_size=None, num_workers=workers)


class _Folder(Dataset[Sample]):
    """Each key's files, read when they are asked for, and made the same sample of."""

    def __init__(self, files: Path, keys: Sequence[str], data: SegmentationData) -> None:
        self.files = files
        self.keys = keys
        self.draw: Callable[..., Sample] = data.draw

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Sample:
        key = self.keys[number]
        fields = {
            name: (self.files / f"{key}.{name}").read_bytes() for name in ("image.jpg", "mask.png")
        }
        item: Item = ShardItem(Source(str(self.files), paste=0.0), Record(key, fields))
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        return {**self.draw(rng, {"subject": item}, False), _USAGE: usage()}


def _folder_loader(
    files: Path, keys: Sequence[str], data: SegmentationData, workers: int
) -> DataLoader[Any]:
    dataset = _Folder(files, keys, data)
    sampler = RandomSampler(dataset, replacement=True, num_samples=_ENDLESS)
    return DataLoader(
        dataset,
        batch_size=BATCH,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


@dataclass
class Turns:
    """One loader, measured in turns.

    Attributes:
        loader: whose samples or batches carry the :func:`usage` of their process.
        waiting: batches that may be ready before a turn begins; they do not count.
        rates: samples a second of each turn.
        costs: processor seconds a sample of each turn, of loader processes and this one.
    """

    loader: DataLoader[Any]
    waiting: int
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._batches = iter(self.loader)

    def take(self, batches: int) -> None:
        """Measure one turn."""
        last: dict[int, Tensor] = {}
        for _ in range(self.waiting):
            self._note(last)
        used: dict[int, list[float]] = {}
        begin, own = time.perf_counter(), time.process_time()
        for _ in range(batches):
            process, seconds = self._note(last)
            used.setdefault(process, []).append(seconds)
        passed, own = time.perf_counter() - begin, time.process_time() - own
        each = [second for seconds in used.values() for second in seconds]
        self.rates.append(batches * BATCH / passed)
        self.costs.append((statistics.mean(each) + own / batches) / BATCH)

    def _note(self, last: dict[int, Tensor]) -> tuple[int, float]:
        """Take a batch; the process that made it, and the processor time that it took there."""
        usage = next(self._batches)[_USAGE].view(-1, 3)[-1]
        process = int(usage[0])
        before = last.get(process, usage)
        last[process] = usage
        return process, float(usage[1] - before[1]) / 1e9

    @property
    def rate(self) -> float:
        """Median samples a second."""
        return statistics.median(self.rates)

    @property
    def cost(self) -> float:
        """Median processor seconds a sample."""
        return statistics.median(self.costs)


def _ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Median over the turns of the ratio within a turn: neighbours in time are alike."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


# Synthesis


def synthesis_table(device: torch.device, repeats: int) -> Table:
    """Samples a second of what makes triplets on the device."""
    data = FusionData("made", "made", size=TRIPLETS, batch_size=BATCH)
    batch = triplet_parts(TRIPLETS, BATCH, device)
    seconds = []
    for turn in range(repeats + 1):
        synchronise(device)
        begin = time.perf_counter()
        data.on_after_batch_transfer({**batch, "seed": torch.tensor(turn)}, 0)
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[1:])  # the first one warms up
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    table = Table(
        *("synthesis", "samples/s", "ms/batch"),
        title=f"On {where}, {torch.get_num_threads()} threads, median of {repeats}",
    )
    what = f"easy triplets, {TRIPLETS} x {TRIPLETS}, batch {BATCH}, float32"
    table.add_row(what, f"{BATCH / median:.0f}", f"{1000 * median:.1f}")
    return table


def triplet_parts(size: int, batch_size: int, device: torch.device) -> Mapping[str, Tensor]:
    """A batch as the loader processes of :class:`FusionData` send it, on the device."""
    rng = np.random.default_rng(0)

    def pictures() -> Tensor:
        rows = [
            torch.from_numpy(
                folders.to_planes(made.photograph(rng, (size, size)).resize((size, size)))
            )
            for _ in range(batch_size)
        ]
        return torch.stack(rows).to(device)

    alphas = [
        torch.from_numpy(folders.to_planes(made.subject(rng, (size, size))))
        for _ in range(batch_size)
    ]
    color, old, new = pictures(), pictures(), pictures()
    alpha = torch.stack(alphas).to(device)
    hard = torch.zeros((batch_size, 1, 1, 1), dtype=torch.uint8, device=device)
    return {
        "color": color, "alpha": alpha, "old": old, "new": new,
        "composite": torch.zeros_like(color), "mask": torch.zeros_like(alpha), "hard": hard,
    }  # fmt: skip


# Memory


@dataclass(frozen=True)
class Growth:
    """A straight line through memory over samples.

    Attributes:
        slope: bytes a sample.
        error: its standard error.
    """

    slope: float
    error: float

    @property
    def flat(self) -> bool:
        """Whether it cannot be said that memory grows by more than :data:`FLAT`."""
        return self.slope - 2 * self.error <= FLAT


def fit_growth(
    samples: NDArray[np.float64], memory: NDArray[np.float64], blocks: int = 20
) -> Growth:
    """Fit the line through the means of blocks.

    Memory grows in steps that last, so neighbouring readings are no independent ones; means of
    long blocks nearly are, which is what the standard error takes for granted.

    Args:
        samples: at which memory was read, rising.
        memory: in bytes.
        blocks: number of means.
    """
    parts = np.array_split(np.arange(len(samples)), min(blocks, len(samples)))
    x = np.array([samples[part].mean() for part in parts])
    y = np.array([memory[part].mean() for part in parts])
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    return Growth(slope, float(np.sqrt(rest @ rest / max(1, len(x) - 2) / (x @ x))))


def memory_table(root: Path, samples: int) -> Table:
    """Growth of memory over so many samples of small pictures through shards."""
    table = Table(
        *("memory", "MB", "bytes/sample", "standard error", "flat"),
        title=f"Resident memory over {samples} samples of small pictures through shards; "
        "the first fifth fills buffers and does not count",
    )
    sides = (48, 64)
    photographs = made.samples("segmentation", 240, sides)
    small = made.write_shards(root / "small", "segmentation", photographs)
    backgrounds = made.samples("backgrounds", 60, sides)
    scenes = made.write_shards(root / "small-scenes", "backgrounds", backgrounds)
    for workers in (0, 1):
        loader = shard_loader(_segmentation(small, scenes, 32, 10), workers, memory=True)
        theirs = np.zeros(samples // 10)  # lists would grow, and be what is measured
        ours = np.zeros(samples // 10)
        for number, batch in zip(range(samples // 10), loader, strict=False):
            theirs[number] = batch[_USAGE][-1, 2]
            ours[number] = resident() or 0
        rows = {"in the training process": ours}
        if workers:
            rows = {"in a loader process": theirs, "in the training process beside it": ours}
        for name, memory in rows.items():
            _add_growth(table, name, memory)
    return table


def _add_growth(table: Table, name: str, memory: NDArray[np.float64]) -> None:
    kept = memory[len(memory) // 5 :]
    if not kept.all():
        table.add_row(name, "not measured")
        return
    growth = fit_growth(np.arange(len(kept), dtype=np.float64) * 10, kept)
    table.add_row(
        name,
        f"{kept[-1] / 1e6:.0f}",
        f"{growth.slope:.1f}",
        f"{growth.error:.1f}",
        "yes" if growth.flat else "no",
    )
