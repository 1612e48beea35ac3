"""The interface by Starlette's test client, with a worker that only takes notes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")

from starlette.testclient import TestClient

from deep_image_compositing import registry
from deep_image_compositing.serving.app import create_app
from deep_image_compositing.serving.jobs import OPTIONS, OUTPUTS, PICTURES, Answer, Job, Settings
from deep_image_compositing.serving.pool import Pool
from deep_image_compositing.settings import Shadow
from deep_image_compositing.web import COOKIE
from tests.serving.light import InProcess

FORM = {"content-type": "multipart/form-data"}
PAIR = {"foreground": b"front", "background": b"back"}


@pytest.fixture
def worker() -> InProcess:
    return InProcess()


@pytest.fixture
def client(worker: InProcess) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of an application with the given options."""
    opened = []

    def make(base: str = "http://127.0.0.1:8000", queue: int = 4, **options: Any) -> TestClient:
        app = create_app(Pool([worker], queue), Settings(**options))
        made = TestClient(app, base, raise_server_exceptions=False, follow_redirects=False)
        opened.append(made.__enter__())
        return made

    yield make
    for made in opened:
        made.__exit__(None, None, None)


def post(client: TestClient, kind: str = "composite", files: Any = PAIR, **fields: Any) -> Any:
    sent = [(name, (f"{name}.png", data)) for name, data in files.items()]
    return client.post(f"/api/{kind}", files=sent, data=fields)


def test_a_form_becomes_a_job(client: Callable[..., TestClient], worker: InProcess) -> None:
    answer = post(
        client(), files={**PAIR, "mask": b"where"}, refiner="none", fuser="feather",
        fuser_option="sigma=3.5", harmonizer="reinhard", harmonizer_option="strength=0.25",
        shadow="cast", shadow_option=["direction=left", "length=0.5"],
        frame="background", scale="0.5", position="0.25,1", format="webp", output="alpha",
    )  # fmt: skip
    assert (answer.status_code, answer.content) == (200, b"a picture")
    assert answer.headers["cache-control"] == "no-store"
    stages = (
        ("pyramid", ()), ("none", ()), ("feather", (("sigma", 3.5),)),
        ("reinhard", (("strength", 0.25),)),
    )  # fmt: skip
    assert worker.jobs == [
        Job(b"front", b"back", b"where", b"", stages, "background", 0.5,
            (0.25, 1.0), "alpha", "webp", 50_000_000,
            Shadow("cast", direction=145.0, length=0.5))
    ]  # fmt: skip


def test_what_is_not_said_is_the_library_s_default(
    client: Callable[..., TestClient], worker: InProcess
) -> None:
    assert post(client()).status_code == 200
    assert worker.jobs == [Job(b"front", b"back", max_pixels=50_000_000)]
    assert post(client(), "cutout", {"foreground": b"front"}).status_code == 200
    assert post(client(), "mask", {"foreground": b"front", "strokes": b"s"}).status_code == 200
    assert [job.output for job in worker.jobs] == ["composite", "cutout", "mask"]
    assert worker.jobs[-1].strokes == b"s"


def test_whoever_runs_the_server_may_set_what_clients_may_not(
    client: Callable[..., TestClient], worker: InProcess
) -> None:
    defaults = {
        "segmenter": ("onnx", (("path", "own.onnx"),)),
        "refiner": ("cascade", (("trust", 1.5), ("zoom", 1.2))),
        "fuser": ("alpha", ()),
        "harmonizer": ("hf://own/light", ()),
    }
    own = client(defaults=defaults)
    for slot, entries in own.get("/api/stages").json().items():
        if slot in defaults:
            assert [one["name"] for one in entries if one["default"]] == [defaults[slot][0]]
    assert post(own, harmonizer="hf://other/light").status_code == 400
    assert post(own, refiner_option="zoom=1.4").status_code == 200
    assert worker.jobs[0].stages == (
        defaults["segmenter"], ("cascade", (("trust", 1.5), ("zoom", 1.4))), ("alpha", ()),
        defaults["harmonizer"],
    )  # fmt: skip
    assert post(own, refiner="none").status_code == 200
    assert worker.jobs[1].stages[1] == ("none", ())


