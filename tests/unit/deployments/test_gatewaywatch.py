"""The gauges show the ledger and the fleet as they are."""

from collections.abc import Mapping
from typing import Any

from recorded import Recorded
from scripted import World
from sqlalchemy import update

from serve_app import metrics
from serve_app.adminschema import ReplicaStatus
from serve_app.deployments.gatewaywatch import watch_fleet, watch_ledger
from serve_app.errors import LedgerUnavailable, Unavailable
from serve_app.metering.tables import accounts
from serve_app.metering.types import HoldRequest

MODELS = ["flux-mini", "idle"]


def request(world: World, units: int) -> HoldRequest:
    who = world.principal
    sizes = {"n": 1, "width": 64, "height": 64, "steps": 4}
    return HoldRequest(
        who.account_id, who.key_id, "req", "flux-mini", **sizes, units=units, ttl_s=60
    )


async def test_open_holds_are_shown_and_none_is_zero(world: World) -> None:
    recorded = Recorded()
    holds = [await world.ledger.hold(request(world, units)) for units in (10, 32)]
    await watch_ledger(world.ledger, recorded, MODELS)
    assert recorded.gauges[metrics.HOLDS_OPEN] == {("flux-mini",): 2, ("idle",): 0}
    assert recorded.gauges[metrics.UNITS_HELD] == {("flux-mini",): 42, ("idle",): 0}
    for hold in holds:
        await world.ledger.release(hold.id)
    await watch_ledger(world.ledger, recorded, MODELS)
    assert recorded.gauges[metrics.HOLDS_OPEN][("flux-mini",)] == 0
    assert recorded.gauges[metrics.LEDGER_IMBALANCE] == {(): 0}
    assert recorded.gauges[metrics.LEDGER_UP] == {(): 1}


async def test_units_held_by_no_hold_are_an_imbalance(world: World) -> None:
    recorded = Recorded()

    async def add(units: int) -> None:
        async with world.ledger._database.write() as connection:
            await connection.execute(update(accounts).values(held=accounts.c.held + units))

    await add(7)
    await watch_ledger(world.ledger, recorded, MODELS)
    assert recorded.gauges[metrics.LEDGER_IMBALANCE] == {(): 7}
    await add(-7)


async def test_a_ledger_that_is_away_is_down(world: World, monkeypatch: Any) -> None:
    recorded = Recorded()

    async def away() -> None:
        raise LedgerUnavailable("gone")

    monkeypatch.setattr(world.ledger, "pulse", away)
    await watch_ledger(world.ledger, recorded, MODELS)
    assert recorded.gauges[metrics.LEDGER_UP] == {(): 0}
    assert recorded.counts[metrics.LEDGER_OUTAGES] == {("pulse",): 1}
    assert metrics.HOLDS_OPEN not in recorded.gauges


async def test_replicas_are_shown_by_state() -> None:
    recorded = Recorded()

    async def fleet() -> Mapping[str, ReplicaStatus]:
        return {
            "flux-mini": ReplicaStatus(running=2, starting=1, stopping=0, target=3),
            "gone": ReplicaStatus(running=0, starting=0, stopping=0, target=None),
        }

    await watch_fleet(fleet, recorded)
    shown = recorded.gauges[metrics.REPLICAS]
    assert shown[("flux-mini", "running")] == 2
    assert shown[("flux-mini", "target")] == 3
    assert shown[("gone", "running")] == 0
    assert ("gone", "target") not in shown


async def test_a_controller_that_does_not_answer_says_nothing() -> None:
    recorded = Recorded()

    async def fleet() -> Mapping[str, ReplicaStatus]:
        raise Unavailable("no controller")

    await watch_fleet(fleet, recorded)
    assert metrics.REPLICAS not in recorded.gauges
