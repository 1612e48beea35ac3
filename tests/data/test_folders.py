"""Folders of pairs: what is found, how it is split, and crops that stay in the picture."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from deep_image_compositing.data import crops as cutting
from deep_image_compositing.data import folders
from deep_image_compositing.data.encoding import Options, make_sample
from deep_image_compositing.data.items import FileItem, Source, estimate_color
from deep_image_compositing.errors import DataError, ImageError, UsageError
from deep_image_compositing.images import read_image
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
    image, label = read_pair(found[0])
    assert (image.mode, label.mode, image.size) == ("RGB", "L", label.size)


def read_pair(pair: folders.Pair) -> tuple[Image.Image, Image.Image]:
    item = FileItem(Source("x"), pair)
    return item.image(), item.label()


def read_color(pair: folders.Pair) -> Image.Image:
    return FileItem(Source("x"), pair).straight()


def touch(root: Path, *names: str) -> None:
    """Empty files; finding opens none."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path) -> dict[str, str | None]:
    """Labels by photograph, as paths below the root."""
    return {
        str(pair.image.relative_to(root)): pair.label and str(pair.label.relative_to(root))
        for pair in folders.find_pairs(root)
    }


@pytest.mark.parametrize("labels", ["masks", "alphas"])
def test_pairs_in_two_folders(tmp_path: Path, labels: str) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.png", "images/deep/c.jpg", f"{labels}/c.png")
    with pytest.raises(UsageError, match=r"holds no pairs: .* images/ and masks/ or alphas/"):
        folders.find_pairs(tmp_path)
    touch(tmp_path, f"{labels}/b.png", f"{labels}/a.png")
    assert found(tmp_path) == {"images/a.jpg": f"{labels}/a.png", "images/b.png": f"{labels}/b.png"}


def test_an_alpha_goes_before_a_mask(tmp_path: Path) -> None:
    touch(tmp_path / "beside", "a.jpg", "a.alpha.png", "a.mask.png", "b.jpg", "b.mask.png")
    assert found(tmp_path / "beside") == {"a.jpg": "a.alpha.png", "b.jpg": "b.mask.png"}
    touch(tmp_path / "two", "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png")
    touch(tmp_path / "two", "alphas/a.png")
    assert found(tmp_path / "two") == {
        "images/a.jpg": "alphas/a.png",
        "images/b.jpg": "masks/b.png",
    }


def test_the_order_of_a_folder_s_entries_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "a.mask.jpg", "a.mask.png", "a.alpha.png", "a.alpha.webp", "b.jpg")
    before, listed = found(tmp_path), list(tmp_path.iterdir())
    for entries in (sorted(listed), sorted(listed, reverse=True)):
        monkeypatch.setattr(Path, "iterdir", lambda _, entries=entries: iter(entries))
        assert found(tmp_path) == before


