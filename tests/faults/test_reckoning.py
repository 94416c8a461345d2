"""The reckoning itself: it finds each kind of wrong, and takes no honest run for one."""

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.clients import Attempt
from tests.faults.reckoning import CONFIRM_S, Allowed, Fault, HoldRow, reckon

PRICE = 256 * 256
ERROR = {"message": "no", "type": "server_error", "param": None, "code": "internal_error"}
KILL = Fault("kill gateway", 10.5, 10.5)
LATER = Fault("kill gateway", 14.0, 14.0)
ENDED = 11.0
OUTAGE = Fault("stall database", 9.0, 13.0)
CHARGE_S = 5.0
PROXY = Fault("kill proxy", 10.5, 12.0)
AWAY = Fault("store away", 10.0, 11.0)


def attempt(name: str = "r", **seen: Any) -> Attempt:
    stream = seen.pop("stream", False)
    body = {"size": "256x256", "n": 2, "stream": stream}
    made = Attempt(name, body, began=10.0, ended=ENDED)
    return replace(made, **seen)


def served(name: str = "r", **seen: Any) -> Attempt:
    return attempt(name, **{"status": 200, "finished": True, "pictures": {0: b"", 1: b""}, **seen})


def failed(status: int = 500, code: str = "internal_error", **seen: Any) -> Attempt:
    error = {**ERROR, "code": code}
    return attempt(**{"status": status, "finished": True, "error": error, **seen})


def gateway_killed(at: float) -> Fault:
    return Fault("kill gateway", at, at)


def hold(units: int, name: str = "r", state: str = "") -> HoldRow:
    return HoldRow(f"hold-{name}", name, 2 * PRICE, units, state or "captured" * bool(units) or "x")


@pytest.mark.parametrize(
    ("seen", "units", "faults", "outcome"),
    [
        (served(), 2 * PRICE, [], "delivered and charged"),
        (failed(), 0, [KILL], "failed, free: internal_error"),
        (failed(503), 0, [Fault("kill node", 2.0, 3.0)], "failed, free: internal_error"),
        (failed(503, "store_unavailable"), 0, [AWAY], "failed, free: store_unavailable"),
        (failed(504, "timeout"), 0, [AWAY], "failed, free: timeout"),
        (attempt(left=True), 0, [], "client left, free"),
        (attempt(left=True), 2 * PRICE, [], "charged, client left"),
        (attempt(broken="reset"), 2 * PRICE, [PROXY], "charged, reply lost"),
        (attempt(broken="refused"), 0, [PROXY], "failed, free: connection lost"),
        (served(stream=True), 2 * PRICE, [], "delivered and charged"),
        (
            failed(200, stream=True, pictures={0: b""}),
            PRICE,
            [KILL],
            "delivered and charged",
        ),
        (
            attempt(stream=True, status=200, pictures={0: b""}, broken="cut"),
            0,
            [KILL],
            "given away",
        ),
        (served(stream=True), 0, [OUTAGE, LATER], "given away"),
        (served(), 0, [OUTAGE, LATER], "given away"),
    ],
)
def test_an_honest_end_is_counted(
    seen: Attempt, units: int, faults: list[Fault], outcome: str
) -> None:
    found = reckon([seen], [hold(units)], faults, allowed=Allowed(CHARGE_S))
    assert found.wrongs == []
    assert found.counts == {outcome: 1}
    assert found.charged == units


@pytest.mark.parametrize(
    ("seen", "units", "faults"),
    [
        (served(), 0, []),  # given away without a stream
        (served(), 0, [KILL]),
        (served(), 0, [OUTAGE]),  # the gateway lived, and had time
        (served(), 0, [OUTAGE, Fault("kill gateway", 17.0, 17.0)]),
        (served(), 0, [LATER]),  # nothing kept it from charging
        (served(stream=True), 0, [OUTAGE]),
        (served(stream=True), 0, [Fault("stall gateway", 10.0, 11.0)]),
        (served(stream=True), 0, [LATER]),
        (served(), PRICE, []),
        (failed(), 2 * PRICE, []),  # charged for nothing, and nothing had been killed
        (failed(), 2 * PRICE, [KILL]),  # what a dead gateway has not sent is refunded
        (failed(), 2 * PRICE, [Fault("kill node", 10.5, 12.0)]),
        (failed(), 2 * PRICE, [Fault("kill model", 10.5, 10.5)]),
        (failed(), 2 * PRICE, [Fault("kill gateway", 2.0, 2.0)]),  # not at that time
        (failed(400), 0, [KILL]),
        (failed(429), 0, [KILL]),
        (failed(), 0, []),  # nothing was broken
        (failed(), 0, [Fault("kill gateway", -50.0, -50.0)]),  # not lately
        (failed(), 0, [Fault("kill gateway", 11.5, 11.5)]),  # not yet
        (failed(), 0, [AWAY]),  # nothing that leads to this
        (failed(503, "ledger_unavailable"), 0, [KILL, AWAY]),
        (failed(503, "no_such_code"), 0, [KILL, AWAY]),
        (attempt(broken="reset"), 0, []),
        (attempt(broken="reset"), 0, [KILL]),  # the proxy would have answered
        (served(wrong="no JSON"), 2 * PRICE, []),
        (served(stream=True, pictures={0: b""}), PRICE, []),  # an image short, and not a word
        (served(stream=True), PRICE, []),
        (failed(200, stream=True, pictures={0: b""}), 2 * PRICE, []),
    ],
)
def test_a_wrong_end_is_found(seen: Attempt, units: int, faults: list[Fault]) -> None:
    assert reckon([seen], [hold(units)], faults, allowed=Allowed(CHARGE_S)).wrongs


