"""Small trees with the layouts in which data sets are published; the tests of ``shards`` use them.

Every function makes one set below a root and returns the keys that its samples should have, by
split; an empty split is one to be drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.trees import photograph

Keys = dict[str, set[str]]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def pair(image: Path, label: Path, seed: int = 0) -> None:
    """A photograph and its label, soft in a PNG or JPEG, of classes 0 and 1 in a MATLAB file."""
    picture, alpha = photograph(seed)
    _save(picture, image)
    if label.suffix == ".mat":
        save_mat(label, mask=(np.asarray(alpha) > 127).astype(np.uint8))
    else:
        _save(alpha, label)


def save_mat(path: Path, **variables: object) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def cutout(path: Path, seed: int = 0) -> None:
    picture, alpha = photograph(seed)
    picture.putalpha(alpha)
    _save(picture, path)


def duts(root: Path) -> Keys:
    for part, name in (("TR", "n01440764_1"), ("TR", "ILSVRC_4"), ("TE", "sun_7")):
        folder = root / f"DUTS-{part}"
        images, masks = folder / f"DUTS-{part}-Image", folder / f"DUTS-{part}-Mask"
        pair(images / f"{name}.jpg", masks / f"{name}.png")
    return {"": {"TR-n01440764_1", "TR-ILSVRC_4"}, "test": {"TE-sun_7"}}


def msra10k(root: Path) -> Keys:
    folder = root / "MSRA10K_Imgs_GT" / "Imgs"
    for number in (78, 147):
        pair(folder / f"{number}.jpg", folder / f"{number}.png")
    return {"": {"78", "147"}}


def portrait_matting(root: Path) -> Keys:
    for part in ("training", "testing"):
        pair(root / part / "00001.png", root / part / "00001_matte.png")
    return {"": {"training-00001"}, "test": {"testing-00001"}}


def portrait_stylization(root: Path) -> Keys:
    for number in (1, 2, 3):
        name = f"{number:05d}"
        image = root / "images_data_crop" / f"{name}.jpg"
        pair(image, root / "images_mask" / f"{name}_mask.mat")
    save_mat(root / "trainlist.mat", trainlist=np.array([[1, 3]], np.uint16))
    save_mat(root / "testlist.mat", testlist=np.array([[2]], np.uint16))
    return {"": {"00001", "00003"}, "test": {"00002"}}


def eg1800(root: Path) -> Keys:
    root = root / "EG1800"
    for name in ("00001", "00002"):
        pair(root / "Images" / f"{name}.png", root / "Labels" / f"{name}.png")
    _save(photograph(0)[1], root / "Labels" / "00009.png")  # as published: a label too many
    (root / "eg1800_train.txt").write_text("00001.png\n")
    (root / "eg1800_test.txt").write_text("00002.png\n")
    return {"": {"00001"}, "test": {"00002"}}


def image_and_mask_folders(root: Path) -> Keys:
    pair(root / "images" / "a.webp", root / "masks" / "a.bmp")
    pair(root / "images" / "b.JPEG", root / "masks" / "b.png")
    return {"": {"a", "b"}}


def masks_beside(root: Path) -> Keys:
    pair(root / "a.jpg", root / "a.mask.png")
    pair(root / "b c.jpg", root / "b c.mask.png")
    return {"": {"a", "b_c"}}


def adobe(root: Path) -> Keys:
    names = {
        "Training_set": {"Adobe-licensed images": ["lace_1280.jpg"], "Other": ["dog.jpg"]},
        "Test_set": {
            "Adobe-licensed images": ["woman-952506_1920.png", "woman-952506_1920 (1).png"]
        },
    }
    for part, origins in names.items():
        for origin, files in origins.items():
            for file in files:
                folder = root / "Combined_Dataset" / part / origin
                pair(folder / "fg" / file, folder / "alpha" / file)
    (root / "Combined_Dataset" / "Test_set" / "Adobe-licensed images" / "trimaps").mkdir()
    woman = "Test_set-woman-952506_1920"
    return {"": {"Training_set-lace_1280", "Training_set-dog"}, "test": {woman, f"{woman}_1_"}}


def aim500(root: Path) -> Keys:
    for name in ("o_0a0ae43d", "o_e92b90fc"):
        pair(root / "original" / f"{name}.jpg", root / "mask" / f"{name}.png")
        _save(photograph(0)[1], root / "trimap" / f"{name}.png")
    return {"": {"o_0a0ae43d", "o_e92b90fc"}}


def p3m10k(root: Path) -> Keys:
    for folder, images, name in (
        ("train", "blurred_image", "p_1"),
        ("validation/P3M-500-P", "blurred_image", "p_2"),
        ("validation/P3M-500-NP", "original_image", "p_3"),
    ):
        pair(root / folder / images / f"{name}.jpg", root / folder / "mask" / f"{name}.png")
        _save(photograph(0)[1], root / folder / "trimap" / f"{name}.png")
    return {"train": {"train-p_1"}, "validation": {"P3M-500-P-p_2", "P3M-500-NP-p_3"}}


def ppm100(root: Path) -> Keys:
    pair(root / "image" / "10012.jpg", root / "matte" / "10012.jpg")
    return {"": {"10012"}}


def ppm100_for_training(root: Path) -> Keys:
    pair(root / "train" / "fg" / "10012.jpg", root / "train" / "alpha" / "10012.png")
    return {"": {"10012"}}


def rgba(root: Path) -> Keys:
    cutout(root / "bear.png")
    cutout(root / "cars" / "bear.png", 1)
    return {"": {"bear", "cars-bear"}}


def image_and_alpha_folders(root: Path) -> Keys:
    pair(root / "images" / "a.jpg", root / "alphas" / "a.png")
    return {"": {"a"}}


def alphas_beside(root: Path) -> Keys:
    pair(root / "a.jpg", root / "a.alpha.png")
    return {"": {"a"}}


def scenes(root: Path) -> Keys:
    _save(photograph(0)[0], root / "indoors" / "room.jpg")
    _save(photograph(1)[0], root / "room.png")
    return {"": {"indoors-room", "room"}}


def iharmony4(root: Path) -> Keys:
    """As in the authors' archives: real names, a composite of each set or more."""
    files = {
        "HCOCO": ["c100300_1602094_1", "c100300_1602094_2", "c5_18_1"],
        "HAdobe5k": ["a0001_1_1", "a0001_1_2", "a3630_1_5"],
        "HFlickr": ["f1000_1_1", "f1000_2_1"],
        "Hday2night": ["d21901-20130410-181833_1_9", "d21901-20130411-081833_1_9"],
    }
    tests = {"c5_18_1", "a3630_1_5"}
    for name, keys in files.items():
        composites(root / name, keys)
        for split in ("train", "test"):
            listed = [key for key in keys if (key in tests) == (split == "test")]
            (root / name / f"{name}_{split}.txt").write_text(
                "".join(f"{key}.jpg\n" for key in listed)
            )
            with (root / f"IHD_{split}.txt").open("a") as together:
                together.writelines(f"{name}/composite_images/{key}.jpg\n" for key in listed)
    every = {key: f"{name}-{key}" for name, keys in files.items() for key in keys}
    return {
        "": {every[key] for key in every.keys() - tests},
        "test": {every[key] for key in tests},
    }


