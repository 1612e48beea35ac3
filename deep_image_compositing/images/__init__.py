"""Reading and writing photographs: everything that stands between a file and clean sRGB pixels.

All of the library reads and writes here, so that orientation, profiles, bit depths, transparency
and limits are treated the same. What had to be decided on the way (a broken profile ignored) stands
in ``Photograph.notes`` and is logged as a warning. Torch is imported only for tensors.
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
