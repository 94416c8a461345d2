"""What a person sees when something is wrong: a sentence, where it belongs, and a way on."""

import json
import time
import uuid

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visit, drawn_ms
from tests.conftest import Served
from tests.machine import MACHINE

pytestmark = pytest.mark.serve

UNITS = 256 * 256
DISABLED_S = 30.0
"""A gateway may trust a key for some seconds before it asks the ledger again."""
TYPE = """() => {
  const prompt = document.getElementById('prompt');
  prompt.value += 'x';
  prompt.dispatchEvent(new Event('input', { bubbles: true }));
}"""


@pytest.fixture(autouse=True)
def refusals(visit: Visit) -> None:
    visit.refusals_expected = True


def test_a_wrong_key_is_refused_at_its_field_and_not_kept(visit: Visit, served: Served) -> None:
    visit.open()
    page = visit.page
    page.get_by_role("button", name="Change key").click()
    visit.enter("sk-wrong")
    expect(page.locator("#key-problem")).to_contain_text("The API key is not accepted.")
    expect(page.get_by_label("API key")).to_have_attribute("aria-invalid", "true")
    assert page.evaluate("sessionStorage.length") == 0
    visit.enter(served.key)
    expect(page.locator("#settings")).to_be_visible()


def test_the_key_stays_in_the_tab(visit: Visit, served: Served) -> None:
    visit.open()
    page = visit.page
    assert page.evaluate("Object.values(sessionStorage)") == [served.key]
    assert page.evaluate("localStorage.length") == 0
    assert page.context.cookies() == []
    assert served.key not in page.content()
    page.get_by_role("button", name="Change key").click()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_key_that_is_revoked_meanwhile_leads_back_to_the_key_field(
    visit: Visit, served: Served
) -> None:
    name = f"left-{uuid.uuid4().hex[:8]}"
    key = served.new_key(name, UNITS)
    visit.open_with(key)
    visit.quoted()
    served.flux_serve("accounts", "disable", name)
    began = time.monotonic()
    while visit.page.locator("#settings").is_visible():
        if time.monotonic() - began > MACHINE.allow(DISABLED_S):
            raise MACHINE.too_late("the page asks for a key", DISABLED_S, MACHINE.allow(DISABLED_S))
        visit.page.evaluate(TYPE)
        visit.page.wait_for_timeout(300)  # polling with a deadline
    expect(visit.page.locator("#key-problem")).to_contain_text("Enter another one.")
    expect(visit.page.get_by_label("API key")).to_be_focused()


def test_running_out_of_compute_units_is_told_before_and_shows_a_way_on(
    visit: Visit, served: Served
) -> None:
    name = f"last-{uuid.uuid4().hex[:8]}"
    visit.open_with(served.new_key(name, UNITS + UNITS // 2))
    page = visit.page
    notice, generate = page.locator("#notices"), page.locator("#generate")
    expect(notice).to_contain_text("Not enough compute units")
    expect(notice).to_contain_text(
        f"This costs 1,048,576 CU, and the account “{name}” has 98,304 CU"
    )
    expect(generate).to_have_attribute("aria-disabled", "true")
    page.get_by_role("button", name="Use the cheapest settings").click()
    assert visit.quoted() == UNITS // 2
    expect(notice).to_be_empty()
    expect(generate).to_have_attribute("aria-disabled", "false")
    assert visit.draw().endswith(f"{UNITS:,} CU charged.")
    expect(notice).to_contain_text(f"has {UNITS // 2:,} CU")
    expect(page.locator("#balance-units")).to_have_text(f"{UNITS // 2:,}")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".job")).to_have_count(1)