def composites(folder: Path, keys: list[str]) -> None:
    """Composites by the names of one of the sets of iHarmony4, with their photographs and masks."""
    for key in keys:
        name, subject, number = key.split("_")
        image, label = folder / f"real_images/{name}.jpg", folder / f"masks/{name}_{subject}.png"
        pair(image, label)
        recolored(image, label, folder / f"composite_images/{key}.jpg", 40 * int(number))


def recolored(image: Path, label: Path, composite: Path, less: int) -> None:
    """The photograph, its subject darker by ``less`` levels."""
    with Image.open(image) as picture, Image.open(label) as mask:
        dark = picture.point(lambda level: max(0, level - less))
        _save(Image.composite(dark, picture, mask), composite)


def hflickr(root: Path) -> Keys:
    """One of the sets, which holds its lists itself."""
    composites(root, ["f1000_1_1", "f1001_1_1"])
    (root / "HFlickr_train.txt").write_text("f1000_1_1.jpg\n")
    (root / "HFlickr_test.txt").write_text("f1001_1_1.jpg\r\n")
    return {"": {"f1000_1_1"}, "test": {"f1001_1_1"}}


def composite_folders(root: Path) -> Keys:
    for name in ("a", "b"):
        image, label = root / "images" / f"{name}.jpg", root / "masks" / f"{name}.png"
        pair(image, label)
        recolored(image, label, root / "composites" / f"{name}.png", 50)
    pair(root / "images" / "c.jpg", root / "masks" / "c.png")  # has none
    return {"": {"a", "b"}}


TREES: dict[str, tuple[str, str, Callable[[Path], Keys]]] = {
    "duts": ("segmentation", "duts", duts),
    "msra10k": ("segmentation", "msra10k", msra10k),
    "portrait_matting": ("segmentation", "portrait_matting", portrait_matting),
    "portrait_stylization": ("segmentation", "portrait_stylization", portrait_stylization),
    "eg1800": ("segmentation", "portrait_stylization", eg1800),
    "images and masks": ("segmentation", "folders", image_and_mask_folders),
    "masks beside": ("segmentation", "folders", masks_beside),
    "adobe": ("mattes", "adobe", adobe),
    "aim500": ("mattes", "aim500", aim500),
    "p3m10k": ("mattes", "p3m10k", p3m10k),
    "ppm100": ("mattes", "ppm100", ppm100),
    "ppm100 for training": ("mattes", "ppm100", ppm100_for_training),
    "rgba": ("mattes", "rgba", rgba),
    "images and alphas": ("mattes", "folders", image_and_alpha_folders),
    "alphas beside": ("mattes", "folders", alphas_beside),
    "backgrounds": ("backgrounds", "folders", scenes),
    "iharmony4": ("harmonization", "iharmony4", iharmony4),
    "hflickr": ("harmonization", "iharmony4", hflickr),
    "images and composites": ("harmonization", "folders", composite_folders),
}
"""Kind, layout and generator of every tree."""

NEEDS_SCIPY = {"portrait_stylization"}
