"""What the study's server answers to each request; ``server`` puts it behind its routes.

A person is known by a cookie; below ``api/`` everything is JSON:

========================  ==========================================================
``GET study``             number of sets; the person, if known, and how far they are
``POST people``           ``{"name": "..."}``, joins; sets the cookie
``POST leave``            forgets the cookie, so that somebody else can take part
``GET sets/ID``           the pictures of a set in the person's order; their choice
``PUT sets/ID/draft``     ``{"ranking": [TOKEN or null, ...]}``, the choice so far
``PUT sets/ID/answer``    ``{"ranking": [TOKEN, TOKEN, TOKEN]}``, confirmed
========================  ==========================================================
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.study.folder import (
    SUFFIX,
    PictureSet,
    Study,
    picture_path,
)
from deep_image_compositing.evaluation.study.store import MAX_NAME, Person, Store

MAX_BODY = 4096
"""Bytes of a request's body; the largest that the page sends has a few hundred."""

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "study.js": "text/javascript; charset=utf-8",
    "study.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_YEAR = 365 * 24 * 3600


class Api:
    """The handlers of one study: its page, its pictures, and its people's choices."""

    def __init__(
        self, study: Study, store: Store, folder: str | Path, intro: list[str] | None
    ) -> None:
        self.study, self.store, self.intro = study, store, intro
        self.sets = {item.id: item for item in study.shown}
        tokens = (token for item in study.shown for token in item.tokens())
        self.pictures = {f"{token}{SUFFIX}": picture_path(folder, token) for token in tokens}
        self.files = {name: (files(__package__) / "page" / name).read_bytes() for name in _TYPES}
        self.cookie = f"study-{study.id[:12]}"  # ports share cookies: two studies need two names

    def page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self.files:
            raise HTTPException(404, "there is no such file")
        headers = {"content-type": _TYPES[name], "cache-control": "no-cache"}
        return Response(self.files[name], headers=headers)

    def picture(self, request: Request) -> Response:
        path = self.pictures.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such picture")
        # Not as a file: its date would tell in which order the methods were rendered.
        headers = {"cache-control": f"private, max-age={_YEAR}, immutable"}
        return Response(path.read_bytes(), media_type="image/webp", headers=headers)

    def about(self, request: Request) -> Response:
        content: dict[str, Any] = {"sets": len(self.sets), "results": len(self.study.methods)}
        content |= {"intro": self.intro, "person": None}
        person = self.store.person(request.cookies.get(self.cookie, ""))
        if person is not None:
            done = {answer.picture_set for answer in self.store.answers(person) if answer.ranking}
            order = self.study.order(person.token)
            sets = [{"id": item.id, "answered": item.id in done} for item in order]
            content["person"] = {"name": person.name, "sets": sets}
        return _answer(content)

    async def join(self, request: Request) -> Response:
        name = (await _body(request)).get("name", "")
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise HTTPException(400, f"a name is text of at most {MAX_NAME} characters")
        token = request.cookies.get(self.cookie, "")
        person = await run_in_threadpool(self.store.person, token)
        if person is None:  # a button pressed twice makes one person
            person = await run_in_threadpool(self.store.join, name.strip())
        response = _answer({"name": person.name})
        response.set_cookie(
            self.cookie, person.token, max_age=_YEAR, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    async def leave(self, request: Request) -> Response:
        await _body(request)
        response = _answer({})
        response.delete_cookie(self.cookie, httponly=True, samesite="strict")
        return response

    def picture_set(self, request: Request) -> Response:
        person, item = self._person(request), self._set(request)
        mine = [answer for answer in self.store.answers(person) if answer.picture_set == item.id]
        order = item.order(person.token)
        return _answer(
            {
                "id": item.id,
                "height": item.size[0],
                "width": item.size[1],
                "foreground": f"pictures/{item.foreground}{SUFFIX}",
                "background": f"pictures/{item.background}{SUFFIX}",
                "results": [{"id": t, "url": f"pictures/{t}{SUFFIX}"} for t in order],
                "draft": mine[0].draft if mine else (None, None, None),
                "answered": bool(mine and mine[0].ranking),
            }
        )

    async def draft(self, request: Request) -> Response:
        return await self._save(request, complete=False)

    async def answer(self, request: Request) -> Response:
        return await self._save(request, complete=True)

    async def _save(self, request: Request, complete: bool) -> Response:
        body = await _body(request)
        person, item = await run_in_threadpool(self._person, request), self._set(request)
        try:
            ranking = item.check(body.get("ranking", ()), complete=complete)
        except UsageError as error:
            raise HTTPException(400, str(error)) from error
        save = self.store.save_answer if complete else self.store.save_draft
        await run_in_threadpool(save, person, item.id, ranking)
        return _answer({})

    def _person(self, request: Request) -> Person:
        person = self.store.person(request.cookies.get(self.cookie, ""))
        if person is None:
            raise HTTPException(401, "begin at the first page")
        return person

    def _set(self, request: Request) -> PictureSet:
        item = self.sets.get(request.path_params["set"])
        if item is None:
            raise HTTPException(404, "there is no such set")
        return item


def _answer(content: Any) -> JSONResponse:
    return JSONResponse(content, headers={"cache-control": "no-store"})


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings; no more than ``MAX_BODY`` bytes are read."""
    # Forms of other sites cannot send this type.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    data = b""
    try:
        async for part in request.stream():
            data += part
            if len(data) > MAX_BODY:
                raise HTTPException(413, f"a request has at most {MAX_BODY} bytes")
    except ClientDisconnect:  # nobody will read this
        raise HTTPException(400, "the request broke off") from None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is no JSON") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "the request is no JSON object")
    return content
