"""Reading and writing photographs, on generated files of every kind that people have."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import resource
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from deep_image_compositing import conventions, images
from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.images import (
    Photograph,
    arrays,
    decoding,
    list_images,
    read_image,
    read_mask,
    to_tensor,
    to_uint8,
    write_image,
)
from tests import photographs

SCENE = photographs.scene()
DISK = photographs.disk()
RGBA = np.dstack([SCENE, DISK])
LOSSLESS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True, "exact": True}}
LOGGER = "deep_image_compositing"
WRITTEN_BY_PILLOW = {s for s, form in Image.registered_extensions().items() if form in Image.SAVE}

uint8_pictures = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7).map(lambda size: (*size, 3)),
)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_read_as(source: Any, pixels: Any, alpha: Any = None) -> Photograph:
    """Assert what is read from ``source``, pixels (H, W, 3) and alpha (H, W), to the bit."""
    photograph = read_image(source)
    np.testing.assert_array_equal(photograph.pixels, pixels)
    np.testing.assert_array_equal(photograph.alpha, alpha)
    return photograph


# Reading: smaller


def test_what_is_longer_is_reduced_and_what_is_not_stays() -> None:
    scene = photographs.scene(120, 90)
    small = read_image(scene, max_side=40)
    assert small.size == (40, 30)
    expected = Image.fromarray(scene).resize((30, 40), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small.pixels, np.asarray(expected))
    np.testing.assert_array_equal(read_image(scene, max_side=120).pixels, scene)
    assert read_image(small, max_side=40) is small
    again = read_image(small, max_side=20)
    assert (again.size, again.name) == ((20, 15), small.name)
    assert not again.pixels.flags.writeable
    assert read_image(scene[:, :1], max_side=40).size == (40, 1)
    with pytest.raises(UsageError, match="max_side must be at least 1 pixel, got 0"):
        read_image(scene, max_side=0)


def test_a_jpeg_is_reduced_as_antialiased_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = photographs.scene(600, 800)
    whole = read_image(photographs.encode(scene, "PNG"), max_side=100)
    data = photographs.oriented(scene, 6, "JPEG", quality=98)
    loaded: list[tuple[int, int]] = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: loaded.append(image.size) or load(image))
    part = read_image(data, max_side=100)
    monkeypatch.undo()
    assert max(max(size) for size in loaded) == 200  # not 800
    assert part.size == whole.size == (75, 100)
    assert np.abs(part.pixels.astype(int) - whole.pixels).mean() < 2
    checks = np.tile(np.uint8([[0, 255], [255, 0]]), (400, 400))  # aliasing would show its squares
    gray = read_image(photographs.encode(checks, "JPEG", quality=98), max_side=70).pixels
    assert np.abs(gray.astype(int) - 127).max() < 8


def test_a_pillow_image_keeps_its_size() -> None:
    image = Image.open(io.BytesIO(photographs.encode(photographs.scene(400, 400), "JPEG")))
    assert read_image(image, max_side=20).size == (20, 20)
    assert image.size == (400, 400)


def test_hidden_colours_do_not_bleed_into_a_reduced_rim() -> None:
    rgba = np.zeros((80, 80, 4), np.uint8)
    rgba[:, :39] = (200, 100, 50, 255)
    rgba[:, 39:, 2] = 255  # hidden blue
    small = read_image(rgba, max_side=20, cutout=True)
    assert small.alpha is not None
    rim = small.pixels[:, 9]
    assert 0 < small.alpha[0, 9] < 255
    assert np.abs(rim.astype(int) - (200, 100, 50)).max() <= 3
    assert small.pixels[0, -1].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("frame", "scale", "expected"),
    [
        ("foreground", 1.0, (100, None)),
        ("background", 0.5, (100, 100)),
        ("background", 2.5, (250, 100)),
        ("background", float("nan"), (100, 100)),
        ("background", float("inf"), (100, 100)),
    ],
)
def test_the_sides_that_a_small_composite_needs(
    frame: str, scale: float, expected: tuple[int, int | None]
) -> None:
    assert images.longest_sides(100, frame, scale) == expected
    assert images.longest_sides(None, frame, scale) == (None, None)


# Reading: modes


WIDE = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)
SCALED = np.floor(WIDE / 257 + 0.5).astype(np.uint8)
GRAYS = np.stack([DISK] * 3, axis=-1)
BITS, PALETTE = Image.fromarray(DISK > 127), Image.fromarray(SCENE).quantize(16)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        *[(photographs.encode(SCENE, form), SCENE) for form in ("PNG", "TIFF", "BMP", "PPM")],
        (photographs.oriented(SCENE, 6, "TIFF", compression="tiff_lzw"), SCENE),
        *[(source, GRAYS) for source in (photographs.encode(DISK, "TIFF"), DISK)],
        *[(photographs.encode(BITS, form), (GRAYS > 127) * 255) for form in ("PNG", "TIFF", "BMP")],
        *[(photographs.encode(PALETTE, form), PALETTE.convert("RGB")) for form in ("PNG", "GIF")],
        # Sixteen bits are scaled, not clipped, and others on their own scale.
        *[(source, SCALED) for source in (photographs.png16(WIDE), photographs.tiff(WIDE))],
        *[(source, SCALED) for source in (photographs.encode(WIDE, "TIFF"), Image.fromarray(WIDE))],
        (Image.frombytes("I;16B", (32, 24), WIDE.astype(">u2").tobytes()), SCALED),
        (photographs.png16(SCENE.astype(np.uint16) * 257), SCENE),
        (photographs.tiff(SCENE.astype(np.uint16) * 257), SCENE),
        (photographs.tiff(WIDE // 16, bits=12), np.floor(WIDE // 16 / 4095 * 255 + 0.5)),
        (photographs.tiff(np.uint16(65535) - WIDE, {262: 0}), SCALED),
    ],
)
def test_every_mode_and_depth_is_read_as_what_it_shows(source: Any, expected: Any) -> None:
    photograph = read_image(source)
    expected = np.asarray(expected)
    np.testing.assert_array_equal(photograph.pixels.T, np.broadcast_to(expected.T, (3, 32, 24)))
    assert photograph.pixels.dtype == np.uint8
    assert (photograph.alpha, photograph.notes, photograph.size) == (None, (), (24, 32))


def test_what_a_file_calls_transparent_becomes_alpha() -> None:
    palette = Image.fromarray(DISK // 128, "L").convert("P")
    palette.putpalette([200, 10, 20, 30, 40, 50])
    key = tuple(int(v) for v in SCENE[3, 4])
    for data, hidden in (
        (photographs.encode(palette, transparency=0), DISK < 128),
        (photographs.encode(palette, transparency=bytes([0, 255])), DISK < 128),
        (photographs.encode(SCENE, transparency=key), (SCENE[3, 4] == SCENE).all(axis=-1)),
        (photographs.encode(DISK, transparency=255), DISK == 255),
        (
            photographs.png16(
                DISK.astype(np.uint16) * 257, photographs.png_chunk(b"tRNS", b"\0\0")
            ),
            DISK == 0,
        ),
    ):
        photograph = read_image(data)
        assert hidden.any()
        np.testing.assert_array_equal(photograph.alpha, np.where(hidden, 0, 255))
    colors = read_image(photographs.encode(palette, transparency=0)).pixels
    assert tuple(colors[0, 0]) == (200, 10, 20)


def test_path_bytes_and_pillow_give_the_same(tmp_path: Path) -> None:
    data = photographs.encode(SCENE, "JPEG", quality=90)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    from_path = read_image(path)
    assert from_path.name == str(path)
    for source in (str(path), data, bytearray(data), Image.open(io.BytesIO(data))):
        is_read_as(source, from_path.pixels)
    with Image.open(path) as opened:
        assert read_image(opened).name == str(path)
    path.write_bytes(photographs.encode(SCENE, "PNG"))  # whatever the suffix says
    is_read_as(path, SCENE)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 255, 65535, 2**31 - 1])
def test_32_bit_files_are_read_on_the_smallest_scale_that_holds_them(top: float) -> None:
    whole = isinstance(top, int)
    values = np.floor(DISK / 255 * top) if whole else DISK / np.float32(255) * np.float32(top)
    values = values.astype(np.int32 if whole else np.float32)
    for source in (photographs.tiff(values), Image.fromarray(values)):
        photograph = read_image(source)
        assert np.abs(photograph.pixels[..., 0].astype(int) - DISK).max() <= whole
        assert len(photograph.notes) == (top > 1)
        assert all(f"scale of 0 to {top:g}" in note for note in photograph.notes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -5.0, 1e9])
def test_float_files_without_a_usual_scale_are_refused(bad: float) -> None:
    values = (DISK / 255).astype(np.float32)
    values[2, 3] = bad
    with pytest.raises(ImageError, match="stores gray values"):
        read_image(photographs.tiff(values))


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX"])
def test_other_colour_modes_of_pillow_are_converted(mode: str) -> None:
    pixels = read_image(Image.fromarray(SCENE).convert(mode)).pixels
    assert np.abs(pixels.astype(int) - SCENE).max() <= 6


def test_lab_is_converted() -> None:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    image = ImageCms.profileToProfile(Image.fromarray(SCENE), srgb, lab, outputMode="LAB")
    assert image is not None
    pixels = read_image(photographs.encode(image, "TIFF")).pixels
    assert np.abs(pixels.astype(int) - SCENE).mean() < 2  # 8 bits are few for LAB


# Reading: transparency


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_kept_beside_the_straight_colours(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = photographs.encode(RGBA, form, **LOSSLESS.get(form, {}))
    (note,) = is_read_as(data, SCENE, DISK).notes
    assert "partly transparent" in note
    assert caplog.messages == [f"image in memory: {note}"]
    assert caplog.record_tuples[0][:2] == (LOGGER, logging.WARNING)


def test_gray_with_alpha_opaque_alpha_and_none_at_all() -> None:
    both = Image.merge("LA", [Image.fromarray(SCENE[..., 0].copy()), Image.fromarray(DISK)])
    for source in (photographs.encode(both), photographs.encode(both, "TIFF"), both):
        is_read_as(source, SCENE[..., :1].repeat(3, axis=2), DISK)
    opaque = np.dstack([SCENE, np.full_like(DISK, 255)])
    for source in (opaque, photographs.encode(opaque)):
        assert is_read_as(source, SCENE).notes == ()
    empty = np.dstack([SCENE, np.zeros_like(DISK)])
    for source in (empty, photographs.encode(empty)):
        assert "fully transparent" in is_read_as(source, SCENE, np.zeros_like(DISK)).notes[0]


# Reading: orientation and frames


@pytest.mark.parametrize("orientation", photographs.ORIENTATIONS)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_to_colour_and_alpha(orientation: int, form: str) -> None:
    options = LOSSLESS.get(form, {})
    is_read_as(photographs.oriented(RGBA, orientation, form, **options), SCENE, DISK)


@pytest.mark.parametrize("orientation", photographs.ORIENTATIONS)
def test_orientation_of_jpeg_pillow_images_and_masks(orientation: int) -> None:
    big = photographs.scene(48, 64)
    data = photographs.oriented(big, orientation, "JPEG", quality=95, subsampling=0)
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.abs(read_image(source).pixels.astype(int) - big).mean() < 2
    wide = DISK.astype(np.uint16) * 257
    for gray in (DISK, wide):
        mask = read_mask(photographs.oriented(gray, orientation))
        np.testing.assert_allclose(mask, DISK / 255, atol=1e-6)


def test_unreadable_exif_is_noted_or_ignored_but_not_fatal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03"
    pixels = read_image(photographs.encode(SCENE, "JPEG", exif=broken)).pixels
    assert pixels.shape == SCENE.shape

    def fail(self: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF header")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert "unreadable EXIF" in is_read_as(photographs.encode(SCENE, "BMP"), SCENE).notes[0]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several_with_a_note(form: str, caplog: pytest.LogCaptureFixture) -> None:
    gray = np.repeat(DISK[..., None], 3, axis=2)
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    photograph = read_image(photographs.frames(form, gray, SCENE, 255 - SCENE, **options))
    assert np.abs(photograph.pixels.astype(int) - gray).max() <= 2
    assert photograph.notes == ("holds more than one picture; only number 1 was read",)
    assert caplog.messages == [f"image in memory: {photograph.notes[0]}"]


def test_the_current_frame_of_a_pillow_image_is_read() -> None:
    data = photographs.frames("TIFF", SCENE, 255 - SCENE)
    image = Image.open(io.BytesIO(data))
    image.seek(1)
    assert "number 2" in is_read_as(image, 255 - SCENE).notes[0]
    # Previews in a phone's JPEG are not worth a note.
    data = photographs.frames("MPO", photographs.scene(64, 64), photographs.scene(16, 16))
    assert Image.open(io.BytesIO(data)).format == "MPO"
    photograph = read_image(data)
    assert photograph.size == (64, 64)
    assert photograph.notes == ()


@pytest.mark.skipif(".avif" not in WRITTEN_BY_PILLOW, reason="this Pillow has no AVIF")
def test_avif_is_read_upright() -> None:
    data = photographs.oriented(photographs.scene(48, 64), 6, "AVIF", quality=95)
    pixels = read_image(data).pixels
    assert np.abs(pixels.astype(int) - photographs.scene(48, 64)).mean() < 4


# Reading: colour profiles


def test_profile_conversion_agrees_with_the_formula() -> None:
    to_xyz = photographs.SRGB_TO_XYZ @ np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0, 0.2, 0.8]])
    data = photographs.encode(SCENE, icc_profile=photographs.rgb_profile(to_xyz, gamma=1.8))
    linear = (SCENE / 255) ** 1.8 @ (np.linalg.inv(photographs.SRGB_TO_XYZ) @ to_xyz).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(read_image(data).pixels - 255 * encoded).max() <= 2


def test_profile_is_converted_under_an_alpha_and_a_palette() -> None:
    profile = photographs.swapped_profile()
    expected = read_image(photographs.encode(SCENE, icc_profile=profile)).pixels
    is_read_as(photographs.encode(RGBA, icc_profile=profile), expected, DISK)
    palette = Image.fromarray(SCENE).quantize(32)
    flat = read_image(photographs.encode(palette.convert("RGB"), icc_profile=profile))
    is_read_as(photographs.encode(palette, icc_profile=profile), flat.pixels)


def test_gray_profile_and_rgb_profile_on_gray() -> None:
    data = photographs.encode(DISK, icc_profile=photographs.gray_profile(1.0))
    linear = DISK / 255
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(read_image(data).pixels[..., 0] - 255 * encoded).max() <= 2
    photograph = read_image(photographs.encode(DISK, icc_profile=photographs.rgb_profile(gamma=1)))
    assert np.abs(photograph.pixels[..., 1] - 255 * encoded).max() <= 2
    assert photograph.notes == ()


def test_srgb_profile_changes_no_value() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    is_read_as(photographs.encode(levels, icc_profile=srgb), levels)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (b"nonsense", "profile that cannot be used"),
        (photographs.swapped_profile()[:200], "profile that cannot be used"),
        (photographs.cmyk_profile(), "profile for CMYK in a RGB image"),
    ],
)
def test_a_profile_that_cannot_be_used_is_noted_and_ignored(
    profile: bytes, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(photographs.encode(SCENE, icc_profile=profile))
    (note,) = is_read_as(path, SCENE).notes
    assert message in note
    assert caplog.messages == [f"{path}: {note}"]


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_with_and_without_a_profile(form: str) -> None:
    cmyk = Image.fromarray(photographs.scene(48, 64)).convert("CMYK")
    options: dict[str, Any] = {"quality": 95} if form == "JPEG" else {}
    plain = read_image(photographs.encode(cmyk, form, **options))
    assert np.abs(plain.pixels.astype(int) - photographs.scene(48, 64)).mean() < 4
    assert "CMYK without" in plain.notes[0]
    profile = photographs.cmyk_profile()
    managed = read_image(photographs.encode(cmyk, form, icc_profile=profile, **options))
    assert managed.notes == ()
    assert np.ptp(managed.pixels.reshape(-1, 3), axis=0).max() <= 1
    red, green, blue = managed.pixels[0, 0]
    assert green > 150
    assert max(red, blue) < 60


# Reading: arrays, tensors, photographs


def test_arrays_and_tensors_are_taken() -> None:
    tensor = to_tensor(SCENE)
    sources: list[Any] = [
        SCENE, SCENE[:, ::-1][:, ::-1], tensor, tensor.double(), tensor.half(), tensor.numpy(),
        tensor.clone().requires_grad_(), torch.from_numpy(SCENE).permute(2, 0, 1),
    ]  # fmt: skip
    for source in sources:
        is_read_as(source, SCENE)
    grays: list[Any] = [DISK, DISK[..., None], torch.from_numpy(DISK), torch.from_numpy(DISK)[None]]
    for source in grays:
        is_read_as(source, DISK[..., None].repeat(3, axis=2))
        np.testing.assert_array_equal(read_mask(source), DISK / np.float32(255))
    assert is_read_as(RGBA, SCENE, DISK).name == "array"
    assert read_image(tensor).name == "tensor"


def test_a_photograph_is_returned_as_it_is_and_does_not_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = RGBA.copy()
    photograph = read_image(source)
    caplog.clear()
    assert read_image(photograph) is photograph
    assert caplog.messages == []
    assert photograph != Photograph(SCENE, DISK, "array", ())  # compared by identity
    planes = torch.from_numpy(source.copy()).permute(2, 0, 1)
    other = read_image(planes)
    source[:] = planes[:] = 0
    np.testing.assert_array_equal(other.pixels, SCENE)
    np.testing.assert_array_equal(photograph.pixels, SCENE)
    np.testing.assert_array_equal(photograph.alpha, DISK)
    assert photograph.alpha is not None
    for array in (photograph.pixels, photograph.alpha):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        photograph.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(5, 4, 3, dtype=torch.uint8), r"uint8 \(5, 4, 3\); expected.*\(C, H, W\)"),
        (torch.zeros(3, 4, 5, dtype=torch.int32), r"int32 \(3, 4, 5\).*divide 8-bit"),
        (torch.zeros(1, 3, 4, 5), r"\(1, 3, 4, 5\).*one picture of the batch"),
        (torch.zeros(2, 4, 5), r"float32 \(2, 4, 5\); expected float \(3, H, W\)"),
        (torch.zeros(3, 0, 5), "empty"),
        (torch.full((3, 4, 5), 1.5), r"must lie in \[0, 1\].*1.5"),
        (torch.full((3, 4, 5), -0.5), r"must lie in \[0, 1\].*-0.5"),
        (torch.full((3, 4, 5), torch.nan), r"finite.*nan"),
        (np.full((3, 4, 5), np.nan), r"finite.*nan"),
        (np.full((3, 4, 5), np.inf), r"finite.*inf"),
        (np.zeros((6, 5, 3)), r"float64 \(6, 5, 3\)"),
        (np.zeros((4, 5, 3), np.int32), r"int32 \(4, 5, 3\).*uint8 \(H, W, 3\)"),
        (np.zeros((4, 5, 2), np.uint8), r"uint8 \(4, 5, 2\); expected"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"uint8 \(2, 4, 5, 3\); expected"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (3.5, "not float"),
        (None, "not NoneType"),
    ],
)
def test_wrong_arrays_are_named_with_what_was_expected(source: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_image(source)
    if not (isinstance(source, np.ndarray) and source.ndim == 2):
        with pytest.raises(UsageError, match=message):
            read_mask(source)


def test_half_precision_overshoot_is_tolerated_and_clipped() -> None:
    assert arrays.TOLERANCE == conventions.TOLERANCE
    edge = torch.tensor([-arrays.TOLERANCE, 1 + arrays.TOLERANCE]).expand(3, 1, 2) * 0.999
    np.testing.assert_array_equal(read_image(edge).pixels[0, :, 0], [0, 254 + 1])
    assert read_mask(edge[:1] + 1e-4).max() <= 1


# Reading: what cannot be read


def test_what_is_no_file_to_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    for source, message in (
        (tmp_path / "nowhere.png", r"nowhere\.png does not exist"),
        (str(tmp_path / "nowhere.png"), "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.png", r"empty\.png is empty"),
        (b"", "is empty"),
        ("photo\0.png", "cannot be opened"),
        (Image.new("RGB", (0, 5)), "empty: its size is 0 x 5"),
    ):
        for read in (read_image, read_mask):
            with pytest.raises(ImageError, match=message):
                read(source)

    def deny(*args: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decoding, "open", deny, raising=False)
    with pytest.raises(ImageError, match=r"empty\.png cannot be opened: Permission denied"):
        read_image(tmp_path / "empty.png")


def test_pipes_devices_and_sockets_are_no_photographs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for somebody to write
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(tmp_path):
        bound.bind("socket.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")  # it has no end
    for name, kind in (("pipe", "named pipe"), ("socket", "socket"), ("zero", "device")):
        path = tmp_path / f"{name}.png"
        for read in (read_image, read_mask):
            with pytest.raises(ImageError, match=rf"{name}\.png is a {kind}, not a file"):
                read(path)
        with pytest.raises(ImageError, match=rf"{name}\.png is a {kind}, not a file"):
            write_image(path, SCENE)  # which would take its place
    assert files_of(tmp_path) == ["pipe.png", "socket.png", "zero.png"]


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs /dev/fd")
def test_a_pipe_that_a_shell_has_opened_is_read() -> None:
    data = photographs.encode(SCENE)
    end, start = os.pipe()
    with open(start, "wb") as file, open(end, "rb"):
        file.write(data)
        file.close()
        is_read_as(f"/dev/fd/{end}", SCENE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"A poem about photographs.\n" * 9, "is not an image of a known format"),
        (bytes(5000), "is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC file.*pillow-heif"),
        (photographs.png_header(0, 5), "begins like a PNG file"),
        (photographs.png_header(9, 5)[:20], "truncated"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "begins like a JPEG file|cannot be decoded"),
        (b"II*\0" + bytes(60), "begins like a TIFF file|cannot be decoded"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as raised:
        read_image(path)
    assert str(raised.value).startswith(str(path))


# Reading: decompression bombs


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "GIF"])
def test_bombs_are_refused_before_decoding(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(photographs.bomb(form, 16000, 16000))

    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(
        type(Image.open(io.BytesIO(photographs.encode(SCENE, form)))), "load", decode
    )
    with pytest.raises(ImageError, match="bomb has 256,000,000 pixels") as raised:
        read_image(path)
    for part in (
        "200,000,000",
        "--max-pixels 256000000 (max_pixels=)",
        f"{images.MAX_PIXELS_VARIABLE}=256000000",
    ):
        assert part in str(raised.value)


def test_the_limit_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photographs.encode(SCENE)
    pixels = SCENE.shape[0] * SCENE.shape[1]
    read_image(data, max_pixels=pixels)
    for reader in (read_image, read_mask):
        with pytest.raises(ImageError, match="768 pixels, more than the limit of 767"):
            reader(data, max_pixels=pixels - 1)
    monkeypatch.setenv(images.MAX_PIXELS_VARIABLE, str(pixels - 1))
    with pytest.raises(ImageError, match="more than the limit"):
        read_image(data)
    with pytest.raises(ImageError, match="more than the limit"):
        read_image(Image.open(io.BytesIO(data)))
    read_image(data, max_pixels=pixels)
    monkeypatch.setenv(images.MAX_PIXELS_VARIABLE, "many")
    with pytest.raises(UsageError, match=r"MAX_PIXELS must be a whole number.*'many'"):
        read_image(data)
    with pytest.raises(UsageError, match="max_pixels must be a whole number"):
        read_image(data, max_pixels=0)


@pytest.fixture
def strict_pillow(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A Pillow whose own limit forbids every picture of these tests."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    yield 10
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "MPO"])
def test_our_limit_and_not_pillows_is_the_one(strict_pillow: int, form: str) -> None:
    assert read_image(photographs.encode(SCENE, form)).size == (24, 32)
    assert read_image(photographs.frames("TIFF", SCENE, SCENE)).size == (24, 32)
    with pytest.raises(ImageError):
        read_image(photographs.encode(SCENE, form), max_pixels=700)


def test_pillows_warnings_stay_in_and_its_state_as_it_was(strict_pillow: int) -> None:
    # In this test run every warning that gets out is an error.
    odd = [
        photographs.tiff(SCENE, {274: 1}, repeated=274),
        photographs.encode(SCENE, "TIFF"),
        photographs.bomb("PNG", 16000, 16000),
    ]
    filters, count = list(warnings.filters), 0
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(read_image, source) for source in odd * 20]
        for job in jobs:
            error = job.exception()
            assert error is None or isinstance(error, ImageError)
            if error is None:
                np.testing.assert_array_equal(job.result().pixels, SCENE)
                count += 1
    assert count == 40
    assert warnings.filters == filters


# Masks


def test_gray_values_are_the_belief_and_never_stretched() -> None:
    weak = (DISK // 4 + 20).astype(np.uint8)
    for source in (photographs.encode(weak), weak, np.stack([weak] * 3, axis=-1)):
        mask = read_mask(source)
        assert mask.dtype == np.float32
        np.testing.assert_array_equal(mask, (weak / np.float32(255)).astype(np.float32))


def test_masks_from_tensors_arrays_and_photographs() -> None:
    np.testing.assert_allclose(read_mask(photographs.png16(WIDE)), WIDE / 65535, atol=1e-7)
    weak = (WIDE / 65535 * 0.7).astype(np.float32)
    np.testing.assert_allclose(read_mask(photographs.tiff(weak)), weak, atol=1e-7)
    belief = DISK / np.float32(255)
    tensor = torch.from_numpy(belief)
    for source in (belief, belief[None], tensor, tensor[None], tensor.double()):
        np.testing.assert_array_equal(read_mask(source), belief)
    np.testing.assert_allclose(read_mask(tensor.expand(3, -1, -1)), belief, atol=1e-6)
    truth = DISK > 127
    bools: list[Any] = [truth, truth[None], torch.from_numpy(truth), torch.from_numpy(truth)[None]]
    for source in bools:
        np.testing.assert_array_equal(read_mask(source), truth.astype(np.float32))
    np.testing.assert_array_equal(read_mask(read_image(DISK)), belief)
    np.testing.assert_array_equal(read_mask(read_image(RGBA)), belief)
    with pytest.raises(UsageError, match="expected float"):
        read_mask(np.zeros((2, 4, 5), bool))


def test_a_masks_answer_is_the_callers_own() -> None:
    belief = DISK / np.float32(255)
    for source in (belief, torch.from_numpy(belief), DISK, photographs.encode(DISK)):
        read_mask(source)[:] = 0.5
    np.testing.assert_array_equal(belief, DISK / np.float32(255))


def test_alpha_of_a_transparent_file_is_the_mask(caplog: pytest.LogCaptureFixture) -> None:
    both = Image.merge("LA", [Image.fromarray(SCENE[..., 0].copy()), Image.fromarray(DISK)])
    for source in (photographs.encode(RGBA), photographs.encode(both), RGBA):
        caplog.clear()
        np.testing.assert_array_equal(read_mask(source), DISK / np.float32(255))
        assert "its alpha is the mask" in caplog.messages[0]
    caplog.clear()
    opaque = np.dstack([DISK, DISK, DISK, np.full_like(DISK, 255)])
    np.testing.assert_array_equal(read_mask(photographs.encode(opaque)), DISK / np.float32(255))
    assert caplog.messages == []


def test_masks_of_zeros_and_ones_mean_full(caplog: pytest.LogCaptureFixture) -> None:
    ones = (DISK > 127).astype(np.uint8)
    wide = ones.astype(np.uint16)
    sources: list[Any] = [photographs.encode(ones), ones, photographs.png16(wide)]
    sources += [Image.fromarray(ones), photographs.tiff(ones.astype(np.int32))]
    for source in sources:
        caplog.clear()
        np.testing.assert_array_equal(read_mask(source), ones.astype(np.float32))
        assert len(caplog.messages) == 1
        assert "only the values 0 and 1" in caplog.messages[0]
    caplog.clear()
    for source in (np.zeros_like(ones), photographs.encode(np.zeros_like(ones)), ones * 255):
        assert set(np.unique(read_mask(source))) <= {0.0, 1.0}
    bits = Image.fromarray(ones.astype(bool))
    np.testing.assert_array_equal(read_mask(photographs.encode(bits)), ones.astype(np.float32))
    assert caplog.messages == []


def test_a_coloured_mask_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    mask = read_mask(photographs.encode(SCENE))
    luma = SCENE @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(mask * 255, luma, atol=0.6)
    assert "in colour" in caplog.messages[0]


def test_masks_are_fitted_to_their_photograph() -> None:
    edge = np.zeros((40, 60), np.uint8)
    edge[:, 31:] = 255
    grown = read_mask(edge, size=(80, 120))
    assert grown.shape == (80, 120)
    shrunk = read_mask(edge, size=(20, 30))
    # Antialiased: the pixel that the edge cuts in half is neither 0 nor 1.
    assert 0.2 < shrunk[10, 15] < 0.8
    np.testing.assert_allclose(shrunk.mean(), edge.mean() / 255, atol=0.01)
    assert read_mask(edge, size=(40, 60)).shape == (40, 60)
    for size in ((0, 5), (3, 4, 5)):
        with pytest.raises(UsageError, match="height, width"):
            read_mask(edge, size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("have", "want", "fits"),
    [
        ((320, 213), (3000, 2000), True),  # rounded to whole pixels
        ((213, 320), (2000, 3000), True),
        ((2000, 3000), (214, 320), True),
        ((7, 10), (3333, 5000), True),
        ((1000, 1009), (1000, 1000), True),  # within 1 %
        ((1000, 1011), (1000, 1000), True),  # not within 1 %, but see the next
        ((1000, 1020), (1000, 1000), False),
        ((1000, 1020), (2000, 2000), False),
        ((400, 300), (300, 400), False),
        ((10, 20), (1000, 1000), False),
    ],
)
def test_aspects_that_fit(have: tuple[int, int], want: tuple[int, int], fits: bool) -> None:
    mask = np.zeros(have, np.uint8)
    if have == (1000, 1011):
        want = (1000, 1001)  # 11 to 10 in a thousand
    if fits:
        assert read_mask(mask, size=want).shape == want
    else:
        with pytest.raises(UsageError) as raised:
            read_mask(mask, size=want)
        assert f"{have[1]} x {have[0]}" in str(raised.value)
        assert f"{want[1]} x {want[0]}" in str(raised.value)
        assert ("90 degrees" in str(raised.value)) == (have == (400, 300))


# Writing


@settings(deadline=None)  # of a machine that does much else, too
@given(pixels=uint8_pictures, suffix=st.sampled_from([".png", ".tif", ".tiff", ".bmp"]))
def test_8_bit_values_survive_writing_and_reading(
    pixels: np.ndarray, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"roundtrip{suffix}"
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (pixels, planes, to_tensor(pixels), to_tensor(pixels).double()):
        write_image(path, image)
        assert is_read_as(path, pixels).notes == ()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".WEBP"])
def test_alpha_survives_writing_and_reading(suffix: str, tmp_path: Path) -> None:
    path, alpha = tmp_path / f"cutout{suffix}", to_tensor(DISK)
    forms = (DISK, DISK[..., None], torch.from_numpy(DISK)[None], alpha, alpha[0], alpha.numpy())
    for given_alpha in forms:
        write_image(path, SCENE, alpha=given_alpha, quality=100)
        is_read_as(path, SCENE, DISK)
    write_image(path, RGBA, quality=100)
    is_read_as(path, SCENE, DISK)
    write_image(path, SCENE[..., 0], alpha=DISK, quality=100)
    is_read_as(path, SCENE[..., :1].repeat(3, axis=2), DISK)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"])
def test_every_format_holds_colour_and_gray(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo{suffix}"
    big = photographs.scene(48, 64)
    write_image(str(path), big, quality=30)
    small = path.read_bytes()
    write_image(str(path), big)
    again = path.read_bytes()
    write_image(str(path), big)
    assert path.read_bytes() == again
    assert len(small) < len(again) or suffix not in (".jpg", ".jpeg", ".webp")
    assert np.abs(read_image(path).pixels.astype(int) - big).mean() < 3
    with Image.open(path) as image:
        assert image.format == images.WRITABLE[suffix]
        if suffix == ".png":
            assert image.info["srgb"] == 0
        elif suffix != ".bmp":
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            assert "sRGB" in ImageCms.getProfileDescription(profile)
    disk = photographs.disk(48, 64)
    for gray in (disk, disk[..., None], torch.from_numpy(disk)[None], to_tensor(disk)):
        write_image(path, gray)
        assert np.abs(read_image(path).pixels[..., 0].astype(int) - disk).mean() < 2
        assert read_image(path).notes == ()


@pytest.mark.parametrize(
    ("name", "image", "options", "message"),
    [
        ("photo", SCENE, {}, r"which format.*\.png, \.jpg"),
        ("photo.gif", SCENE, {}, r"which format.*\.png, \.jpg"),
        (".png", SCENE, {}, "which format"),
        ("photo.jpg", SCENE, {"alpha": DISK}, r"JPEG cannot hold an alpha; write \.png"),
        ("photo.bmp", RGBA, {}, "BMP cannot hold an alpha"),
        ("photo.png", RGBA, {"alpha": DISK}, "holds an alpha already"),
        ("photo.png", SCENE, {"alpha": DISK[1:]}, "32 x 24 pixels; it has 1 and 32 x 23"),
        ("photo.png", SCENE, {"alpha": SCENE}, "alpha must have one channel"),
        ("photo.png", SCENE, {"alpha": np.full((24, 32), 2.0)}, r"alpha must lie in \[0, 1\]"),
        ("photo.jpg", SCENE, {"quality": 0}, "quality must lie between 1 and 100, got 0"),
        ("photo.png", torch.full((3, 4, 5), torch.nan), {}, "image must lie.*nan"),
        ("photo.png", torch.zeros(1, 3, 4, 5), {}, "one picture of the batch"),
        ("photo.png", np.zeros((6, 5, 3)), {}, r"image is float64 \(6, 5, 3\)"),
        ("photo.png", "picture", {}, "must be an array or a tensor, not str"),
        ("photo.webp", np.zeros((1, 16384), np.uint8), {}, "at most 16383 pixels a side"),
        ("photo.jpg", np.zeros((65501, 1), np.uint8), {}, "at most 65500 pixels a side"),
    ],
)
def test_what_cannot_be_written_is_said_before_writing(
    tmp_path: Path, name: str, image: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write_image(tmp_path / name, image, **options)
    assert files_of(tmp_path) == []


def test_two_pictures_for_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("photo.png")
    with pytest.raises(UsageError, match=r"link\.png is also .* another output"):
        images.write_images({tmp_path / name: (SCENE, None) for name in ("photo.png", "link.png")})
    assert files_of(tmp_path) == ["link.png"]


def test_bad_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"photo\.png cannot be written: the folder .*nowhere"):
        write_image(tmp_path / "nowhere" / "photo.png", SCENE)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png is a folder"):
        write_image(tmp_path / "folder.png", SCENE)
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "photo\0.png", SCENE)
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "file" / "photo.png", SCENE)
    with pytest.raises(ImageError, match=r"could not be written|cannot be written"):
        write_image(tmp_path / f"{'x' * 300}.png", SCENE)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ImageError, match=r"photo\.png cannot be written: permission denied"):
        write_image(tmp_path / "photo.png", SCENE)
    assert files_of(tmp_path) == ["file", "folder.png"]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "photo.bmp"
    write_image(path, SCENE)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ImageError, match=r"photo\.bmp could not be written"):
            write_image(path, 255 - SCENE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert files_of(tmp_path) == ["photo.bmp"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_failed_rename_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, existing: bool
) -> None:
    path = tmp_path / "photo.png"
    if existing:
        path.write_bytes(b"old")
    seen = []

    def fail(source: Path, target: Path) -> None:
        seen.append((Path(source).parent, Path(target)))
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ImageError if isinstance(error, OSError) else KeyboardInterrupt):
        write_image(path, SCENE)
    assert seen == [(tmp_path, path)]
    assert files_of(tmp_path) == (["photo.png"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_failed_encoding_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("encoder error -2")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ImageError, match=r"photo\.png could not be encoded as PNG: encoder error"):
        write_image(tmp_path / "photo.png", SCENE)
    assert files_of(tmp_path) == []


def test_a_written_file_has_ordinary_permissions_and_links_stay(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_image(tmp_path / "photo.png", SCENE)
        assert (tmp_path / "photo.png").stat().st_mode & 0o777 == 0o640
        (tmp_path / "photo.png").chmod(0o604)
        (tmp_path / "link.png").symlink_to("photo.png")
        write_image(tmp_path / "link.png", 255 - SCENE)
    finally:
        os.umask(umask)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "photo.png").stat().st_mode & 0o777 == 0o604
    is_read_as(tmp_path / "photo.png", 255 - SCENE)


# Between arrays and tensors


@given(pixels=uint8_pictures)
def test_to_tensor_and_back(pixels: np.ndarray) -> None:
    tensor = to_tensor(pixels)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    torch.testing.assert_close(
        tensor, torch.tensor(pixels).permute(2, 0, 1).float() / 255, rtol=0, atol=0
    )
    np.testing.assert_array_equal(to_uint8(tensor), pixels)
    np.testing.assert_array_equal(to_uint8(tensor.half()), pixels)
    np.testing.assert_array_equal(to_uint8(tensor.numpy()), pixels)
    tensor.zero_()  # a copy
    np.testing.assert_array_equal(to_uint8(to_tensor(pixels)), pixels)
    gray = to_tensor(pixels[..., 0])
    assert gray.shape == (1, *pixels.shape[:2])
    np.testing.assert_array_equal(to_uint8(gray), pixels[..., 0])
    mask = pixels[..., 0] / np.float32(255)
    torch.testing.assert_close(to_tensor(mask), torch.from_numpy(mask)[None], rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [np.zeros((3, 4, 5)), np.zeros((4, 5), int), np.zeros(3, "u1")])
def test_what_is_no_picture_is_no_tensor(wrong: np.ndarray) -> None:
    with pytest.raises(UsageError, match="expected uint8"):
        to_tensor(wrong)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 4, 5), torch.zeros(3, 4, 5).byte(), "picture"])
def test_what_is_no_float_picture_is_not_rounded(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"image (is|must be)"):
        to_uint8(wrong)


@given(
    hnp.arrays(np.float32, (3, 2, 5), elements=st.floats(0, 1, width=32)),
)
def test_rounding_is_half_up(values: np.ndarray) -> None:
    exact = 255 * values.astype(np.float64)
    rounded = to_uint8(torch.from_numpy(values)).transpose(2, 0, 1)
    assert np.abs(rounded - exact).max() <= 0.5 + 1e-4
    halves = (np.arange(255) + 0.5) / 255
    np.testing.assert_array_equal(to_uint8(halves[None, None]), np.arange(1, 256)[None])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu() -> None:
    tensor = to_tensor(SCENE).cuda()
    np.testing.assert_array_equal(to_uint8(tensor), SCENE)
    np.testing.assert_array_equal(read_mask(tensor[:1]), SCENE[..., 0] / np.float32(255))
    np.testing.assert_array_equal(read_mask(tensor[0] > 0.5), SCENE[..., 0] > 127)


# Folders and imports


def test_list_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no image"):
        list_images(tmp_path)
    for name in ("b.JPG", "a.png", "c.webp", "notes.txt", ".hidden.png", "plain"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    (tmp_path / "d.png" / "inside.png").touch()
    (tmp_path / "e.png").symlink_to("nowhere")  # broken: an error when it is read
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.webp", "e.png"]
    assert list_images(str(tmp_path)) == list_images(tmp_path)
    with pytest.raises(ImageError, match="cannot be listed"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="cannot be listed"):
        list_images(tmp_path / "a.png")
