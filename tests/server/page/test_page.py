"""The web page in headless Chromium: a chat typed and answered, a picture that moves, keys, a phone, the dark."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pagoda.server.keys import Keys

from .. import misbehaving
from ..conftest import Running

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium on PATH")
PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Any, server: Running) -> Iterator[Any]:
    """``open_page(width=…, dark=…)``: the page in a window of its own; errors on its console fail the test."""
    contexts, problems = [], []

    def open_(url: str = "", width: int = 1280, height: int = 860, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "requestfailed",
            lambda request: problems.append(request.url) if "chat/completions" not in request.url else 0,
        )
        page.on(
            "request",
            lambda request: problems.append(request.url) if not request.url.startswith(url or server.url) else 0,
        )
        page.goto((url or server.url) + "/")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not problems


def until(page: Any, condition: str) -> None:
    """Waits for a JavaScript expression; the page's own policy forbids what playwright would wait with."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def say(page: Any, text: str, most: int = 24) -> None:
    page.locator("summary").first.click()
    page.fill("#max_tokens", str(most))
    page.fill("#input", text)
    page.press("#input", "Enter")


def test_a_chat_is_typed_and_answered(open_page: Any) -> None:
    page = open_page()
    say(page, "Tell me a story.")
    page.wait_for_selector(".turn.assistant .meta")
    assert page.locator(".turn.user .body").inner_text() == "Tell me a story."
    assert page.locator(".turn.assistant .body").inner_text().strip()
    assert re.search(r"\d+ tokens", page.locator(".turn.assistant .meta").inner_text())
    page.fill("#input", "And then?")
    page.click("#send")
    until(page, "document.querySelectorAll('.turn.assistant .meta').length === 2")
    page.click("#new")
    assert page.locator(".turn").count() == 0


def test_the_picture_moves_under_load_and_shows_what_a_policy_drops(open_page: Any, server: Running) -> None:
    page = open_page()
    until(page, "document.querySelectorAll('#accounts tbody tr').length > 5")
    stop = threading.Event()

    def load() -> None:
        body = {
            "prompt": "once upon a time " * 40,
            "max_tokens": 400,
            "ignore_eos": True,
            "kv": "streaming_llm(budget=0.2)",
        }
        while not stop.is_set():
            assert server.post("/v1/completions", body).status_code == 200

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(page, "Number(document.querySelector('#g-running').textContent) > 0")
        until(page, "parseFloat(document.querySelector('#g-rate').textContent) > 0")
        page.wait_for_selector(".seq")
        until(
            page,
            "[...document.querySelectorAll('#grid i')].some((i) => Number(i.style.getPropertyValue('--kept')) < 0.7)",
        )
        assert "streaming_llm" in page.locator("#heads-of").inner_text()
        assert page.locator("#bar").get_attribute("aria-label").count("kv ") == 1
        page.wait_for_selector("#tree rect")
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    until(page, "document.querySelector('#g-running').textContent === '0'")
    assert page.locator("#sequences").inner_text() == "Nothing runs."


def test_escape_stops_a_stream_and_its_pages_go_back(open_page: Any, server: Running) -> None:
    page = open_page()
    page.locator("summary").first.click()
    page.fill("#max_tokens", "1500")
    page.fill("#temperature", "1.5")
    for _ in range(5):  # a story that ends by itself is tried again
        page.fill("#input", "Count from one to a thousand, please. 1 2 3 4 5 6 7 8 9 10")
        page.press("#input", "Enter")
        until(page, "document.querySelector('.turn:last-child .body').textContent.length > 0")
        page.keyboard.press("Escape")
        page.wait_for_selector(".turn:last-child .meta")
        if page.locator(".turn:last-child .meta").inner_text() == "stopped":
            break
    assert page.locator(".turn:last-child .meta").inner_text() == "stopped"
    misbehaving.until(lambda: misbehaving.idle(server))  # the page's 0 may be of before the story began
    until(page, "document.querySelector('#g-running').textContent === '0'")
    assert page.locator("#send").is_visible()


def test_everything_is_reached_by_keyboard(open_page: Any) -> None:
    page = open_page(width=390, height=844)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = []
    for _ in range(9):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert [name for name in seen if name in ("tab-chat", "log", "input", "SUMMARY", "new", "send")][:6] == [
        "tab-chat", "log", "input", "SUMMARY", "new", "send",
    ]  # fmt: skip
    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    assert page.locator("#memory").is_visible()
    assert not page.locator("#chat").is_visible()
    assert page.evaluate("document.activeElement.id") == "tab-memory"
    unlabelled = page.evaluate(
        "[...document.querySelectorAll('input, textarea, select')].filter((e) => !e.labels?.length).map((e) => e.id)"
    )
    assert unlabelled == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1600, 900)])
def test_nothing_is_wider_than_the_screen(open_page: Any, width: int, height: int) -> None:
    page = open_page(width=width, height=height)
    until(page, "document.querySelectorAll('#accounts tbody tr').length > 5")
    for tab in ("#tab-chat", "#tab-memory"):
        if page.locator(tab).is_visible():
            page.click(tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.querySelectorAll('article')].every((e) => e.scrollWidth <= e.clientWidth)")


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(open_page: Any, dark: bool) -> None:
    page = open_page(dark=dark)
    until(page, "document.querySelectorAll('#accounts tbody tr').length > 5")
    for selector in ("body", ".quiet", "#send", "#accounts td", ".model"):
        assert contrast(page, selector) >= 4.5, selector


CONTRAST = """(selector) => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map((v) => linear(v / 255));
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const element = document.querySelector(selector);
  let behind = element, back = [0, 0, 0, 0];
  for (; behind; behind = behind.parentElement) {
    back = rgb(getComputedStyle(behind).backgroundColor);
    if (back.length === 3 || back[3] > 0) break;
  }
  const front = rgb(getComputedStyle(element).color).slice(0, 3);
  const [a, b] = [light(front), light(back.slice(0, 3))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


def contrast(page: Any, selector: str) -> float:
    """Ratio of WCAG 2 between an element's text and what is behind it."""
    return page.evaluate(CONTRAST, selector)


def test_with_keys_the_page_asks_for_one(open_page: Any, serve: Any) -> None:
    guarded = serve(keys=Keys({"ada": "correct-horse-battery"}))
    page = open_page(guarded.url)
    page.wait_for_selector("#trouble:not([hidden])", state="attached")
    assert "needs the API key" in page.locator("#state").inner_text()
    page.locator("summary").first.click()
    page.fill("#key", "correct-horse-battery")
    page.press("#key", "Tab")
    page.wait_for_selector(".dot.ready")


def test_an_error_of_the_server_is_shown(open_page: Any) -> None:
    page = open_page()
    page.locator("summary").first.click()
    page.fill("#kv", "nonsense(3)")
    page.fill("#input", "hello")
    page.press("#input", "Enter")
    page.wait_for_selector(".turn .error")
    assert "nonsense" in page.locator(".turn .error").inner_text()
