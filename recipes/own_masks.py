"""Make training triplets with real masks, from the default segmenter and refiner.

    python recipes/own_masks.py data runs/own_masks

composites training mattes onto training backgrounds, so that photograph, background, composite and
alpha are exact, and stores the mask that segmenter and refiner predict for the photograph. The
fuser's recipe uses these shards in addition to easy triplets.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from deep_image_compositing import CompositingError, registry
from deep_image_compositing.data.datasets import FolderDataset, open_source
from deep_image_compositing.data.items import Source
from deep_image_compositing.data.shards import Index, ShardWriter, describe
from deep_image_compositing.evaluation.methods import parse_stage
from deep_image_compositing.evaluation.testsets.syntest import SynTest
from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.precision import to_bytes
from deep_image_compositing.images import encode_image, read_image, to_tensor

SHARD_SAMPLES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with mattes/ and backgrounds/")
    parser.add_argument("out", type=Path, help="new folder for the shards")
    parser.add_argument("--per-subject", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--segmenter", default="pyramid(weights=default)")
    parser.add_argument("--refiner", default="cascade(weights=default)")
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; name another folder, or remove it")
    segmenter, refiner = (
        registry.create(slot, name, **stage_options).eval()
        for slot in ("segmenter", "refiner")
        for name, stage_options in [parse_stage(getattr(options, slot))]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        subjects = link_training(options.data / "mattes", 0.2, "mattes", Path(folder, "subjects"))
        scenes = link_training(
            options.data / "backgrounds", 0.1, "backgrounds", Path(folder, "scenes")
        )
        samples = SynTest(
            str(subjects),
            str(scenes),
            hold_out=None,
            background_hold_out=None,
            per_subject=options.per_subject,
            size=options.size,
            seed=options.seed,
        )
        names = samples.names
        for start in range(0, len(names), SHARD_SAMPLES):
            path = options.out / f"train-{start // SHARD_SAMPLES:06d}.tar"
            numbers = range(start, min(start + SHARD_SAMPLES, len(names)))
            with ShardWriter(path) as writer:
                for number in numbers:
                    writer.write(names[number], fields(samples[number], segmenter, refiner))
            entries.append(describe(path, len(numbers)))
            print(f"{numbers.stop} of {len(names)}", flush=True)
    about = {key: str(value) for key, value in vars(options).items()}
    Index("triplets", {"train": entries}, about).write(options.out)


def link_training(path: Path, hold_out: float, kind: str, target: Path) -> Path:
    """Link the training part of ``path`` into the new folder ``target``."""
    dataset, _ = open_source(Source(str(path), hold_out=hold_out), (kind,))
    assert isinstance(dataset, FolderDataset)
    target.mkdir()
    for number, pair in enumerate(dataset.pairs):
        # Numbers are unique, names may not be.
        (target / f"{number:06d}{pair.image.suffix}").symlink_to(pair.image.resolve())
        if pair.label is not None:
            (target / f"{number:06d}.alpha{pair.label.suffix}").symlink_to(pair.label.resolve())
    return target


@torch.inference_mode()
def fields(sample, segmenter, refiner) -> dict[str, bytes]:
    # The composite is made from the stored background, so that they agree exactly.
    photograph, background = (
        encode_image(".jpg", picture) for picture in (sample.foreground, sample.background)
    )
    stored = decoded(photograph)
    mask = refiner(stored, segmenter(stored))
    color, alpha = (x[None].float() / 255 for x in (sample.foreground_color, sample.alpha))
    composite = over(color, alpha, decoded(background))
    return {
        "foreground.jpg": photograph,
        "background.jpg": background,
        "composite.png": encode_image(".png", to_bytes(composite[0])),
        "alpha.png": encode_image(".png", sample.alpha),
        "mask.png": encode_image(".png", to_bytes(mask[0])),
    }


def decoded(data: bytes) -> Tensor:
    return to_tensor(read_image(data).pixels)[None]


if __name__ == "__main__":
    try:
        main()
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
