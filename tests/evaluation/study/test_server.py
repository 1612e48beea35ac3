"""The server through its interface, then as a process that is killed."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deep_image_compositing.cli import main
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation.study.folder import ANSWERS, Store, Study, picture_path
from tests.evaluation.study.made import METHODS, made_study, serving

pytest.importorskip("uvicorn")
testclient = pytest.importorskip("starlette.testclient")
server = pytest.importorskip("deep_image_compositing.evaluation.study.server")

Client = Any


class Shown(NamedTuple):
    """A set as the page shows it."""

    id: str
    number: int
    results: list[str]
    places: dict[str, int]

    @property
    def path(self) -> str:
        """Where answers go."""
        return f"/sets/{self.id}"


def read_page(text: str) -> Shown:
    """What stands in the page of a set."""
    name, number = re.search(r'data-set="(\w+)" data-number="(\d+)"', text).groups()  # type: ignore[union-attr]
    cards = re.findall(r'data-result="(\w+)" data-place="(\d?)"', text)
    places = {token: int(place) for token, place in cards if place}
    return Shown(name, int(number), [token for token, _ in cards], places)


def look(browser: Client, number: int = 99) -> Shown:
    return read_page(browser.get(f"/?set={number}").text)


def rank(browser: Client, path: str, ranking: object, **headers: str) -> Any:
    return browser.post(path, json={"ranking": ranking}, headers=headers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made_study(tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def client(folder: Path) -> Iterator[Callable[..., Client]]:
    """Makes browsers of one and the same server."""
    study = Study.open(folder)
    with Store(folder / ANSWERS, study.id) as store:
        app = server.create_app(study, store, folder, "First.\n\n<b>", ["study.example"])

        def browser(name: str | None = None) -> Client:
            address = "http://127.0.0.1:8000"
            made = testclient.TestClient(app, base_url=address, raise_server_exceptions=False)
            if name is not None:
                assert made.post("/join", json={"name": name}).status_code == 204
            return made

        yield browser


@pytest.fixture
def study(folder: Path) -> Study:
    return Study.read(folder)


def people(folder: Path, study: Study) -> list[str]:
    """The names of all who have joined."""
    with Store(folder / ANSWERS, study.id) as store:
        return [*store.people().values()]


def test_a_person_joins_answers_and_is_known_again(client: Callable[..., Client]) -> None:
    browser = client()
    assert ">First.\n\n&lt;b&gt;</p>" in browser.get("/").text
    joined = browser.post("/join", json={"name": " Ann "})
    cookie = joined.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    item = look(browser)
    assert (item.number, item.places) == (1, {})
    assert browser.get("/").text.count('width="64" height="48"') == 2 + 5
    first, second, third, *_ = item.results
    assert rank(browser, item.path, [first, second, third]).status_code == 204
    assert look(browser, 1) == item._replace(places={first: 1, second: 2, third: 3})
    for number in (2, 3):
        item = look(browser)
        assert item.number == number, "never beyond the first that is open"
        assert 'value="' + str(number - 1) in browser.get("/?set=99").text
        rank(browser, item.path, item.results[:3])
    for query in ("", "4", "99", "0", "-1", "x", "9" * 5000, "%00", "²"):
        assert "Thank you!" in browser.get(f"/?set={query}").text


def test_two_people_do_not_see_each_other(client: Callable[..., Client]) -> None:
    seen: list[dict[str, list[str]]] = [{}, {}]
    browsers = client("Ann"), client("")
    for _ in range(3):
        for browser, mine in zip(browsers, seen, strict=True):
            item = look(browser)
            assert item.places == {}
            mine[item.id] = item.results
            rank(browser, item.path, item.results[:3])
    assert seen[0].keys() == seen[1].keys()
    assert seen[0] != seen[1]
    for name, results in seen[0].items():
        assert sorted(results) == sorted(seen[1][name])


def test_somebody_else_can_take_part_in_the_same_browser(
    client: Callable[..., Client], folder: Path, study: Study
) -> None:
    browser = client("Ann")
    assert "I agree" not in browser.get("/").text
    assert "I agree" in browser.get("/?join").text
    browser.post("/join", json={"name": "Eve"})
    assert "I agree" not in browser.get("/").text
    assert people(folder, study) == ["Ann", "Eve"]


def test_nothing_that_is_sent_names_a_method_or_comes_from_elsewhere(
    client: Callable[..., Client],
) -> None:
    browser = client("Ann")
    page = browser.get("/").text
    pictures = re.findall(r'src="(pictures/\w+\.webp)"', page)
    assert len(pictures) == 2 + 5
    for path in ("", "page/study.js", *pictures):
        answer = browser.get(f"/{path}")
        assert answer.status_code == 200
        sent = answer.content + repr(answer.headers).encode()
        # The page's own words may hold those of a method ("feather"): its names are elsewhere.
        assert not [name for name in METHODS if f'"{name}"'.encode() in sent]
        assert b"pair-" not in sent
        if path != "page/study.js":  # whose date is that of the library
            assert not {"last-modified", "etag"} & set(answer.headers)
    assert page.count("<script") == 1
    for inside in ("<style", " style=", " on" + "click="):
        assert inside not in page
    files = [file.read_text() for file in Path(server.__file__).with_name("page").iterdir()]
    for text in (page, *files):
        assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg|// |//\n", "", text)


@pytest.mark.parametrize(
    "path",
    [
        "/study.json", "/answers.sqlite", "/pictures/", "/pictures/..%2fstudy.json",
        "/pictures/../study.json", "/pictures/%2e%2e/study.json", "/pictures/nothing.webp",
        "/page/../server.py", "/page/%2e%2e%2fserver.py", "/page/server.py", "/page/%00",
        "/pictures/..%5cstudy.json", "//etc/passwd", "/pictures//etc/passwd", "/page/",
        "/page//etc/passwd", "/page/..%5cserver.py",
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
    token = look(browser).results[0]
    picture = browser.get(f"/pictures/{token}.webp")
    assert picture.content == picture_path(folder, token).read_bytes()
    assert picture.headers["content-type"] == "image/webp"
    assert "immutable" in picture.headers["cache-control"]
    for path in ("/", "/page/study.css", "/nothing"):
        headers = browser.get(path).headers
        assert headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_answers_that_cannot_be_are_refused(client: Callable[..., Client], study: Study) -> None:
    browser = client("Ann")
    item = look(browser)
    tokens, two = item.results, item.results[:2]
    shown = next(each for each in study.sets if each.id == item.id)
    foreign = next(each for each in study.sets if each.id != item.id)
    for wrong in (
        two, tokens[:4], [tokens[0]] * 3, [*two, [*foreign.results][1]], {}, [*two, "x"],
        [*two, 7], [*two, None], "abc", None, [*two, shown.foreground],
    ):  # fmt: skip
        answer = rank(browser, item.path, wrong)
        assert answer.status_code == 400, wrong
        assert "ranking" in answer.text
    assert look(browser).places == {}
    assert rank(browser, "/sets/nothing", tokens[:3]).status_code == 404
    assert rank(client(), item.path, tokens[:3]).status_code == 401


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 4000, "application/json", 400),
        (b" " * 5000, "application/json", 413),
        (b" " * 50000, "application/json", 413),
        (iter([b" " * 10]), "application/json", 413),  # sent in parts without end, for all it says
        (b'{"name": "Ann"}', "text/plain", 415),
        (b"name=Ann", "application/x-www-form-urlencoded", 415),
        (json.dumps({"name": "A" * 81}).encode(), "application/json", 400),
        (json.dumps({"name": "A\nB"}).encode(), "application/json", 400),
        (json.dumps({"name": 5}).encode(), "application/json", 400),
    ],
)
def test_requests_that_cannot_be_are_refused(
    client: Callable[..., Client], folder: Path, study: Study, content: Any, kind: str, status: int
) -> None:
    answer = client().post("/join", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.text
    assert people(folder, study) == []


def test_it_answers_to_its_own_names_and_takes_answers_from_its_own_page(
    client: Callable[..., Client],
) -> None:
    browser = client("Ann")
    item = look(browser)
    for host, own in (("127.0.0.1:8000", True), ("study.example.:443", True), ("evil.com", False)):
        for path in ("/", "/page/study.js", "/pictures/nothing.webp"):
            answer = browser.get(path, headers={"host": host})
            assert (answer.status_code == 403) != own
            assert own or "--allowed-host" in answer.text
        for origin, page in (("https://study.example", True), ("http://evil.com", False)):
            answer = rank(browser, item.path, item.results[:3], host=host, origin=origin)
            assert answer.status_code == (204 if own and page else 403)


def test_an_answer_that_cannot_be_stored_is_not_acknowledged(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    browser = client("Ann")
    item = look(browser)

    def full(*args: Any, **kwargs: Any) -> None:
        raise DataError("the disk is full")

    monkeypatch.setattr(Store, "save", full)
    answer = rank(browser, item.path, item.results[:3])
    assert answer.status_code == 500
    assert "disk" not in answer.text
    assert "the disk is full" in capsys.readouterr().err


# The command


def test_what_cannot_be_served_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "serve", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["study", "serve", str(folder), "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err
    with pytest.raises(UsageError, match="0 to 65535"):
        server.serve(folder, port=70000)
    (tmp_path / "empty.txt").write_text("\n \n")
    for name, reason in (("nothing", "cannot be read"), ("empty", "is empty")):
        command = ["study", "serve", str(folder), "--intro", str(tmp_path / f"{name}.txt")]
        assert main(command) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_package_that_is_missing_is_named(
    folder: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["study", "serve", str(folder)]) != 0
    assert f"{package}" in (said := capsys.readouterr().err)
    assert "[study]" in said


class Person:
    """Somebody at a real server: a cookie and nothing else."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.cookie = url, ""
        self.ask("join", {"name": name})

    def ask(self, path: str = "", body: object = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "cookie": self.cookie}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        answer: HTTPResponse
        with urllib.request.urlopen(request, timeout=20) as answer:
            self.cookie = (answer.headers.get("set-cookie") or self.cookie).partition(";")[0]
            return answer.read().decode()

    def choose(self) -> tuple[str, list[str]]:
        """The first three results of the set that is open."""
        item = read_page(self.ask())
        ranking = item.results[:3]
        self.ask(f"sets/{item.id}", {"ranking": ranking})
        return item.id, ranking


