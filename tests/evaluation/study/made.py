"""A small study of made pictures, and a real server for it, for the tests of this folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from deep_image_compositing.evaluation.study.folder import PICTURES, PictureSet, Study, picture_path

METHODS = ("alpha", "copy_paste", "feather", "laplacian", "ours")


def made_study(
    folder: Path,
    sets: int = 3,
    methods: tuple[str, ...] = METHODS,
    size: tuple[int, int] = (48, 64),
) -> Study:
    """A finished study whose tokens count upwards, with pictures of noise of ``size``."""
    (folder / PICTURES).mkdir(parents=True)
    number = iter(range(1 << 20))
    noise = np.random.default_rng(0)

    def picture() -> str:
        token = f"{next(number):032x}"
        pixels = noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
        image.save(picture_path(folder, token), lossless=True)
        return token

    made = tuple(
        PictureSet(
            f"5e7{i:029x}", f"pair-{i}", picture(), picture(), {picture(): m for m in methods}, size
        )
        for i in range(sets)
    )
    study = Study(f"{0x57D:032x}", methods, made, {"made": "for tests"}, finished=True)
    study.write(folder)
    return study


def token(item: PictureSet, method: str) -> str:
    """The picture that ``method`` made for a set."""
    return next(name for name, maker in item.results.items() if maker == method)


class Server:
    """``study serve`` in a process of its own, as people run it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}/"
        self._command = [
            sys.executable, "-m", "deep_image_compositing", "study", "serve", str(folder),
            "--port", str(port),
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        root = Path(__file__).resolve().parents[3]
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=env)
        first = self.process.stdout.readline()
        assert self.url in first, first

    def kill(self) -> None:
        """End it at once, with no chance to tidy up."""
        self.end(signal.SIGKILL)

    def end(self, signal_: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; the exit code, and what was still printed."""
        self.process.send_signal(signal_)
        printed, _ = self.process.communicate(timeout=30)
        return self.process.returncode, printed


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that is ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as taken:  # a port that nobody listens at now
        port = int(taken.getsockname()[1])
    server = Server(folder, port)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
