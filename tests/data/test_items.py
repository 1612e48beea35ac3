"""Samples of shards and folders: decoded alike, at the wanted scale, and aligned."""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deep_image_compositing.data import crops, folders
from deep_image_compositing.data.items import FileItem, ShardItem, Source
from deep_image_compositing.data.shards import Record
from deep_image_compositing.data.tars import UNREADABLE, open_by_number
from deep_image_compositing.errors import DataError, MissingExtraError, UsageError
from tests.data import trees

SOURCE = Source("x")


def item(**fields: bytes) -> ShardItem:
    """An item of fields whose dots are written as underscores."""
    named = {name.replace("_", "."): content for name, content in fields.items()}
    return ShardItem(SOURCE, Record("key", named, "s.tar"))


def smooth(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A photograph without detail, which any way of making it small treats alike."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def test_a_shard_and_a_folder_hold_the_same(tmp_path: Path) -> None:
    root = trees.pairs(tmp_path / "pairs", "alpha")
    pair = folders.find_pairs(root)[0]
    assert pair.label is not None
    packed = item(image_jpg=pair.image.read_bytes(), alpha_png=pair.label.read_bytes())
    plain = FileItem(SOURCE, pair)
    box = (10.0, 8.0, 50.0, 48.0)
    assert packed.size() == plain.size() == (72, 56)
    assert np.array_equal(packed.image(), plain.image())
    assert np.array_equal(packed.label(), plain.label())
    colors = [np.asarray(each.color(each.label(), box, 40), np.float32) for each in (packed, plain)]
    opaque = np.asarray(plain.label().crop((10, 8, 50, 48))) > 128
    # Estimated in the crop here, in the whole picture there.
    assert np.abs(colors[0] - colors[1])[opaque].mean() < 4
    assert packed.name == "s.tar: key"
    assert plain.name == str(pair.image)


def test_a_picture_whose_data_end_early_is_damaged() -> None:
    picture, label = trees.photograph(0)
    # A stream of data that ends where it should, but holds the first rows alone.
    rows = trees.encode(label.crop((0, 0, label.width, 9)), "PNG")
    short = bytearray(rows)
    short[20:24] = label.height.to_bytes(4, "big")
    short[29:33] = zlib.crc32(short[12:29]).to_bytes(4, "big")
    jpeg = trees.encode(picture, "JPEG")
    for damaged in (
        item(image_jpg=jpeg, mask_png=bytes(short)).label,
        item(image_jpg=jpeg[: len(jpeg) // 2]).image,
    ):
        for _ in range(2):  # however often it is asked
            with pytest.raises(DataError, match=r"end early|truncated"):
                damaged()
    assert item(image_jpg=jpeg).image(0.4).size == (36, 28)


def test_whether_data_end_early_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "deep_image_compositing.images.truncation.ends_early", lambda *_: asked.append(1)
    )
    url = str(trees.shard(tmp_path / "a.tar", "mattes", range(2)))
    for number in (0, 1, 0, 1):
        sample = ShardItem(SOURCE, open_by_number(url)[number])
        sample.image(), sample.label()
    assert len(asked) == 4


def test_a_cut_out_keeps_its_own_colour() -> None:
    picture, label = trees.photograph(0)
    cut = picture.copy()
    cut.putalpha(label)
    box = (0.0, 0.0, 56.0, 56.0)
    for whole in (
        item(foreground_png=trees.encode(cut, "PNG")),
        item(foreground_jpg=trees.encode(picture, "PNG"), alpha_png=trees.encode(label, "PNG")),
    ):
        assert np.array_equal(whole.label(), label)
        color = whole.color(whole.label(), box, 56)
        assert np.array_equal(color, picture.crop((0, 0, 56, 56)))


@pytest.mark.parametrize("scale", [0.6, 0.5, 0.3, 0.25, 0.13, 0.1])
def test_jpegs_are_decoded_no_larger_than_needed_and_no_smaller(scale: float) -> None:
    picture = item(image_jpg=trees.encode(smooth((403, 301)), "JPEG"))
    small = picture.image(scale)
    assert 403 * scale <= small.width <= max(403 * scale * 2.1, 52)
    assert picture.image().size == picture.size() == (403, 301)
    crop = (37.0, 11.0, 297.0, 271.0)
    wanted = round(260 * scale)
    fast, slow = (
        np.asarray(crops.crop(image, crop, wanted, whole=(403, 301)), np.float32)
        for image in (small, picture.image())
    )
    assert np.abs(fast - slow).mean() < 2
    assert np.abs(fast - slow).max() < 16


def test_other_modes_become_rgb_and_gray() -> None:
    gray = Image.new("L", (9, 7), 90)
    assert item(image_jpg=trees.encode(gray, "JPEG")).image(0.5).mode == "RGB"
    assert item(image_jpg=trees.encode(gray.convert("CMYK"), "JPEG")).image(0.5).mode == "RGB"
    label = item(mask_png=trees.encode(gray.convert("RGB"), "PNG")).label()
    assert (label.mode, label.getextrema()) == ("L", (90, 90))


def test_what_is_missing_is_said() -> None:
    with pytest.raises(DataError, match=r"s\.tar: key holds none of mask\.png, alpha\.png"):
        item(image_jpg=b"").label()
    with pytest.raises(DataError, match=r"holds none of composite\.png"):
        item(image_jpg=b"").picture("composite.png")


def test_mistakes_are_not_taken_for_damage() -> None:
    for error in (UsageError("x"), ValueError("x"), MissingExtraError("x", "y", "z")):
        assert not isinstance(error, UNREADABLE)


def test_a_broken_picture_is_named_and_why() -> None:
    with pytest.raises(DataError, match=r"s\.tar: key\.image\.jpg cannot .* no image of a known"):
        item(image_jpg=b"no picture").image()
    with pytest.raises(DataError, match=r"s\.tar: key\.image\.jpg cannot be decoded"):
        item(image_jpg=b"").size()
    with pytest.raises(DataError, match=r"s\.tar: key holds none of image\.jpg"):
        item(mask_png=b"").size()
    torn = trees.encode(trees.photograph(0)[0], "JPEG")[:700]
    with pytest.raises(DataError, match=r"image\.jpg cannot be decoded: .*truncated"):
        item(image_jpg=torn).image(0.3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"weight": -1}, "weight must be at least 0, got -1"),
        ({"weight": math.nan}, "weight must .* got nan"),
        ({"weight": math.inf}, "weight must .* got inf"),
        ({"distrust": -0.5}, "distrust must be at least 0, got -0.5"),
        ({"paste": 30}, r"paste is a share in \[0, 1\], got 30"),
        ({"upper_body": -0.1}, r"upper_body is a share in \[0, 1\], got -0.1"),
        ({"hold_out": 1}, r"hold_out is a share in \[0, 1\), got 1"),
    ],
)
def test_settings_of_a_source_are_checked(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Source("x", **wrong)
    assert Source("~/a::~/b.tar").path == "::".join(map(os.path.expanduser, ("~/a", "~/b.tar")))
    Source("x", weight=0, distrust=0, paste=1, upper_body=1, hold_out=0)


@pytest.mark.parametrize("name", ["image_jpg", "foreground_png"])
def test_whatever_is_wrong_with_a_file_is_an_error_that_can_be_passed_over(name: str) -> None:
    good = trees.encode(trees.photograph(0)[0], "JPEG" if name.endswith("jpg") else "PNG")
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(300):
        data = bytearray(good)
        for i in rng.integers(min(len(data), rng.choice([40, len(data)])), size=4):
            data[i] = rng.integers(256)
        broken = item(**{name: bytes(data[: rng.integers(len(data))])})
        try:
            broken.size()
            broken.image(0.3)
        except DataError:
            failed += 1
    assert failed > 250
