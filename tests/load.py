"""Many clients at once, and whether a request is lost or answered with somebody else's picture."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx2
from PIL import Image

from tests.memory import resident
from tests.photographs import encode
from tests.serving.running import ASTRONAUT, Server

OPTIONS = {"refiner": "none", "fuser": "laplacian"}


class Load(NamedTuple):
    """What came of it.

    Attributes:
        seconds: latency of each request.
        wrong: what was wrong with those that went wrong.
        memory: bytes of the server and its workers after each answer.
    """

    seconds: list[float]
    wrong: list[str]
    memory: list[int]


def run(
    server: Server, requests: int, clients: int, *, kill: bool = False, side: int = 256
) -> Load:
    """Send requests, each with a new background of one colour, and look at every answer."""
    front = Image.open(ASTRONAUT).convert("RGB").resize((side, side))
    mask = Image.new("L", front.size)
    mask.paste(255, (side // 4, side // 4, 3 * side // 4, 3 * side // 4))
    files = {"foreground": encode(front), "mask": encode(mask)}
    load, lock = Load([], [], []), threading.Lock()

    def send(client: httpx2.Client, number: int) -> None:
        color = (number % 256, 7 * number % 256, 40 + number // 256)
        back = encode(Image.new("RGB", (side, side), color))
        start = time.perf_counter()
        answer = client.post("/api/composite", files={**files, "background": back}, data=OPTIONS)
        spent = time.perf_counter() - start
        found = None
        if answer.status_code == 200:
            found = Image.open(io.BytesIO(answer.content)).getpixel((1, 1))
        with lock:
            load.seconds.append(spent)
            if found != color:
                load.wrong.append(f"{number}: {answer.status_code}, {found or answer.text}")
            load.memory.append(sum(map(resident, [server.process.pid, *server.workers()])))
            if kill and len(load.seconds) == requests // 2:
                for worker in server.workers():
                    os.kill(worker, signal.SIGKILL)

    def client(first: int) -> None:
        with httpx2.Client(base_url=server.url, timeout=300) as client:
            for number in range(first, requests, clients):
                send(client, number)

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(client, range(clients)))
    return load
