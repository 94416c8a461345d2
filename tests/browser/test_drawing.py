"""A person draws pictures: price before, progress during, files and code after."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from tests.browser.conftest import MakeVisit, Visit, drawn_ms, number, settled
from tests.conftest import Served
from tests.machine import MACHINE

pytestmark = pytest.mark.serve

WAITED_FOR = {"size": "512x512", "num_inference_steps": 50}
"""A job of some seconds: long enough to be waited for, on a slow machine no longer than allowed."""
RECORD = """
window.seen = [];
window.previews = 0;
new MutationObserver(() => {
  window.previews = Math.max(
    window.previews, document.querySelectorAll('.frame.preview img').length
  );
  for (const tile of document.querySelectorAll('.tile')) {
    const bar = tile.querySelector('progress');
    const said = [tile.querySelector('p')?.textContent, bar?.value, bar?.max].join('|');
    if (!window.seen.includes(said)) window.seen.push(said);
  }
}).observe(document.getElementById('jobs'), {subtree: true, childList: true, attributes: true});
"""

RECORD_ABORTED = """
window.aborted = [];
const original = window.fetch;
window.fetch = async (url, options) => {
  const note = () => window.aborted.push(JSON.parse(options.body).n);
  options.signal?.addEventListener('abort', note);
  try {
    return await original(url, options);
  } finally {
    options.signal?.removeEventListener('abort', note);
  }
};
"""


def test_a_development_server_needs_no_typing(visit: Visit) -> None:
    visit.open()
    page = visit.page
    expect(page.locator("#model option")).to_have_text(["flux-mini"])
    expect(page.locator("#development-note")).to_be_visible()
    expect(page.locator("#empty")).to_be_visible()
    assert visit.quoted() == 1024 * 1024


def test_a_picture_takes_shape_and_costs_what_was_quoted(visit: Visit, served: Served) -> None:
    visit.open()
    page = visit.page
    visit.choose(size="512x512", n=2, quality="High")
    quoted, before = visit.quoted(), settled(served)
    page.evaluate(RECORD)
    visit.generate()
    said = visit.wait_until_done()
    assert page.evaluate("window.previews") > 0
    after = served.balance()
    assert said == f"Done: 2 pictures. {quoted:,} CU charged."
    assert after["captured"] - before["captured"] == quoted == 2 * 2 * 512 * 512
    expect(page.locator("#account-available")).to_have_text(f"{after['available']:,}")
    expect(page.locator("#account-session")).to_have_text(f"{quoted:,}")
    seen = page.evaluate("window.seen")
    assert any(text.startswith("Next in line") for text in seen), seen
    steps = [
        tuple(map(int, m.groups())) for t in seen if (m := re.match(r"Step (\d) of 8\|(\d)\|8", t))
    ]
    assert steps
    assert all(told == shown for told, shown in steps)
    sizes = "(images) => images.map((image) => [image.naturalWidth, image.naturalHeight])"
    assert page.locator(".tile img").evaluate_all(sizes) == [[512, 512], [512, 512]]
    files = [visit.save(index) for index in range(2)]
    assert len(set(files)) == 2
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("PNG", (512, 512))


def test_the_price_follows_the_settings(visit: Visit) -> None:
    visit.open()
    for size, n, quality, units in [
        ("256x256", 1, "Standard", 256 * 256),
        ("256x256", 3, "Standard", 3 * 256 * 256),
        ("256x256", 3, "Low", 3 * 256 * 256 // 2),
        ("768x512", 1, "High", 2 * 768 * 512),
    ]:
        visit.choose(size=size, n=n, quality=quality)
        assert visit.quoted() == units


def test_typing_asks_for_the_price_once_it_pauses(visit: Visit) -> None:
    visit.open()
    visit.quoted()
    page = visit.page
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.post_data_json["prompt"]))
    page.evaluate(
        """() => {
          const prompt = document.getElementById('prompt');
          for (const letter of 'a red circle') {
            prompt.value += letter;
            prompt.dispatchEvent(new Event('input', { bubbles: true }));
          }
        }"""
    )
    visit.quoted()
    assert asked == ["a red circle"]


def test_an_answer_that_is_out_of_date_is_not_waited_for(visit: Visit) -> None:
    page = visit.page
    page.add_init_script(RECORD_ABORTED)
    visit.open()
    visit.quoted()
    kept: list[Route] = []

    def keep_the_first(route: Route) -> None:
        if kept:
            route.continue_()
        else:
            kept.append(route)

    page.route("**/v1/images/quote", keep_the_first)
    with page.expect_request("**/v1/images/quote"):
        page.locator("#n").select_option("2")
    page.locator("#n").select_option("3")
    assert visit.quoted() == 3 * 1024 * 1024
    assert page.evaluate("window.aborted") == [2]


def test_a_job_that_waits_tells_how_many_are_before_it(visit: Visit, served: Served) -> None:
    body = {**WAITED_FOR, "prompt": "a blue star", "n": 4, "stream": True}
    headers = {"authorization": f"Bearer {served.key}"}
    url = f"{served.url}/v1/images/generations"
    visit.open()
    visit.choose()
    visit.page.evaluate(RECORD)
    with httpx.stream("POST", url, json=body, headers=headers, timeout=MACHINE.allow(120)) as other:
        assert other.status_code == 200  # a replica has taken it
        visit.generate()
        expect(visit.page.locator("#status")).to_contain_text(re.compile("ahead|done|Done"))
    visit.wait_until_done()
    seen = visit.page.evaluate("window.seen")
    assert any(text.startswith("4 pictures ahead") for text in seen), seen


def test_the_code_of_a_picture_draws_exactly_that_picture(
    visiting: MakeVisit, served: Served, tmp_path: Path
) -> None:
    with visiting(permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.page
        visit.open()
        visit.draw('a "red" circle, it\'s on a blue background \\ $HOME `ls` é 🎈', n=2)
        page.get_by_role("button", name="Code").nth(1).click()
        codes = {}
        for kind in ("curl", "Python"):
            page.get_by_role("button", name=f"Copy {kind}").click()
            expect(page.locator("#copy-state")).to_have_text("Copied.")
            codes[kind] = page.evaluate("navigator.clipboard.readText()")
        page.get_by_role("button", name="Close").first.click()
        second = visit.save(1)
        page.get_by_role("button", name="Reuse").nth(1).click()
        expect(page.locator("#n")).to_have_value("1")
        visit.generate()
        visit.wait_until_done()
        alone = visit.save(0)
    assert pixels(alone) == pytest.approx(pixels(second), abs=2)  # it shared the device before
    assert served.key not in codes["curl"] + codes["Python"]
    for kind, command in {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}.items():
        folder = tmp_path / kind
        folder.mkdir()
        environment = {**os.environ, "FLUX_SERVE_API_KEY": served.key}
        words = [*command, codes[kind]]
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, timeout=MACHINE.allow(120)
        )
        assert done.returncode == 0, done.stderr
        (file,) = folder.iterdir()
        assert pixels(file.read_bytes()) == pixels(alone), kind  # each file names its request


def pixels(data: bytes) -> list[int]:
    with Image.open(io.BytesIO(data)) as image:
        return list(image.convert("RGB").tobytes())


@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_a_picture_comes_in_the_format_that_was_chosen(visit: Visit, kind: str) -> None:
    visit.open()
    visit.page.get_by_role("radio", name=kind).check()
    visit.draw()
    with Image.open(io.BytesIO(visit.save())) as image:
        assert image.format == kind.upper()


def test_cancelling_stops_the_drawing_and_costs_nothing(visit: Visit, served: Served) -> None:
    before = settled(served)
    visit.open()
    page = visit.page
    visit.choose(size="512x512", n=4)
    visit.take_long()
    visit.generate()
    expect(page.locator(".tile-state").first).to_contain_text(
        re.compile("Step|line|ahead"), timeout=drawn_ms()
    )
    units = f"{served.balance()['held']:,}"
    expect(page.locator("#account-held")).to_have_text(units)
    assert units != "0"
    page.get_by_role("button", name="Cancel").first.click()
    expect(page.locator("#notices")).to_contain_text("Nothing was charged.")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#account-held")).to_have_text("0")
    after = served.balance()
    assert (after["captured"], after["held"]) == (before["captured"], 0)
    page.unroute("**/v1/images/generations")
    assert visit.draw().startswith("Done: 1 picture.")


def test_everything_works_from_the_keyboard(visit: Visit) -> None:
    visit.open()
    page = visit.page
    press = page.keyboard.press
    visit.choose()
    page.get_by_role("textbox", name="Prompt").focus()
    page.keyboard.press("End")
    page.keyboard.type(" ")
    order = []
    for _ in range(7):
        press("Tab")
        order.append(page.evaluate("document.activeElement.name || document.activeElement.id"))
    assert order == ["model", "size", "n", "quality", "output_format", "seed", "generate"]
    press("Shift+Tab")
    page.keyboard.type("7")
    press("Enter")
    visit.wait_until_done()
    expect(page.locator("#generate")).to_be_focused()
    visit.page.get_by_role("button", name="Enlarge").focus()
    press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("dialog").get_by_role("img")).to_have_accessible_name(
        "a red circle on a blue background , seed 7"
    )
    press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Enlarge")).to_be_focused()
    for name in ("Download", "Code", "Reuse"):
        press("Tab")
        assert page.evaluate("document.activeElement.textContent") == name
    press("Enter")
    expect(page.get_by_role("textbox", name="Prompt")).to_be_focused()
    held: list[Route] = []  # not answered: the job does not end by itself
    page.route("**/v1/images/generations", lambda route: held.append(route))
    press("Control+Enter")
    expect(page.locator("#cancel")).to_be_visible()
    press("Escape")
    expect(page.locator("#generate")).to_be_visible()


def test_the_account_is_shown_as_the_api_tells_it(visit: Visit, served: Served) -> None:
    balance = settled(served)
    visit.open()
    page = visit.page
    for field in ("available", "held", "captured"):
        assert number(page.locator(f"#account-{field}").inner_text()) == balance[field]
    assert number(page.locator("#balance-units").inner_text()) == balance["available"]