NODE = Fault("kill node", 10.5, 12.0)
SOON = Fault("kill gateway", 11.6, 11.6)
"""After the reply, before it was confirmed."""
CONFIRMED = ENDED + CONFIRM_S + 0.1
"""From now on a gateway has had the time."""


@pytest.mark.parametrize(
    ("seen", "faults", "outcome"),
    [
        (failed(), [KILL], "reply lost, refunded"),
        (failed(), [NODE], "reply lost, refunded"),
        (attempt(broken="reset"), [PROXY, LATER], "reply lost, refunded"),
        (attempt(left=True), [KILL], "client left, refunded"),
        (attempt(left=True), [LATER], "client left, refunded"),
        (served(), [KILL], "given away"),
        (served(), [SOON], "given away"),
        (served(), [gateway_killed(CONFIRMED - 0.2)], "given away"),
        (served(), [OUTAGE, gateway_killed(OUTAGE.ended + 2 * CONFIRM_S - 0.1)], "given away"),
        (
            served(),
            [Fault("database locked", 13.0, 30.0), Fault("kill node", 35.0, 37.0)],
            "given away",
        ),
    ],
)
def test_a_refund_is_explained_by_a_gateway_that_died_with_the_reply(
    seen: Attempt, faults: list[Fault], outcome: str
) -> None:
    found = reckon([seen], [hold(0, state="refunded")], faults, allowed=Allowed(CHARGE_S))
    assert found.wrongs == []
    assert found.counts == {outcome: 1}


@pytest.mark.parametrize(
    ("seen", "faults"),
    [
        (served(), []),
        (served(), [PROXY]),  # its gateway lived, and kept the charge
        (served(), [OUTAGE]),
        (served(), [Fault("stall gateway", 10.0, 12.0)]),
        (served(), [Fault("kill gateway", 9.0, 9.0)]),  # before it began
        (served(), [gateway_killed(CONFIRMED)]),
        (served(), [Fault("database locked", CONFIRMED, 99.0), gateway_killed(CONFIRMED + 0.1)]),
        (served(), [OUTAGE, gateway_killed(OUTAGE.ended + 2 * CONFIRM_S + 0.1)]),
        (served(stream=True), [KILL]),  # charged after it was sent
        (served(key="k"), [KILL]),  # fetchable
        (attempt(left=True), []),
        (attempt(left=True), [Fault("kill gateway", 17.0, 17.0)]),
    ],
)
def test_a_refund_that_nothing_explains_is_found(seen: Attempt, faults: list[Fault]) -> None:
    assert reckon([seen], [hold(0, state="refunded")], faults, allowed=Allowed(CHARGE_S)).wrongs


def test_a_hold_that_never_ends_is_found() -> None:
    assert reckon([failed()], [hold(0, state="open")], [KILL]).wrongs


def test_a_charge_that_may_yet_be_given_back_is_found() -> None:
    waiting = replace(hold(2 * PRICE), undelivered_by="gw_1")
    assert reckon([served()], [waiting], [KILL]).wrongs


def test_what_was_over_before_a_calm_explains_nothing_after_it() -> None:
    over = Fault("kill gateway", 5.0, 5.0)
    assert reckon([failed()], [hold(0)], [over], calms=[4.0]).wrongs == []
    assert reckon([failed()], [hold(0)], [over], calms=[9.0]).wrongs
    assert reckon([failed()], [hold(0)], [over], calms=[20.0]).wrongs == []  # a later one


def test_a_hold_that_nobody_asked_for_is_found() -> None:
    assert reckon([], [hold(0)], []).wrongs


def test_a_key_is_charged_once_however_often_it_is_tried() -> None:
    lost, got = failed(key="k"), served("again", key="k")
    found = reckon([lost, got], [hold(2 * PRICE)], [KILL])
    assert found.wrongs == []
    assert found.counts["with a key: charged, got by asking again"] == 1


@pytest.mark.parametrize(
    ("tries", "holds"),
    [
        ([failed(key="k")], [hold(2 * PRICE)]),
        ([failed(key="k")], []),
        ([served(key="k")], []),
        (
            [failed(key="k"), served("again", key="k")],
            [hold(2 * PRICE), hold(2 * PRICE, "again")],
        ),
    ],
    ids=["paid and never got", "never got", "free", "paid twice"],
)
def test_what_may_not_happen_under_a_key_is_found(
    tries: list[Attempt], holds: list[HoldRow]
) -> None:
    assert reckon(tries, holds, [KILL]).wrongs
