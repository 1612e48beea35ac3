"""The server as people run it: its address, its token, its end, and many clients at once."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("skimage")

import httpx2

from deep_image_compositing.cli import main
from deep_image_compositing.serving.server import TOKEN_VARIABLE, is_loopback
from tests.load import run
from tests.serving.running import ASTRONAUT, ROCKET, serving

LIGHT = ("--segmenter=grabcut", "--refiner=none", "--fuser=alpha")
"""Stages without weights, for servers that make nothing."""


@pytest.mark.slow
def test_many_clients_at_once_while_a_worker_is_killed() -> None:
    with serving("--queue=30") as server:
        first = server.workers()
        load = run(server, 60, 6, kill=True, side=128)
        assert load.wrong == []
        assert len(load.seconds) == 60
        assert server.workers() != first
        again = run(server, 40, 6, side=128)
        assert again.wrong == []
        assert max(again.memory) < 1.1 * again.memory[5]
        assert server.end()[0] == 0


@pytest.mark.slow
def test_ctrl_c_finishes_what_is_under_way() -> None:
    with serving() as server, ThreadPoolExecutor(2) as threads:
        files = {"foreground": ASTRONAUT.read_bytes(), "background": ROCKET.read_bytes()}
        sent = [
            threads.submit(httpx2.post, f"{server.url}api/composite", files=files, timeout=60)
            for _ in range(2)
        ]
        while httpx2.get(f"{server.url}health").json()["requests"] < 2:
            time.sleep(0.02)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGINT)  # a terminal sends it to all
        code, said, wrong = server.end()
        assert [answer.result().status_code for answer in sent] == [200, 200]
    assert (code, said.strip()) == (0, "stopped")
    assert "finishing what is under way" in wrong
    assert "Traceback" not in wrong


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with serving() as server, ThreadPoolExecutor(1) as threads:
        files = {"foreground": ASTRONAUT.read_bytes(), "background": ROCKET.read_bytes()}
        url = f"{server.url}api/composite"
        sent = threads.submit(httpx2.post, url, files=files, timeout=60)
        while httpx2.get(f"{server.url}health").json()["requests"] < 1:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGINT)
        assert server.process.stderr is not None
        assert "Ctrl-C again" in server.process.stderr.readline()
        code, said, wrong = server.end()
        assert (code, said.strip(), wrong) == (0, "stopped", "")
        assert sent.result().status_code == 503


@pytest.mark.slow
def test_an_address_that_others_reach_needs_a_token() -> None:
    with serving("--host=0.0.0.0", *LIGHT) as server:
        token = next(line.split()[-1] for line in server.said if line.startswith("the token"))
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert re.fullmatch(r"[\w-]{40,}", token)
        assert httpx2.get(f"{url}api/stages").status_code == 401
        bearer = {"authorization": f"Bearer {token}"}
        assert httpx2.get(f"{url}api/stages", headers=bearer).status_code == 200
    with serving(*LIGHT, environment={TOKEN_VARIABLE: "own"}) as server:
        assert "own" not in "".join(server.said)
        assert httpx2.get(server.url).status_code == 401
        assert httpx2.get(f"{server.url}?token=own").status_code == 303


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
