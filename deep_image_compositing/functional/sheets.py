"""Labelled contact sheets of named pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.resize import fit_long_side, resize

NEUTRAL = 0.5  # gray of the padding around pictures
_GAP = 2
_MAGENTA = (1.0, 0.0, 1.0)


def contact_sheet(pictures: dict[str, Tensor], cell: int = 192) -> Tensor:
    """Arrange named pictures in a table with a labelled column per name and a row per batch item.

    Pictures, (B, 1 or 3, H, W) of any dtype, size and device, are resized to fit square cells of
    ``cell`` pixels and clamped to [0, 1]; NaN is magenta. Returns (3, H, W) float32 in [0, 1] on
    the CPU. Raises ``UsageError`` for no pictures, other shapes or cells below 8 pixels.
    """
    if not pictures:
        raise UsageError("a contact sheet needs at least one picture")
    if cell < 8:
        raise UsageError(f"cells of a contact sheet must be at least 8 pixels wide, got {cell}")
    for name, picture in pictures.items():
        if picture.ndim != 4 or picture.shape[1] not in (1, 3) or 0 in picture.shape:
            raise UsageError(
                f"picture {name!r} must have shape (B, 1, H, W) or (B, 3, H, W), "
                f"got {tuple(picture.shape)}"
            )
    header = _label("", cell).shape[0]
    rows = max(picture.shape[0] for picture in pictures.values())
    step = cell + _GAP
    sheet = torch.full((3, header + rows * step, len(pictures) * step - _GAP), 1.0)
    for column, (name, picture) in enumerate(pictures.items()):
        left = column * step
        sheet[:, :header, left : left + cell] = _label(name, cell)
        for row in range(rows):
            top = header + row * step
            target = sheet[:, top : top + cell, left : left + cell]
            target.fill_(NEUTRAL)
            if row < picture.shape[0]:
                small = _fit(picture[row : row + 1], cell)
                height, width = small.shape[1:]
                y, x = (cell - height) // 2, (cell - width) // 2
                target[:, y : y + height, x : x + width] = small
    return sheet[:, : header + rows * step - _GAP]


def _fit(picture: Tensor, cell: int) -> Tensor:
    """One picture (1, 1|3, H, W) as (3, h, w) in [0, 1] with a long side of ``cell`` pixels."""
    value = picture.detach().to("cpu", torch.float32)
    nan = value.isnan().any(dim=1, keepdim=True)
    value = value.nan_to_num(nan=0.0).clamp(0, 1).expand(-1, 3, -1, -1)
    height, width = value.shape[-2:]
    size = fit_long_side(height, width, cell, enlarge=True)
    # Magnify small pictures with visible pixels.
    mode = "nearest-exact" if max(height, width) <= cell // 2 else "bilinear"
    resized = resize(value, size, mode).clamp(0, 1)
    if nan.any():  # keep even a single NaN visible
        area = torch.nn.functional.adaptive_max_pool2d(nan.float(), size)
        resized = torch.where(area > 0, torch.tensor(_MAGENTA).view(1, 3, 1, 1), resized)
    return resized[0]


def _label(text: str, width: int) -> Tensor:
    """Black ``text`` on white, (h, width) in [0, 1]; long text is truncated with an ellipsis."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    _, _, _, height = (int(v) for v in font.getbbox("Ágjpqy|"))
    if font.getlength(text) > width - 4:
        while text and font.getlength(text + "...") > width - 4:
            text = text[:-1]
        text += "..."
    strip = Image.new("L", (width, height + 4), 255)
    ImageDraw.Draw(strip).text((2, 1), text, fill=0, font=font)
    pixels = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8)
    return pixels.view(strip.height, strip.width).float() / 255
