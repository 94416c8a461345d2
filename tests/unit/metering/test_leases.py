"""A gateway that dies gives its holds and keys back soon, and one that was only stopped is safe."""

import pytest
from ledger_bench import LEASE_S, TURN_S, Clock, Customer, Fleet, Steady, make_customer

from serve_app.errors import LedgerUnavailable
from serve_app.metering.leases import BEATS, Watch
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import Hold, HoldState, Inheritance


async def hold(ledger: SqlLedger, customer: Customer, key: str | None = None) -> Hold:
    return await ledger.hold(customer.job(10, idempotency_key=key))


async def test_a_dead_gateways_holds_are_released_after_a_lease_and_their_keys_with_them(fleet):
    dead, alive = fleet.gateway(), fleet.gateway()
    alice = await make_customer(alive)
    await fleet.live(TURN_S)
    lost, going_on = await hold(dead, alice, "order-17"), await hold(alive, alice)
    fleet.down.add(dead)
    assert await fleet.live(LEASE_S) == 0  # from the first look after its last beat on
    assert await fleet.live(TURN_S) == 1
    assert (await alive.capture(lost.id, 10)).state is HoldState.EXPIRED
    assert (await hold(alive, alice, "order-17")).id != lost.id
    assert (await alive.capture(going_on.id, 10)).captured_units == 10
    balance = await alive.balance(alice.principal.account_id)
    assert (balance.captured, balance.held) == (10, 10)
    assert (await alive.admin.audit()).balanced


async def test_two_gateways_that_find_a_third_dead_at_once_release_its_holds_once(fleet):
    dead, *alive = (fleet.gateway() for _ in range(3))
    alice = await make_customer(dead)
    await fleet.live(TURN_S)
    for _ in range(5):
        await hold(dead, alice)
    fleet.down.add(dead)
    assert await fleet.live(LEASE_S * 2) == 5
    balance = await alive[0].balance(alice.principal.account_id)
    assert (balance.captured, balance.held) == (0, 0)
    assert (await alive[0].admin.audit()).balanced


async def test_a_gateway_that_lives_keeps_its_holds_for_as_long_as_it_likes(fleet):
    slow, _ = fleet.gateway(), fleet.gateway()
    alice = await make_customer(slow)
    await fleet.live(TURN_S)
    long = await hold(slow, alice)
    assert await fleet.live(LEASE_S * 5) == 0
    assert (await slow.capture(long.id, 10)).captured_units == 10


async def test_a_gateway_that_was_stopped_for_longer_than_a_lease_charges_nothing_and_goes_on(
    fleet,
):
    stopped, other = fleet.gateway(), fleet.gateway()
    alice = await make_customer(other)
    await fleet.live(TURN_S)
    late = await hold(stopped, alice)
    fleet.down.add(stopped)
    assert await fleet.live(LEASE_S * 2) == 1
    fleet.down.clear()
    assert (await stopped.capture(late.id, 10)).captured_units == 0
    again = await hold(stopped, alice)
    assert await fleet.live(LEASE_S * 2) == 0
    assert (await stopped.capture(again.id, 10)).captured_units == 10


async def test_after_an_outage_of_the_database_nobody_is_taken_for_dead(postgresql, make_bench):
    """While nobody can give a sign of life, nobody can be blamed for giving none."""
    bench = make_bench(postgresql.url, busy_timeout_s=postgresql.impatient())
    fleet = Fleet(bench)
    one, two = fleet.gateway(), fleet.gateway()
    alice = await make_customer(one)
    await fleet.live(TURN_S)
    under_way = await hold(one, alice)
    with postgresql.locked():
        for _ in range(2 * BEATS):
            fleet.steady.now += TURN_S
            for gateway in (one, two):
                with pytest.raises(LedgerUnavailable):
                    await gateway.beat()
    fleet.steady.now += TURN_S
    assert await two.beat() == Inheritance()  # before the other one had a chance
    assert await fleet.live(LEASE_S * 2) == 0
    assert (await one.capture(under_way.id, 10)).captured_units == 10


async def test_a_clock_that_is_wrong_kills_nobody(bench, fleet):
    early, other = fleet.gateway(), fleet.gateway()
    alice = await make_customer(early)
    await fleet.live(TURN_S)
    under_way = await hold(early, alice)
    other._clock = Clock(bench.clock.now.replace(year=2001))
    other._leases._clock = other._clock
    assert await fleet.live(LEASE_S * 2) == 0
    assert (await early.capture(under_way.id, 10)).captured_units == 10


async def test_who_never_beats_has_its_holds_until_they_expire(fleet):
    quiet, _ = fleet.gateway(), fleet.gateway()
    alice = await make_customer(quiet)
    fleet.down.add(quiet)
    await hold(quiet, alice)
    assert await fleet.live(LEASE_S * 3) == 0


async def test_rows_of_gateways_long_gone_are_thrown_away_by_the_next_that_starts(
    bench, fleet, backend
):
    await fleet.gateway().beat()
    bench.clock.advance(86_400 * 2)
    await fleet.gateway().beat()
    assert backend.contents().count("'gw_") == 1


def test_a_watch_blames_nobody_for_time_in_which_it_did_not_look():
    steady = Steady()
    watch = Watch(LEASE_S, steady)
    assert watch.look({"gw_1": 7}) == []
    steady.now += LEASE_S * 10
    assert watch.look({"gw_1": 7}) == []
    for _ in range(BEATS - 1):
        steady.now += TURN_S
        assert watch.look({"gw_1": 7}) == []
    steady.now += TURN_S
    assert watch.look({"gw_1": 7}) == ["gw_1"]
