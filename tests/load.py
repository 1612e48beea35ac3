"""Load test: ``python -m tests.load`` sends 200 requests from 20 concurrent clients to a server.

It prints latency percentiles and memory growth, and reports requests that failed or got another
client's image. ``--kill`` kills the worker halfway.
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
    """Results of a load test.

    Attributes:
        seconds: latency of each request.
        failures: descriptions of the requests that failed.
        memory: bytes used by the server and its workers after each answer.
    """

    seconds: list[float]
    failures: list[str]
    memory: list[int]


def run(
    server: Server, requests: int, clients: int, *, kill: bool = False, side: int = 256
) -> Load:
    """Send requests, each with a background of its own colour, and check every answer."""
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
        seconds = time.perf_counter() - start
        pixel = None
        if answer.status_code == 200:
            pixel = Image.open(io.BytesIO(answer.content)).getpixel((1, 1))
        with lock:
            load.seconds.append(seconds)
            if pixel != color:
                load.failures.append(f"{number}: {answer.status_code}, {pixel or answer.text}")
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
    """Start a server, run the load test and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--kill", action="store_true", help="kill the worker halfway")
    options = parser.parse_args()
    with serving() as server:
        start = time.perf_counter()
        load = run(server, options.requests, options.clients, kill=options.kill)
        seconds = time.perf_counter() - start
        code = server.end()[0]
    print(f"{len(load.seconds)} requests from {options.clients} clients in {seconds:.1f} s")
    percents = (50, 90, 95, 99, 100)
    values = np.percentile(load.seconds, percents)
    print("latency " + ", ".join(f"p{p} {v:.2f} s" for p, v in zip(percents, values, strict=True)))
    numbers = np.arange(len(load.memory))
    quarter = len(numbers) // 4
    growth = fit_growth(numbers[quarter:], np.array(load.memory[quarter:], float))
    print(
        f"memory {load.memory[quarter] / 1e6:.0f} MB after a quarter, "
        f"{load.memory[-1] / 1e6:.0f} MB at the end, "
        f"{growth.slope / 1e3:.1f} ± {growth.error / 1e3:.1f} kB per request"
    )
    print(f"{len(load.failures)} failed, exit code {code}")
    print("\n".join(load.failures))


if __name__ == "__main__":
    main()