@pytest.mark.parametrize(
    ("files", "fields", "said"),
    [
        ({"foreground": b"f"}, {}, "'background' is missing"),
        ({**PAIR, "foreground": b""}, {}, "'foreground' is missing"),
        ({**PAIR, "maks": b"m"}, {}, "did you mean 'mask'"),
        (PAIR, {"fusser": "alpha"}, "did you mean 'fuser'"),
        (PAIR, {"mask": "where.png"}, "'mask' has the wrong type; send it as a file"),
        ({**PAIR, "mask": b"m"}, {"mask": "where.png"}, "send it as a file"),
        ({**PAIR, "fuser": b"alpha"}, {}, "'fuser' has the wrong type; send it as text"),
        (PAIR, {"strokes": "s"}, "unknown field 'strokes'"),
        (PAIR, {"fuser": "alpah"}, "did you mean 'alpha'"),
        (PAIR, {"fuser": ["alpha", "feather"]}, "given 2 times"),
        (PAIR, {"segmenter": "onnx"}, "needs a file"),
        (PAIR, {"segmenter": "onnx", "segmenter_option": "path=/etc/passwd"}, "needs a file"),
        (PAIR, {"refiner_option": "weights=/etc/passwd"}, "takes no weights="),
        (PAIR, {"fuser_option": "widths=[9999]"}, "takes no widths="),
        (PAIR, {"refiner": "none", "refiner_option": "a=1"}, "single values of: nothing"),
        (PAIR, {"refiner_option": "zoom=[1]"}, "takes no zoom=[1]"),
        (PAIR, {"refiner_option": "zoom"}, "KEY=VALUE"),
        (PAIR, {"harmonizer": "rheinhard"}, "did you mean 'reinhard'"),
        (PAIR, {"harmonizer": "reinhard", "harmonizer_option": "strength=2"}, "in [0, 1]"),
        (PAIR, {"harmonizer": "reinhard", "harmonizer_option": "weights=x"}, "takes no weights="),
        (PAIR, {"harmonizer_option": "strength=1"}, "single values of: nothing"),
        (PAIR, {"shadow": "long"}, "none or contact or cast"),
        (PAIR, {"shadow": "contact", "shadow_option": "length=1"}, "takes no option 'length'"),
        (PAIR, {"shadow": "cast", "shadow_option": "length=9"}, "from 0.05 to 4"),
        (PAIR, {"shadow_option": "strength=1"}, "only with shadow="),
        (PAIR, {"frame": "photo"}, "foreground or background"),
        (PAIR, {"scale": "0.5"}, "only with"),
        (PAIR, {"frame": "background", "scale": "-1"}, "above 0"),
        (PAIR, {"frame": "background", "scale": "nan"}, "above 0"),
        (PAIR, {"frame": "background", "scale": "big"}, "scale must be a number"),
        (PAIR, {"frame": "background", "position": "2,0"}, "from 0 to 1"),
        (PAIR, {"format": "gif"}, "png or jpeg or webp"),
        (PAIR, {"output": "cutout", "format": "jpeg"}, "JPEG cannot hold"),
        (PAIR, {"output": "all"}, "composite or cutout or alpha"),
    ],
)
def test_a_wrong_form_is_told_in_a_sentence(
    files: Any, fields: Any, said: str, client: Callable[..., TestClient], worker: InProcess
) -> None:
    answer = post(client(), files=files, **fields)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert said in answer.json()["error"]
    assert not worker.jobs


def test_what_the_worker_says_is_wrong_is_passed_on(
    client: Callable[..., TestClient], worker: InProcess
) -> None:
    worker.answer = Answer(422, "no subject – none".encode())
    answer = post(client())
    assert (answer.status_code, answer.json()) == (422, {"error": "no subject – none"})