def test_units_that_others_spent_meanwhile_are_told_by_the_server(
    visit: Visit, served: Served
) -> None:
    """The page still believes in the price that it asked for: the 402 must look the same."""
    visit.open_with(served.new_key(f"race-{uuid.uuid4().hex[:8]}", UNITS - 1))
    page = visit.page
    page.route(
        "**/v1/images/quote",
        lambda route: route.fulfill(
            json={"model": "flux-mini", "size": "256x256", "steps": 4, "n": 1, "units": UNITS,
                  "affordable": True}
        ),
    )  # fmt: skip
    visit.choose()
    visit.quoted()
    visit.generate()
    expect(page.locator("#notices")).to_contain_text(f"This costs {UNITS:,} CU")
    expect(page.locator("#notices")).to_contain_text(f"has {UNITS - 1:,} CU")
    expect(page.locator("#empty")).to_be_visible()


def test_a_server_that_goes_away_is_told_and_asked_again(visit: Visit) -> None:
    visit.open()
    page = visit.page
    visit.choose()
    visit.quoted()
    page.context.set_offline(True)
    visit.generate()
    expect(page.locator("#notices")).to_contain_text("The server cannot be reached")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#notices")).to_be_empty()
    assert visit.draw().startswith("Done")


def test_a_server_that_is_away_at_the_start_is_told_and_asked_again(visit: Visit) -> None:
    page = visit.page
    page.route("**/web/start.json", lambda route: route.abort())
    page.goto(visit.url)
    expect(page.get_by_role("heading", name="The server cannot be reached")).to_be_visible()
    page.unroute("**/web/start.json")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#settings")).to_be_visible()


def test_a_server_that_starts_slowly_shows_that_something_comes(visit: Visit) -> None:
    page = visit.page
    held = []
    page.route("**/web/start.json", lambda route: held.append(route))
    page.goto(visit.url)
    expect(page.locator("#loading")).to_be_visible()
    held[0].continue_()
    expect(page.locator("#settings")).to_be_visible()
    expect(page.locator("#loading")).to_be_hidden()


def test_a_refused_setting_is_told_at_its_field(visit: Visit) -> None:
    visit.open()
    page = visit.page
    visit.choose()
    page.locator("#size").select_option("custom")
    page.get_by_label("Width").fill("250")
    expect(page.locator("#size-problem")).to_contain_text("edges must be multiples of")
    expect(page.locator("#size")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Width").fill("256")
    expect(page.locator("#size-problem")).to_be_empty()
    page.get_by_label("Seed").fill("seven")
    expect(page.locator("#seed-problem")).to_contain_text("Invalid type for 'seed'")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("textbox", name="Prompt").fill("x" * 1001)
    expect(page.locator("#prompt-problem")).to_contain_text("1001 characters")


def test_an_empty_prompt_is_asked_for(visit: Visit) -> None:
    visit.open()
    visit.generate()
    expect(visit.page.locator("#prompt-problem")).to_have_text("Describe the picture first.")
    expect(visit.page.get_by_role("textbox", name="Prompt")).to_be_focused()
    expect(visit.page.locator("#empty")).to_be_visible()


def test_a_stream_that_ends_with_an_error_keeps_what_arrived(visit: Visit) -> None:
    """The last bytes are replaced by the error that a dying replica leaves."""
    visit.open()
    page = visit.page

    def break_off(route: object) -> None:
        reply = route.fetch()  # type: ignore[attr-defined]
        first = reply.text().partition("event: image_generation.completed")
        one = first[0] + first[1] + first[2].partition("\n\n")[0] + "\n\n"
        error = json.dumps({"error": {"message": "No luck.", "code": "generation_failed"}})
        route.fulfill(response=reply, body=f"{one}data: {error}\n\n")  # type: ignore[attr-defined]

    page.route("**/v1/images/generations", break_off)
    visit.choose(n=2)
    visit.generate()
    expect(page.locator("#notices")).to_contain_text("The model failed", timeout=drawn_ms())
    expect(page.get_by_role("link", name="Download")).to_have_count(1)
    assert visit.page.locator("#status").inner_text().startswith("Broke off: 1 picture.")
