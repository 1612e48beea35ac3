"""The page in a real browser: photographs dropped and pasted, compared, dragged, brushed, saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("uvicorn")
pytest.importorskip("skimage")
pytest.importorskip("selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from deep_image_compositing.compositor import Compositor
from tests.serving.running import ASTRONAUT, CHROMIUM, DRIVER, ROCKET, Page, Server, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="needs Chromium and its driver on PATH: apt-get install chromium chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--fuser=alpha") as server:
        yield server


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """Both photographs, shrunk."""
    paths = tmp_path / "astronaut.png", tmp_path / "rocket.jpg"
    for path, source in zip(paths, (ASTRONAUT, ROCKET), strict=True):
        image = Image.open(source).convert("RGB")
        image.thumbnail((320, 320))
        image.save(path, quality=95)
    return paths


def test_from_two_photographs_to_a_file(
    server: Server, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    front, back = photos
    with Page(tmp_path / "profile") as page:
        page.open(server.url)
        page.drop("body", tmp_path / "astronaut.png", kind="paste")
        page.settled("Subject found")
        assert page.find("[data-to=brush]").get_attribute("aria-pressed") == "true"
        page.drop("#zone-background", back)
        page.settled("Composite made")
        compared(page)
        expected = Compositor(fuser="alpha", device="cpu")(front, back)
        expected.save(tmp_path / "c.png", alpha=tmp_path / "a.png", cutout=tmp_path / "k.png")
        for output, name in (("composite", "c"), ("alpha", "a"), ("cutout", "k")):
            page.find(f"[data-output={output}]").click()
            saved = page.downloaded(f"astronaut-{output}.png")
            assert saved == (tmp_path / f"{name}.png").read_bytes()
        dragged(page, photos, tmp_path)
        brushed(page, photos, tmp_path)
        assert page.errors() == []  # the policy for contents included
        assert {address.partition("/")[0] for address, _ in page.asked()} == {"api"}


def compared(page: Page) -> None:
    """The slider, by keys and by dragging over the picture; zoom by keys, wheel and buttons."""
    page.find("#split").send_keys(Keys.HOME)
    assert shown(page) == 0
    page.find("#split").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown(page) == 1
    sheet = page.find("#sheet")
    ActionChains(page.browser).drag_and_drop_by_offset(sheet, sheet.size["width"] // 4, 0).perform()
    assert shown(page) == pytest.approx(75, abs=1)
    page.find("#stage").send_keys("+")
    assert zoom(page) == pytest.approx(1.5)
    page.find("#zoom-in").click()
    assert zoom(page) == pytest.approx(2.25)
    before = page.find("#sheet").rect["y"]
    page.find("#stage").send_keys(Keys.SHIFT, Keys.ARROW_DOWN)
    assert page.find("#sheet").rect["y"] == before - 60
    page.do(
        "document.querySelector('#stage').dispatchEvent(new WheelEvent('wheel', "
        "{deltaY: -200, clientX: 700, clientY: 400, cancelable: true}))"
    )
    assert zoom(page) > 2.25
    page.find("#stage").send_keys("0")
    assert zoom(page) == 1


def shown(page: Page) -> float:
    """Percent of the picture that shows it as it was before."""
    inset = page.do("return getComputedStyle(document.querySelector('#result')).clipPath")
    return float(inset.rpartition(" ")[2].rstrip("%)")) if "%" in inset else 0.0


def zoom(page: Page) -> float:
    return float(
        page.do("return new DOMMatrix(document.querySelector('#sheet').style.transform).a")
    )


def dragged(page: Page, photos: tuple[Path, Path], folder: Path) -> None:
    """The subject follows the hand at once, and the composite is the library's at that place."""
    page.find("[data-to=move]").click()
    page.settled("Composite made")
    box = page.find("#box")
    page.find("#scale").send_keys(*[Keys.ARROW_LEFT] * 50)  # to one half
    page.settled("Composite made")
    left = box.rect["x"]
    hand = ActionChains(page.browser).move_to_element(box).click_and_hold()
    hand.move_by_offset(30, 0).move_by_offset(30, -10).perform()
    assert box.rect["x"] == pytest.approx(left + 60, abs=2)
    assert page.find("#result").is_displayed() is False
    assert page.find("#subject").is_displayed()
    ActionChains(page.browser).release().perform()
    page.until("!document.querySelector('#result').hidden")
    page.settled("Composite made")
    page.find("#stage").send_keys(Keys.ARROW_DOWN)
    page.until("!document.querySelector('#result').hidden")
    page.settled("Composite made")
    address, sent = page.asked()[-1]
    assert (address, sent["frame"], sent["scale"]) == ("api/composite", "background", "0.5")
    x, y = map(float, sent["position"].split(","))
    across = page.find("#sheet").size["width"] - box.size["width"]
    assert x == pytest.approx(0.5 + 60 / across, abs=0.01)
    assert 0.5 < y < 1  # at the bottom first, as the photograph cuts the subject off there
    page.find("[data-output=composite]").click()
    made = page.downloaded("astronaut-composite (1).png")
    compositor = Compositor(fuser="alpha", device="cpu")
    result = compositor(*photos, frame="background", scale=0.5, position=(x, y))
    result.save(folder / "dragged.png")
    assert made == (folder / "dragged.png").read_bytes()


