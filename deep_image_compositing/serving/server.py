"""Listening: an address, a token, workers that are ready, and an end in order."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from deep_image_compositing.errors import UsageError
from deep_image_compositing.messages import say, show
from deep_image_compositing.serving.app import create_app
from deep_image_compositing.serving.jobs import Settings
from deep_image_compositing.serving.pool import Pool, Worker
from deep_image_compositing.web import listen

TOKEN_VARIABLE = "DEEP_IMAGE_COMPOSITING_TOKEN"
"""Environment variable that holds the token, where none is given."""


def serve(
    settings: Settings, host: str, port: int, devices: Sequence[str], queue: int = 32
) -> None:
    """Serve the page and the interface, with a worker for each device, until told to stop.

    Where others than this machine can reach ``host``, a token is needed: that of the settings, else
    of the environment variable, else a random one, which is shown. ``UsageError``: an address or a
    device that cannot be had, or a limit that leaves nothing. ``CompositingError``: stages that
    cannot be made.
    """
    for name in ("max_bytes", "max_pixels", "seconds"):
        if not getattr(settings, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be more than 0")
    if queue < 0:
        raise UsageError("--queue must be at least 0")
    token = settings.token or os.environ.get(TOKEN_VARIABLE) or None
    made = None if token or is_loopback(host) else secrets.token_urlsafe(32)
    if token and not re.fullmatch(r"[!-~]+", token):
        raise UsageError("a token is made of ASCII letters, digits and signs, without spaces")
    settings = replace(settings, token=token or made, names=(host, *settings.names))
    stages = tuple(settings.defaults.values())
    pool = Pool([Worker(device, stages, settings.seconds) for device in devices], queue)
    try:
        with listen(host, port) as listener:
            asyncio.run(_run(create_app(pool, settings), pool, host, listener, made))
    except KeyboardInterrupt:  # told to stop, which is how it is meant to end
        show("stopped")


async def _run(
    app: Starlette, pool: Pool, host: str, listener: socket.socket, token: str | None
) -> None:
    """Serve while the workers live, which end here: a thread may wait for each."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off"
    )
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    try:
        await pool.start()
        if token is not None:
            show(f"the token of this run is {token}")
            show(f"open the page once with {address}?token={token}")
        show(f"serving at {address} (Ctrl-C stops it)")
        sys.stdout.flush()
        await _Server(config, pool).serve(sockets=[listener])
    finally:
        pool.stop()


class _Server(uvicorn.Server):
    """Says why it does not end at once, and ends the workers."""

    def __init__(self, config: uvicorn.Config, pool: Pool) -> None:
        super().__init__(config)
        self._pool = pool

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        first = not self.should_exit
        super().handle_exit(number, frame)
        if first and self._pool.taken:
            say("finishing what is under way; Ctrl-C again ends it at once")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._pool.stop()
        if left := set(self.server_state.tasks):  # whose work is not waited for; they hear of it
            await asyncio.wait(left, timeout=1)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