def test_people_who_leave_in_the_middle_are_no_errors(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(folder) as running:
        person = Person(running.url, "Ann")
        item = read_page(person.ask())
        place = ("127.0.0.1", int(running.url.rstrip("/").rpartition(":")[2]))
        kept = f"HTTP/1.1\r\nhost: localhost\r\ncookie: {person.cookie}\r\n"
        kind = "content-type: application/json\r\n"
        for request in (
            f"POST /join {kept}{kind}content-length: 100\r\n\r\n{{",
            f"POST {item.path} {kept}{kind}content-length: 50\r\n\r\n{{",
            f"POST {item.path} {kept}{kind}transfer-encoding: chunked\r\n\r\n5\r\n{{",
            f"GET /pictures/{item.results[0]}.webp {kept}\r\n",
            f"GET / {kept}\r\n" * 20,
            "GET / HT",
        ):
            for hard in (False, True):
                with socket.create_connection(place) as gone:
                    gone.sendall(request.encode())
                    if hard:  # reset, instead of an orderly end
                        at_once = struct.pack("ii", 1, 0)
                        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        assert read_page(person.ask()) == item
        code, printed = running.end()
    assert code == 0
    assert "people so far: 1" in printed
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_people_answer_while_the_server_is_killed_again_and_again(tmp_path: Path) -> None:
    """What was acknowledged is there: no more can be asked, and no less."""
    folder = tmp_path / "study"
    study = made_study(folder, sets=14, size=(6, 8))
    with serving(folder) as running:
        people = [Person(running.url, f"person {i}") for i in range(4)]
        acknowledged: dict[tuple[int, str], list[str]] = {}

        def take_part(number: int) -> None:
            for _ in range(1000):
                if sum(person == number for person, _ in acknowledged) == 14:
                    break
                try:
                    name, ranking = people[number].choose()
                    acknowledged[number, name] = ranking
                except (OSError, HTTPException):  # the server is down
                    time.sleep(0.1)
                except AttributeError:  # the last answer was stored, and nobody heard of it
                    break

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
    assert len(acknowledged) >= 4 * 14 - 2 * 4
    with Store(folder / ANSWERS, study.id) as store:
        tokens = [person.cookie.partition("=")[2] for person in people]
        for (number, name), ranking in acknowledged.items():
            found = {name: ranking for _, name, ranking, _ in store.answers(tokens[number])}
            assert found[name] == ranking