def test_pairs_are_not_searched_for_below_but_cut_outs_and_backgrounds_are(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.mask.png", "sub/a.jpg", "sub/b.jpg", "sub/b.mask.png")
    assert found(tmp_path) == {"a.jpg": "a.mask.png"}
    assert found(tmp_path / "sub") == {"b.jpg": "b.mask.png"}
    touch(tmp_path / "nested", "one/a.png", "one/a.mask.png", "two/b.png")
    with pytest.raises(UsageError, match=r"holds no pairs itself, but .*one does: name each"):
        folders.find_pairs(tmp_path / "nested")
    touch(tmp_path / "cut", "a.png", "sub/b.webp", "c.jpg")
    assert found(tmp_path / "cut") == {"a.png": None, "sub/b.webp": None}
    assert len(folders.find_images(tmp_path / "cut")) == 3


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
    with pytest.raises(DataError, match=r"a\.mask\.png is 40 x 60 pixels.*60 x 40"):
        read_pair(folders.find_pairs(tmp_path)[0])


# Labels


def read_both(tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The label of ``a.jpg`` as a plain folder has it, and as a shard that is made of it."""
    (pair,) = folders.find_pairs(tmp_path)
    image, label = read_pair(pair)
    assert (label.mode, label.size) == ("L", image.size)
    options = Options("segmentation", tmp_path, "", "")
    fields = make_sample(pair, options)
    with Image.open(io.BytesIO(fields["mask.png"])) as stored:
        return np.asarray(label), np.asarray(stored)


def save_label(path: Path, kind: str) -> np.ndarray:
    """A label file of one kind, 60 x 40; what it says, 0 to 255."""
    ramp = np.tile(np.linspace(0, 255, 60).round().astype(np.uint8), (40, 1))
    if kind in ("classes", "classes of 16 bits", "bilevel"):
        ramp = (ramp > 99) * np.uint8(255)
    pictures = {
        "gray": Image.fromarray(ramp),
        "16 bits": Image.fromarray(ramp.astype(np.uint16) * 257),
        "RGBA": Image.fromarray(np.dstack([np.full((40, 60, 3), 255, np.uint8), ramp])),
        "opaque RGBA": Image.fromarray(ramp).convert("RGBA"),
        "classes": Image.fromarray(ramp // 255),
        "classes of 16 bits": Image.fromarray((ramp // 255).astype(np.uint16)),
        "bilevel": Image.fromarray(ramp).convert("1"),
    }
    pictures[kind].save(path)
    return ramp


KINDS = ["gray", "16 bits", "RGBA", "opaque RGBA", "classes", "classes of 16 bits", "bilevel"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_is_the_same_in_a_folder_and_in_a_shard(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    wanted = save_label(tmp_path / "a.mask.png", kind)
    plain, packed = read_both(tmp_path)
    assert np.array_equal(plain, wanted)
    assert np.array_equal(packed, wanted)
    assert not caplog.text  # all of them are documented, and labels are read again and again


def test_a_label_of_another_size_is_the_same_in_a_folder_and_in_a_shard(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg")
    save_label(tmp_path / "a.mask.png", "16 bits")
    plain, packed = read_both(tmp_path)
    assert plain.shape == (60, 90)
    assert np.array_equal(plain, packed)


def test_photograph_and_label_are_both_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    picture, label = trees.photograph(0, (60, 40))
    picture.save(tmp_path / "a.jpg", quality=95, exif=exif)
    label.save(tmp_path / "a.mask.png", exif=exif)
    plain, packed = read_both(tmp_path)
    assert np.array_equal(plain, np.rot90(np.asarray(label), -1))
    assert np.array_equal(plain, packed)
    # A label that was made of the upright photograph has no turn of its own.
    label.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "a.mask.png")
    assert np.array_equal(read_both(tmp_path)[1], plain)


def test_labels_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    (tmp_path / "a.mask.png").write_bytes(b"no picture")
    (pair,) = folders.find_pairs(tmp_path)
    with pytest.raises(ImageError, match=r"a\.mask\.png is not an image"):
        read_pair(pair)
    Image.new("L", (120, 80)).save(tmp_path / "a.mask.png")
    monkeypatch.setenv("DEEP_IMAGE_COMPOSITING_MAX_PIXELS", "5000")
    with pytest.raises(ImageError, match=r"a\.mask\.png has 9,600 pixels, more than"):
        read_pair(pair)


def test_a_cut_out_is_decoded_once_and_not_remarked_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair = folders.find_pairs(trees.cutouts(tmp_path / "cutouts", 1, 0))[0]
    reads = []

    def read(path: Path, **options: bool) -> object:
        reads.append(path)
        return read_image(path, **options)

    monkeypatch.setattr(folders, "read_image", read)
    item = FileItem(Source("x"), pair)
    image, label = item.image(), item.label()
    with Image.open(pair.image) as stored:
        assert np.array_equal(np.dstack([image, label]), stored)
    whole = (0.0, 0.0, 56.0, 56.0)
    assert np.array_equal(item.color(label, whole, 56), image.crop((0, 0, 56, 56)))
    assert item.size() == image.size
    assert len(reads) == 1
    assert not caplog.text


def test_a_cut_out_without_transparency_is_unreadable_data(tmp_path: Path) -> None:
    trees.photograph(0)[0].save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is meant as a cut-out, but it is opaque"):
        read_pair(folders.find_pairs(tmp_path)[0])


def draw_crops(label: Image.Image, rng: np.random.Generator) -> list[cutting.Box]:
    """One crop of each way to draw them; the last two are square."""
    box = cutting.subject_box(label)
    ways = cutting.whole_crop, cutting.upper_body_crop, cutting.close_up_crop
    drawn = [way(label.size, box, rng) for way in ways]
    return [*drawn, cutting.local_crop(label, rng), cutting.any_crop(label.size, rng)]


@pytest.mark.parametrize("size", [(72, 56), (20, 90)])
def test_crops_lie_inside_the_picture(size: tuple[int, int]) -> None:
    image, label = trees.photograph(3, size)
    for rng in generators():
        crops = draw_crops(label, rng)
        for left, top, right, bottom in crops:
            assert 0 <= left < right <= size[0] + 1e-6
            assert 0 <= top < bottom <= size[1] + 1e-6
        for crop in crops[3:]:
            assert crop[2] - crop[0] == pytest.approx(crop[3] - crop[1])
        assert cutting.planes(cutting.crop(image, crops[3], 16)).shape == (3, 16, 16)


@pytest.mark.parametrize("size", [(5, 3), (1, 1), (80, 3)])
def test_any_picture_can_be_cropped_however_small(size: tuple[int, int]) -> None:
    image, label = trees.photograph(3, size)
    rounded = (-1e-13, -1e-13, size[0] + 1e-13, size[1] + 1e-13)
    for rng in generators():
        for crop in (*draw_crops(label, rng), rounded):
            assert cutting.crop(image, crop, 16).size == (16, 16)


def test_local_crops_see_the_outline() -> None:
    _, label = trees.photograph(3, (120, 90))
    for rng in generators():
        seen = np.asarray(cutting.crop(label, cutting.local_crop(label, rng, 0.3, 0.6), 24))
        assert seen.max() > 200
        assert seen.min() < 55


def test_mirrored_crops_are_mirrored() -> None:
    image, label = trees.photograph(1)
    for picture in (image, label):
        plain, mirrored = (
            cutting.planes(cutting.crop(picture, (4, 4, 36, 36), 16), flag)
            for flag in (False, True)
        )
        assert torch.equal(plain.flip(-1), mirrored)


def test_a_box_refers_to_the_whole_picture_however_small_it_was_decoded() -> None:
    image, _ = trees.photograph(2, (160, 128))
    box = (41.0, 30.0, 140.0, 127.9)
    whole = np.asarray(cutting.crop(image, box, 16), np.float32)
    half = cutting.crop(image.reduce(2), box, 16, whole=image.size)
    assert np.abs(whole - np.asarray(half, np.float32)).mean() < 2
    elsewhere = cutting.crop(image, (0, 0, 99, 97.9), 16)
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
    odd = folders.Pair(Path("caf\udce9.jpg"))  # as a name in Latin-1 is seen
    assert odd.held_out(0.99)


def test_frames_of_a_video_are_held_out_together() -> None:
    names = [f"video_{v}_{frame:05}" for v in range(200) for frame in range(4)]
    pairs = [folders.Pair(Path(f"{name}.jpg"), None) for name in names]
    out = np.array([pair.held_out(0.2, sequences=True) for pair in pairs]).reshape(200, 4)
    assert (out == out[:, :1]).all()
    assert 25 < out[:, 0].sum() < 55
    single = folders.Pair(Path("unnumbered.jpg"), None)
    assert single.held_out(0.5, sequences=True) == single.held_out(0.5)


def test_doubtful_masks_are_dropped_as_the_table_says(tmp_path: Path) -> None:
    pairs = [folders.Pair(tmp_path / f"{name}.jpg", None) for name in "abcd"]
    table = tmp_path / "labels.tsv"
    with pytest.raises(UsageError, match=r"there is no .*labels\.tsv"):
        folders.drop_doubtful(pairs, tmp_path, 0.45)
    table.write_text("name\tagreement\tdoubt\na\t0.1\t0.449\nb\t0.9\t0.45\nc\t0.9\t0.9\n")
    kept = folders.drop_doubtful(pairs, tmp_path, 0.45)
    assert [pair.image.stem for pair in kept] == ["a", "d"]  # d is not listed
    for wrong in ("name\tagreement\na\t0.1\n", "name\tdoubt\na\tnone\n", "name\tdoubt\na\n"):
        table.write_text(wrong)
        with pytest.raises(DataError, match="expected the columns name and doubt"):
            folders.drop_doubtful(pairs, tmp_path, 0.45)


# The memory of decoded pictures


def test_pictures_stay_decoded_until_others_need_the_room() -> None:
    recent = folders.Recent(limit=10)

    def get(key: str, side: int = 2) -> Image.Image:
        return recent.get(key, lambda: Image.new("L", (side, side)))

    first = {key: get(key) for key in "ab"}
    assert get("a") is first["a"]  # younger than b now
    get("c")
    assert recent.held == 8
    assert get("a") is first["a"]
    assert get("b") is not first["b"]
    assert get("large", 4).size == (4, 4)  # given, but not kept
    assert recent.held == 8
    twice = folders.Recent()
    twice.get("a", lambda: twice.get("a", lambda: Image.new("L", (2, 2))))  # as two threads may
    assert twice.held == 4
    with pytest.raises(OSError, match="identify"):
        recent.get("d", lambda: Image.open(io.BytesIO()))  # nothing is left behind
    assert get("d").size == (2, 2)


def test_pictures_of_plain_folders_stay_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = folders.Recent()
    monkeypatch.setattr(folders, "DECODED", held)
    picture, label = trees.photograph(0, (30, 20))
    picture.save(tmp_path / "a.png")
    label.save(tmp_path / "a.alpha.png")
    (pair,) = folders.find_pairs(tmp_path)
    assert folders.read_photograph(pair.image) is folders.read_photograph(pair.image)
    assert held.held == 4 * 20 * 30
    assert read_pair(pair)[1] is read_pair(pair)[1]
    assert read_color(pair) is read_color(pair)
    assert held.held == (4 + 1 + 4) * 20 * 30
    (cutout,) = folders.find_pairs(trees.cutouts(tmp_path / "cut", 1, 0))
    assert read_color(cutout) is read_pair(cutout)[0]
    assert held.held == 9 * 20 * 30 + (4 + 1) * 72 * 56


def test_threads_that_are_quiet_leave_the_log_as_it_was() -> None:
    log = logging.getLogger("deep_image_compositing")
    level = log.level
    first, second = folders.quiet(), folders.quiet()
    for step in (first.__enter__, second.__enter__):
        step()
    for block in (first, second):  # the first ends before the second, as threads may
        assert log.level == logging.ERROR
        block.__exit__(None, None, None)
    assert log.level == level
