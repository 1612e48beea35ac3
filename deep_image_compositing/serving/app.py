"""The ASGI application: the web page, and the HTTP API that ``openapi.json`` describes.

It never fetches a URL, and no path in a request reaches the file system.
"""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from deep_image_compositing import __version__
from deep_image_compositing.errors import UsageError
from deep_image_compositing.serving.jobs import (
    OPTIONS,
    PICTURES,
    Answer,
    Settings,
    list_choices,
    read_job,
)
from deep_image_compositing.serving.pool import Busy, Pool
from deep_image_compositing.web import Gate

_MAX_TEXT = 10_000  # bytes of a text field
_RETRY_AFTER = "5"  # seconds
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def create_app(pool: Pool, settings: Settings) -> Starlette:
    """Create the application for a single server process; the caller starts and stops the pool."""
    api = _Api(pool, settings)
    return Starlette(
        routes=[
            Route("/", api.page),
            Route("/page/{name}", api.page),
            Route("/health", api.health),
            Route("/openapi.json", api.description),
            Route("/api/stages", api.stages),
            *(Route(f"/api/{kind}", api.make, methods=["POST"]) for kind in PICTURES),
        ],
        middleware=[Middleware(Gate, settings.names, refuse, settings.token)],
        exception_handlers=dict.fromkeys((HTTPException, UsageError, Busy, Exception), _on_error),
    )


class _Api:
    def __init__(self, pool: Pool, settings: Settings) -> None:
        self.pool, self.settings = pool, settings
        folder = files(__package__)
        self.files = {page.name: page.read_bytes() for page in (folder / "page").iterdir()}
        self.openapi = json.loads((folder / "openapi.json").read_bytes())
        self.openapi["info"]["version"] = __version__

    async def page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self.files:
            raise HTTPException(404, "there is no such file")
        kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        headers = {"content-type": kind, "cache-control": "no-cache"}
        return Response(self.files[name], headers=headers)

    async def health(self, request: Request) -> Response:
        alive = [worker.alive for worker in self.pool.workers]
        content = {
            "status": "ok", "version": __version__, "workers": len(alive),
            "workers_alive": sum(alive), "requests": self.pool.active, "queue": self.pool.queue,
        }  # fmt: skip
        return JSONResponse(content)

    async def description(self, request: Request) -> Response:
        return JSONResponse(self.openapi)

    async def stages(self, request: Request) -> Response:
        limits = {"bytes": self.settings.max_bytes, "pixels": self.settings.max_pixels}
        return JSONResponse({**list_choices(self.settings.defaults), "limits": limits})

    async def make(self, request: Request) -> Response:
        """Make an image; the place in the queue is reserved before the files are read."""
        kind = request.url.path.rpartition("/")[2]
        try:
            with self.pool.reserve():
                media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if media != "multipart/form-data":
                    raise HTTPException(415, "expected multipart/form-data")
                pictures, fields = await self._receive(request, _read_form, kind)
                job = read_job(kind, pictures, fields, self.settings)
                answer = await _while_connected(request, self.pool.run(job))
        except Busy:
            await self._receive(request, _discard)  # clients read no answer while they send
            raise
        if answer.status != 200:
            return refuse(answer.status, answer.body.decode())
        return Response(answer.body, headers=answer.headers)

    async def _receive(self, request: Request, read: Any, *args: Any) -> Any:
        """Read a request's body with ``read``, within the limits on bytes and seconds."""
        limit, received = self.settings.max_bytes, 0

        async def receive() -> Message:
            nonlocal received
            message = await request.receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"a request may have at most {limit:,} bytes")
            return message

        try:
            async with asyncio.timeout(self.settings.seconds):
                return await read(Request(request.scope, receive), *args)
        except TimeoutError:
            raise HTTPException(408, "the request did not arrive in time") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client disconnected") from None


async def _read_form(request: Request, kind: str) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """Read the files and the text fields of a form."""
    pictures: dict[str, bytes] = {}
    texts: list[tuple[str, str]] = []
    limits = {"max_files": len(PICTURES[kind]), "max_fields": 3 * len(OPTIONS[kind])}
    async with request.form(**limits, max_part_size=_MAX_TEXT) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                texts.append((name, value))
            elif name in pictures:
                raise UsageError(f"the field {name!r} is given twice")
            else:
                pictures[name] = await value.read()
    return pictures, texts


async def _discard(request: Request) -> None:
    async for _ in request.stream():
        pass


async def _while_connected(request: Request, work: Any) -> Answer:
    """Await ``work``, but cancel it when the client disconnects."""
    task: asyncio.Task[Answer] = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(400, "the client disconnected")
        if task.cancelled():
            raise HTTPException(503, "the server was stopped")
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()


def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return refuse(error.status_code, str(error.detail), dict(error.headers or {}))
    if isinstance(error, UsageError):
        return refuse(400, str(error))
    if isinstance(error, Busy):
        headers = {"retry-after": _RETRY_AFTER}
        return refuse(503, "too many requests are waiting; try again soon", headers)
    return refuse(500, "the server failed; see its log")


def refuse(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Build an error response, always of the form ``{"error": "a sentence"}``."""
    return JSONResponse({"error": error}, status, headers)
