"""How data sets lie on disk as their authors publish them.

A layout names the files of every sample and opens none of its photographs: a file that turns out
to be missing or broken is found, and named, when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deep_image_compositing.data.folders import image_files
from deep_image_compositing.errors import DataError, MissingExtraError, UsageError

GROUPS = "groups.tsv"
"""File in a set of one's own that says which photographs belong together."""


@dataclass(frozen=True)
class Entry:
    """The files of one sample."""

    key: str  # unique in the set
    image: Path | None = None  # the photograph; None where a set has only the subject
    label: Path | None = None  # its mask or alpha; None for cut-outs and backgrounds
    color: Path | None = None  # the subject's straight colour; without a label, an RGBA cut-out
    composite: Path | None = None  # the photograph whose subject has been given other colours
    split: str = ""  # train, validation or test as the set has it; empty to be drawn
    group: str = ""  # what is never divided between splits, such as the source photograph

    @property
    def files(self) -> dict[str, Path]:
        """The files that there are, by role."""
        roles = ("image", "label", "color", "composite")
        found = {role: getattr(self, role) for role in roles}
        return {role: path for role, path in found.items() if path is not None}


@dataclass(frozen=True)
class Layout:
    """A published arrangement of files."""

    name: str  # what --layout takes
    kind: str  # segmentation, mattes, backgrounds or harmonization
    expects: str  # its files, in words
    source: str  # the paper or page that it comes from; empty for one's own
    licence: str  # what its publisher allows, as far as that is stated
    find: Callable[[Path], Iterable[Entry]]  # lists the entries below a folder

    def entries(self, root: str | Path) -> list[Entry]:
        """All samples below ``root``, by key; keys are made fit for shards.

        Raises:
            UsageError: no such folder, or one that does not look like this layout.
            DataError, MissingExtraError: a list in it that cannot be read, or not without scipy.
        """
        root = Path(root)
        if not root.is_dir():
            raise UsageError(f"there is no folder {root}; --root is where the data set lies")
        found = sorted(self.find(root), key=lambda entry: entry.key)
        if not found:
            names = sorted(path.name for path in root.iterdir())
            holds = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise UsageError(
                f"{root} does not look like {self.name}: expected {self.expects}; "
                f"it holds {holds or 'nothing'}"
            )
        return list(_with_keys(found))


LAYOUTS: list[Layout] = []
"""All layouts, by kind."""

Finder = Callable[[Path], Iterable[Entry]]


def _layout(
    kind: str, name: str, expects: str, source: str = "", licence: str = "not stated"
) -> Callable[[Finder], Finder]:
    """Makes a layout of a function that lists entries."""

    def add(find: Finder) -> Finder:
        LAYOUTS.append(Layout(name, kind, expects, source, licence, find))
        return find

    return add


def get(kind: str, name: str | None) -> Layout:
    """The layout ``name`` of a kind; ``UsageError`` that lists those there are if it is none."""
    for layout in LAYOUTS:
        if (layout.kind, layout.name) == (kind, name):
            return layout
    names = ", ".join(layout.name for layout in LAYOUTS if layout.kind == kind)
    what = "--layout is missing" if name is None else f"{kind} has no layout {name!r}"
    raise UsageError(f"{what}; the layouts of {kind} are {names}")


def read_mat(path: Path, variable: str) -> Any:
    """One variable of a MATLAB file, a numpy array; ``DataError`` where there is none."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "scipy", "matting") from None
    try:
        return loadmat(path, variable_names=[variable])[variable]
    except KeyError:
        raise DataError(f"{path} has no variable {variable!r}") from None
    except Exception as error:  # scipy raises nearly anything on broken files
        raise DataError(f"{path} cannot be read as a MATLAB file: {error}") from None


# What the layouts are made of


def _pairs(images: Path, labels: Path, prefix: str = "", split: str = "") -> Iterator[Entry]:
    """Every image with the label of its stem, or of the name that it should have; if both are."""
    if not (images.is_dir() and labels.is_dir()):
        return
    by_stem = {path.stem: path for path in image_files(labels.iterdir())}
    for image in image_files(images.iterdir()):
        label = by_stem.get(image.stem, labels / f"{image.stem}.png")
        yield Entry(prefix + image.stem, image=image, label=label, split=split)


def _beside(folder: Path, tails: tuple[str, ...]) -> Iterator[Entry]:
    """``NAME.*`` with ``NAME`` + tail + ``.*`` beside it; nothing where no file has a tail."""
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
            yield Entry(path.stem, image=path, label=label)


def _enter(root: Path, *names: str) -> Path:
    """``root``, or the folder below it that an archive of the set unpacks to."""
    for name in names:
        if (root / name).is_dir():
            root = root / name
    return root


def _with_keys(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Entries whose keys are words joined by hyphens and differ even without regard to case."""
    taken: set[str] = set()
    for entry in entries:
        key = re.sub(r"[^\w-]+", "_", re.sub(r"[/\\]", "-", entry.key)) or "_"
        unique, count = key, 1
        while unique.casefold() in taken:
            count += 1
            unique = f"{key}-{count}"
        taken.add(unique.casefold())
        yield replace(entry, key=unique, group=entry.group or entry.key)


