"""A worker's work without torch: quick, and it does what a field of the form says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.serving.jobs import Answer, Job


def start(device: str, stages: Any) -> None:
    """Any device will do but ``cuda:9``, and any stages but ``broken``."""
    if device == "cuda:9":
        raise UsageError("there is no device 'cuda:9'")
    if stages == "broken":
        raise WeightsError("these are no weights")


def perform(job: Job) -> Answer:
    """What the words in the file of the foreground say, and the job in words.

    ``die FILE`` ends the process as often as FILE has lines, one of which goes each time;
    ``sleep SECONDS`` takes so long.
    """
    word, _, rest = job.foreground.decode("latin-1").partition(" ")
    if word == "die" and (lines := Path(rest).read_text().splitlines()):
        Path(rest).write_text("\n".join(lines[1:]))
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "sleep":
        time.sleep(float(rest))
    return Answer(200, f"{os.getpid()} {job.output}".encode(), {"content-type": "text/plain"})


class InProcess:
    """Stands in for a worker, in the server's own process; keeps the jobs that it is given."""

    alive = True

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.answer = Answer(200, b"a picture", {"content-type": "image/png"})

    async def start(self) -> None:
        """There is nothing to start."""

    async def perform(self, job: Job) -> Answer:
        """Note the job."""
        self.jobs.append(job)
        return self.answer

    def stop(self) -> None:
        """There is nothing to stop."""
