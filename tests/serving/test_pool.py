"""Worker processes that are killed, slow or not to be had; their work is a light one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deep_image_compositing.errors import UsageError
from deep_image_compositing.serving.jobs import Job
from deep_image_compositing.serving.pool import Busy, Pool, Unready, Worker

LIGHT = "tests.serving.light"


def worker(device: str = "cpu", seconds: float = 60) -> Worker:
    return Worker(device, (), seconds, LIGHT)


def test_jobs_go_to_whoever_is_free() -> None:
    async def run() -> None:
        pool = Pool([worker(), worker()])
        await pool.start()
        answers = await asyncio.gather(*(pool.run(Job(b"sleep 0.2")) for _ in range(4)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 2
        pool.stop()
        assert not any(one.alive for one in pool.workers)

    asyncio.run(run())


@pytest.mark.parametrize(("deaths", "status"), [(0, 200), (1, 200), (2, 500)])
def test_a_job_that_ends_its_worker_is_tried_once_more(
    deaths: int, status: int, tmp_path: Path
) -> None:
    (tmp_path / "deaths").write_text("x\n" * deaths)

    async def run() -> None:
        pool = Pool([worker()])
        await pool.start()
        answer = await pool.run(Job(f"die {tmp_path / 'deaths'}".encode()))
        assert answer.status == status
        assert (await pool.run(Job(b"another"))).status == 200
        assert pool.workers[0].starts == deaths + 1
        pool.stop()

    asyncio.run(run())


def test_a_worker_killed_while_idle_is_started_anew() -> None:
    async def run() -> None:
        pool = Pool([worker()])
        await pool.start()
        first = await pool.run(Job(b"x"))
        pid = int(first.body.split()[0])
        os.kill(pid, signal.SIGKILL)
        assert (await pool.run(Job(b"y"))).status == 200
        pool.stop()

    asyncio.run(run())


def test_a_job_that_takes_too_long_is_ended() -> None:
    async def run() -> None:
        pool = Pool([worker(seconds=1.5)])
        await pool.start()
        answer = await pool.run(Job(b"sleep 60"))
        assert answer.status == 504
        assert b"1.5 seconds" in answer.body
        pool.workers[0]._seconds = 60  # another process has to start first
        assert (await pool.run(Job(b"quick"))).status == 200
        pool.stop()

    asyncio.run(run())


def test_a_device_that_is_not_there_and_stages_that_cannot_be_made_are_told() -> None:
    async def run() -> None:
        pool = Pool([worker("cuda:9")])
        with pytest.raises(UsageError, match="no device 'cuda:9'"):
            await pool.start()
        pool.stop()
        broken: Any = "broken"
        pool = Pool([Worker("cpu", broken, 60, LIGHT)])
        with pytest.raises(Unready, match="these are no weights"):  # no fault of the call
            await pool.start()
        assert (await pool.run(Job(b"x"))).status == 503
        pool.stop()

    asyncio.run(run())


def test_who_leaves_while_waiting_leaves_no_work() -> None:
    async def run() -> None:
        pool = Pool([worker()])
        await pool.start()
        first = asyncio.ensure_future(pool.run(Job(b"sleep 0.5")))
        await asyncio.sleep(0.1)
        waiting = asyncio.ensure_future(pool.run(Job(b"sleep 60")))
        last = asyncio.ensure_future(pool.run(Job(b"last")))
        await asyncio.sleep(0.1)
        waiting.cancel()
        assert (await first).status == (await last).status == 200
        leaving = asyncio.ensure_future(pool.run(Job(b"sleep 0.3")))
        await asyncio.sleep(0.1)
        leaving.cancel()  # it has begun, so the next one waits for its end
        assert (await pool.run(Job(b"next"))).status == 200
        pool.stop()

    asyncio.run(run())


def test_places_are_counted() -> None:
    pool = Pool([worker(), worker()], queue=1)
    with pool.reserve(), pool.reserve(), pool.reserve():
        assert pool.active == 3
        with pytest.raises(Busy), pool.reserve():
            pass
    assert pool.active == 0


def test_the_server_s_own_process_needs_no_torch() -> None:
    code = (
        "import sys, deep_image_compositing.serving.server, deep_image_compositing.commands.serve\n"
        "from deep_image_compositing.serving.jobs import DEFAULTS, list_choices\n"
        "list_choices(DEFAULTS)\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_workers_end_with_the_server(tmp_path: Path) -> None:
    code = (
        "import asyncio, os\n"
        "from deep_image_compositing.serving.jobs import Job\n"
        "from deep_image_compositing.serving.pool import Pool, Worker\n"
        "async def run():\n"
        f"    pool = Pool([Worker('cpu', (), 60, {LIGHT!r})])\n"
        "    await pool.start()\n"
        "    await pool.run(Job(b'x'))\n"
        "    os.kill(os.getpid(), 9)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(run())\n"
    )
    (tmp_path / "server.py").write_text(code)
    root = Path(__file__).resolve().parents[2]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    # This waits until nobody has its standard output any more, which the worker has too.
    done = subprocess.run(
        [sys.executable, str(tmp_path / "server.py")], capture_output=True, timeout=60, env=given
    )
    assert done.returncode == -signal.SIGKILL