def _grouped(root: Path, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Entries with the groups of ``groups.tsv``, where there is one."""
    path, groups = root / GROUPS, {}
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name, tab, group = line.partition("\t")
            if not (name and tab and group.strip()):
                raise DataError(
                    f"{path}, line {number}: expected NAME, a tab and GROUP, got {line!r}"
                )
            groups[name] = group.strip()
    for entry in entries:
        yield replace(entry, group=groups.get(entry.key, ""))


# Segmentation


@_layout(
    "segmentation",
    "duts",
    "DUTS-TR/DUTS-TR-Image, DUTS-TR/DUTS-TR-Mask, or the same of DUTS-TE (the test split)",
    "Wang et al., Learning to Detect Salient Objects with Image-Level Supervision, CVPR 2017",
)
def _duts(root: Path) -> Iterator[Entry]:
    for part, split in (("TR", ""), ("TE", "test")):
        folder = _enter(root, f"DUTS-{part}")
        images, masks = folder / f"DUTS-{part}-Image", folder / f"DUTS-{part}-Mask"
        yield from _pairs(images, masks, f"{part}/", split)


@_layout(
    "segmentation",
    "msra10k",
    "MSRA10K_Imgs_GT/Imgs/ with NAME.jpg and its mask NAME.png",
    "Cheng et al., Global Contrast Based Salient Region Detection, TPAMI 2015",
)
def _msra10k(root: Path) -> Iterator[Entry]:
    for image in image_files(_enter(root, "MSRA10K_Imgs_GT", "Imgs").iterdir()):
        if image.suffix.lower() in (".jpg", ".jpeg"):
            yield Entry(image.stem, image=image, label=image.with_suffix(".png"))


@_layout(
    "segmentation",
    "portrait_matting",
    "training/ and testing/ with NNNNN.png and NNNNN_matte.png",
    "Shen et al., Deep Automatic Portrait Matting, ECCV 2016",
)
def _portrait_matting(root: Path) -> Iterator[Entry]:
    for part, split in (("training", ""), ("testing", "test")):
        for entry in _beside(root / part, ("_matte",)):
            yield replace(entry, key=f"{part}/{entry.key}", split=split)


@_layout(
    "segmentation",
    "portrait_stylization",
    "images_data_crop/NNNNN.jpg, images_mask/NNNNN_mask.mat and testlist.mat, or as EG1800 "
    "Images/, Labels/ and eg1800_test.txt",
    "Shen et al., Automatic Portrait Segmentation for Image Stylization, Eurographics 2016",
)
def _portrait_stylization(root: Path) -> Iterator[Entry]:
    root = _enter(root, "EG1800")
    images, tested = root / "images_data_crop", root / "testlist.mat"
    if images.is_dir() and tested.is_file():
        held_out = {f"{int(number):05d}" for number in read_mat(tested, "testlist").ravel()}
        for image in image_files(images.iterdir()):
            label = root / "images_mask" / f"{image.stem}_mask.mat"
            split = "test" if image.stem in held_out else ""
            yield Entry(image.stem, image=image, label=label, split=split)
        return
    tested = root / "eg1800_test.txt"
    if tested.is_file():
        held_out = {Path(line.strip()).stem for line in tested.read_text().splitlines()}
        for entry in _pairs(root / "Images", root / "Labels"):
            yield replace(entry, split="test" if entry.key in held_out else "")


@_layout(
    "segmentation",
    "folders",
    "images/ and masks/ with files of the same names, or NAME.jpg beside NAME.mask.png",
)
def _segmentation_folders(root: Path) -> Iterator[Entry]:
    found = list(_pairs(root / "images", root / "masks"))
    yield from _grouped(root, found or _beside(root, (".mask", ".alpha")))


# Mattes


@_layout(
    "mattes",
    "adobe",
    "Combined_Dataset/{Training_set,Test_set}/{Adobe-licensed images,Other}/{fg,alpha}",
    "Xu et al., Deep Image Matting, CVPR 2017",
    "research only, by agreement with Adobe",
)
def _adobe(root: Path) -> Iterator[Entry]:
    root = _enter(root, "Combined_Dataset")
    for part, split in (("Training_set", ""), ("Test_set", "test")):
        for origin in ("Adobe-licensed images", "Other"):
            folder = root / part / origin
            for entry in _pairs(folder / "fg", folder / "alpha", f"{part}/"):
                # Subjects cut from one photograph are "NAME.png" and "NAME (1).png".
                group = re.sub(r" \(\d+\)$", "", entry.key)
                yield replace(entry, image=None, color=entry.image, split=split, group=group)


@_layout(
    "mattes",
    "aim500",
    "original/ and mask/",
    "Li et al., Deep Automatic Natural Image Matting, IJCAI 2021",
    "as its release agreement states",
)
def _aim500(root: Path) -> Iterator[Entry]:
    root = _enter(root, "AIM-500")
    yield from _pairs(root / "original", root / "mask")


@_layout(
    "mattes",
    "p3m10k",
    "train/{blurred_image,mask}, validation/P3M-500-P/{blurred_image,mask} and "
    "validation/P3M-500-NP/{original_image,mask}",
    "Li et al., Privacy-Preserving Portrait Matting, ACM MM 2021",
    "MIT, by its release agreement",
)
def _p3m10k(root: Path) -> Iterator[Entry]:
    root = _enter(root, "P3M-10k")
    train, validation = root / "train", root / "validation"
    yield from _pairs(train / "blurred_image", train / "mask", "train/", "train")
    for part, images in (("P3M-500-P", "blurred_image"), ("P3M-500-NP", "original_image")):
        folder = validation / part
        yield from _pairs(folder / images, folder / "mask", f"{part}/", "validation")


@_layout(
    "mattes",
    "ppm100",
    "image/ and matte/, or train/fg and train/alpha",
    "Ke et al., MODNet: Real-Time Trimap-Free Portrait Matting, AAAI 2022",
    "photographs CC (commercial use and changes allowed), mattes CC BY-NC-SA 4.0",
)
def _ppm100(root: Path) -> Iterator[Entry]:
    root = _enter(root, "PPM-100")
    yield from _pairs(root / "image", root / "matte")
    # The training code of its authors keeps photographs under this name; they are whole.
    yield from _pairs(root / "train" / "fg", root / "train" / "alpha")


@_layout("mattes", "rgba", "RGBA cut-outs, in any folders")
def _rgba(root: Path) -> Iterator[Entry]:
    files = image_files(root.rglob("*"))
    cutouts = (path for path in files if path.suffix.lower() not in (".jpg", ".jpeg", ".bmp"))
    yield from _grouped(root, (Entry(_path_key(path, root), color=path) for path in cutouts))


@_layout(
    "mattes",
    "folders",
    "images/ and alphas/ (or masks/) with files of the same names, or NAME.jpg beside "
    "NAME.alpha.png",
)
def _matte_folders(root: Path) -> Iterator[Entry]:
    found = list(_pairs(root / "images", root / "alphas"))
    found = found or list(_pairs(root / "images", root / "masks"))
    yield from _grouped(root, found or _beside(root, (".alpha",)))


# Backgrounds


@_layout("backgrounds", "folders", "images, in any folders")
def _background_folders(root: Path) -> Iterator[Entry]:
    images = image_files(root.rglob("*"))
    yield from _grouped(root, (Entry(_path_key(path, root), image=path) for path in images))


# Harmonization


@_layout(
    "harmonization",
    "iharmony4",
    "HCOCO/, HAdobe5k/, HFlickr/ and Hday2night/, or one of them, with "
    "composite_images/NAME_MASK_N.jpg, masks/NAME_MASK.png, real_images/NAME.jpg and "
    "SET_train.txt, SET_test.txt, or with IHD_train.txt and IHD_test.txt beside them",
    "Cong et al., DoveNet: Deep Image Harmonization via Domain Verification, CVPR 2020",
)
def _iharmony4(root: Path) -> Iterator[Entry]:
    root = _enter(root, "iHarmony4")
    tested = _listed(root / "IHD_test.txt")
    whole = (root / "composite_images").is_dir()
    for folder in [root] if whole else sorted(path for path in root.iterdir() if path.is_dir()):
        images, prefix = folder / "composite_images", "" if whole else f"{folder.name}/"
        held_out = tested.union(*map(_listed, folder.glob("*_test.txt")))
        for path in image_files(images.iterdir()) if images.is_dir() else []:
            name, *subject = path.stem.rsplit("_", 2)
            label = folder / "masks" / f"{'_'.join([name, *subject[:1]])}.png"
            image = folder / "real_images" / f"{name}.jpg"
            # Hday2night has one scene at several times, SCENE-TIME; no other name has a hyphen.
            group = prefix + name.partition("-")[0]
            split = "test" if path.stem in held_out else ""
            key = prefix + path.stem
            yield Entry(key, image, label, composite=path, split=split, group=group)


def _listed(path: Path) -> set[str]:
    """Names, without folders and suffixes, of the files in a list; none where it is not there."""
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8", errors="replace").split()
    return {Path(line).stem for line in lines}


@_layout(
    "harmonization",
    "folders",
    "images/, masks/ and composites/ with files of the same names",
)
def _harmonization_folders(root: Path) -> Iterator[Entry]:
    composites = root / "composites"
    made = {p.stem: p for p in image_files(composites.iterdir())} if composites.is_dir() else {}
    found = (replace(e, composite=made.get(e.key)) for e in _pairs(root / "images", root / "masks"))
    yield from _grouped(root, (entry for entry in found if entry.composite))


def _path_key(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()
