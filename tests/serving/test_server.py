"""The server as people run it: its address, its token, its end, and many clients at once."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("skimage")

import httpx2

from deep_image_compositing.cli import main
from deep_image_compositing.serving.server import TOKEN_VARIABLE, is_loopback
from tests import runs
from tests.load import run
from tests.serving.running import ASTRONAUT, ROCKET, Server, serving

FILES = {"foreground": ASTRONAUT.read_bytes(), "background": ROCKET.read_bytes()}


def send(server: Server, threads: ThreadPoolExecutor, count: int, **headers: str) -> list[Any]:
    """Requests that are under way, or wait."""
    url, fields = f"{server.url}api/composite", {"refiner": "none", "fuser": "alpha"}
    given = {"files": FILES, "data": fields, "headers": headers, "timeout": 60}
    sent = [threads.submit(httpx2.post, url, **given) for _ in range(count)]
    while httpx2.get(f"{server.url}health").json()["requests"] < count:
        time.sleep(0.02)
    return sent


@pytest.mark.slow
def test_many_clients_at_once_while_a_worker_is_killed_and_ctrl_c() -> None:
    with serving("--queue=30") as server, ThreadPoolExecutor(2) as threads:
        first = server.workers()
        load = run(server, 50, 6, kill=True, side=128)
        assert load.failures == []
        assert len(load.seconds) == 50
        assert server.workers() != first
        again = run(server, 30, 6, side=128)
        assert again.failures == []
        assert max(again.memory) < 1.1 * again.memory[5]
        # Ctrl-C finishes what is under way.
        sent = send(server, threads, 2)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGINT)  # a terminal sends it to all
        code, said, wrong = server.end()
        assert [answer.result().status_code for answer in sent] == [200, 200]
    assert (code, said.strip()) == (0, "stopped")
    assert "finishing the running requests" in wrong
    assert "Traceback" not in wrong


@pytest.mark.slow
def test_a_token_of_the_environment_and_a_second_ctrl_c_which_ends_it_at_once() -> None:
    own = {TOKEN_VARIABLE: "own"}
    with serving(environment=own) as server, ThreadPoolExecutor(1) as threads:
        assert "own" not in server.said
        assert httpx2.get(server.url).status_code == 401
        assert httpx2.get(f"{server.url}?token=own").status_code == 303
        (sent,) = send(server, threads, 1, authorization="Bearer own")
        server.process.send_signal(signal.SIGINT)
        runs.wait_until(lambda: "Ctrl-C again" in server.process.err.read_text(), server.process)
        code, said, wrong = server.end()
        assert (code, said.strip(), len(wrong.splitlines())) == (0, "stopped", 1)
        assert sent.result().status_code == 503


@pytest.mark.slow
def test_an_address_that_others_reach_needs_a_token() -> None:
    light = ("--segmenter=grabcut", "--refiner=none", "--fuser=alpha")
    with serving("--host=0.0.0.0", *light) as server:
        (token,) = re.findall(r"^the token.* (\S+)$", server.said, re.MULTILINE)
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert re.fullmatch(r"[\w-]{40,}", token)
        assert httpx2.get(f"{url}api/stages").status_code == 401
        bearer = {"authorization": f"Bearer {token}"}
        assert httpx2.get(f"{url}api/stages", headers=bearer).status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.7", False), ("photos.example", False)],
)  # fmt: skip
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port=99999"], "0 to 65535"),
        (["--host=name.invalid"], "cannot listen"),
        (["--host=name..invalid"], "cannot listen"),
        (["--device=gpu"], "no device 'gpu'"),
        (["--device=cuda:77", "--port=0"], "no device 'cuda:77'"),
        (["--fuser=alpah"], "did you mean 'alpha'"),
        (["--segmenter=onnx"], "needs the option 'path'"),
        (["--queue=-1"], "--queue must be"),
        (["--max-bytes=0"], "--max-bytes must be"),
        (["--seconds=nan"], "--seconds must be"),
        (["--token=a b"], "without spaces"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


def test_a_taken_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", f"--port={taken.getsockname()[1]}"]) == 2
    assert "give another --host or --port" in capsys.readouterr().err
