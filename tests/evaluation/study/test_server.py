"""The server through its interface, then as a process that is killed."""

from __future__ import annotations

import json
import socket
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from deep_image_compositing.cli import main
from deep_image_compositing.errors import DataError, MissingExtraError, UsageError
from deep_image_compositing.evaluation.study import server
from deep_image_compositing.evaluation.study.folder import ANSWERS, KEY, Store, Study, picture_path
from deep_image_compositing.evaluation.study.server import serve
from tests.evaluation.study.made import METHODS, made_study, serving

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
testclient = pytest.importorskip("starlette.testclient")

Client = Any


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made_study(tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def client(folder: Path) -> Iterator[Callable[..., Client]]:
    """Makes browsers of one and the same server."""
    from deep_image_compositing.evaluation.study.server import create_app

    study = Study.open(folder)
    with Store(folder / ANSWERS, study.id) as store:
        app = create_app(
            study, store, folder, intro=["First.", "Second."], allowed_hosts=["study.example"]
        )

        def browser(name: str | None = None) -> Client:
            made = testclient.TestClient(
                app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False
            )
            if name is not None:
                assert made.post("/api/people", json={"name": name}).status_code == 200
            return made

        yield browser


def first_set(browser: Client) -> dict[str, Any]:
    name = browser.get("/api/study").json()["person"]["sets"][0]["id"]
    found: dict[str, Any] = browser.get(f"/api/sets/{name}").json()
    return found


def rank(browser: Client, item: dict[str, Any], ranking: object, kind: str = "answer") -> Any:
    return browser.put(f"/api/sets/{item['id']}/{kind}", json={"ranking": ranking})


def test_a_person_joins_answers_and_is_known_again(client: Callable[..., Client]) -> None:
    browser = client()
    about = browser.get("/api/study").json()
    assert about == {
        "sets": 3, "results": 5, "intro": ["First.", "Second."], "person": None,
    }  # fmt: skip
    joined = browser.post("/api/people", json={"name": " Ann "})
    assert joined.json() == {"name": "Ann"}
    cookie = joined.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    item = first_set(browser)
    assert item["draft"] == [None, None, None]
    assert not item["answered"]
    assert (item["width"], item["height"]) == (64, 48)
    tokens = [result["id"] for result in item["results"]]
    assert rank(browser, item, [tokens[2], None, tokens[0]], "draft").status_code == 200
    assert first_set(browser)["draft"] == [tokens[2], None, tokens[0]]
    assert not first_set(browser)["answered"]
    assert rank(browser, item, tokens[:3]).status_code == 200
    again = first_set(browser)
    assert again["draft"] == tokens[:3]
    assert again["answered"]
    assert again["results"] == item["results"]
    done = [each["answered"] for each in browser.get("/api/study").json()["person"]["sets"]]
    assert done == [True, False, False]


def test_two_people_do_not_see_each_other(client: Callable[..., Client]) -> None:
    ann, bob = client("Ann"), client("")
    sets = [
        [each["id"] for each in browser.get("/api/study").json()["person"]["sets"]]
        for browser in (ann, bob)
    ]
    assert sorted(sets[0]) == sorted(sets[1])
    orders = [
        [[r["id"] for r in browser.get(f"/api/sets/{name}").json()["results"]] for name in sets[0]]
        for browser in (ann, bob)
    ]
    assert orders[0] != orders[1]
    assert [sorted(order) for order in orders[0]] == [sorted(order) for order in orders[1]]
    rank(ann, {"id": sets[0][0]}, orders[0][0][:3])
    assert bob.get(f"/api/sets/{sets[0][0]}").json()["draft"] == [None, None, None]


def test_a_button_pressed_twice_makes_one_person(
    client: Callable[..., Client], folder: Path
) -> None:
    browser = client("Ann")
    assert browser.post("/api/people", json={"name": "Eve"}).json() == {"name": "Ann"}
    browser.post("/api/leave", json={})
    assert browser.get("/api/study").json()["person"] is None
    browser.post("/api/people", json={"name": "Eve"})
    with Store(folder / ANSWERS, Study.read(folder).id) as store:
        assert [person.name for person in store.people()] == ["Ann", "Eve"]


def test_nothing_that_is_sent_names_a_method(client: Callable[..., Client]) -> None:
    browser = client("Ann")
    item = first_set(browser)
    for path in (
        "/", "/api/study", f"/api/sets/{item['id']}", "/page/study.js", "/" + item["foreground"],
        *("/" + result["url"] for result in item["results"]),
    ):  # fmt: skip
        answer = browser.get(path)
        assert answer.status_code == 200
        sent = answer.content + repr(answer.headers).encode()
        # The page's own words may hold those of a method ("feather"): its names are elsewhere.
        assert not [name for name in METHODS if f'"{name}"'.encode() in sent]
        assert "last-modified" not in answer.headers
        assert "etag" not in answer.headers
    assert b"pair-" not in browser.get(f"/api/sets/{item['id']}").content


@pytest.mark.parametrize(
    "path",
    [
        "/study.json", "/answers.sqlite", "/pictures/", "/pictures/..%2fstudy.json",
        "/pictures/../study.json", "/pictures/%2e%2e/study.json", "/pictures/nothing.webp",
        "/page/../server.py", "/page/%2e%2e%2fserver.py", "/page/server.py", "/api/sets/nothing",
        "/pictures/..%5cstudy.json", "//etc/passwd", "/pictures//etc/passwd", "/page/",
    ],
)  # fmt: skip
def test_nothing_else_is_served(client: Callable[..., Client], path: str) -> None:
    answer = client("Ann").get(path)
    assert answer.status_code == 404
    assert len(answer.content) < 100


def test_pictures_are_kept_by_browsers_and_answers_are_not(
    client: Callable[..., Client], folder: Path
) -> None:
    browser = client("Ann")
    item = first_set(browser)
    token = item["results"][0]["id"]
    picture = browser.get(f"/pictures/{token}.webp")
    assert picture.content == picture_path(folder, token).read_bytes()
    assert picture.headers["content-type"] == "image/webp"
    assert "immutable" in picture.headers["cache-control"]
    assert browser.get("/api/study").headers["cache-control"] == "no-store"
    assert browser.get("/").headers["cache-control"] == "no-cache"
    for path in ("/", "/api/study", "/nothing"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_keeps_the_policy() -> None:
    """No resource from elsewhere, no script or style inside of the page."""
    page = Path(server.__file__).parent / "page"
    text = (page / "index.html").read_text()
    assert "<style" not in text
    assert " style=" not in text
    assert " on" + "click=" not in text
    assert text.count("<script") == 1
    for file in page.iterdir():
        content = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in content.replace("// ", "").replace("//\n", ""), file.name


@pytest.mark.parametrize("kind", ["draft", "answer"])
def test_answers_that_cannot_be_are_refused(client: Callable[..., Client], kind: str) -> None:
    browser = client("Ann")
    item = first_set(browser)
    tokens = [result["id"] for result in item["results"]]
    other = browser.get("/api/study").json()["person"]["sets"][1]["id"]
    foreign = browser.get(f"/api/sets/{other}").json()["results"][0]["id"]
    for wrong in (
        tokens[:2], tokens[:4], [tokens[0]] * 3, [*tokens[:2], foreign], [*tokens[:2], "x"],
        [*tokens[:2], 7], "abc", None, {}, [*tokens[:2], item["foreground"]],
    ):  # fmt: skip
        answer = rank(browser, item, wrong, kind)
        assert answer.status_code == 400, wrong
        assert "ranking" in answer.json()["error"]
    if kind == "answer":
        assert rank(browser, item, [*tokens[:2], None]).status_code == 400
    assert first_set(browser)["draft"] == [None, None, None]
    assert rank(browser, {"id": "nothing"}, tokens[:3], kind).status_code == 404
    assert rank(client(), item, tokens[:3], kind).status_code == 401


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 4000, "application/json", 400),
        (b" " * 5000, "application/json", 413),
        (b'{"name": "Ann"}', "text/plain", 415),
        (b"name=Ann", "application/x-www-form-urlencoded", 415),
        (json.dumps({"name": "A" * 81}).encode(), "application/json", 400),
        (json.dumps({"name": "A\nB"}).encode(), "application/json", 400),
        (json.dumps({"name": 5}).encode(), "application/json", 400),
    ],
)
def test_requests_that_cannot_be_are_refused(
    client: Callable[..., Client], folder: Path, content: bytes, kind: str, status: int
) -> None:
    answer = client().post("/api/people", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]
    with Store(folder / ANSWERS, Study.read(folder).id) as store:
        assert store.people() == []


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8000", True), ("192.168.1.5", True), ("[::1]:8000", True),
        ("localhost:8000", True), ("LOCALHOST", True), ("study.example", True),
        ("study.example.:443", True), (socket.gethostname(), True),
        ("evil.example", False), ("study.example.evil.example", False), ("", False),
        ("127.0.0.1.evil.example:8000", False), ("evil@127.0.0.1", False), ("1.2.3", False),
    ],
)  # fmt: skip
def test_it_answers_to_its_own_names(client: Callable[..., Client], host: str, own: bool) -> None:
    browser = client()
    for path in ("/", "/api/study", "/pictures/nothing.webp"):
        answer = browser.get(path, headers={"host": host})
        assert (answer.status_code == 403) != own
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert own or "--allowed-host" in answer.json()["error"]
    assert (browser.post("/api/people", json={}, headers={"host": host}).status_code == 200) == own


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        (None, True), ("http://127.0.0.1:8000", True), ("https://study.example", True),
        ("http://evil.example", False), ("http://127.0.0.1:9000", False), ("null", False),
        ("http://localhost:8000", False), ("", False), ("http://evil.example:8000", False),
    ],
)  # fmt: skip
def test_it_takes_answers_from_its_own_page(
    client: Callable[..., Client], origin: str | None, own: bool
) -> None:
    browser = client("Ann")
    headers = {} if origin is None else {"origin": origin}
    item = first_set(browser)
    body = {"ranking": [result["id"] for result in item["results"]][:3]}
    answer = browser.put(f"/api/sets/{item['id']}/answer", json=body, headers=headers)
    assert answer.status_code == (200 if own else 403)
    assert first_set(browser)["answered"] == own
    assert browser.get("/api/study", headers=headers).status_code == 200  # a link is no write


