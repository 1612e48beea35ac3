"""Listening: an address, a token, workers that are ready, and an end in order."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.messages import say, show
from deep_image_compositing.serving.app import MAX_BYTES, MAX_PIXELS, SECONDS, create_app
from deep_image_compositing.serving.jobs import DEFAULTS, Stage
from deep_image_compositing.serving.pool import Pool, make_workers

TOKEN_VARIABLE = "DEEP_IMAGE_COMPOSITING_TOKEN"
"""Environment variable that holds the token, where none is given."""


def serve(
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str | None = None,
    devices: Sequence[str] = ("auto",),
    defaults: Mapping[str, Stage] = DEFAULTS,
    queue: int = 32,
    max_bytes: int = MAX_BYTES,
    max_pixels: int | None = MAX_PIXELS,
    seconds: float = SECONDS,
    names: Sequence[str] = (),
) -> None:
    """Serve the page and the interface until the process is told to stop.

    Args:
        host: address to listen at; one that others can reach needs a token.
        port: 0 for any free one.
        token: what clients must know; None for that of the environment variable
            ``DEEP_IMAGE_COMPOSITING_TOKEN``, or a random one, which is shown, where one is needed.
        devices: one worker for each.
        defaults: what fills the slots unless a client says otherwise.
        queue: requests that may wait.
        max_bytes: of a request.
        max_pixels: of a photograph.
        seconds: in which a request must have arrived, and again in which it must be worked off.
        names: further names under which it is reached.

    Raises:
        UsageError: an address or a device that cannot be had, or a limit that leaves nothing.
        MissingExtraError: what the extra ``serve`` installs is not there.
    """
    for module in ("uvicorn", "python_multipart"):
        import_extra(module, "serve", "serve")
    limits = {"queue": queue, "max-bytes": max_bytes, "seconds": seconds, "max-pixels": max_pixels}
    for name, limit in limits.items():
        if limit is not None and not limit >= (name != "queue"):
            raise UsageError(f"--{name} is too small: {limit}")
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    made = None
    if token is None and not is_loopback(host):
        token = made = secrets.token_urlsafe(32)
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UsageError("a token is made of ASCII letters, digits and signs, without spaces")
    pool = Pool(make_workers(devices, dict(defaults), seconds), queue)
    app = create_app(
        pool, defaults=defaults, max_bytes=max_bytes, max_pixels=max_pixels, seconds=seconds,
        names=(host, *names), token=token,
    )  # fmt: skip
    try:
        with listen(host, port) as listener:
            asyncio.run(_run(app, pool, host, listener, made))
    except KeyboardInterrupt:  # told to stop, which is how it is meant to end
        show("stopped")
    finally:
        pool.stop()


async def _run(
    app: object, pool: Pool, host: str, listener: socket.socket, token: str | None
) -> None:
    uvicorn = import_extra("uvicorn", "serve", "serve")

    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        def handle_exit(self, number: int, frame: FrameType | None) -> None:
            if not self.should_exit and pool.taken:
                say("finishing what is under way; Ctrl-C again ends it at once")
            super().handle_exit(number, frame)

    await pool.start()
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    if token is not None:
        show(f"the token of this run is {token}")
        show(f"open the page once with {address}?token={token}")
    show(f"serving at {address} (Ctrl-C stops it)")
    sys.stdout.flush()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off"
    )
    await Server(config).serve(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port is known before anything slow.

    Raises:
        UsageError: an address that cannot be had.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"a port is a number from 0 to 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; give another "
            "--host or --port"
        ) from error
