"""The page in a real browser: drawing with mouse and keyboard, reading what it says.

Needs Chromium (or Chrome), its driver and selenium. Without them the tests are skipped, unless
GPULAYERS_REQUIRE_BROWSER=1, which makes that a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpulayers.demo import Server

REQUIRED = os.environ.get("GPULAYERS_REQUIRE_BROWSER") == "1"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # there is no network
)
SEVEN = [(-70, -80), (-20, -80), (30, -80), (60, -80), (40, -30), (10, 20), (-10, 90)]


def missing() -> str | None:
    """What is not there, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    if not binary():
        return "there is no Chromium"
    return None if shutil.which("chromedriver") else "there is no chromedriver"


def binary() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    reason = missing()
    if reason:
        assert not REQUIRED, f"GPULAYERS_REQUIRE_BROWSER=1, but {reason}"
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    profile: Path = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1200,1000"):
        options.add_argument(flag)
    options.binary_location = binary() or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Page:
    """The page with what the tests do on it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get_log("browser"), driver.get_log("performance")  # forget other pages'
        driver.get(url)
        self.until(lambda: self.text("title") != "Connecting …" and self.text("verdict") == "?")

    def find(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return self.find(name).text

    def until(self, holds: Callable[[], bool], looks: int = 1000) -> None:
        """Wait for something; looks are counted, not seconds, as a busy machine may stop us."""
        for _ in range(looks):
            if holds():
                return
            time.sleep(0.02)
        raise AssertionError(f"waited too long; the page says {self.text('verdict')!r}")

    def pixels(self, selector: str) -> list[str]:
        """The pictures in the canvases that `selector` finds."""
        script = "return [...document.querySelectorAll(arguments[0])].map((c) => c.toDataURL())"
        return self.driver.execute_script(script, selector)

    def mouse(self, points: list[tuple[int, int]], release: bool = True) -> None:
        """Draw a stroke; points from the middle of the paper, which is 280 wide."""
        from selenium.webdriver.common.action_chains import ActionChains

        paper = self.find("paper")
        scale = paper.size["width"] / 280
        actions = ActionChains(self.driver, duration=10)
        for i, (x, y) in enumerate(points):
            actions.move_to_element_with_offset(paper, round(x * scale), round(y * scale))
            if i == 0:
                actions.click_and_hold()
        if release:
            actions.release()
        actions.perform()

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def back(self) -> None:
        """Shift and Tab."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(
            Keys.SHIFT
        ).perform()

    def focused(self) -> str:
        return self.driver.execute_script("return document.activeElement.id")


@pytest.fixture
def page(browser: Any, server: Server) -> Page:
    return Page(browser, server.url)


def test_a_stroke_by_mouse_is_read_while_it_is_drawn(page: Page, server: Server) -> None:
    blank_maps, blank_gradient = page.pixels("#layers canvas"), page.pixels("#gradient")
    assert len(blank_maps) == 6 + 6 + 16 + 16 + 3
    page.mouse(SEVEN[:4], release=False)
    page.until(lambda: page.text("verdict") != "?")
    page.until(lambda: page.pixels("#layers canvas") != blank_maps)
    halfway = page.pixels("#layers canvas")
    page.mouse(SEVEN)
    page.until(lambda: page.text("verdict") == "7")
    page.until(lambda: "Looks like 7" in page.find("say").get_attribute("textContent"))
    maps = page.pixels("#layers canvas")
    changed = sum(a != b for a, b in zip(maps, halfway, strict=True))
    assert changed > len(maps) / 2
    assert page.pixels("#gradient") != blank_gradient
    assert page.text("explained") == "7"
    bars = page.driver.find_elements("css selector", "#bars button")
    shares = [float(bar.text.split()[-1].strip("<>%")) for bar in bars]
    assert max(range(10), key=shares.__getitem__) == 7 and shares[7] > 50
    # another class's gradient
    of_seven = page.pixels("#gradient")
    bars[3].click()
    page.until(lambda: page.text("explained") == "3")
    assert bars[3].get_attribute("aria-pressed") == "true"
    assert page.pixels("#gradient") != of_seven
    # nothing was asked of anybody else, and nothing complained
    assert page.driver.get_log("browser") == []
    messages = [json.loads(e["message"])["message"] for e in page.driver.get_log("performance")]
    asked = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert f"{server.url}api/look" in asked
    # the browser's own start page is made of chrome://
    strangers = [url for url in asked if not url.startswith((server.url, "chrome://", "data:"))]
    assert not strangers


def test_everything_by_keyboard(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.keys(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the drawing area"
    page.keys(Keys.ENTER)
    assert page.focused() == "paper"
    page.keys(Keys.ARROW_RIGHT)
    assert page.find("cursor").is_displayed()
    page.keys(Keys.SPACE, *[Keys.ARROW_DOWN] * 14)
    page.until(lambda: page.text("verdict") == "1")
    assert "down" in page.find("cursor").get_attribute("class")
    page.keys(Keys.SPACE)
    page.until(lambda: "Looks like 1" in page.find("say").get_attribute("textContent"))
    page.keys(Keys.BACKSPACE)
    page.until(lambda: page.text("verdict") == "?")
    page.keys(Keys.TAB, Keys.TAB, Keys.TAB)
    assert page.focused() == "example"
    page.keys(Keys.ENTER)
    page.until(lambda: page.text("verdict") != "?")
    page.back()
    page.back()
    assert page.focused() == "clear"
    page.keys(Keys.ENTER)
    page.until(lambda: page.text("verdict") == "?")
    assert page.focused() == "clear"  # is not lost although there is nothing to clear any more
    assert page.find("clear").get_attribute("aria-disabled") == "true"


def test_light_dark_and_narrow(page: Page) -> None:
    page.mouse(SEVEN)
    page.until(lambda: page.text("verdict") == "7")

    def ground() -> str:
        return page.driver.execute_script(
            "return getComputedStyle(document.body.parentNode).backgroundColor"
        )

    before, paper, maps = ground(), page.pixels("#paper"), page.pixels("#layers canvas")
    page.find("theme").click()
    assert ground() != before
    assert page.pixels("#paper") != paper and page.pixels("#layers canvas") != maps
    page.find("theme").click()
    assert ground() == before and page.pixels("#layers canvas") == maps
    for width in (320, 600, 820, 1400):
        page.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True},
        )
        wide = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, f"the page is {wide} wide on a screen of {width}"
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_program_that_has_ended_is_told(page: Page, server: Server) -> None:
    server.close()
    page.mouse(SEVEN[:2])
    page.until(lambda: page.find("alert").is_displayed())
    assert "gpulayers demo" in page.text("alert")
