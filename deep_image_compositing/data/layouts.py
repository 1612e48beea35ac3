"""Layouts: how published data sets are arranged on disk.

A layout lists the files of every sample without opening its photographs; missing or broken files
are reported when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from deep_image_compositing.data.folders import Pair, image_files, photographs
from deep_image_compositing.errors import DataError, MissingExtraError, UsageError

GROUPS = "groups.tsv"  # assigns the photographs of a user's own set to groups


@dataclass(frozen=True)
class Layout:
    """The arrangement of a data set's files."""

    kind: str  # segmentation, mattes, backgrounds or harmonization
    name: str  # the value of --layout
    find: Callable[[Path], Iterable[Pair]]  # lists the samples below a folder
    expects: str  # its files, in words
    source: str = ""  # the paper or page that it comes from; empty for a user's own set
    licence: str = "not stated"  # the publisher's terms

    def pairs(self, root: str | Path) -> list[Pair]:
        """All samples below ``root``, sorted by key; keys are sanitized for shards.

        Raises:
            UsageError: no such folder, or one that does not match this layout.
            DataError: a list in it that cannot be read.
            MissingExtraError: a list in it that needs scipy.
        """
        root = Path(root)
        if not root.is_dir():
            raise UsageError(f"there is no folder {root}; --root is where the data set lies")
        pairs = sorted(self.find(root), key=lambda pair: pair.key)
        if not pairs:
            names = sorted(path.name for path in root.iterdir())
            contents = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise UsageError(
                f"{root} does not look like {self.name}: expected {self.expects}; "
                f"it holds {contents or 'nothing'}"
            )
        return list(_with_keys(pairs))


def get(kind: str, name: str | None) -> Layout:
    """The layout ``name`` of a kind; otherwise ``UsageError`` that lists the layouts."""
    for layout in LAYOUTS:
        if (layout.kind, layout.name) == (kind, name):
            return layout
    names = ", ".join(layout.name for layout in LAYOUTS if layout.kind == kind)
    problem = "--layout is missing" if name is None else f"{kind} has no layout {name!r}"
    raise UsageError(f"{problem}; the layouts of {kind} are {names}")


def read_mat(path: Path, variable: str) -> Any:
    """Read a variable of a MATLAB file as a numpy array; ``DataError`` if that fails."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "scipy", "matting") from None
    try:
        return loadmat(path, variable_names=[variable])[variable]
    except KeyError:
        raise DataError(f"{path} has no variable {variable!r}") from None
    except Exception as error:  # scipy raises many types on broken files
        raise DataError(f"{path} cannot be read as a MATLAB file: {error}") from None


# Parts of layouts


def _pairs(images: Path, labels: Path, prefix: str = "", split: str = "") -> Iterator[Pair]:
    """Every image with the label of its stem (``STEM.png`` if missing), if both folders exist."""
    if not (images.is_dir() and labels.is_dir()):
        return
    by_stem = {path.stem: path for path in image_files(labels.iterdir())}
    for image in image_files(images.iterdir()):
        label = by_stem.get(image.stem, labels / f"{image.stem}.png")
        yield Pair(image, label, key=prefix + image.stem, split=split)


def _beside(folder: Path, tails: tuple[str, ...]) -> Iterator[Pair]:
    """Every ``NAME.*`` with its label ``NAME`` + tail + ``.*``; nothing if no file has a tail."""
    files = image_files(folder.glob("*"))
    labels = {
        path.stem.removesuffix(tail): path
        for tail in reversed(tails)
        for path in files
        if path.stem.endswith(tail)
    }
    for path in files if labels else []:
        if not path.stem.endswith(tails):
            label = labels.get(path.stem, path.with_name(f"{path.stem}{tails[0]}.png"))
            yield Pair(path, label, key=path.stem)


def _enter(root: Path, *names: str) -> Path:
    """Descend from ``root`` into each folder ``names`` that exists, as archives unpack to."""
    for name in names:
        if (root / name).is_dir():
            root = root / name
    return root


def _with_keys(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Sanitize keys: word characters and hyphens, unique regardless of case."""
    existing: set[str] = set()
    for pair in pairs:
        key = re.sub(r"[^\w-]+", "_", re.sub(r"[/\\]", "-", pair.key)) or "_"
        unique, count = key, 1
        while unique.casefold() in existing:
            count += 1
            unique = f"{key}-{count}"
        existing.add(unique.casefold())
        yield replace(pair, key=unique, group=pair.group or pair.key)


def _grouped(root: Path, pairs: Iterable[Pair]) -> list[Pair]:
    """Assign the groups of ``groups.tsv``, if it exists."""
    path, groups = root / GROUPS, {}
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text in UTF-8: {error}") from None
        for number, line in enumerate(lines, 1):
            name, tab, group = line.partition("\t")
            if not (name and tab and group.strip()):
                raise DataError(
                    f"{path}, line {number}: expected NAME, a tab and GROUP, got {line!r}"
                )
            groups[name] = group.strip()
    grouped = [replace(pair, group=groups.get(pair.key, "")) for pair in pairs]
    if groups and grouped and not any(pair.group for pair in grouped):
        raise DataError(
            f"{path} names none of the samples: expected names such as {grouped[0].key!r}, got "
            f"{next(iter(groups))!r}"
        )
    return grouped


