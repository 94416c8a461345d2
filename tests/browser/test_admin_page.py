"""The admin page: an account from nothing to a revoked key, in every state, for everyone."""

import re
import time
import uuid
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, MakeVisit, Visit
from tests.browser.test_page import overflow, problems
from tests.conftest import Served
from tests.machine import DEADLINE_S, MACHINE

pytestmark = pytest.mark.serve

UNITS = 128 * 128


@pytest.fixture
def admin(visiting: MakeVisit) -> Iterator[Visit]:
    with visiting() as made:
        made.url += "admin"
        yield made


def opened(visit: Visit, view: str = "overview") -> Page:
    visit.page.goto(f"{visit.url}#{view}")
    expect(visit.page.get_by_role("navigation")).to_be_visible()
    return visit.page


def new_name() -> str:
    return f"admin-{uuid.uuid4().hex[:8]}"


def make_account(visit: Visit, name: str) -> Page:
    page = opened(visit, "accounts")
    page.get_by_role("button", name="New account").click()
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    return page


def grant(page: Page, units: str, reason: str) -> None:
    form = page.get_by_role("form", name="Grant")
    form.get_by_label("Compute units").fill(units)
    form.get_by_label("Reason").fill(reason)
    form.get_by_role("button", name="Grant units").click()


def make_key(page: Page) -> str:
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Requests a minute").fill("60")
    page.get_by_label("Images at once").fill("4")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#secret-text")).to_have_text(re.compile("^sk-"))
    secret: str = page.locator("#secret-text").inner_text()
    return secret


def draw(served: Served, key: str) -> httpx.Response:
    return httpx.post(
        f"{served.url}/v1/images/generations",
        json={"prompt": "a red circle", "size": "128x128", "response_format": "b64_json"},
        headers={"authorization": f"Bearer {key}"},
        timeout=MACHINE.allow(120),
    )


def test_an_account_draws_with_its_key_until_that_is_revoked(admin: Visit, served: Served) -> None:
    name = new_name()
    page = make_account(admin, name)
    grant(page, "1,000,000", "invoice 17")
    expect(page.get_by_label("Balance")).to_contain_text("1,000,000")
    secret = make_key(page)
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#secret-text")).to_be_empty()
    assert secret not in page.content()
    keys = page.get_by_role("region", name="API keys")
    expect(keys).to_contain_text("60 a minute; 4 images at once")
    reply = draw(served, secret)
    assert reply.status_code == 200, reply.text

    page.get_by_role("link", name="Overview").click()
    page.get_by_label("Account", exact=True).select_option(label=name)
    row = page.get_by_role("region", name="Usage by day and model").locator("tbody tr")
    expect(row).to_have_count(1)
    # The row of all accounts may be there for a moment yet.
    expect(row.locator("td")).to_have_text(["flux-mini", "1", "1", f"{UNITS:,}"])
    chart = page.get_by_role("img", name=f"{UNITS:,} compute units in 30 days, 1 image")
    expect(chart.locator("rect")).to_have_count(1)

    page.get_by_role("link", name="Accounts").click()
    page.get_by_role("link", name=name).click()
    page.get_by_role("button", name="Revoke key").click()
    page.get_by_label("Reason").last.fill("leaked")
    page.get_by_role("button", name="Revoke the key").click()
    expect(keys).to_contain_text("revoked")
    expect(keys.get_by_role("button")).to_have_count(0)
    assert draw(served, secret).status_code == 401

    acts = served.flux_serve("acts", "list", "--limit", "4")
    assert [(act["verb"], act["reason"]) for act in acts] == [
        ("keys revoke", "leaked"), ("keys create", ""), ("grant", "invoice 17"),
        ("accounts create", ""),
    ]  # fmt: skip
    page.get_by_role("link", name="Acts", exact=True).click()
    newest = page.get_by_role("region", name="Acts").locator("tbody tr").first
    expect(newest).to_contain_text("keys revoke")
    expect(newest).to_contain_text("leaked")
    expect(newest.get_by_role("link", name=name)).to_be_visible()


def test_a_secret_is_copied_and_then_gone(visiting: MakeVisit) -> None:
    with visiting(permissions=["clipboard-read", "clipboard-write"]) as visit:
        visit.url += "admin"
        page = make_account(visit, new_name())
        secret = make_key(page)
        page.get_by_role("button", name="Copy key").click()
        expect(page.locator("#secret-state")).to_have_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == secret
        page.keyboard.press("Escape")
        expect(page.locator("#secret-text")).to_be_empty()
        page.reload()
        expect(page.get_by_role("region", name="API keys")).to_contain_text(secret[:9])
        assert secret not in page.content()


