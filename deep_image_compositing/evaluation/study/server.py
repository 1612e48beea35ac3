"""The web server of a study: its page, its pictures, and what people choose.

A person is known by a cookie. ``GET`` gives the page, for ``?set=N`` the person's Nth set, but none
beyond the first that is open. Bodies are JSON:

==================  ==========================================================
``POST join``       ``{"name": "..."}``; sets the cookie
``POST leave``      ``{}``; forgets it, so that somebody else can take part
``POST sets/ID``    ``{"ranking": [TOKEN or null, ...], "confirmed": BOOLEAN}``
==================  ==========================================================

Nothing that is sent tells which method made a picture: names are random tokens, the order is
shuffled per person, and the headers carry no file dates. Of pictures only those of ``study.json``
are served. Only names of its own are answered to, and only its own page may write, so that no
other site can use it through somebody's browser.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import CompositingError, MissingExtraError, UsageError
from deep_image_compositing.evaluation.rendering import render
from deep_image_compositing.evaluation.study.folder import (
    ANSWERS,
    PLACES,
    Person,
    Store,
    Study,
    picture_path,
)
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import check_regular
from deep_image_compositing.messages import show

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from deep_image_compositing.web import Gate, listen
except ImportError:
    raise MissingExtraError("study serve", "starlette", "study") from None

MAX_BODY = 4096  # bytes of a request's body; the largest that the page sends has a few hundred
MAX_NAME = 80  # characters of a person's name

_YEAR = 365 * 24 * 3600


def serve(
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    intro: str | Path | None = None,
    allowed_hosts: Iterable[str] = (),
) -> None:
    """Serve a study until the process is told to stop; answers go to ``answers.sqlite``.

    Args:
        folder: what ``study make`` made; UsageError or DataError where it cannot be served.
        host: address to listen at; ``0.0.0.0`` for the whole network.
        port: 0 for any free one; UsageError for one that cannot be had.
        intro: a text file for the first page; paragraphs are parted by empty lines.
        allowed_hosts: further names under which people reach it; see ``create_app``.
    """
    uvicorn = import_extra("uvicorn", "study serve")
    study = Study.open(folder)
    text = None if intro is None else _paragraphs(Path(intro))
    with Store(Path(folder) / ANSWERS, study.id) as store, listen(host, port) as listener:
        app = create_app(study, store, folder, intro=text, allowed_hosts=[host, *allowed_hosts])
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        address = f"[{host}]" if ":" in host else host
        show(
            f"study at http://{address}:{listener.getsockname()[1]}/ "
            "(Ctrl-C stops the server; answers are kept)"
        )
        sys.stdout.flush()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # told to stop, which is how it is meant to end
            show(f"stopped; people so far: {len(store.people())}")


def create_app(
    study: Study,
    store: Store,
    folder: str | Path,
    *,
    intro: list[str] | None = None,
    allowed_hosts: Iterable[str] = (),
) -> Starlette:
    """The application: ``serve`` runs it, and so can any other ASGI server, in one process.

    It answers to ``allowed_hosts`` besides addresses, ``localhost`` and the machine's own name.
    """
    handlers = _Handlers(study, store, folder, intro)
    return Starlette(
        routes=[
            Route("/", handlers.page),
            Route("/pictures/{name}", handlers.picture),
            Route("/join", _with_body(handlers.join), methods=["POST"]),
            Route("/leave", _with_body(handlers.leave), methods=["POST"]),
            Route("/sets/{set}", _with_body(handlers.save), methods=["POST"]),
            Mount("/page", StaticFiles(directory=Path(__file__).with_name("page"))),
        ],
        middleware=[Middleware(Gate, allowed_hosts, _refuse)],
        exception_handlers=dict.fromkeys((CompositingError, OSError), _failed),
    )


class _Handlers:
    """What is answered to each request."""

    def __init__(
        self, study: Study, store: Store, folder: str | Path, intro: list[str] | None
    ) -> None:
        self.study, self.store, self.intro = study, store, intro
        self.sets = {item.id: item for item in study.shown}
        paths = (picture_path(folder, t) for item in study.shown for t in item.tokens())
        self.pictures = {path.name: path for path in paths}
        self.cookie = f"study-{study.id[:12]}"  # ports share cookies: two studies need two names

    def page(self, request: Request) -> Response:
        person, counts = self._person(request), (len(self.sets), len(self.study.methods))
        if person is None:
            return HTMLResponse(render("study.html", intro=self.intro, counts=counts))
        sets = self.study.order(person.token)
        answers = {answer.picture_set: answer for answer in self.store.answers(person)}
        done = [item.id in answers and answers[item.id].ranking is not None for item in sets]
        number = 1 + [*done, False].index(False)
        if asked := re.fullmatch(r"[1-9]\d{0,8}", request.query_params.get("set", "")):
            number = min(number, int(asked[0]))
        values: dict[str, Any] = {"person": person, "number": number, "counts": counts}
        if number <= len(sets):
            item = sets[number - 1]
            draft = answers[item.id].draft if item.id in answers else (None,) * PLACES
            values |= {"item": item, "results": item.order(person.token), "draft": draft}
            values |= {"done": sum(done), "ahead": sets[number].tokens() if sets[number:] else []}
        return HTMLResponse(render("study.html", **values))

    def picture(self, request: Request) -> Response:
        path = self.pictures.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such picture")
        # Not as a file: its date would tell in which order the methods were rendered.
        headers = {"cache-control": f"private, max-age={_YEAR}, immutable"}
        return Response(path.read_bytes(), media_type="image/webp", headers=headers)

    def join(self, request: Request, body: dict[str, Any]) -> Response:
        name = body.get("name", "")
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise HTTPException(400, f"a name is text of at most {MAX_NAME} characters")
        # A button pressed twice makes one person.
        person = self._person(request) or self.store.join(name.strip())
        response = Response(status_code=204)
        secure = request.url.scheme == "https"
        response.set_cookie(
            self.cookie, person.token, _YEAR, httponly=True, samesite="strict", secure=secure
        )
        return response

    def leave(self, request: Request, body: dict[str, Any]) -> Response:
        response = Response(status_code=204)
        response.delete_cookie(self.cookie, httponly=True, samesite="strict")
        return response

    def save(self, request: Request, body: dict[str, Any]) -> Response:
        person, item = self._person(request), self.sets.get(request.path_params["set"])
        if person is None:
            raise HTTPException(401, "this browser is not known, or not any more")
        if item is None:
            raise HTTPException(404, "there is no such set")
        confirmed = body.get("confirmed") is True
        ranking = item.check(body.get("ranking"), complete=confirmed)
        self.store.save(person, item.id, ranking, confirmed=confirmed)
        return Response(status_code=204)

    def _person(self, request: Request) -> Person | None:
        return self.store.person(request.cookies.get(self.cookie, ""))


def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, UsageError):
        return PlainTextResponse(str(error), 400)
    show(f"error: {error}", file=sys.stderr)
    return PlainTextResponse("the answer could not be stored", 500)


def _with_body(handler: Callable[[Request, dict[str, Any]], Response]) -> Any:
    """A handler that is given the JSON object that the request brings."""

    async def handle(request: Request) -> Response:
        # Forms of other sites cannot send this type.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "expected application/json")
        length = request.headers.get("content-length", "")  # a body without end has none
        if not re.fullmatch(r"\d{1,4}", length) or int(length) > MAX_BODY:
            raise HTTPException(413, f"a request has at most {MAX_BODY} bytes, and says how many")
        try:
            content = await request.json()
        except (ValueError, RecursionError, ClientDisconnect):
            content = None
        if not isinstance(content, dict):
            raise HTTPException(400, "the request is no JSON object")
        return await run_in_threadpool(handler, request, content)

    return handle


def _refuse(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(error, status, headers)


def _paragraphs(path: Path) -> list[str]:
    check_regular(path, UsageError)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    found = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    if not found:
        raise UsageError(f"{path} is empty; it is to tell people what they take part in")
    return found
