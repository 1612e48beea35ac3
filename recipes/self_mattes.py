"""Make mattes from labelled photographs with the shipped refiner and fuser.

    python recipes/self_mattes.py data runs/self
    python recipes/own_masks.py runs/self runs/own_masks_self --per-subject 1 --size 640 --seed 17

takes people, animals and other subjects of the training part, labelled by pixels or polygons, lets
refiner and fuser predict an alpha from each label, and writes photograph and alpha to
runs/self/mattes, with a link to the backgrounds beside it. The alphas need not be true for these
photographs: composites made from them have exact truth, with the shapes, textures and fur of
several hundred subjects, where measured mattes are few.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deep_image_compositing import CompositingError, registry
from deep_image_compositing.data.crops import planes
from deep_image_compositing.data.datasets import FolderDataset, open_source
from deep_image_compositing.data.items import FileItem, Source
from deep_image_compositing.functional.precision import to_bytes

SETS = {
    # folder: (number of photographs, whether its labels are accurate to the pixel)
    "people": (260, True),
    "cats": (110, False),
    "subjects": (40, False),
}
MIN_SIDE = 160
"""Minimum short side of a photograph in pixels."""

MIN_OPAQUE = 0.02
"""Minimum share of a photograph's pixels that are opaque."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "data", type=Path, help="folder with people/, cats/, subjects/, backgrounds/"
    )
    parser.add_argument("out", type=Path, help="new folder for mattes/ and backgrounds/")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; name another folder, or remove it")
    missing = [x for x in (*SETS, "backgrounds") if not (options.data / x).is_dir()]
    if missing:
        parser.error(f"{options.data} lacks {', '.join(missing)}")
    refiner = registry.create("refiner", "cascade", weights="default").eval()
    fuser = registry.create("fuser", "multi_stream", weights="default").eval()
    mattes = options.out / "mattes"
    mattes.mkdir(parents=True)
    (options.out / "backgrounds").symlink_to((options.data / "backgrounds").resolve())
    rng = np.random.default_rng(options.seed)
    for name, (count, fine) in SETS.items():
        source = Source(str(options.data / name))
        dataset, _ = open_source(source, ("segmentation",))
        assert isinstance(dataset, FolderDataset)
        for number in rng.permutation(len(dataset.pairs))[:count]:
            item = FileItem(source, dataset.pairs[number])
            photograph = item.image()
            if min(photograph.size) < MIN_SIDE:
                continue
            alpha = predict(tensor(photograph), tensor(item.label()), fine, refiner, fuser)
            if (alpha > 250).mean() < MIN_OPAQUE:
                continue
            stem = f"{name}_{Path(item.name).stem}"
            photograph.save(mattes / f"{stem}.jpg", quality=95)
            Image.fromarray(alpha).save(mattes / f"{stem}.alpha.png")
        print(f"{name}: {len(list(mattes.glob(f'{name}_*.png')))}", flush=True)


@torch.inference_mode()
def predict(
    photograph: Tensor, label: Tensor, fine: bool, refiner: torch.nn.Module, fuser: torch.nn.Module
) -> np.ndarray:
    """The alpha (H, W), 0 to 255, that refiner and fuser predict from a label."""
    mask = refiner(photograph, label)
    if fine:
        mask = (mask + label) / 2
    # A uniform background of the photograph's mean colour, to influence the alpha as little as
    # possible.
    plain = photograph.mean((2, 3), keepdim=True).expand_as(photograph)
    layers = fuser.layers(photograph, plain, mask)
    return to_bytes(layers.alpha[0, 0]).numpy()


def tensor(image: Image.Image) -> Tensor:
    return planes(image)[None].float() / 255


if __name__ == "__main__":
    try:
        main()
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
