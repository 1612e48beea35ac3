"""Image input and output: converts between image files and clean sRGB pixels.

The whole library reads and writes images here, so orientation, colour profiles, bit depths,
transparency and size limits are handled in one way. Decisions made while reading, such as ignoring
a broken profile, are recorded in ``Photograph.notes`` and logged as warnings.
"""

from deep_image_compositing.images.arrays import to_tensor, to_uint8
from deep_image_compositing.images.decoding import (
    DEFAULT_MAX_PIXELS,
    MAX_PIXELS_VARIABLE,
    open_picture,
)
from deep_image_compositing.images.reading import (
    READABLE,
    ImageSource,
    Photograph,
    list_images,
    longest_sides,
    read_image,
    read_mask,
)
from deep_image_compositing.images.writing import (
    WRITABLE,
    check_writable,
    encode_image,
    write_image,
    write_images,
)

__all__ = [
    "DEFAULT_MAX_PIXELS", "MAX_PIXELS_VARIABLE", "READABLE", "WRITABLE", "ImageSource",
    "Photograph", "check_writable", "encode_image", "list_images", "longest_sides", "open_picture",
    "read_image", "read_mask", "to_tensor", "to_uint8", "write_image", "write_images",
]  # fmt: skip
