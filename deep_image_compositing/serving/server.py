"""The server process: listens, starts the workers, serves and shuts down cleanly."""

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
"""Environment variable with the token to use if none is passed."""


def serve(
    settings: Settings, host: str, port: int, devices: Sequence[str], queue: int = 32
) -> None:
    """Serve the page and the API, with one worker per device, until interrupted.

    The token is that of the settings, else of the environment variable; if there is none and other
    machines can reach ``host``, a random one is generated and printed. Raises ``UsageError`` for an
    unavailable address or device or an invalid limit, ``CompositingError`` if a stage cannot be
    created.
    """
    for name in ("max_bytes", "max_pixels", "seconds"):
        if not getattr(settings, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be more than 0")
    if queue < 0:
        raise UsageError("--queue must be at least 0")
    token = settings.token or os.environ.get(TOKEN_VARIABLE) or None
    generated = None if token or is_loopback(host) else secrets.token_urlsafe(32)
    if token and not re.fullmatch(r"[!-~]+", token):
        raise UsageError("a token may hold only ASCII letters, digits and symbols, without spaces")
    settings = replace(settings, token=token or generated, names=(host, *settings.names))
    stages = tuple(settings.defaults.values())
    pool = Pool([Worker(device, stages, settings.seconds) for device in devices], queue)
    try:
        with listen(host, port) as listener:
            asyncio.run(_run(create_app(pool, settings), pool, host, listener, generated))
    except KeyboardInterrupt:  # the normal way to stop the server
        show("stopped")


async def _run(
    app: Starlette, pool: Pool, host: str, listener: socket.socket, token: str | None
) -> None:
    """Start the workers, serve, and stop the workers."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off"
    )
    url_host = f"[{host}]" if ":" in host else host
    address = f"http://{url_host}:{listener.getsockname()[1]}/"
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
    """Announces that it waits for running requests, and stops the workers on shutdown."""

    def __init__(self, config: uvicorn.Config, pool: Pool) -> None:
        super().__init__(config)
        self._pool = pool

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        first = not self.should_exit
        super().handle_exit(number, frame)
        if first and self._pool.active:
            say("finishing the running requests; press Ctrl-C again to stop at once")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._pool.stop()
        if pending := set(self.server_state.tasks):  # aborted requests still get their answer
            await asyncio.wait(pending, timeout=1)


def is_loopback(host: str) -> bool:
    """Whether a server at ``host`` can be reached only from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
