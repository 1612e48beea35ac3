"""The page in a real browser: somebody clicks through a whole study, then it is scored."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deep_image_compositing.cli import main
from deep_image_compositing.evaluation.study.folder import ANSWERS, PictureSet, Store, Study
from tests.evaluation.study.made import METHODS, Server, made_study, serving, token
from tests.serving import running as browsers

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

SETS = 14

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browsers.CHROMIUM is None or browsers.DRIVER is None,
        reason="needs Chromium and its driver on PATH: apt-get install chromium chromium-driver",
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made_study(tmp_path / "study", sets=SETS, size=(120, 160))
    return tmp_path / "study"


@pytest.fixture
def running(folder: Path) -> Iterator[Server]:
    with serving(folder) as server:
        yield server


class Page(browsers.Page):
    """What a person sees and does, in a browser of their own."""

    server: Server

    def __init__(self, profile: Path, study: Study, **options: Any) -> None:
        super().__init__(profile, **options)
        self.study = study

    def join(self, name: str) -> None:
        self.until("document.querySelector('#join')")
        self.find("#name").send_keys(name)
        self.find("#join button").click()

    def arrive(self, number: int) -> PictureSet:
        """Wait for a set, counted from 1, to be there in full; returns which one it is."""
        self.until(f"document.querySelector('#where')?.textContent == 'Set {number} of {SETS}'")
        self.until("document.activeElement?.matches('.pick')")
        shown = set(self.order())
        return next(item for item in self.study.sets if set(item.results) == shown)

    def order(self) -> list[str]:
        """The results on the screen, from the first to the last."""
        cards = "[...document.querySelectorAll('.card')]"
        found: list[str] = self.do(f"return {cards}.map((card) => card.dataset.result)")
        return found

    def badges(self) -> dict[str, int]:
        """The number on every result that has one."""
        cards = "[...document.querySelectorAll('.card')]"
        found = self.do(f"return {cards}.map(({{dataset}}) => [dataset.result, dataset.place])")
        return {result: int(place) for result, place in found if place}

    def click(self, result: str) -> None:
        self.find(f".card[data-result='{result}'] .pick").click()

    def press(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def walk_to(self, result: str) -> None:
        """Move with the arrows from the first result, which has the focus, or from any."""
        order = self.order()
        now = self.do("return document.activeElement.closest('.card').dataset.result")
        step = order.index(result) - order.index(now)
        self.press(*([Keys.ARROW_RIGHT] * step if step > 0 else [Keys.ARROW_LEFT] * -step))

    def part(self) -> tuple[float, float, float]:
        """How all results are magnified, and where from: they show the same part."""
        found = self.do(
            "return [...document.querySelectorAll('#grid .frame > img')].map((image) => {"
            "const style = getComputedStyle(image);"
            "const box = image.parentElement.getBoundingClientRect();"
            "const [x, y] = style.transformOrigin.split(' ').map(parseFloat);"
            "const zoom = new DOMMatrix(style.transform).a;"
            "return [zoom, x / box.width, y / box.height]; })"
        )
        (part,) = {(zoom, round(x, 3), round(y, 3)) for zoom, x, y in found}
        return part


def wanted(item: PictureSet, number: int) -> list[str]:
    """Whom the person in the tests prefers in a set: another order in every set."""
    first = number % len(METHODS)
    order = [METHODS[(first + step) % len(METHODS)] for step in (0, 2, 1)]
    return [token(item, method) for method in order]


def test_a_whole_study(folder: Path, running: Server, tmp_path: Path) -> None:
    study = Study.open(folder)
    chosen: dict[str, list[str]] = {}
    orders = set()
    special = {
        2: by_keys, 9: by_keys, 3: changed_mind, 5: reloaded_in_the_middle, 6: zoomed,
        10: server_killed_in_the_middle,
    }  # fmt: skip
    with Page(tmp_path / "profile", study) as page:
        page.server = running
        page.browser.get(running.url)
        page.join("Ann")
        for number in range(1, SETS + 1):
            item = page.arrive(number)
            best = wanted(item, number)
            orders.add(tuple(item.results[result] for result in page.order()))
            assert page.badges() == {}
            if number == 2:
                page.browser.back()
                page.arrive(1)
                page.browser.forward()
                page.arrive(2)
            special.get(number, clicked)(page, best)
            assert page.badges() == {result: place + 1 for place, result in enumerate(best)}
            if number in (2, 6, 9):
                page.press(Keys.ENTER)
            else:
                page.find("#confirm").click()
            chosen[item.name] = best
            if number == 8:
                earlier_answer_changed(page, chosen)
        page.until("document.querySelector('#end')")
        assert "Thank you" in page.find("#end").text
        page.browser.refresh()
        page.until("document.querySelector('#end')")
        told = [text for text in page.errors() if "ERR_CONNECTION_REFUSED" not in text]
        assert told == []  # the policy for contents included
    assert len(chosen) == SETS
    assert len(orders) > SETS // 2
    running.kill()
    scores_are_what_was_clicked(folder, study, chosen, tmp_path / "scores")


def clicked(page: Page, best: list[str]) -> None:
    for result in best:
        page.click(result)


def by_keys(page: Page, best: list[str]) -> None:
    """The third first, then the others; a key on a chosen one frees it; 0 too."""
    for place in (3, 1, 2):
        page.walk_to(best[place - 1])
        page.press(str(place))
    assert page.badges() == {result: place + 1 for place, result in enumerate(best)}
    page.press("2")  # where the second best is
    assert page.badges() == {best[0]: 1, best[2]: 3}
    page.press("1")  # takes the place of another
    assert page.badges() == {best[1]: 1, best[2]: 3}
    page.press("3")  # changes places
    assert page.badges() == {best[1]: 3, best[2]: 1}
    page.press("0")
    assert page.badges() == {best[2]: 1}
    page.press(Keys.ENTER)  # not yet
    assert page.badges() == {best[2]: 1}
    page.press("2")
    page.walk_to(best[0])
    page.press("1")
    page.walk_to(best[2])
    page.press("3")


def changed_mind(page: Page, best: list[str]) -> None:
    """Clicks choose the best place that is free, or free the one there is."""
    others = [result for result in page.order() if result not in best]
    for result in (others[0], best[1], best[2]):
        page.click(result)
    page.click(best[0])  # a fourth: nothing happens
    assert page.badges() == {others[0]: 1, best[1]: 2, best[2]: 3}
    assert "click one of them again" in page.find("#question").text
    page.click(others[0])
    assert page.badges() == {best[1]: 2, best[2]: 3}
    assert not page.find("#confirm").is_enabled()
    page.click(best[0])


def reloaded_in_the_middle(page: Page, best: list[str]) -> None:
    order = page.order()
    page.click(best[0])
    page.click(best[1])
    page.browser.refresh()
    page.arrive(5)
    assert page.order() == order
    assert page.badges() == {best[0]: 1, best[1]: 2}
    page.click(best[2])


def zoomed(page: Page, best: list[str]) -> None:
    """All results show the same part, wherever one points; that chooses nothing."""
    picture = page.find(f".card[data-result='{best[1]}'] .pick")
    width, height = picture.size["width"], picture.size["height"]

    def point(x: float, y: float) -> None:
        corner = ActionChains(page.browser)
        corner.move_to_element_with_offset(picture, int(x * width), int(y * height)).perform()

    assert page.part()[0] == 1
    point(0.25, -0.25)
    page.press("z")
    assert page.part() == pytest.approx((3, 0.75, 0.25), abs=0.02)
    point(-0.2, 0.1)
    assert page.part() == pytest.approx((3, 0.3, 0.6), abs=0.02)
    for _ in range(10):
        keys = ActionChains(page.browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT)
        keys.key_up(Keys.SHIFT).perform()
    assert page.part()[:2] == (3, 0), "the edge is the end"
    page.press("+")
    assert page.part()[:2] == (4, 0)
    page.find("#zoom").send_keys(Keys.ARROW_RIGHT)
    assert page.part()[0] == 4.5
    page.press("z")
    assert page.part()[0] == 1
    page.find(f".card[data-result='{best[0]}'] .loupe").click()
    assert page.part()[0] == 3
    assert page.badges() == {}
    for result in best:
        page.click(result)
    photograph = page.find("#source > img")
    page.press("b")
    assert not photograph.is_displayed()
    page.find("#other").click()
    assert photograph.is_displayed()
    page.click(best[2])  # back from the box to the results
    page.click(best[2])


def server_killed_in_the_middle(page: Page, best: list[str]) -> None:
    """What is chosen stays, and the button can be pressed again."""
    page.click(best[0])
    page.server.kill()
    page.click(best[1])
    page.click(best[2])
    page.find("#confirm").click()
    page.until("document.querySelector('#notice').textContent")
    assert "cannot be reached" in page.find("#notice").text
    page.server.start()


def earlier_answer_changed(page: Page, chosen: dict[str, list[str]]) -> None:
    """From the ninth set back to the seventh, another order, and on again."""
    page.arrive(9)
    page.find("#back").click()
    page.arrive(8)
    page.browser.back()  # to the ninth again
    page.arrive(9)
    page.find("#back").click()
    page.arrive(8)
    page.find("#back").click()
    item = page.arrive(7)
    best = chosen[item.name]
    assert page.badges() == {result: place + 1 for place, result in enumerate(best)}
    page.click(best[0])
    page.click(best[1])
    page.click(best[1])
    page.click(best[0])
    chosen[item.name] = [best[1], best[0], best[2]]
    page.find("#confirm").click()
    page.arrive(8)
    page.find("#confirm").click()
    page.arrive(9)


def scores_are_what_was_clicked(
    folder: Path, study: Study, chosen: dict[str, list[str]], out: Path
) -> None:
    expected = {
        method: sum(
            best.index(picture) + 1 if (picture := token(item, method)) in best else 8
            for item in study.sets
            for best in [chosen[item.name]]
        )
        / SETS
        for method in METHODS
    }
    assert main(["study", "score", str(folder), "--out", str(out)]) == 0
    found = json.loads((out / "scores.json").read_text())
    assert {row["method"]: row["score"] for row in found["methods"]} == expected
    assert (found["people"], found["people_complete"], found["answers"]) == (1, 1, SETS)
    with Store(folder / ANSWERS, study.id) as store:
        stored = {name: ranking for _, name, ranking, _ in store.answers()}
        assert [*store.people().values()] == ["Ann"]
    assert stored == {item.id: chosen[item.name] for item in study.sets}


def test_two_people_in_two_browsers(folder: Path, running: Server, tmp_path: Path) -> None:
    study = Study.open(folder)
    chosen: list[dict[str, list[str]]] = [{}, {}]
    with (
        Page(tmp_path / "desk", study) as desk,
        Page(tmp_path / "phone", study, size=(390, 844), phone=True) as phone,
    ):
        for page, name in ((desk, "Ann"), (phone, "")):
            page.browser.get(running.url)
            page.join(name)
        for number in (1, 2, 3):
            for page, mine in zip((desk, phone), chosen, strict=True):
                item = page.arrive(number)
                mine[item.id] = page.order()[:3]
                for result in mine[item.id]:
                    card = f"document.querySelector(`[data-result='{result}']`)"
                    page.do(f"{card}.scrollIntoView({{block: 'center'}})")
                    page.click(result)
                page.find("#confirm").click()
        for page in (desk, phone):
            page.arrive(4)
            wider = page.do("return document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, "nothing is wider than the screen"
            assert page.errors() == []
    with Store(folder / ANSWERS, study.id) as store:
        assert [*store.people().values()] == ["Ann", ""]
        for person, mine in zip(store.people(), chosen, strict=True):
            found = {name: ranking for _, name, ranking, _ in store.answers(person)}
            assert found == mine


def test_somebody_else_can_begin_where_one_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = made_study(folder, sets=1, methods=("a", "b", "c"))
    with serving(folder) as running, Page(tmp_path / "profile", study) as page:
        page.browser.get(running.url)
        for name in ("Ann", "Bob"):
            page.join(name)
            page.until("document.activeElement?.matches('.pick')")
            clicked(page, page.order())
            page.press(Keys.ENTER)
            page.until("document.querySelector('#end')")
            page.find("#leave").click()
        page.until("document.querySelector('#join')")
    with Store(folder / ANSWERS, study.id) as store:
        assert [*store.people().values()] == ["Ann", "Bob"]
        assert len(store.answers()) == 2


os.environ.setdefault("SE_OFFLINE", "true")  # selenium is never to look for a driver elsewhere