HOLD = """
const kind = HTMLImageElement.prototype, decode = kind.decode;
kind.decode = async function () {
  await decode.call(this);
  kind.decode = decode;
  await new Promise((done) => (window.go = done));
};
"""
"""The next composite is shown when ``window.go`` is called."""

CHANGE = """
const select = document.querySelector("#shadow");
select.value = "cast";
select.dispatchEvent(new Event("change"));
window.go();
"""


def test_light_and_shadow(server: Server, photos: tuple[Path, Path], tmp_path: Path) -> None:
    with Page(tmp_path / "profile") as page:
        page.open(server.url)
        assert not page.find("#strength").is_enabled()
        page.drop("body", *photos)
        page.settled("Composite made")
        # What arrives between a change and the request that it leads to is not what is wanted.
        page.do(HOLD)
        Select(page.find("#shadow")).select_by_value("contact")
        page.until("!!window.go")
        page.do(CHANGE)
        page.until("window.asked.at(-1)[1].shadow === 'cast'")
        Select(page.find("#direction")).select_by_value("left")
        Select(page.find("#harmonizer")).select_by_value("reinhard")
        page.until("window.asked.at(-1)[1].harmonizer === 'reinhard'")
        page.settled("Composite made")
        sent = page.asked()[-1][1]
        assert "harmonizer_option" not in sent  # the server's, or the library's, own
        assert (sent["shadow"], sent["shadow_option"]) == ("cast", "direction=left")
        page.find("#strength").send_keys(Keys.ARROW_RIGHT)
        page.find("[name=frame][value=background]").click()
        page.until("window.asked.at(-1)[1].frame === 'background'")
        page.settled("Composite made")
        page.until("!document.querySelector('[data-output=composite]').disabled")
        page.find("[data-output=composite]").click()
        made = page.downloaded("astronaut-composite.png")
        sent = page.asked()[-1][1]
        assert sent["harmonizer_option"] == "strength=0.55"
        compositor = Compositor(
            fuser="alpha", harmonizer=("reinhard", {"strength": 0.55}),
            shadow=("cast", {"direction": "left"}), device="cpu",
        )  # fmt: skip
        position = sent["position"]
        compositor(*photos, frame="background", position=position).save(tmp_path / "lit.png")
        assert made == (tmp_path / "lit.png").read_bytes()
        assert page.errors() == []


HELMET = (220, 290)
STROKE = ((206, 268), (243, 250), (287, 234))
"""A point of the shrunk photograph, and points on the way across the visor and the white rim."""


def opacity(page: Page, x: int, y: int) -> int:
    """Alpha from 0 to 255 of the subject, as the page shows it."""
    canvas = "document.querySelector('#subject').getContext('2d')"
    return int(page.do(f"return {canvas}.getImageData(...arguments, 1, 1).data[3]", x, y))