def _in_folders(archive: str, *folders: tuple[str, ...]) -> Callable[[Path], Iterator[Pair]]:
    """A finder of pairs; each of ``folders`` is images, labels and perhaps key prefix and split."""

    def find(root: Path) -> Iterator[Pair]:
        root = _enter(root, archive)
        for images, labels, *rest in folders:
            yield from _pairs(root / images, root / labels, *rest)

    return find


def _own_pairs(root: Path, labels: tuple[str, ...], tails: tuple[str, ...]) -> list[Pair]:
    """Pairs of ``images/`` and the first of the folders ``labels`` with any, or side by side."""
    pairs: list[Pair] = []
    for name in labels:
        pairs = pairs or list(_pairs(root / "images", root / name))
    return _grouped(root, pairs or _beside(root, tails))


def _own_images(root: Path, straight: bool) -> Iterator[Pair]:
    """All images below ``root``; if ``straight``, cut-outs in formats with an alpha."""
    opaque = (".jpg", ".jpeg", ".bmp") if straight else ()
    for path in photographs(root.rglob("*")):
        if path.suffix.lower() not in opaque:
            key = path.relative_to(root).with_suffix("").as_posix()
            yield Pair(path, key=key, straight=straight)


# Sets with special rules


def _duts(root: Path) -> Iterator[Pair]:
    for part, split in (("TR", ""), ("TE", "test")):
        images, masks = f"DUTS-{part}-Image", f"DUTS-{part}-Mask"
        yield from _in_folders(f"DUTS-{part}", (images, masks, f"{part}/", split))(root)


def _msra10k(root: Path) -> Iterator[Pair]:
    for image in image_files(_enter(root, "MSRA10K_Imgs_GT", "Imgs").iterdir()):
        if image.suffix.lower() in (".jpg", ".jpeg"):
            yield Pair(image, image.with_suffix(".png"), key=image.stem)


def _portrait_matting(root: Path) -> Iterator[Pair]:
    for part, split in (("training", ""), ("testing", "test")):
        for pair in _beside(root / part, ("_matte",)):
            yield replace(pair, key=f"{part}/{pair.key}", split=split)


def _portrait_stylization(root: Path) -> Iterator[Pair]:
    root = _enter(root, "EG1800")
    images = root / "images_data_crop"
    mat_list, text_list = root / "testlist.mat", root / "eg1800_test.txt"
    pairs: Iterable[Pair] = ()
    if images.is_dir() and mat_list.is_file():
        tested = {f"{int(number):05d}" for number in read_mat(mat_list, "testlist").ravel()}
        masks = root / "images_mask"
        pairs = (
            Pair(image, masks / f"{image.stem}_mask.mat", key=image.stem)
            for image in image_files(images.iterdir())
        )
    elif text_list.is_file():
        tested = _listed(text_list)
        pairs = _pairs(root / "Images", root / "Labels")
    for pair in pairs:
        yield replace(pair, split="test" if pair.key in tested else "")


def _adobe(root: Path) -> Iterator[Pair]:
    root = _enter(root, "Combined_Dataset")
    for part, split in (("Training_set", ""), ("Test_set", "test")):
        for origin in ("Adobe-licensed images", "Other"):
            folder = root / part / origin
            for pair in _pairs(folder / "fg", folder / "alpha", f"{part}/", split):
                # Subjects of the same photograph are "NAME.png" and "NAME (1).png".
                yield replace(pair, straight=True, group=re.sub(r" \(\d+\)$", "", pair.key))


def _p3m10k(root: Path) -> Iterator[Pair]:
    folders = [("train/blurred_image", "train/mask", "train/", "train")]
    for part, images in (("P3M-500-P", "blurred_image"), ("P3M-500-NP", "original_image")):
        folder = f"validation/{part}"
        folders.append((f"{folder}/{images}", f"{folder}/mask", f"{part}/", "validation"))
    return _in_folders("P3M-10k", *folders)(root)


def _iharmony4(root: Path) -> Iterator[Pair]:
    root = _enter(root, "iHarmony4")
    listed = _listed(root / "IHD_test.txt")
    single = (root / "composite_images").is_dir()
    for folder in [root] if single else sorted(path for path in root.iterdir() if path.is_dir()):
        images, prefix = folder / "composite_images", "" if single else f"{folder.name}/"
        tested = listed.union(*map(_listed, folder.glob("*_test.txt")))
        for path in image_files(images.iterdir()) if images.is_dir() else []:
            name, *subject = path.stem.rsplit("_", 2)
            label = folder / "masks" / f"{'_'.join([name, *subject[:1]])}.png"
            image = folder / "real_images" / f"{name}.jpg"
            # Only Hday2night has hyphens in its names: SCENE-TIME, one scene at several times.
            group = prefix + name.partition("-")[0]
            split = "test" if path.stem in tested else ""
            yield Pair(image, label, path, group, prefix + path.stem, split)