def test_a_body_without_end_is_not_read_to_its_end(client: Callable[..., Client]) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        for number in range(1000):
            sent.append(number)
            yield b" " * 1024

    browser = client()
    answer = browser.post(
        "/api/people", content=endless(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


def test_an_answer_that_cannot_be_stored_is_not_acknowledged(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    browser = client("Ann")
    item = first_set(browser)
    store = Store._run

    def full(self: Store, statement: str, values: tuple[Any, ...] = ()) -> Any:
        if statement.startswith("INSERT"):
            raise DataError("the disk is full")
        return store(self, statement, values)

    monkeypatch.setattr(Store, "_run", full)
    answer = rank(browser, item, [result["id"] for result in item["results"]][:3])
    assert answer.status_code == 500
    assert "disk" not in answer.text
    assert "the disk is full" in capsys.readouterr().err


# The command


def test_what_cannot_be_served_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    assert main(["study", "serve", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["study", "serve", str(folder), "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err
    with pytest.raises(UsageError, match="0 to 65535"):
        serve(folder, port=70000)
    with pytest.raises(UsageError, match="cannot be read"):
        serve(folder, intro=tmp_path / "nothing.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UsageError, match="is empty"):
        serve(folder, intro=tmp_path / "empty.txt")
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match="study"):
        serve(folder)


def test_an_intro_s_paragraphs_are_parted_by_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "intro.txt").write_text("One\nline.\n\n\nAnother <b>.\n")
    assert server._paragraphs(tmp_path / "intro.txt") == ["One line.", "Another <b>."]


class Person:
    """Somebody at a real server: a cookie and nothing else."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.cookie = url, ""
        self.ask("people", "POST", {"name": name})

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}api/{path}",
            None if body is None else json.dumps(body).encode(),
            {"content-type": "application/json", "cookie": self.cookie},
            method=method,
        )
        answer: HTTPResponse
        with urllib.request.urlopen(request, timeout=20) as answer:
            self.cookie = (answer.headers.get("set-cookie") or self.cookie).partition(";")[0]
            return json.load(answer)

    def sets(self) -> list[str]:
        return [each["id"] for each in self.ask("study")["person"]["sets"]]

    def choose(self, name: str, kind: str = "answer") -> list[str]:
        """The first three results as they see them."""
        ranking = [result["id"] for result in self.ask(f"sets/{name}")["results"]][:3]
        self.ask(f"sets/{name}/{kind}", "PUT", {"ranking": ranking})
        return ranking


def test_people_who_leave_in_the_middle_are_no_errors(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(folder) as running:
        person = Person(running.url, "Ann")
        name = person.sets()[0]
        picture = person.ask(f"sets/{name}")["results"][0]["url"]
        place = ("127.0.0.1", int(running.url.rstrip("/").rpartition(":")[2]))
        kept = f"HTTP/1.1\r\nhost: localhost\r\ncookie: {person.cookie}\r\n"
        kind = "content-type: application/json\r\n"
        draft = f"PUT /api/sets/{name}/draft {kept}{kind}"
        for request in (
            f"POST /api/people {kept}{kind}content-length: 100\r\n\r\n{{",
            f"{draft}content-length: 50\r\n\r\n{{",
            f"{draft}transfer-encoding: chunked\r\n\r\n5\r\n{{",
            f"GET /{picture} {kept}\r\n",
            f"GET /api/study {kept}\r\n" * 20,
            "GET / HT",
        ):
            for hard in (False, True):
                with socket.create_connection(place) as gone:
                    gone.sendall(request.encode())
                    if hard:  # reset, instead of an orderly end
                        gone.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
        assert person.sets()[0] == name
        code, printed = running.end()
    assert code == 0
    assert "people so far: 1" in printed
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_answers_survive_a_killed_server(folder: Path) -> None:
    with serving(folder) as running:
        ann = Person(running.url, "Ann")
        first, second, third = ann.sets()
        answered, begun = ann.choose(first), ann.choose(second, "draft")
        running.kill()
        running.start()
        assert ann.sets() == [first, second, third]
        assert ann.ask(f"sets/{first}")["draft"] == answered
        assert ann.ask(f"sets/{first}")["answered"]
        assert ann.ask(f"sets/{second}")["draft"] == begun
        assert not ann.ask(f"sets/{second}")["answered"]
        code, printed = running.end()
    assert code == 0
    assert "people so far: 1" in printed


@pytest.mark.slow
def test_people_answer_while_the_server_is_killed_again_and_again(tmp_path: Path) -> None:
    """What was acknowledged is there: no more can be asked, and no less."""
    folder = tmp_path / "study"
    study = made_study(folder, sets=14, size=(6, 8))
    with serving(folder) as running:
        people = [Person(running.url, f"person {i}") for i in range(4)]
        acknowledged: dict[tuple[int, str], list[str]] = {}

        def take_part(number: int) -> None:
            for name in people[number].sets():
                for _ in range(100):
                    try:
                        acknowledged[number, name] = people[number].choose(name)
                        break
                    except (OSError, HTTPException):  # the server is down
                        time.sleep(0.1)

        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(take_part, number) for number in range(4)]
            for enough in (8, 24):
                while len(acknowledged) < enough and not all(each.done() for each in work):
                    time.sleep(0.005)
                assert len(acknowledged) < 4 * 14
                running.kill()
                running.start()
            for each in work:
                each.result(timeout=120)
        running.kill()
    assert len(acknowledged) == 4 * 14
    with Store(folder / ANSWERS, study.id) as store:
        tokens = [person.cookie.partition("=")[2] for person in people]
        for (number, name), ranking in acknowledged.items():
            person = store.person(tokens[number])
            found = {answer.picture_set: answer.ranking for answer in store.answers(person)}
            assert found[name] == tuple(ranking)


def test_the_key_is_what_a_browser_cannot_have(folder: Path) -> None:
    text = (folder / KEY).read_text()
    assert all(name in text for name in METHODS)
