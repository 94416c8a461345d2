"""The page itself: policy, accessibility, phones, themes, motion."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Route, expect

from tests.browser.conftest import PHONE, MakeVisit, Visit, drawn_ms
from tests.conftest import Served
from tests.machine import MACHINE

pytestmark = pytest.mark.serve


def problems(visit: Visit) -> list[str]:
    """What axe finds against WCAG 2.2 AA and its best practices."""
    found = Axe().run(visit.page).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]


def asking_for_a_key(visit: Visit) -> None:
    visit.open()
    visit.page.get_by_role("button", name="Change key").click()
    visit.enter("sk-wrong")
    expect(visit.page.locator("#key-problem")).not_to_be_empty()


def empty(visit: Visit) -> None:
    visit.open()
    visit.quoted()


def refusing(visit: Visit) -> None:
    visit.open()
    visit.page.get_by_label("Seed").fill("seven")
    expect(visit.page.locator("#seed-problem")).not_to_be_empty()


def too_dear(visit: Visit) -> None:
    """A balance that no price fits in, without an account for it."""
    visit.page.route(
        "**/v1/images/quote",
        lambda route: route.fulfill(
            json={"model": "flux-mini", "size": "1024x1024", "steps": 4, "n": 1,
                  "units": 1048576, "affordable": False}
        ),
    )  # fmt: skip
    visit.open()
    expect(visit.page.locator("#notices")).to_contain_text("Not enough")


def unreachable(visit: Visit) -> None:
    visit.page.route("**/web/start.json", lambda route: route.abort())
    visit.page.goto(visit.url)
    expect(visit.page.locator("#offline")).to_be_visible()


def drawing(visit: Visit) -> None:
    visit.open()
    visit.choose(size="1024x1024", n=3)
    visit.take_long()
    visit.generate()
    expect(visit.page.locator(".tile-state").first).to_contain_text(
        re.compile("Step|line|ahead"), timeout=drawn_ms()
    )


def drawn(visit: Visit) -> None:
    visit.open()
    visit.draw(n=2)


def showing_code(visit: Visit) -> None:
    drawn(visit)
    visit.page.get_by_role("button", name="Code").first.click()
    expect(visit.page.get_by_role("dialog")).to_be_visible()


def enlarged(visit: Visit) -> None:
    drawn(visit)
    visit.page.get_by_role("button", name="Enlarge").first.click()
    expect(visit.page.get_by_role("dialog")).to_be_visible()


STATES = [
    asking_for_a_key, empty, refusing, too_dear, unreachable,
    drawing, drawn, showing_code, enlarged,
]  # fmt: skip
each_state = pytest.mark.parametrize("reach", STATES, ids=lambda state: state.__name__)
Reach = Callable[[Visit], None]


@pytest.fixture
def phone(visiting: MakeVisit) -> Iterator[Visit]:
    with visiting(viewport=PHONE, has_touch=True, is_mobile=True) as made:
        yield made


@each_state
def test_a_state_is_accessible_in_both_themes_and_on_a_phone(visit: Visit, reach: Reach) -> None:
    visit.refusals_expected = True
    page = visit.page
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    reach(visit)
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        assert problems(visit) == [], scheme
        grounds.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds == {"rgb(246, 246, 243)", "rgb(18, 19, 22)"}
    page.set_viewport_size({"width": 320, "height": 640})
    assert problems(visit) == []
    assert overflow(visit) == []


def overflow(visit: Visit) -> list[str]:
    """Elements that stick out to the right, if the page scrolls sideways."""
    found: list[str] = visit.page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= width) return [];
          return [...document.body.querySelectorAll('*')]
            .filter((element) => element.getBoundingClientRect().right > width)
            .map((element) => element.outerHTML.slice(0, 120));
        }"""
    )
    return found


def test_a_phone_shows_the_button_and_then_the_picture(phone: Visit) -> None:
    phone.open()
    expect(phone.page.locator("#generate")).to_be_in_viewport()
    phone.choose(size="512x512")
    phone.generate()
    expect(phone.page.locator(".tile").first).to_be_in_viewport()
    phone.wait_until_done()
    assert overflow(phone) == []


def running_animations(visit: Visit) -> int:
    count: int = visit.page.evaluate("document.getAnimations().length")
    return count


ATTACKS = """async () => {
  // What the debugger evaluates may use eval(); what runs later is the page's own again.
  await new Promise((done) => setTimeout(done));
  const seen = [];
  const note = (event) => seen.push(event.effectiveDirective);
  document.addEventListener('securitypolicyviolation', note);
  const add = (tag, properties) => {
    document.body.append(Object.assign(document.createElement(tag), properties));
  };
  const tries = [
    () => fetch('http://127.0.0.1:9/'),
    () => { document.body.innerHTML = '<img src=x onerror=window.hacked=1>'; },
    () => add('script', { textContent: 'window.hacked = 1' }),
    () => window.eval('window.hacked = 1'),
    () => add('iframe', { src: location.href }),
    () => document.body.setAttribute('style', 'color: red'),
  ];
  let refused = 0;
  for (const attempt of tries) {
    try { await attempt(); } catch { refused += 1; }
  }
  await new Promise((done) => setTimeout(done, 100));
  return { seen: [...new Set(seen)], refused, hacked: 'hacked' in window };
}"""
"""What an intruder's script would try; the last two raise nothing and must be reported."""


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_want_no_motion(visit: Visit, motion: Any) -> None:
    page = visit.page
    page.emulate_media(reduced_motion=motion)
    held: list[Route] = []  # not answered: the skeleton stays
    page.route("**/web/start.json", lambda route: held.append(route))
    page.goto(visit.url)
    expect(page.locator("#loading")).to_be_visible()
    assert (running_animations(visit) > 0) == (motion == "no-preference")
    held[0].continue_()
    expect(page.locator("#settings")).to_be_visible()


def test_the_policy_is_sent_and_obeyed(visit: Visit, served: Served) -> None:
    visit.refusals_expected = True
    policy = httpx.get(served.url, timeout=MACHINE.allow()).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    visit.open()
    blocked = visit.page.evaluate(ATTACKS)
    assert not blocked["hacked"]
    assert blocked["refused"] == 4
    assert set(blocked["seen"]) >= {
        "connect-src", "frame-src", "require-trusted-types-for", "style-src-attr",
    }  # fmt: skip
    visit.console.clear()  # what the browser said of all this


def test_the_page_cannot_be_framed(visit: Visit, served: Served) -> None:
    visit.refusals_expected = True
    page = visit.page
    page.goto(f"{served.url}/health")
    page.evaluate(
        "const f = document.createElement('iframe'); f.src = '/'; document.body.append(f)"
    )
    expect(page.frame_locator("iframe").locator("#settings")).to_have_count(0)
    assert all(frame.url != f"{served.url}/" for frame in page.frames)
    visit.console.clear()