def test_what_the_server_refuses_is_said_at_its_field(admin: Visit) -> None:
    admin.refusals_expected = True
    name = new_name()
    page = make_account(admin, name)
    grant(page, "1.5 million", "x")
    units = page.get_by_label("Compute units")
    expect(units).to_have_attribute("aria-invalid", "true")
    expect(units).to_be_focused()
    grant(page, "5", "")
    expect(page.get_by_role("form", name="Grant").get_by_label("Reason")).to_be_focused()
    expect(page.get_by_label("Balance")).not_to_contain_text("5")
    page.goto(f"{admin.url}#accounts")
    page.get_by_role("button", name="New account").click()
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_role("dialog")).to_contain_text("already an account")


def test_limits_and_budgets_are_set_and_lifted(admin: Visit, served: Served) -> None:
    name = new_name()
    page = make_account(admin, name)
    budgets = page.get_by_role("form", name="Budgets")
    budgets.get_by_label("A day").fill("5000")
    budgets.get_by_role("button", name="Set budgets").click()
    expect(page.get_by_label("Balance")).to_contain_text("5,000")
    make_key(page)
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Limits key").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Requests a minute")).to_have_value("60")
    dialog.get_by_label("Requests a minute").fill("")
    dialog.get_by_label("Models").fill("flux-mini")
    dialog.get_by_role("button", name="Set the limits").click()
    expect(page.get_by_role("region", name="API keys")).to_contain_text(
        "4 images at once; flux-mini"
    )
    (key,) = served.flux_serve("keys", "list", name)
    assert (key["rpm"], key["images_max"], key["models"]) == (None, 4, ["flux-mini"])
    assert served.flux_serve("accounts", "show", name)["day_budget"] == 5000


def test_an_account_is_disabled_and_enabled_with_the_keyboard_alone(
    admin: Visit, served: Served
) -> None:
    name = new_name()
    page = make_account(admin, name)
    page.get_by_role("button", name="Disable").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("unpaid")
    page.keyboard.press("Enter")
    expect(page.get_by_text("disabled", exact=True)).to_be_visible()
    assert served.flux_serve("accounts", "show", name)["disabled_at"] is not None
    page.get_by_role("button", name="Enable").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")  # no, rather not
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert served.flux_serve("accounts", "show", name)["disabled_at"] is not None


def test_a_key_that_only_draws_is_refused(admin: Visit, served: Served) -> None:
    admin.refusals_expected = True
    key = served.new_key(new_name(), 0)
    page = opened(admin)
    page.get_by_role("button", name="Change key").click()
    admin.enter(key)
    expect(page.locator("#key-problem")).to_contain_text("lacks the scope 'admin'")
    expect(page.get_by_role("navigation")).to_be_hidden()
    assert page.evaluate("sessionStorage.length") == 0
    page.get_by_role("button", name="Use the development key").click()
    expect(page.get_by_role("navigation")).to_be_visible()


def test_the_fleet_is_watched_while_somebody_looks(admin: Visit) -> None:
    page = opened(admin)
    asked: list[float] = []
    page.on("request", lambda one: asked.append(0) if "v1/status" in one.url else None)
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("#fleet")).to_contain_text("flux-mini")
    until(lambda: len(asked) >= 2, page)
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { value: true, configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    expect(page.locator("#live")).to_have_text("Paused")
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#live")).to_have_text("Live")


def until(reached: Callable[[], bool], page: Page) -> None:
    """As `eventually`, while the page goes on."""
    began = time.monotonic()
    while not reached():
        if time.monotonic() - began > MACHINE.allow():
            raise MACHINE.too_late("the page asks again", DEADLINE_S, MACHINE.allow())
        page.wait_for_timeout(50)


def test_a_server_that_goes_away_is_told_of_and_found_again(admin: Visit) -> None:
    admin.refusals_expected = True
    page = opened(admin)
    page.route("**/admin/v1/status", lambda route: route.abort())
    expect(page.locator("#fleet-problem")).to_contain_text("cannot be reached")
    page.unroute("**/admin/v1/status")
    expect(page.locator("#fleet-problem")).to_be_empty()
    page.route("**/admin/v1/acts*", lambda route: route.fulfill(status=503, json={}))
    page.get_by_role("link", name="Acts").click()
    expect(page.locator("#acts-list")).to_contain_text("The server is busy")
    page.unroute("**/admin/v1/acts*")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("region", name="Acts")).to_be_visible()


