"""Pictures that are opened for a part of them: the formats and limits of those that are read."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

import deep_image_compositing
from deep_image_compositing.data.items import ShardItem, Source
from deep_image_compositing.data.shards import Record
from deep_image_compositing.data.verify import check_record
from deep_image_compositing.errors import DataError, ImageError
from deep_image_compositing.evaluation.testsets.base import picture_size
from deep_image_compositing.images import open_picture
from tests.data import trees


def eps() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    return file.getvalue()


def sample(photograph: bytes) -> Record:
    return Record("a", {**trees.sample("segmentation", 0), "image.jpg": photograph}, "s.tar")


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)


@pytest.mark.usefixtures("no_ghostscript")
def test_what_would_be_run_by_a_program_is_no_picture(tmp_path: Path) -> None:
    assert Image.open(io.BytesIO(eps())).format == "EPS"
    path = tmp_path / "photo.jpg"
    path.write_bytes(eps())
    for source in (path, str(path), eps()):
        with pytest.raises(UnidentifiedImageError):
            open_picture(source)
    item = ShardItem(Source("x"), sample(eps()))
    for look in (item.size, item.image):
        with pytest.raises(DataError, match=r"a\.image\.jpg cannot be decoded: it is no image"):
            look()
    with pytest.raises(DataError, match=r"photo\.jpg"):
        picture_size(path)


def test_training_and_verify_have_one_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = trees.encode(Image.new("RGB", (72, 56)), "JPEG")
    record, pixels = sample(photograph), 72 * 56
    for limit in (pixels, pixels - 1, pixels // 2 - 1):
        monkeypatch.setenv("DEEP_IMAGE_COMPOSITING_MAX_PIXELS", str(limit))
        said = f"has 4,032 pixels, more than the limit of {limit:,}"
        problems = [text for text in check_record(record, "segmentation") if said in text]
        item = ShardItem(Source("x"), record)
        if limit == pixels:
            assert not problems
            assert item.image().size == item.size() == (72, 56)
            continue
        assert problems
        for look in (item.size, item.image):
            with pytest.raises(DataError, match=said):
                look()
        with pytest.raises(ImageError, match=f"^it {said}"):
            open_picture(photograph, "it")


def test_nothing_opens_pictures_by_itself() -> None:
    package = Path(deep_image_compositing.__file__).parent
    files = [*package.rglob("*.py"), *(package.parent / "recipes").rglob("*.py")]
    opening = {path.name for path in files if re.search(r"\bImage\.open\(", path.read_text())}
    assert opening == {"decoding.py"}