def test_every_other_error_has_the_same_form(client: Callable[..., TestClient]) -> None:
    small = client(max_bytes=1000)
    for answer, status in (
        (small.get("/nothing"), 404),
        (small.get("/page/../jobs.py"), 404),
        (small.get("/page/%2e%2e%2fjobs.py"), 404),
        (small.get("/api/composite"), 405),
        (small.post("/api/composite", json={}), 415),
        (post(small, files={**PAIR, "mask": bytes(2000)}), 413),
        (small.post("/api/mask", content=b"x", headers=FORM), 400),
        (post(small, fuser="x" * 20_000), 413),
        (post(client(), fuser="x" * 20_000), 400),
        (post(client(), files=dict.fromkeys("abcdefg", b"x")), 400),
    ):  # fmt: skip
        assert answer.status_code == status
        assert answer.json().keys() == {"error"}


def test_a_full_queue_says_when_to_come_again(client: Callable[..., TestClient]) -> None:
    full = client(queue=-1)
    answer = post(full)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "try again" in answer.json()["error"]
    assert full.get("/health").json()["requests"] == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("192.168.1.5", 200),
        ("photos.example", 200), ("PHOTOS.example.:80", 200), ("rebound.example", 403),
        ("127.0.0.1.rebound.example", 403), ("", 403), ("a@b", 403), ("[::1", 403),
    ],
)  # fmt: skip
def test_only_own_names_are_answered_to(
    host: str, status: int, client: Callable[..., TestClient]
) -> None:
    own = client(names=("photos.example:8443",))
    for path in ("/", "/health", "/api/stages"):
        answer = own.get(path, headers={"host": host})
        assert answer.status_code == status
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200), ("http://127.0.0.1:8000", 200), ("http://photos.example", 200),
        ("https://photos.example:8443", 200), ("https://photos.example:9000", 403),
        ("http://127.0.0.1:9000", 403), ("https://elsewhere.example", 403), ("null", 403),
    ],
)  # fmt: skip
def test_only_own_pages_may_post(
    origin: str | None, status: int, client: Callable[..., TestClient], worker: InProcess
) -> None:
    own = client(names=("photos.example:8443",))
    own.headers.update({} if origin is None else {"origin": origin})
    assert post(own).status_code == status
    assert len(worker.jobs) == (status == 200)


def test_a_token_opens_the_interface_and_the_page(
    client: Callable[..., TestClient], worker: InProcess
) -> None:
    own = client(token="sesame;1")
    for path in ("/", "/page/main.js", "/api/stages", "/openapi.json", "/?token=wrong"):
        answer = own.get(path)
        assert answer.status_code == 401
        assert "token" in answer.json()["error"]
    assert own.get("/health").status_code == 200
    assert post(own).status_code == 401
    assert not worker.jobs
    for given in ("Bearer nonsense", "Basic c2VzYW1lOzE=", "Bearer", "sesame;1"):
        assert own.get("/", headers={"authorization": given}).status_code == 401
    bearer = {"authorization": "Bearer sesame;1"}
    assert own.get("/api/stages", headers=bearer).status_code == 200
    answer = own.get("/?token=sesame%3B1")
    # A proxy may have the page in a folder of its own.
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    deeper = own.get("/api/stages?token=sesame%3B1")
    assert deeper.headers["location"] == "../"
    cookie = answer.headers["set-cookie"].lower()
    assert COOKIE in cookie
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert own.get("/").status_code == 200  # the client has kept the cookie
    assert post(own).status_code == 200


@pytest.mark.parametrize("foreign", ["a/b=1", "a@b=1", 'x={"a": 1}', "é=1", "=;;"])
def test_cookies_of_others_do_not_lock_anybody_out(
    client: Callable[..., TestClient], foreign: str
) -> None:
    cookies = f"{foreign}; {COOKIE}=sesame".encode()
    assert client(token="sesame").get("/", headers={"cookie": cookies}).status_code == 200


