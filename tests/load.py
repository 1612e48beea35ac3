"""Many clients at once: ``python -m tests.load`` sends 200 requests from 20 clients to a server.

It prints percentiles of latency and how memory grew, and says if a request was lost or answered
with somebody else's picture. ``--kill`` ends the worker in the middle.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx2
import numpy as np
from PIL import Image

from tests.memory import fit_growth, resident
from tests.photographs import encode
from tests.serving.running import ASTRONAUT, Server, serving

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


def main() -> None:
    """Start a server, load it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--kill", action="store_true", help="end the worker in the middle")
    options = parser.parse_args()
    with serving() as server:
        start = time.perf_counter()
        load = run(server, options.requests, options.clients, kill=options.kill)
        spent = time.perf_counter() - start
        code = server.end()[0]
    print(f"{len(load.seconds)} requests from {options.clients} clients in {spent:.1f} s")
    shares = (50, 90, 95, 99, 100)
    points = np.percentile(load.seconds, shares)
    print("latency " + ", ".join(f"p{s} {p:.2f} s" for s, p in zip(shares, points, strict=True)))
    numbers = np.arange(len(load.memory))
    half = len(numbers) // 4
    growth = fit_growth(numbers[half:], np.array(load.memory[half:], float))
    print(
        f"memory {load.memory[half] / 1e6:.0f} MB after a quarter, {load.memory[-1] / 1e6:.0f} MB "
        f"at the end, {growth.slope / 1e3:.1f} ± {growth.error / 1e3:.1f} kB a request"
    )
    print(f"{len(load.wrong)} went wrong, exit code {code}")
    print("\n".join(load.wrong))


if __name__ == "__main__":
    main()
