"""The page at `/ui`, in a real browser: what it shows of a running engine, and what one may do there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import browser
from programs import ECHO, program
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from pieray.server.keys import Keys as ApiKeys

__all__ = ["browser"]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SAYS = program(
    f"""
from inferlet import log, session

async def main():
    log.info("to be read")
    session.send({HOSTILE!r})
    session.emit({HOSTILE!r}, {HOSTILE!r})
    await session.receive()
    return {HOSTILE!r}
""",
    "says",
)
FAMILY = replace(
    program(
        """
from inferlet import children, session

async def main():
    child = children.launch("echo")
    await session.receive()
""",
        "family",
    ),
    capabilities={"children": True},
)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def programs(engines: Any) -> Iterator[None]:
    engine = engines("socket")
    for one in (SAYS, ECHO, FAMILY):
        engine.install(one)
    yield
    for one in (SAYS, ECHO, FAMILY):
        engine.uninstall(one.name)


class Page:
    """The page in a browser, and what a person does with it.  Every wait ends after WAIT_S."""

    def __init__(self, browser: WebDriver, url: str) -> None:
        self.browser = browser
        self.url = url
        browser.get(f"{url}/ui/")
        browser.execute_script("sessionStorage.clear()")
        browser.get_log("browser")
        browser.get(f"{url}/ui/")

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        found: str = self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent).join('\\n')", selector
        )
        return found

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + WAIT_S
        while not (found := holds()):
            assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}; it shows: {self.find('main').text}"
            time.sleep(0.05)
        return found

    def until_text(self, selector: str, text: str) -> None:
        self.until(lambda: text in self.text(selector), f"{text!r} in {selector}")

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def complaints(self) -> list[str]:
        """Errors of scripts, and breaches of the policy, since the last call."""
        return [row["message"] for row in self.browser.get_log("browser") if row["level"] == "SEVERE"]

    def row(self, instance_id: str) -> str:
        return f"#tree tr[data-id='{instance_id}']"


@pytest.fixture
def page(browser: WebDriver, door: str, engine: Any, programs: None) -> Iterator[Page]:
    shown = Page(browser, door)
    shown.until(lambda: shown.all("html[data-ready]"), "the engine is shown")
    yield shown
    assert shown.complaints() == []


@pytest.fixture
def http(door: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door, timeout=30) as client:
        yield client


def launched(http: httpx.Client, name: str) -> str:
    answer = http.post(f"/v1/inferlets/{name}/runs", json={"wait": False, "keep_s": 60})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_it_shows_the_engine(page: Page) -> None:
    assert page.text("#health") == "up"
    assert "pie-tiny" in page.text("#devices")
    assert "cpu" in page.text("#devices")
    for role in ("resource-manager", "batcher", "inferlets"):
        assert role in page.text("#actors")
    page.until(lambda: page.all("#pages svg polygon"), "pages over time")
    assert "free" in page.text("#legend")


def test_live_inferlets_are_a_tree_that_keys_go_through(page: Page, http: httpx.Client) -> None:
    parent = launched(http, "family")
    page.until(lambda: page.all(page.row(parent) + "[aria-expanded='true']"), "the parent, with its child open")
    child = page.find("#tree tr[aria-level='2']")
    assert "echo" in child.text
    assert "running" in child.text
    page.find(page.row(parent)).click()
    page.press(Keys.ARROW_DOWN)
    child_row = page.row(child.get_attribute("data-id"))  # others may have children of their own
    assert page.browser.switch_to.active_element.get_attribute("data-id") == child.get_attribute("data-id")
    page.press(Keys.ARROW_LEFT)
    assert page.browser.switch_to.active_element.get_attribute("data-id") == parent
    page.press(Keys.ARROW_LEFT)
    page.until(lambda: not page.all(child_row), "the parent is closed")
    page.press(Keys.DELETE)
    page.until(lambda: page.find("#confirm").is_displayed(), "it asks first")
    assert parent in page.text("#confirm-text")
    page.press(Keys.TAB, Keys.ENTER)
    page.until_text(page.row(parent), "killed")
    assert http.get(f"/v1/runs/{parent}").json()["state"] == "killed"


def test_the_log_of_a_run_is_text_whatever_it_says(page: Page, http: httpx.Client) -> None:
    run = launched(http, "says")
    page.until(lambda: page.all(page.row(run)), "the run")
    page.find(page.row(run)).send_keys(Keys.ENTER)
    page.until_text("#run-log", "to be read")
    page.until_text("#run-log .data", HOSTILE.replace('"', '\\"'))
    assert page.text("#run-log .text") == HOSTILE
    assert not page.all("#run-log img, #run-log script")
    assert http.post(f"/v1/runs/{run}/messages", json={"text": "go on"}).status_code == 202
    page.until_text("#run-log .result", "onerror")
    page.until_text("#run .facts", "done")
    page.press(Keys.ESCAPE)
    assert not page.find("#run").is_displayed()
    assert page.browser.title == "pieray"


def test_the_playground_streams_takes_messages_and_stops(page: Page, http: httpx.Client) -> None:
    page.press("2")
    page.until(lambda: page.all("#program option[value='echo@0.0.0']"), "the programs")
    choose(page, "echo@0.0.0")
    page.until_text("#takes", "It takes nothing.")
    page.find("#arguments").send_keys(Keys.CONTROL, Keys.ENTER)
    page.until_text("#run-state", "running")
    for word in ("one", "two"):
        page.find("#message").send_keys(word, Keys.ENTER)
        page.until_text("#output", word.upper())
    page.find("#stop").click()
    page.until_text("#run-state", "stopped")
    page.find("#open-run").click()
    page.until_text("#run .facts", "killed")


def test_the_playground_proposes_arguments_and_says_what_is_wrong(page: Page) -> None:
    page.press("2")
    page.until(lambda: '"prompt"' in value(page, "#arguments"), "arguments of text-completion")
    page.find("#start").click()
    page.until_text("#output .result", '"finish_reason": "stop"')
    assert page.text("#output .text").endswith("19")
    field = page.find("#arguments")
    field.clear()
    field.send_keys('{"promt": 1}')
    page.find("#start").click()
    page.until_text("#output .error", "did you mean 'prompt'?")
    field.clear()
    field.send_keys("[1]")
    page.find("#start").click()
    page.until_text("#notice", "arguments are a JSON object")
    assert [line for line in page.complaints() if "400 (Bad Request)" not in line] == []


def test_the_trace_of_a_run_is_drawn(page: Page) -> None:
    page.press("2")
    page.until(lambda: '"prompt"' in value(page, "#arguments"), "arguments of text-completion")
    page.find("#traced").click()
    page.find("#start").click()
    page.until_text("#run-state", "done")
    page.find("#open-run").click()
    page.until(lambda: page.find("#run").is_displayed(), "the run")
    page.find(".tabs button:nth-child(2)").click()
    page.until(lambda: page.all("#run-trace rect.step"), "steps of the device")
    assert page.all("#run-trace rect.call")
    assert page.all("#run-trace rect.run")
    page.browser.execute_script(
        "document.querySelector('#run-trace rect.step').dispatchEvent(new PointerEvent('pointerenter'))"
    )
    assert page.text("#run-trace [role='status']").startswith("step: ")


def test_what_is_not_traced_says_so(page: Page, http: httpx.Client) -> None:
    run = launched(http, "echo")
    page.until(lambda: page.all(page.row(run)), "the run")
    page.find(page.row(run)).click()
    page.find(".tabs button:nth-child(2)").click()
    page.until_text("#run-trace", "is not traced")
    assert http.delete(f"/v1/runs/{run}").status_code == 200
    assert [line for line in page.complaints() if "404 (Not Found)" not in line] == []


def choose(page: Page, name: str) -> None:
    page.browser.execute_script(
        "const s = document.getElementById('program'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))",
        name,
    )


def value(page: Page, selector: str) -> str:
    return str(page.find(selector).get_property("value"))


def test_without_keys_nothing_is_installed(page: Page) -> None:
    page.press("3")
    page.until_text("#programs", "text-completion")
    assert not page.find("#install").is_enabled()
    assert "Without keys" in page.text("#may-install")


def test_a_key_is_asked_for_and_an_admin_installs(
    browser: WebDriver, locked: str, keys: ApiKeys, engine: Any, tmp_path: Path
) -> None:
    page = Page(browser, locked)
    page.until(lambda: page.find("#ask-key").is_displayed(), "a key is asked for")
    page.find("#key-text").send_keys("pk-wrong", Keys.ENTER)
    page.until(lambda: page.find("#ask-key").is_displayed() and value(page, "#key-text") == "", "asked for again")
    key = keys.create(role="admin", tenant="ops")
    page.find("#key-text").send_keys(key, Keys.ENTER)
    page.until_text("#who", "ops/local (admin)")
    assert key not in browser.page_source
    assert browser.execute_script("return Object.keys(localStorage).length + document.cookie.length") == 0
    page.find("nav a[data-view='programs']").click()
    source = tmp_path / "greet.py"
    source.write_text('__version__ = "1.0.0"\ndef main(): return "hello"\n')
    page.find("#file").send_keys(str(source))
    page.find("#install").click()
    page.until_text("#programs", "greet")
    page.find("#programs tr[data-program^='greet@'] button").click()
    page.until(lambda: page.find("#confirm").is_displayed(), "it asks first")
    page.find("#confirm-yes").click()
    page.until(lambda: "greet" not in page.text("#programs"), "it is gone")
    assert "greet" not in {row["name"] for row in engine.programs()}
    assert [line for line in page.complaints() if "401 (Unauthorized)" not in line] == []
