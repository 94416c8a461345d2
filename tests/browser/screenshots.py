"""Makes the pictures of docs/playground.md: `python -m tests.browser.screenshots [URL]`.

Against a running development server, http://127.0.0.1:8000 when no URL is given.
"""

import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.conftest import Visit, chromium_path, drawn_ms

FOLDER = Path(__file__).parents[2] / "docs" / "images"
DESKTOP = {"width": 1180, "height": 800}
PHONE = {"width": 390, "height": 800}
COLOURS = 200
"""Enough for a page, and a quarter of the bytes."""


def opened(browser: Browser, url: str, **options: Any) -> Visit:
    visit = Visit(browser.new_context(**options).new_page(), url)
    visit.watch()
    visit.open()
    return visit


def save(visit: Visit, name: str) -> None:
    path = FOLDER / f"playground-{name}.png"
    visit.page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    visit.check()
    visit.page.context.close()


def draw_two_jobs(visit: Visit) -> None:
    visit.page.locator("#seed").fill("7")
    visit.draw("a red circle on a blue background", size="256x256")
    visit.draw("three yellow stars on a black background", size="512x512", n=2, quality="High")
    visit.quoted()
    expect(visit.page.locator("#account-held")).to_have_text("0")


def begin(visit: Visit) -> None:
    visit.page.locator("#seed").fill("7")
    visit.choose("a green heart on a white background", size="512x512", n=2, quality="High")
    visit.quoted()
    visit.generate()
    previews = visit.page.locator(".frame.preview img")
    expect(previews).to_have_count(2, timeout=drawn_ms())


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path())
        visit = opened(browser, url, viewport=DESKTOP, color_scheme="light")
        draw_two_jobs(visit)
        save(visit, "desktop-light")

        visit = opened(browser, url, viewport=DESKTOP, color_scheme="dark")
        begin(visit)
        save(visit, "desktop-dark")

        visit = opened(browser, url, viewport=PHONE, color_scheme="light", is_mobile=True)
        visit.quoted()
        save(visit, "phone-light")

        visit = opened(browser, url, viewport=PHONE, color_scheme="dark", is_mobile=True)
        begin(visit)
        visit.wait_until_done()
        save(visit, "phone-dark")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/")