class Slow(InProcess):
    """A worker that waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def perform(self, job: Job) -> Answer:
        await self.go.wait()
        return await super().perform(job)


async def ask(app: Any, name: bytes, *, ends: bool = True, leaves: bool = False) -> dict[str, Any]:
    """What a request for a cut-out is answered, by ASGI itself: the test client never leaves."""
    part = b"--b\r\nContent-Disposition: form-data; name=%b; filename=f\r\n\r\n%b\r\n--b--\r\n"
    form = b"multipart/form-data; boundary=b"
    scope = {
        "type": "http", "method": "POST", "path": "/api/cutout", "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", form)],
    }  # fmt: skip
    events = [{"type": "http.request", "body": part % (b"foreground", name)}] if ends else []
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not events and not leaves:
            await asyncio.Event().wait()
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return {**sent[0], "body": sent[1]["body"]}


def test_who_leaves_while_waiting_is_not_worked_for() -> None:
    async def run() -> None:
        worker = Slow()
        pool = Pool([worker])
        app = create_app(pool, Settings(seconds=5))
        first = asyncio.ensure_future(ask(app, b"first"))
        await asyncio.sleep(0.2)
        assert (await ask(app, b"second", leaves=True))["status"] == 400
        worker.go.set()
        assert (await first)["status"] == 200
        assert (await ask(app, b"third"))["status"] == 200
        assert [job.foreground for job in worker.jobs] == [b"first", b"third"]
        assert pool.active == 0

    asyncio.run(run())


def test_a_request_that_does_not_arrive_is_told(worker: InProcess) -> None:
    app = create_app(Pool([worker]), Settings(seconds=0.05))
    answer = asyncio.run(ask(app, b"", ends=False))
    assert answer["status"] == 408
    assert b"in time" in answer["body"]


def test_the_description_is_of_these_routes(client: Callable[..., TestClient]) -> None:
    own = client()
    told = own.get("/openapi.json").json()
    routes = {route.path: route.methods - {"HEAD"} for route in own.app.routes}
    del routes["/"], routes["/page/{name}"]
    paths = {path: {method.upper() for method in told["paths"][path]} for path in told["paths"]}
    assert paths == routes
    schemas = told["components"]["schemas"]
    for kind in PICTURES:
        schema = schemas[kind.capitalize()]
        assert set(schema["properties"]) == {*PICTURES[kind], *OPTIONS[kind]}
        assert schema["required"] == [
            name for name in PICTURES[kind] if name not in ("mask", "strokes")
        ]
    fields = schemas["Composite"]["properties"]
    defaults = {field.name: field.default for field in dataclasses.fields(Job)}
    assert fields["output"]["enum"] == list(OUTPUTS)
    assert fields["scale"]["default"] == defaults["scale"]
    for slot, name in registry.DEFAULTS.items():
        assert fields[slot]["default"] == name
    for name in ("format", "frame", "output", "shadow"):
        schema = schemas["Format"] if name == "format" else fields[name]
        for value in schema["enum"]:
            assert post(own, **{name: value}).status_code == 200
        assert post(own, **{name: schema["default"]}).status_code == 200
    assert set(schemas["Health"]["required"]) == set(own.get("/health").json())
    references = {text.split('"')[0] for text in json.dumps(told).split('"$ref": "#/')[1:]}
    for reference in references:
        place = told
        for part in reference.split("/"):
            place = place[part]


def test_the_page_names_no_other_place(client: Callable[..., TestClient]) -> None:
    own = client()
    text = own.get("/").text
    for name in ("main.js", "view.js", "place.js", "brush.js", "api.js", "serve.css", "icon.svg"):
        answer = own.get(f"/page/{name}")
        assert answer.status_code == 200
        text += answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "//" not in text.replace("// ", "")
    assert "style=" not in text  # the policy for contents forbids it
