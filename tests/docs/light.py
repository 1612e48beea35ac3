"""Regenerates the image of docs/light.md: ``python -m tests.docs.light docs/images/light.jpg``.

Both photographs are in the public domain and part of scikit-image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import skimage
from torch import Tensor

from deep_image_compositing import Compositor, read_image, write_image
from deep_image_compositing.functional.sheets import contact_sheet

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"

HARMONIZERS = ("none", "white_balance", "reinhard", "color_map")


def sheet(cell: int = 400) -> Tensor:
    """Show the same composite with each harmonizer, (3, H, W) in [0, 1]."""
    front, back = (read_image(PHOTOGRAPHS / name) for name in ("astronaut.png", "rocket.jpg"))
    pictures = {
        name: Compositor(harmonizer=name, device="cpu")(front, back).composite[None]
        for name in HARMONIZERS
    }
    return contact_sheet(pictures, cell)


if __name__ == "__main__":
    write_image(Path(sys.argv[1]), sheet())
