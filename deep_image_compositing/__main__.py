"""Entry point for ``python -m deep_image_compositing``."""

from __future__ import annotations

import sys

from deep_image_compositing.cli import main

if __name__ == "__main__":
    sys.exit(main())
