"""Folders of pairs: what is found, how it is split, and crops that stay in the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deep_image_compositing.data import folders
from deep_image_compositing.data.folders import Source
from deep_image_compositing.data.mattes import estimate_color, read_matte
from deep_image_compositing.data.modules import (
    FolderData,
    FusionData,
    RefinementData,
    SegmentationData,
)
from deep_image_compositing.errors import UsageError
from tests.data import trees


def generators() -> Iterator[np.random.Generator]:
    return (np.random.default_rng(seed) for seed in range(60))


@pytest.mark.parametrize("kind", ["mask", "alpha"])
def test_pairs_side_by_side(tmp_path: Path, kind: str) -> None:
    root = trees.pairs(tmp_path / "people", kind)
    trees.photograph(9)[0].save(root / "unlabelled.jpg")
    found = folders.find_pairs(root)
    assert [pair.image.stem for pair in found] == sorted(trees.names(3, 1))
    assert all(pair.label == root / f"{pair.image.stem}.{kind}.png" for pair in found)
    image, label = folders.read_pair(found[0])
    assert (image.mode, label.mode, image.size) == ("RGB", "L", label.size)


def test_pairs_in_two_folders(tmp_path: Path) -> None:
    for name, picture in zip(("images/a.jpg", "masks/a.png"), trees.photograph(0), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name)
    (pair,) = folders.find_pairs(tmp_path)
    assert pair.label == tmp_path / "masks" / "a.png"


def test_cutouts_keep_their_own_colour(tmp_path: Path) -> None:
    pair = folders.find_pairs(trees.cutouts(tmp_path / "cutouts"))[0]
    assert pair.label is None
    matte = read_matte(pair)
    stored = Image.open(pair.image)
    assert np.array_equal(np.asarray(matte.color), np.asarray(stored)[..., :3])
    assert np.array_equal(np.asarray(matte.alpha), np.asarray(stored)[..., 3])


def test_the_colour_of_a_photograph_s_subject_is_estimated() -> None:
    alpha = np.tile(np.linspace(0, 1, 48), (32, 1))[..., None]
    mixed = alpha * (0.9, 0.5, 0.2) + (1 - alpha) * (0.1, 0.3, 0.8)
    image = Image.fromarray((mixed * 255).round().astype(np.uint8))
    label = Image.fromarray((alpha[..., 0] * 255).round().astype(np.uint8))
    color = np.asarray(estimate_color(image, label), np.float64) / 255
    before = np.abs(np.asarray(image)[:, 24:] / 255 - (0.9, 0.5, 0.2)).mean()
    assert np.abs(color[:, 24:] - (0.9, 0.5, 0.2)).mean() < 0.6 * before


def test_what_is_not_a_folder_of_pairs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of training pairs"):
        folders.find_pairs(tmp_path / "none")
    for find in (folders.find_pairs, folders.find_images):
        with pytest.raises(UsageError, match="holds no image files"):
            find(tmp_path)
    trees.photograph(0)[0].save(tmp_path / "alone.jpg")
    with pytest.raises(UsageError, match=r"holds no pairs: expected NAME\.jpg beside"):
        folders.find_pairs(tmp_path)


def test_a_label_of_another_aspect(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    Image.new("L", (40, 60)).save(tmp_path / "a.mask.png")
    with pytest.raises(UsageError, match=r"a\.mask\.png is 40x60.*60x40"):
        folders.read_pair(folders.find_pairs(tmp_path)[0])


def test_classes_zero_and_one_are_a_whole_mask(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    Image.new("L", (60, 40), 1).save(tmp_path / "a.mask.png")
    _, label = folders.read_pair(folders.find_pairs(tmp_path)[0])
    assert label.getextrema() == (255, 255)


@pytest.mark.parametrize("size", [(72, 56), (20, 90)])
def test_crops_lie_inside_the_picture(size: tuple[int, int]) -> None:
    image, label = trees.photograph(3, size)
    box = folders.subject_box(label)
    for rng in generators():
        crops = [
            folders.whole_crop(size, box, rng),
            folders.upper_body_crop(size, box, rng),
            folders.local_crop(label, rng),
            folders.any_crop(size, rng),
        ]
        for left, top, right, bottom in crops:
            assert 0 <= left < right <= size[0] + 1e-6
            assert 0 <= top < bottom <= size[1] + 1e-6
        for crop in crops[2:]:
            assert crop[2] - crop[0] == pytest.approx(crop[3] - crop[1])
        assert folders.cut(image, crops[2], 16).shape == (3, 16, 16)


def test_local_crops_see_the_outline() -> None:
    _, label = trees.photograph(3, (120, 90))
    for rng in generators():
        seen = folders.cut(label, folders.local_crop(label, rng, 0.3, 0.6), 24)
        assert seen.max() > 200
        assert seen.min() < 55


def test_mirrored_cuts_are_mirrored_and_writable() -> None:
    image, label = trees.photograph(1)
    for picture in (image, label):
        plain = folders.cut(picture, (4, 4, 36, 36), 16)
        mirrored = folders.cut(picture, (4, 4, 36, 36), 16, mirrored=True)
        assert np.array_equal(plain[..., ::-1], mirrored)
        assert plain.flags.writeable
        assert mirrored.flags.writeable


MODULES = [
    (SegmentationData, {"image": 3, "mask": 1, "weight": 1}),
    (RefinementData, {"image": 3, "mask": 1, "alpha": 1, "weight": 1}),
    (
        FusionData,
        {"foreground": 3, "background": 3, "composite": 3, "mask": 1, "alpha": 1}
        | {"foreground_color": 3},
    ),
]


@pytest.fixture
def roots(tmp_path: Path) -> tuple[list[Source], list[str]]:
    pairs = trees.pairs(tmp_path / "people", "alpha", kept=3, held_out=2)
    return [Source(str(pairs), paste=0.5, distrust=10)], [str(trees.scenes(tmp_path / "scenes"))]


def make(kind: type[FolderData], roots: tuple[list[Source], list[str]]) -> FolderData:
    data = kind(*roots, size=24, batch_size=2, epoch_length=4, validation_length=4, num_workers=0)
    data.setup("fit")
    return data


@pytest.mark.parametrize(("kind", "channels"), MODULES)
def test_a_module_makes_what_its_slot_trains_on(
    kind: type[FolderData], channels: dict[str, int], roots: tuple[list[Source], list[str]]
) -> None:
    data = make(kind, roots)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert len(loader) == 2
        batch = data.on_after_batch_transfer(next(iter(loader)), 0)
        assert {name: tensor.shape[1] for name, tensor in batch.items()} == channels
        for name, tensor in batch.items():
            assert tensor.shape == (2, channels[name], 24, 24)
            assert tensor.min() >= 0
            assert tensor.max() <= (4 if name == "weight" else 1)
        if "weight" in batch:
            assert batch["weight"].min() == 0  # the outline of a distrusted source


@pytest.mark.parametrize(("kind", "channels"), MODULES)
def test_validation_is_the_same_every_time_and_training_is_not(
    kind: type[FolderData], channels: dict[str, int], roots: tuple[list[Source], list[str]]
) -> None:
    data = make(kind, roots)
    first, second = (list(data.val_dataloader())[1] for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    drawn = [next(iter(data.train_dataloader())) for _ in range(2)]
    assert any(not torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])


@pytest.mark.parametrize(("kind", "channels"), MODULES)
def test_the_validation_split_is_disjoint(
    kind: type[FolderData], channels: dict[str, int], roots: tuple[list[Source], list[str]]
) -> None:
    data = make(kind, roots)
    ((_, kept, out),) = data._pairs
    assert (len(kept), len(out)) == (3, 2)
    assert not {pair.image for pair in kept} & {pair.image for pair in out}
    scenes, held_out = data._scenes
    assert (len(scenes), len(held_out)) == (3, 1)
    assert not set(scenes) & set(held_out)
    seen = {data._pick(rng, held_out=True)[1] for rng in generators()}
    assert seen == set(out)
    seen = {data._pick(rng, held_out=False)[1] for rng in generators()}
    assert seen == set(kept)
