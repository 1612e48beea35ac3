"""Small trees with the layouts in which data sets are published, for the tests of ``shards``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.trees import photograph


@dataclass
class Tree:
    """A set: its samples, ``split: key: image | label | composite``, and what else lies there."""

    kind: str
    layout: str
    samples: list[str]
    files: dict[str, Any] = field(default_factory=dict)  # texts; a dict of variables; None: a label

    @property
    def keys(self) -> dict[str, set[str]]:
        """The keys that its samples should have, by split; the empty one is to be drawn."""
        found: dict[str, set[str]] = {}
        for split, key, _ in (sample.split(": ") for sample in self.samples):
            found.setdefault(split, set()).add(key)
        return found


def make(name: str, root: Path) -> Tree:
    """Write one of ``TREES`` below ``root``."""
    tree = TREES[name]
    for sample in tree.samples:
        write(root, *sample.split(": ")[2].split(" | "))
    for path, content in tree.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            _save(photograph(0)[1], root / path)
        elif isinstance(content, str):
            (root / path).write_text(content)
        else:
            save_mat(root / path, **content)
    return tree


def write(root: Path, image: str, label: str = "", composite: str = "") -> None:
    """The files of a sample: ``label`` is soft in a PNG, of classes 0 and 1 in a MATLAB file.

    ``RGBA`` for a label makes a cut-out. A composite's subject is darker, the more so the higher
    the number is that its name ends in.
    """
    picture, alpha = photograph(0)
    if label == "RGBA":
        picture.putalpha(alpha)
    elif label.endswith(".mat"):
        save_mat(root / label, mask=(np.asarray(alpha) > 127).astype(np.uint8))
    elif label:
        _save(alpha, root / label)
    _save(picture, root / image)
    if composite:
        last = Path(composite).stem[-1]
        less = 40 * int(last) if last.isdigit() else 50
        dark = Image.open(root / image).point(lambda level: max(0, level - less))
        _save(Image.composite(dark, Image.open(root / image), alpha), root / composite)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def save_mat(path: Path, **variables: object) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def _composites(folder: str, split: str, *names: str) -> list[str]:
    samples = []
    for name in names:
        image, mask, _ = name.split("_")
        files = (
            f"real_images/{image}.jpg",
            f"masks/{image}_{mask}.png",
            f"composite_images/{name}.jpg",
        )
        paths = " | ".join(folder + file for file in files)
        samples.append(f"{split}: {folder.replace('/', '-')}{name}: {paths}")
    return samples


_IHARMONY4 = {
    "HCOCO": (["c100300_1602094_1", "c100300_1602094_2"], ["c5_18_1"]),
    "HAdobe5k": (["a0001_1_1", "a0001_1_2"], ["a3630_1_5"]),
    "HFlickr": (["f1000_1_1", "f1000_2_1"], []),
    "Hday2night": (["d21901-20130410-181833_1_9", "d21901-20130411-081833_1_9"], []),
}
"""Names as in the authors' archives: for training and for tests."""

_LICENSED = "Combined_Dataset/Test_set/Adobe-licensed images"
_WOMAN = "woman-952506_1920"

