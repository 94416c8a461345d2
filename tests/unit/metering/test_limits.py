"""The arithmetic of the request limit, against a plain count of what was admitted."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from serve_app.metering.limits import (
    WINDOW_NS,
    admit,
    nanoseconds,
    seconds_to_next_day,
    seconds_to_next_month,
)

NOW = nanoseconds(datetime(2026, 11, 22, 12, tzinfo=UTC))


def admitted(instants: list[int], rpm: int) -> list[int]:
    state, found = None, []
    for now in instants:
        verdict = admit(state, now, rpm)
        state = verdict.rate_at_ns
        if verdict.retry_after_s is None:
            found.append(now)
    return found


def test_a_fresh_key_may_use_its_whole_minute_at_once_and_nothing_more():
    assert len(admitted([NOW] * 20, rpm=7)) == 7


def test_the_remaining_requests_are_counted_down_and_told():
    state, told = None, []
    for _ in range(4):
        verdict = admit(state, NOW, 3)
        state = verdict.rate_at_ns
        told.append(verdict.rate.remaining)
    assert told == [2, 1, 0, 0]


def test_a_refused_request_costs_nothing_and_is_told_when_to_come_back():
    state = None
    for _ in range(60):
        state = admit(state, NOW, 60).rate_at_ns
    refused = admit(state, NOW, 60)
    assert refused.retry_after_s is not None
    assert 0.99 < refused.retry_after_s < 1.01
    assert refused.rate_at_ns == state
    later = NOW + round(refused.retry_after_s * 1e9) + 1
    assert admit(state, later, 60).retry_after_s is None


@given(
    rpm=st.integers(1, 5000),
    gaps=st.lists(st.integers(0, WINDOW_NS // 3), min_size=1, max_size=200),
)
def test_no_minute_sees_more_than_a_full_bucket_and_its_refill(rpm, gaps):
    now, instants = NOW, []
    for gap in gaps:
        now += gap
        instants.append(now)
    found = admitted(instants, rpm)
    for i, first in enumerate(found):
        for j in range(i, len(found)):
            refill = (found[j] - first) // (WINDOW_NS // rpm)
            assert j - i + 1 <= rpm + refill + 1
    assert len(admitted([NOW] * (rpm + 5), rpm)) == rpm


@given(rpm=st.integers(1, 600), count=st.integers(1, 1000))
def test_a_key_that_keeps_to_its_pace_is_never_refused(rpm, count):
    pace = WINDOW_NS / rpm
    instants = [NOW + int(i * pace) + i for i in range(count)]
    assert len(admitted(instants, rpm)) == count


def test_days_and_months_end_at_midnight_utc():
    now = datetime(2026, 12, 31, 23, 59, 0, tzinfo=UTC)
    assert seconds_to_next_day(now) == seconds_to_next_month(now) == 60
    assert seconds_to_next_month(datetime(2028, 2, 1, tzinfo=UTC)) == 29 * 86_400
