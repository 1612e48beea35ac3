"""A real server in a process of its own, and a real browser that looks at its page."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import skimage

from tests import runs

PHOTOS = Path(skimage.__file__).parent / "data"
ASTRONAUT, ROCKET = PHOTOS / "astronaut.png", PHOTOS / "rocket.jpg"

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip

_DROP = """
const [selector, kind, files] = arguments, data = new DataTransfer();
for (const [name, type, text] of files) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  data.items.add(new File([bytes], name, { type }));
}
const options = { bubbles: true, cancelable: true };
const event = kind === "paste" ? new ClipboardEvent("paste", { ...options, clipboardData: data })
  : new DragEvent(kind, { ...options, dataTransfer: data });
document.querySelector(selector).dispatchEvent(event);
"""

_LISTEN = """
const fetch = window.fetch;
window.asked = [];
window.fetch = (address, options) => {
  const fields = [...(options?.body ?? [])].filter(([name, value]) => typeof value === "string");
  window.asked.push([address, Object.fromEntries(fields)]);
  return fetch(address, options);
};
"""


def command_line(pid: int) -> bytes:
    """Its command and arguments; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class Server:
    """``serve`` as people run it, on any free port."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        paths = [str(runs.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        given = {"PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
        self.process = runs.Fork(["dic", "serve", "--port=0", *options], given, errors=True)
        runs.wait_until(lambda: "serving at " in self.process.out.read_text(), self.process)
        self.said = self.process.out.read_text()
        self.url = self.said.splitlines()[-1].split()[2]

    def workers(self) -> list[int]:
        """The processes that do the work: children that are not the tracker of resources."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        return [pid for pid in children if b"multiprocessing.spawn import" in command_line(pid)]

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal; exit code, and what was still said on both streams."""
        self.process.send_signal(number)
        said, wrong = self.process.communicate(timeout=60)
        return self.process.returncode or 0, said.removeprefix(self.said), wrong


@contextlib.contextmanager
def serving(*options: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """A server that is ended afterwards."""
    server = Server(*options, environment=environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


class Page:
    """The page in a headless Chromium, and what a person sees and does there."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 900), phone: bool = False):
        from selenium import webdriver
        from selenium.webdriver.support.ui import WebDriverWait

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={folder}"):
            options.add_argument(flag)
        if phone:
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 2.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        settings = {"download.default_directory": str(self.downloads)}
        options.add_experimental_option("prefs", settings)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(executable_path=DRIVER)
        self.browser = webdriver.Chrome(options=options, service=service)
        self._waiting = WebDriverWait(self.browser, 90, poll_frequency=0.05)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        self.browser.quit()

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def do(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def until(self, script: str, *arguments: object) -> Any:
        """Wait until a script gives something true, and return it."""
        return self._waiting.until(lambda _: self.do(f"return {script}", *arguments))

    def open(self, url: str) -> None:
        self.browser.get(url)
        self.do(_LISTEN)
        self.until("document.querySelector('#fuser') !== null")

    def drop(self, selector: str, *files: Path, kind: str = "drop") -> None:
        """Let go of files over an element, or paste them there."""
        types = {".png": "image/png", ".jpg": "image/jpeg"}
        given = [
            (file.name, types.get(file.suffix, "text/plain"),
             base64.b64encode(file.read_bytes()).decode())
            for file in files
        ]  # fmt: skip
        self.do(_DROP, selector, kind, given)

    def settled(self, text: str) -> None:
        """Wait until the page says so, and nothing is under way."""
        status = "document.querySelector('#status').textContent"
        self.until(
            f"{status}.includes(arguments[0]) && document.querySelector('#progress').hidden", text
        )

    def downloaded(self, name: str) -> bytes:
        """A file that the browser has saved."""
        path = self.downloads / name
        self._waiting.until(lambda _: path.exists() and path.stat().st_size > 0)
        return path.read_bytes()

    def asked(self) -> list[tuple[str, dict[str, str]]]:
        """Addresses that the page has asked for since it was opened, and the texts of the forms."""
        found: list[tuple[str, dict[str, str]]] = self.do("return window.asked")
        return found

    def errors(self) -> list[str]:
        log = self.browser.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]
