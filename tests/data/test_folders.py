"""Folders of pairs: what is found, how it is split, and crops that stay in the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deep_image_compositing.data import folders
from deep_image_compositing.data.mattes import estimate_color, read_matte
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
        assert folders.to_planes(folders.crop(image, crops[2], 16)).shape == (3, 16, 16)


def test_local_crops_see_the_outline() -> None:
    _, label = trees.photograph(3, (120, 90))
    for rng in generators():
        seen = np.asarray(folders.crop(label, folders.local_crop(label, rng, 0.3, 0.6), 24))
        assert seen.max() > 200
        assert seen.min() < 55


def test_mirrored_crops_are_mirrored_and_planes_are_writable() -> None:
    image, label = trees.photograph(1)
    for picture in (image, label):
        plain, mirrored = (
            folders.to_planes(folders.crop(picture, (4, 4, 36, 36), 16, flag))
            for flag in (False, True)
        )
        assert np.array_equal(plain[..., ::-1], mirrored)
        assert plain.flags.writeable
        assert mirrored.flags.writeable


def test_a_box_refers_to_the_whole_picture_however_small_it_was_decoded() -> None:
    image, _ = trees.photograph(2, (160, 128))
    box = (41.0, 30.0, 140.0, 127.9)
    whole = np.asarray(folders.crop(image, box, 16), np.float32)
    half = folders.crop(image.reduce(2), box, 16, whole=image.size)
    assert np.abs(whole - np.asarray(half, np.float32)).mean() < 2
    elsewhere = folders.crop(image, (0, 0, 99, 97.9), 16)
    assert np.abs(whole - np.asarray(elsewhere, np.float32)).mean() > 10


def test_a_share_of_photographs_is_held_out_by_name() -> None:
    pairs = [folders.Pair(Path(f"{i}.jpg"), None) for i in range(2000)]
    assert 150 < sum(pair.held_out() for pair in pairs) < 250
    moved = [folders.Pair(Path("elsewhere") / pair.image, pair.image) for pair in pairs]
    assert [pair.held_out() for pair in moved] == [pair.held_out() for pair in pairs]
    some = {pair for pair in pairs if pair.held_out(0.25)}
    assert 450 < len(some) < 550
    assert some > {pair for pair in pairs if pair.held_out(0.1)}
    assert not any(pair.held_out(0) for pair in pairs)