def _listed(path: Path) -> set[str]:
    """Stems of the file names in a list; empty if the list does not exist."""
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8", errors="replace").split()
    return {Path(line).stem for line in lines}


def _own_composites(root: Path) -> list[Pair]:
    by_stem = {path.stem: path for path in image_files((root / "composites").glob("*"))}
    labelled = _pairs(root / "images", root / "masks")
    pairs = (replace(pair, composite=by_stem.get(pair.key)) for pair in labelled)
    return _grouped(root, (pair for pair in pairs if pair.composite))


LAYOUTS = [
    Layout(
        "segmentation", "duts", _duts,
        "DUTS-TR/DUTS-TR-Image, DUTS-TR/DUTS-TR-Mask, or the same of DUTS-TE (the test split)",
        "Wang et al., Learning to Detect Salient Objects with Image-Level Supervision, CVPR 2017"),
    Layout(
        "segmentation", "msra10k", _msra10k,
        "MSRA10K_Imgs_GT/Imgs/ with NAME.jpg and its mask NAME.png",
        "Cheng et al., Global Contrast Based Salient Region Detection, TPAMI 2015"),
    Layout(
        "segmentation", "portrait_matting", _portrait_matting,
        "training/ and testing/ with NNNNN.png and NNNNN_matte.png",
        "Shen et al., Deep Automatic Portrait Matting, ECCV 2016"),
    Layout(
        "segmentation", "portrait_stylization", _portrait_stylization,
        "images_data_crop/NNNNN.jpg, images_mask/NNNNN_mask.mat and testlist.mat, or as EG1800 "
        "Images/, Labels/ and eg1800_test.txt",
        "Shen et al., Automatic Portrait Segmentation for Image Stylization, Eurographics 2016"),
    Layout(
        "segmentation", "folders",
        partial(_own_pairs, labels=("masks",), tails=(".mask", ".alpha")),
        "images/ and masks/ with files of the same names, or NAME.jpg beside NAME.mask.png"),
    Layout(
        "mattes", "adobe", _adobe,
        "Combined_Dataset/{Training_set,Test_set}/{Adobe-licensed images,Other}/{fg,alpha}",
        "Xu et al., Deep Image Matting, CVPR 2017", "research only, by agreement with Adobe"),
    Layout(
        "mattes", "aim500", _in_folders("AIM-500", ("original", "mask")),
        "original/ and mask/",
        "Li et al., Deep Automatic Natural Image Matting, IJCAI 2021",
        "as its release agreement states"),
    Layout(
        "mattes", "p3m10k", _p3m10k,
        "train/{blurred_image,mask}, validation/P3M-500-P/{blurred_image,mask} and "
        "validation/P3M-500-NP/{original_image,mask}",
        "Li et al., Privacy-Preserving Portrait Matting, ACM MM 2021",
        "MIT, by its release agreement"),
    Layout(
        # In its authors' training code, fg has whole photographs.
        "mattes", "ppm100", _in_folders("PPM-100", ("image", "matte"), ("train/fg", "train/alpha")),
        "image/ and matte/, or train/fg and train/alpha",
        "Ke et al., MODNet: Real-Time Trimap-Free Portrait Matting, AAAI 2022",
        "photographs CC (commercial use and changes allowed), mattes CC BY-NC-SA 4.0"),
    Layout(
        "mattes", "rgba", lambda root: _grouped(root, _own_images(root, straight=True)),
        "RGBA cut-outs, in any folders"),
    Layout(
        "mattes", "folders",
        partial(_own_pairs, labels=("alphas", "masks"), tails=(".alpha",)),
        "images/ and alphas/ (or masks/) with files of the same names, or NAME.jpg beside "
        "NAME.alpha.png"),
    Layout(
        "backgrounds", "folders", lambda root: _grouped(root, _own_images(root, straight=False)),
        "images, in any folders"),
    Layout(
        "harmonization", "iharmony4", _iharmony4,
        "HCOCO/, HAdobe5k/, HFlickr/ and Hday2night/, or one of them, with "
        "composite_images/NAME_MASK_N.jpg, masks/NAME_MASK.png, real_images/NAME.jpg and "
        "SET_train.txt, SET_test.txt, or with IHD_train.txt and IHD_test.txt beside them",
        "Cong et al., DoveNet: Deep Image Harmonization via Domain Verification, CVPR 2020"),
    Layout(
        "harmonization", "folders", _own_composites,
        "images/, masks/ and composites/ with files of the same names"),
]  # fmt: skip
"""All layouts, by kind."""