def brushed(page: Page, photos: tuple[Path, Path], folder: Path) -> None:
    """A stroke on the helmet brings it, undoing it takes it away, and what is made has it."""
    page.find("[data-to=brush]").click()
    page.until("document.querySelector('#progress').hidden")
    sheet = page.find("#sheet")
    side = sheet.size["width"]
    assert opacity(page, *HELMET) < 128
    hand = ActionChains(page.browser)
    at = [(round((x / 320 - 0.5) * side), round((y / 320 - 0.5) * side)) for x, y in STROKE]
    hand.move_to_element_with_offset(sheet, *at[0]).click_and_hold()
    for point in at[1:]:
        hand.move_to_element_with_offset(sheet, *point)
    hand.release().perform()
    page.settled("Mask updated")
    assert opacity(page, *HELMET) == 255
    page.find("#undo").click()
    assert opacity(page, *HELMET) < 128
    # The same by keys, from where the mouse is.
    page.find("input[name=brush][value='1']").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    stage = page.find("#stage")
    ActionChains(page.browser).move_to_element_with_offset(sheet, *at[0]).perform()
    stage.send_keys(" ", *[Keys.ARROW_RIGHT] * 8, *[Keys.ARROW_UP] * 4, " ")
    page.settled("Mask updated")
    assert opacity(page, *HELMET) == 255
    page.find("[data-output=alpha]").click()
    page.downloaded("astronaut-alpha (1).png")
    page.find("input[name=frame][value=foreground]").click()
    page.find("[data-to=compare]").click()
    page.settled("Composite made")
    page.find("[data-output=composite]").click()
    made = page.downloaded("astronaut-composite (2).png")
    page.find("[data-output=alpha]").click()
    mask = page.downloaded("astronaut-alpha (2).png")
    expected = Compositor(refiner="none", fuser="alpha", device="cpu")(*photos, mask)
    expected.save(folder / "brushed.png")
    assert made == (folder / "brushed.png").read_bytes()


def pinch(page: Page, factor: float) -> None:
    """Two fingers on the picture, moved apart or together."""
    box = page.find("#stage").rect
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    y -= page.do("return scrollY")
    for kind, apart in (("Start", 50), ("Move", 50 * factor**0.5), ("Move", 50 * factor)):
        points = [{"x": x - apart, "y": y, "id": 1}, {"x": x + apart, "y": y, "id": 2}]
        touch = {"type": f"touch{kind}", "touchPoints": points}
        page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    end = {"type": "touchEnd", "touchPoints": []}
    page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", end)


def test_what_goes_wrong_is_told_and_nothing_is_wider_than_a_phone(
    server: Server, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no picture")
    with Page(tmp_path / "profile", (360, 740), phone=True) as page:
        page.open(server.url)
        page.drop("#zone-foreground", wrong)
        page.until("!document.querySelector('#notice').hidden")
        assert "cannot show wrong.png" in page.find("#notice").text
        page.find("#notice button").click()
        assert not page.find("#notice").is_displayed()
        for name, path in zip(("foreground", "background"), photos, strict=True):
            page.find(f"#zone-{name} input").send_keys(str(path))
            page.settled("Composite made" if name == "background" else "Subject found")
        pinch(page, 2)
        assert zoom(page) == pytest.approx(2, rel=0.1)
        page.find("#zoom-fit").click()
        page.find("[data-to=move]").click()
        page.settled("Composite made")
        pinch(page, 0.5)
        page.until("!document.querySelector('#result').hidden")
        assert zoom(page) == 1
        assert float(page.asked()[-1][1]["scale"]) == pytest.approx(0.5, rel=0.1)
        for mode in ("compare", "move", "brush"):
            page.find(f"[data-to={mode}]").click()
            page.until("document.querySelector('#progress').hidden")
            assert page.do("return document.documentElement.scrollWidth") <= 360
        unlabelled = page.do(
            "return [...document.querySelectorAll('input, select, button')].filter((one) => "
            "!(one.ariaLabel || one.textContent.trim() || one.labels?.[0]?.textContent.trim()))"
            ".map((one) => one.outerHTML)"
        )
        assert unlabelled == []
        assert page.find("#status").get_attribute("aria-live") == "polite"
        assert page.errors() == []
