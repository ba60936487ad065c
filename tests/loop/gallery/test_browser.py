"""The gallery in Chromium, from disk: filtered, sorted, by keyboard, on a phone, in the dark, and deaf to what a model wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.loop.gallery.made_run import NUM_RECORDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

NUM_SHOWN = NUM_RECORDS + 2


class Watched:
    """A page, what it said on its console, and what it asked for."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.page: Page = browser.new_context(offline=True, **options).new_page()
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def shown(self) -> list[str]:
        """Ids of the records that are visible, in order."""
        return self.page.eval_on_selector_all("#records > li:not([hidden]) > article", "all => all.map(one => one.id)")

    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.id")


@pytest.fixture
def gallery(browser: Browser, report: Path) -> Iterator[Watched]:
    """Page of round 1; nothing is said or asked for by the end of a test."""
    watched = Watched(browser, report / "round-0001.html", viewport={"width": 1280, "height": 900})
    yield watched
    assert watched.said == []
    assert {url for url in watched.requests if not url.startswith("data:image/webp")} == {(report / "round-0001.html").as_uri()}
    watched.page.context.close()


def test_records_are_filtered(gallery: Watched) -> None:
    page = gallery.page
    assert len(gallery.shown()) == NUM_SHOWN
    page.select_option("[name=verdict]", "rejected")
    page.select_option("[name=reason]", "low_confidence")
    page.select_option("[name=type]", "complex")
    shown = gallery.shown()
    assert len(shown) == 10
    assert page.locator("#records > li:not([hidden]) .pill", has_text="low confidence").count() == 10
    assert page.inner_text("#count") == f"10 of {NUM_SHOWN}"
    page.fill("[name=text]", shown[3].upper())
    assert gallery.shown() == [shown[3]]
    page.fill("[name=text]", "nothing says this")
    assert page.is_visible("#nothing")
    page.click("#nothing button")
    assert len(gallery.shown()) == NUM_SHOWN
    page.click(".chip[data-reason=unparsable]")
    assert gallery.shown() == ["r1-s00001-0001"]


def test_records_are_sorted(gallery: Watched) -> None:
    values = "all => all.map(({id, dataset: of}) => [id, of.confidence === '' ? null : Number(of.confidence), Number(of.changed)])"

    def column(order: str, place: int) -> list[Any]:
        gallery.page.select_option("[name=sort]", order)
        return [row[place] for row in gallery.page.eval_on_selector_all("#records > li > article", values)]

    written = column("", 0)
    sure, unsure, changed = column("sure", 1), column("unsure", 1), column("changed", 2)
    assert sure[:-1] == sorted(sure[:-1], reverse=True)
    assert unsure[:-1] == sorted(unsure[:-1])
    assert sure[-1] is unsure[-1] is None
    assert changed == sorted(changed, reverse=True)
    assert changed[0] > 0
    assert column("", 0) == written


def test_it_is_read_by_keyboard(gallery: Watched) -> None:
    page, first = gallery.page, gallery.shown()[:3]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert gallery.focused() == first[2]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("k")
    assert gallery.focused() == first[1]
    page.keyboard.press("o")
    assert page.is_visible(f"#{first[1]} details dl")
    page.keyboard.press("/")
    page.keyboard.type(first[2])
    page.keyboard.press("Enter")
    assert gallery.focused() == first[2]
    assert gallery.shown() == [first[2]]
    page.keyboard.press("Escape")
    assert len(gallery.shown()) == NUM_SHOWN


def test_what_a_model_wrote_does_nothing(gallery: Watched) -> None:
    page = gallery.page
    page.fill("[name=text]", "<script>")
    assert gallery.shown() == ["r1-s00001-0000"]
    card = page.locator("#r1-s00001-0000")
    card.click()
    card.locator("summary").click()
    assert "document.title" in card.inner_text()
    assert card.locator("script, img, a, b:not(.chip b), [onfocus], [onerror]").count() == 0
    assert page.title() == "Round 1, run made"


def test_even_markup_that_was_not_escaped_could_not_run(gallery: Watched) -> None:
    gallery.page.evaluate("document.querySelector('.note').innerHTML = `<img src=x onerror=\"document.title = 'owned'\">`")
    gallery.page.wait_for_timeout(100)
    assert gallery.page.title() == "Round 1, run made"
    assert any("Content Security Policy" in line for line in gallery.said)
    gallery.said.clear()
    gallery.requests[:] = [url for url in gallery.requests if url.endswith(".html")]


@pytest.mark.parametrize("name", ["index.html", "round-0001.html"])
def test_it_fits_on_a_phone(browser: Browser, report: Path, name: str) -> None:
    page = Watched(
        browser, report / name, viewport={"width": 360, "height": 740}, device_scale_factor=2, is_mobile=True, has_touch=True
    ).page
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    widest = "Math.max(...[...document.querySelectorAll('.card, .chart, .hero, form')].map(one => one.getBoundingClientRect().right))"
    assert page.evaluate(widest) <= 360
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_dark(browser: Browser, report: Path, scheme: str) -> None:
    page = Watched(browser, report / "round-0001.html", color_scheme=scheme).page
    page.evaluate(_CONTRAST)
    background = page.evaluate("luminance(getComputedStyle(document.body).backgroundColor)")
    assert background > 0.8 if scheme == "light" else background < 0.05
    for selector in ("h1", ".pill.yes", ".pill.no", ".kind", "ins", "del", ".answer", ".id", ".note", ".chip", "summary"):
        assert page.evaluate("selector => contrast(selector)", selector) >= 4.5, selector
    page.context.close()


_CONTRAST = """() => {
window.luminance = color => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
window.contrast = selector => {
  const element = document.querySelector(selector);
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
  const values = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(luminance).sort((a, b) => b - a);
  return (values[0] + 0.05) / (values[1] + 0.05);
};
}"""


def test_the_index_opens_without_a_network(browser: Browser, report: Path) -> None:
    watched = Watched(browser, report / "index.html")
    assert watched.page.locator(".chart").count() == 3
    assert watched.page.locator(".chart .dot").count() == 3 + 3 * 2 + 2 * 2
    watched.page.click("text=Round 2 >> nth=0")
    assert watched.page.title() == "Round 2, run made"
    assert watched.said == []
    assert all(url.startswith(("file:", "data:image/webp")) for url in watched.requests)
    watched.page.context.close()
