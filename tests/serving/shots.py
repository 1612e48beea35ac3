"""Makes the pictures of docs/serve.md anew: ``python -m tests.serving.shots docs/images``."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.serving.running import ASTRONAUT, ROCKET, Page, serving


def main(folder: Path) -> None:
    """Take the page with a finished composite on a desktop, and on a phone."""
    with serving() as server, tempfile.TemporaryDirectory() as profiles:
        for name, size, phone in (("serve", (1280, 860), False), ("serve-phone", (390, 844), True)):
            with Page(Path(profiles, name), size, phone) as page:
                page.open(server.url)
                page.drop("body", ASTRONAUT, ROCKET)
                page.settled("Composite made")
                if phone:
                    page.find("[data-to=move]").click()
                    page.do("document.activeElement.blur()")
                    page.settled("Composite made")
                shot = Image.open(io.BytesIO(page.browser.get_screenshot_as_png())).convert("RGB")
                shot.save(folder / f"{name}.jpg", quality=90, subsampling=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
