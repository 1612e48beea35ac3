"""The application: the page, and an interface for programs, which ``openapi.json`` describes.

No address is ever fetched, and no path of a request reaches the disk.
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

_MAX_TEXT = 10_000  # bytes of a field that is no file
_RETRY = "5"  # seconds after which whoever was turned away may come again
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def create_app(pool: Pool, settings: Settings) -> Starlette:
    """The application, for one ASGI server process; who runs it starts and stops the pool."""
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
        exception_handlers=dict.fromkeys((HTTPException, UsageError, Busy, Exception), _failed),
    )


class _Api:
    """The handlers."""

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
            "workers_alive": sum(alive), "requests": self.pool.taken, "queue": self.pool.queue,
        }  # fmt: skip
        return JSONResponse(content)

    async def description(self, request: Request) -> Response:
        return JSONResponse(self.openapi)

    async def stages(self, request: Request) -> Response:
        limits = {"bytes": self.settings.max_bytes, "pixels": self.settings.max_pixels}
        return JSONResponse({**list_choices(self.settings.defaults), "limits": limits})

    async def make(self, request: Request) -> Response:
        """A picture; the place in the queue is taken before its files are read."""
        kind = request.url.path.rpartition("/")[2]
        try:
            with self.pool.place():
                form = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if form != "multipart/form-data":
                    raise HTTPException(415, "expected multipart/form-data")
                pictures, fields = await self._arrived(request, _read_form, kind)
                job = read_job(kind, pictures, fields, self.settings)
                answer = await _while_there(request, self.pool.run(job))
        except Busy:
            await self._arrived(request, _passed_over)  # else its sender would not hear why
            raise
        if answer.status != 200:
            return refuse(answer.status, answer.body.decode())
        return Response(answer.body, headers=answer.headers)

    async def _arrived(self, request: Request, read: Any, *more: Any) -> Any:
        """What ``read`` makes of a request's body, within the limits of bytes and seconds."""
        most, received = self.settings.max_bytes, 0

        async def receive() -> Message:
            nonlocal received
            message = await request.receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, f"a request has at most {most:,} bytes here")
            return message

        try:
            async with asyncio.timeout(self.settings.seconds):
                return await read(Request(request.scope, receive), *more)
        except TimeoutError:
            raise HTTPException(408, "the request did not arrive in time") from None
        except ClientDisconnect:  # nobody will read this
            raise HTTPException(400, "the request broke off") from None


async def _read_form(request: Request, kind: str) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """The files and the texts of a form."""
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


async def _passed_over(request: Request) -> None:
    async for _ in request.stream():
        pass


async def _while_there(request: Request, work: Any) -> Answer:
    """What ``work`` gives; it is left off when the client has gone before it has begun."""
    task: asyncio.Task[Answer] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(400, "the request broke off")  # nobody will read this
        if task.cancelled():
            raise HTTPException(503, "the server was stopped")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def _failed(request: Request, error: Exception) -> Response:
    """The answer to whatever was raised."""
    if isinstance(error, HTTPException):
        return refuse(error.status_code, str(error.detail), dict(error.headers or {}))
    if isinstance(error, UsageError):
        return refuse(400, str(error))
    if isinstance(error, Busy):
        return refuse(503, "too many requests wait; try again soon", {"retry-after": _RETRY})
    return refuse(500, "the server failed; its log says why")


def refuse(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one form in which errors are told: ``{"error": "a sentence"}``."""
    return JSONResponse({"error": error}, status, headers)