TREES = {
    "duts": Tree("segmentation", "duts", [
        *(f": TR-{name}: DUTS-TR/DUTS-TR-Image/{name}.jpg | DUTS-TR/DUTS-TR-Mask/{name}.png"
          for name in ("n01440764_1", "ILSVRC_4")),
        "test: TE-sun_7: DUTS-TE/DUTS-TE-Image/sun_7.jpg | DUTS-TE/DUTS-TE-Mask/sun_7.png",
    ]),
    "msra10k": Tree("segmentation", "msra10k", [
        f": {n}: MSRA10K_Imgs_GT/Imgs/{n}.jpg | MSRA10K_Imgs_GT/Imgs/{n}.png" for n in (78, 147)
    ]),
    "portrait_matting": Tree("segmentation", "portrait_matting", [
        ": training-00001: training/00001.png | training/00001_matte.png",
        "test: testing-00001: testing/00001.png | testing/00001_matte.png",
    ]),
    "portrait_stylization": Tree("segmentation", "portrait_stylization", [
        f"{split}: {name}: images_data_crop/{name}.jpg | images_mask/{name}_mask.mat"
        for split, name in (("", "00001"), ("test", "00002"), ("", "00003"))
    ], {"trainlist.mat": {"trainlist": np.array([[1, 3]], np.uint16)},
        "testlist.mat": {"testlist": np.array([[2]], np.uint16)}}),
    "eg1800": Tree("segmentation", "portrait_stylization", [
        f"{split}: {name}: EG1800/Images/{name}.png | EG1800/Labels/{name}.png"
        for split, name in (("", "00001"), ("test", "00002"))
    ], {"EG1800/Labels/00009.png": None,  # as published: a label too many
        "EG1800/eg1800_train.txt": "00001.png\n", "EG1800/eg1800_test.txt": "00002.png\n"}),
    "images and masks": Tree("segmentation", "folders", [
        ": a: images/a.webp | masks/a.bmp", ": b: images/b.JPEG | masks/b.png",
    ]),
    "masks beside": Tree("segmentation", "folders", [
        ": a: a.jpg | a.mask.png", ": b_c: b c.jpg | b c.mask.png",
    ]),
    "adobe": Tree("mattes", "adobe", [
        *(f": Training_set-{Path(path).stem}: Combined_Dataset/Training_set/{path.format('fg')} | "
          f"Combined_Dataset/Training_set/{path.format('alpha')}"
          for path in ("Adobe-licensed images/{}/lace_1280.jpg", "Other/{}/dog.jpg")),
        *(f"test: Test_set-{key}: {_LICENSED}/fg/{name}.png | {_LICENSED}/alpha/{name}.png"
          for key, name in ((_WOMAN, _WOMAN), (f"{_WOMAN}_1_", f"{_WOMAN} (1)"))),
    ], {f"{_LICENSED}/trimaps/{_WOMAN}.png": None}),
    "aim500": Tree("mattes", "aim500", [
        f": {name}: original/{name}.jpg | mask/{name}.png" for name in ("o_0a0ae43d", "o_e92b90fc")
    ], {"trimap/o_0a0ae43d.png": None}),
    "p3m10k": Tree("mattes", "p3m10k", [
        "train: train-p_1: train/blurred_image/p_1.jpg | train/mask/p_1.png",
        "validation: P3M-500-P-p_2: validation/P3M-500-P/blurred_image/p_2.jpg | "
        "validation/P3M-500-P/mask/p_2.png",
        "validation: P3M-500-NP-p_3: validation/P3M-500-NP/original_image/p_3.jpg | "
        "validation/P3M-500-NP/mask/p_3.png",
    ], {"train/trimap/p_1.png": None}),
    "ppm100": Tree("mattes", "ppm100", [": 10012: image/10012.jpg | matte/10012.jpg"]),
    "ppm100 for training": Tree("mattes", "ppm100", [
        ": 10012: train/fg/10012.jpg | train/alpha/10012.png",
    ]),
    "rgba": Tree("mattes", "rgba", [
        ": bear: bear.png | RGBA", ": cars-bear: cars/bear.png | RGBA",
    ]),
    "images and alphas": Tree("mattes", "folders", [": a: images/a.jpg | alphas/a.png"]),
    "alphas beside": Tree("mattes", "folders", [": a: a.jpg | a.alpha.png"]),
    "backgrounds": Tree("backgrounds", "folders", [
        ": indoors-room: indoors/room.jpg", ": room: room.png",
    ]),
    "iharmony4": Tree("harmonization", "iharmony4", [
        sample for name, parts in _IHARMONY4.items()
        for split, part in zip(("", "test"), parts, strict=True)
        for sample in _composites(f"{name}/", split, *part)
    ], {
        f"{name}/{name}_{split}.txt": "".join(f"{key}.jpg\n" for key in part)
        for name, parts in _IHARMONY4.items()
        for split, part in zip(("train", "test"), parts, strict=True)
    } | {
        f"IHD_{split}.txt": "".join(f"{name}/composite_images/{key}.jpg\n"
                                    for name, parts in _IHARMONY4.items() for key in parts[number])
        for number, split in enumerate(("train", "test"))
    }),
    "hflickr": Tree("harmonization", "iharmony4", [  # one of the sets, which holds its lists itself
        *_composites("", "", "f1000_1_1"), *_composites("", "test", "f1001_1_1"),
    ], {"HFlickr_train.txt": "f1000_1_1.jpg\n", "HFlickr_test.txt": "f1001_1_1.jpg\r\n"}),
    "images and composites": Tree("harmonization", "folders", [
        f": {name}: images/{name}.jpg | masks/{name}.png | composites/{name}.png" for name in "ab"
    ], {"images/c.jpg": None, "masks/c.png": None}),  # has none
}  # fmt: skip
