"""Headless Chromium in front of the served application.

A `Visit` watches what the page does: whatever a test is about, the page may raise no error, write
none to the console and ask no other origin for anything.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

from tests.conftest import Served
from tests.machine import MACHINE, eventually
from tests.required import require

EXPECT_S = 30.0
LAUNCH_S = 60.0
DRAWN_S = 120.0
"""A picture without a GPU."""
STEPS_MAX = 50
"""The most that configs/local.yaml allows."""
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
NETWORK = "Failed to load resource"
"""What Chromium writes to the console for every reply that is an error."""


def drawn_ms() -> float:
    """How long a picture may take here."""
    return MACHINE.allow(DRAWN_S) * 1000


def chromium_path() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a module and not for the session: it keeps an event loop running in this thread."""
    path = chromium_path()
    require(path is not None, "chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, timeout=MACHINE.allow(LAUNCH_S) * 1000
        )
        yield browser
        browser.close()


@dataclass
class Visit:
    """One tab at the playground."""

    page: Page
    url: str
    refusals_expected: bool = False
    """Whether the test makes the server refuse something."""
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)

    def watch(self) -> None:
        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.console.append(message.text)

        self.page.on("console", on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.origins.add(origin_of(request.url)))

    def check(self) -> None:
        assert self.errors == []
        quiet = [text for text in self.console if not text.startswith(NETWORK)]
        assert (quiet if self.refusals_expected else self.console) == []
        assert self.origins <= {origin_of(self.url), "blob://"}

    # --- what a person does

    def open(self) -> None:
        """Load the page; a development server connects by itself."""
        self.page.goto(self.url)
        expect(self.page.locator("#settings")).to_be_visible()

    def open_with(self, key: str) -> None:
        """Load the page and enter a key."""
        self.open()
        self.page.get_by_role("button", name="Change key").click()
        self.enter(key)
        expect(self.page.locator("#settings")).to_be_visible()

    def enter(self, key: str) -> None:
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Connect").click()

    def choose(
        self,
        prompt: str = "a red circle on a blue background",
        *,
        size: str = "256x256",
        n: int = 1,
        quality: str = "Standard",
    ) -> None:
        self.page.get_by_label("Prompt", exact=False).first.fill(prompt)
        self.page.locator("#size").select_option(size)
        self.page.locator("#n").select_option(str(n))
        self.page.get_by_role("radio", name=quality).check()

    def quoted(self) -> int:
        """The price of the settings, once the page has asked for it."""
        expect(self.page.locator(".quote")).to_have_attribute("aria-busy", "false")
        return number(self.page.locator("#quote-units").inner_text())

    def take_long(self) -> None:
        """From now on pictures need more steps than any setting of the page asks for.

        On a fast machine they would be done before anybody could look, or cancel them.
        """

        def ask_for_more(route: Route) -> None:
            body = {**json.loads(route.request.post_data or ""), "num_inference_steps": STEPS_MAX}
            route.continue_(post_data=json.dumps(body))

        self.page.route("**/v1/images/generations", ask_for_more)

    def generate(self) -> None:
        self.page.get_by_role("button", name="Generate").click()

    def wait_until_done(self) -> str:
        """What the page says when a job has ended."""
        expect(self.page.locator("#generate")).to_be_visible(timeout=drawn_ms())
        return self.page.locator("#status").inner_text()

    def draw(self, *args: Any, **settings: Any) -> str:
        self.choose(*args, **settings)
        self.generate()
        return self.wait_until_done()

    def save(self, index: int = 0) -> bytes:
        """The file behind the download button of a picture, counted from the newest."""
        with self.page.expect_download() as download:
            self.page.get_by_role("link", name="Download").nth(index).click()
        return download.value.path().read_bytes()


def settled(served: Served) -> dict[str, int]:
    """The balance, once nothing is held for jobs that earlier tests cancelled."""
    found: dict[str, int] = eventually(
        lambda: (balance := served.balance())["held"] == 0 and balance, "nothing is held"
    )
    return found


def number(text: str) -> int:
    return int(text.replace(",", ""))


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


MakeVisit = Callable[..., AbstractContextManager[Visit]]


@pytest.fixture
def visiting(browser: Browser, served: Served) -> MakeVisit:
    """Opens tabs, each in a profile of its own, with the options of `Browser.new_context`."""

    @contextmanager
    def make(**options: Any) -> Iterator[Visit]:
        expect.set_options(timeout=MACHINE.allow(EXPECT_S) * 1000)
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(MACHINE.allow(EXPECT_S) * 1000)
        visit = Visit(context.new_page(), f"{served.url}/")
        visit.watch()
        yield visit
        visit.check()
        context.close()

    return make


@pytest.fixture
def visit(visiting: MakeVisit) -> Iterator[Visit]:
    with visiting() as made:
        yield made
