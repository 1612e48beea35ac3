"""Requests to the study's server, sent in this process."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from deep_image_compositing.errors import CompositingError
from tests.cases import Read
from tests.hostile.damage import dumps, junk, spoil

HEADERS = {
    "host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000", "accept": "*/*", "cookie": "",
    "content-type": "application/json",
}  # fmt: skip
VALUES = (
    "", "\xff\xfe", "evil.example", "http://evil.example", "null", "-1", "9" * 30, "[::1", "a:b:c",
    "x=" * 5000, 'study-="', "multipart/form-data; boundary=", "\0",
)  # fmt: skip
PATHS = (
    "/../study.json", "//evil", "/pictures/../study.json", "/%00", "/a\0b", "", "/api/sets/", "*",
    "/pictures/", "/page/..", "/" + "a" * 99_999, "/api/sets/\ud800", "/é",
)  # fmt: skip


@functools.cache
def sound_study() -> Path:
    """A folder with a study in it."""
    from tests.evaluation.study.made import made_study

    folder = Path(tempfile.mkdtemp()) / "study"
    made_study(folder, sets=1)
    return folder


async def ask(
    app: Any, method: str, path: str, headers: dict[str, str], parts: list[bytes]
) -> tuple[int, dict[bytes, bytes]]:
    """Send a request and return status and headers; disconnects unless the last part is empty."""
    sent: list[dict[str, Any]] = []
    remaining = iter(parts)

    async def receive() -> dict[str, Any]:
        part = next(remaining, None)
        message = {"type": "http.request", "body": part, "more_body": bool(part)}
        return {"type": "http.disconnect"} if part is None else message

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "scheme": "http", "method": method, "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"), "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 9), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    await app(scope, receive, send)
    return (sent[0]["status"], dict(sent[0]["headers"])) if sent else (0, {})


def requests(rng: Random, folder: Path) -> Read:
    """A request to the study's server, from a participant or a stranger."""
    from deep_image_compositing.evaluation.study.folder import Store, Study
    from deep_image_compositing.evaluation.study.server import create_app

    study = Study.open(sound_study())
    item = study.shown[0]
    answer = {"ranking": list(item.results)[:3]}
    method, path, content = rng.choice((
        ("POST", "/join", {"name": "Ann"}), ("GET", "/", None),
        ("POST", f"/sets/{item.id}", answer), ("GET", "/page/study.css", None),
        ("GET", f"/pictures/{item.foreground}.webp", None),
    ))  # fmt: skip
    body, headers, action = dumps(content, rng), dict(HEADERS), rng.randrange(8)
    if action == 0:
        headers[rng.choice((*headers, "content-length", "x" * 9000))] = rng.choice(VALUES)
    elif action == 1:
        headers = {key: value for key, value in headers.items() if rng.random() < 0.6}
    elif action == 2:
        method = rng.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "x"))
    elif action == 3:
        path = rng.choice(PATHS)
    elif action == 4:
        body = rng.choice((spoil(body, rng), b"x" * 10**6, b"--x\r\n" * 99, b"\xff"))
    elif action < 7:
        body = dumps(junk(content, rng), rng)
    headers.setdefault("content-length", str(len(body)))
    parts = [body[:9], body[9:], b""] if rng.random() < 0.9 else [body[:9]]
    stranger = rng.random() < 0.2

    def read() -> None:
        with Store(folder / "answers.sqlite", study.id) as store:
            app = create_app(study, store, sound_study())
            if not stranger and headers.get("cookie") == "":
                joining = {**HEADERS, "content-length": "2"}
                _, answer = asyncio.run(ask(app, "POST", "/join", joining, [b"{}", b""]))
                headers["cookie"] = answer[b"set-cookie"].decode().partition(";")[0]
            status, _ = asyncio.run(ask(app, method, path, headers, parts))
        if status >= 500:
            raise AssertionError(f"status {status}")
        if status >= 400:
            raise CompositingError(f"status {status}")

    return read