def test_usage_is_saved_as_a_file(admin: Visit) -> None:
    page = opened(admin)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save CSV").click()
    first = download.value.path().read_text(encoding="utf-8").splitlines()[0]
    assert first == "day,account_id,key_id,model,jobs,images,units"


def test_long_lists_load_page_by_page(admin: Visit) -> None:
    page = admin.page
    rows = [
        {"id": number, "at": "2026-01-02T03:04:05Z", "actor": "cli:bob", "verb": "grant",
         "subject": "acct_1", "reason": f"invoice {number}", "detail": {"units": number}}
        for number in range(3)
    ]  # fmt: skip

    page.route(
        "**/admin/v1/acts*",
        lambda route: route.fulfill(
            json={"data": rows[2:], "next": None}
            if "after=" in route.request.url
            else {"data": rows[:2], "next": "1"}
        ),
    )
    opened(admin, "acts")
    more = page.get_by_role("button", name="Show more")
    more.click()
    expect(page.locator("#acts-list tbody tr")).to_have_count(3)
    expect(more).to_have_count(0)


# --- for everyone


def overview(visit: Visit) -> None:
    page = opened(visit)
    expect(page.locator("#fleet")).to_contain_text("flux-mini")
    expect(page.locator("#usage > *").first).to_be_visible()


def full_chart(visit: Visit) -> None:
    """Six models, so that some are put together, without drawing with them."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    rows = [
        {"day": day, "account_id": None, "key_id": None, "model": f"model/{one}",
         "jobs": 1, "images": 2, "units": 10**one}
        for one in range(3, 9)
    ]  # fmt: skip
    visit.page.route(
        "**/admin/v1/usage*", lambda route: route.fulfill(json={"data": rows, "next": None})
    )
    opened(visit)
    expect(visit.page.locator(".legend")).to_contain_text("other models")


def accounts(visit: Visit) -> None:
    opened(visit, "accounts")
    expect(visit.page.get_by_role("region", name="Accounts")).to_be_visible()


def one_account(visit: Visit) -> None:
    page = make_account(visit, new_name())
    make_key(page)
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("region", name="API keys")).to_be_visible()
    expect(page.get_by_role("region", name="Acts")).to_be_visible()


def empty_account(visit: Visit) -> None:
    page = make_account(visit, new_name())
    expect(page.get_by_text("No keys yet")).to_be_visible()


def asking(visit: Visit) -> None:
    page = make_account(visit, new_name())
    page.get_by_role("button", name="New key").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def telling_the_secret(visit: Visit) -> None:
    make_key(make_account(visit, new_name()))


def acts(visit: Visit) -> None:
    opened(visit, "acts")
    expect(visit.page.get_by_role("region", name="Acts")).to_be_visible()


def failing(visit: Visit) -> None:
    visit.page.route("**/admin/v1/usage*", lambda route: route.fulfill(status=503, json={}))
    opened(visit)
    expect(visit.page.locator("#usage")).to_contain_text("The server is busy")


def key_wanted(visit: Visit) -> None:
    page = opened(visit)
    page.get_by_role("button", name="Change key").click()
    visit.enter("sk-wrong")
    expect(page.locator("#key-problem")).not_to_be_empty()


STATES = [
    overview, full_chart, accounts, one_account, empty_account, asking, telling_the_secret, acts,
    failing, key_wanted,
]  # fmt: skip


@pytest.mark.parametrize("reach", STATES, ids=lambda state: state.__name__)
def test_a_state_is_accessible_in_both_themes_and_on_a_phone(
    admin: Visit, reach: Callable[[Visit], None]
) -> None:
    admin.refusals_expected = True
    page = admin.page
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    reach(admin)
    assert problems(admin) == []
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert problems(admin) == []
    page.set_viewport_size({"width": 320, "height": 640})
    assert problems(admin) == []
    assert overflow(admin) == []


def test_a_phone_shows_an_account_without_scrolling_sideways(visiting: MakeVisit) -> None:
    with visiting(viewport=PHONE, has_touch=True, is_mobile=True) as visit:
        visit.url += "admin"
        make_account(visit, new_name())
        assert overflow(visit) == []
