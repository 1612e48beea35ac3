"""Reading and writing photographs: everything that stands between a file and clean sRGB pixels.

The compositor, the command line and the data tools read and write through this package, so that
orientation, colour profiles, bit depths, transparency and limits are treated the same everywhere.
What had to be decided on the way (an alpha kept aside, a broken profile ignored) becomes a note:
it stands in ``Photograph.notes`` and is logged as a warning, never passed over in silence.

Pillow decodes; torch is imported only by the helpers that return or take tensors.
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
