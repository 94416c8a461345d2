"""The arithmetic of limits: requests a minute, and where days and months of a budget begin. Pure.

Data flow: `quota` reads a key's state under the lock of its account -> `admit` -> the new state.

The rate is a GCRA (ITU-T I.371, the leaky bucket as a virtual schedule): one instant a key, no
counters to reset, and exact: in no stretch of 60 s plus the bucket's refill are more admitted. The
bucket holds a minute's worth, so a client that was idle may send its whole minute at once, which is
what `x-ratelimit-limit-requests` promises.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

WINDOW_NS = 60_000_000_000
"""A minute in nanoseconds: keys are limited in requests a minute."""
RPM_MAX = 100_000
"""Far beyond a gateway. Up to it the rounding of `WINDOW_NS // rpm` admits not one request more."""


@dataclass(frozen=True)
class Rate:
    """Where a key with a request limit stands; shown as `x-ratelimit-*`."""

    limit: int
    """Requests a minute."""
    remaining: int
    """Requests that would be admitted right now."""
    reset_s: float
    """Seconds until all of them would be, without further requests."""


@dataclass(frozen=True)
class Verdict:
    """What a request that comes now is told."""

    rate: Rate
    rate_at_ns: int
    """The state to keep; unchanged when refused."""
    retry_after_s: float | None
    """None: admitted. Else seconds until one request would be."""


def admit(rate_at_ns: int | None, now_ns: int, rpm: int) -> Verdict:
    """Decide on one request of a key that may make `rpm` a minute; whole numbers, so exactly.

    `rate_at_ns` is the instant at which the bucket will be empty again; None for a new key.
    """
    cost = WINDOW_NS // rpm
    empty_at = max(rate_at_ns or 0, now_ns)
    wait_ns = empty_at + cost - now_ns - WINDOW_NS
    refused = wait_ns > 0
    state = empty_at if refused else empty_at + cost
    filled = state - now_ns
    return Verdict(
        rate=Rate(rpm, (WINDOW_NS - filled) // cost, filled / 1e9),
        rate_at_ns=state,
        retry_after_s=wait_ns / 1e9 if refused else None,
    )


def standing(rate_at_ns: int | None, now_ns: int, rpm: int) -> Rate:
    """Where a key stands right now, without a request."""
    filled = max(0, (rate_at_ns or 0) - now_ns)
    return Rate(rpm, (WINDOW_NS - filled) // (WINDOW_NS // rpm), filled / 1e9)


def peek(rate_at_ns: int | None, now_ns: int, rpm: int) -> int:
    """Requests that would be admitted right now, without making one."""
    return standing(rate_at_ns, now_ns, rpm).remaining


def nanoseconds(at: datetime) -> int:
    """Since 1970, exactly."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def first_of_month(day: date) -> date:
    return day.replace(day=1)


def seconds_to_next_day(now: datetime) -> float:
    """Until the next midnight in UTC."""
    return (_midnight(now.date() + timedelta(days=1)) - now).total_seconds()


def seconds_to_next_month(now: datetime) -> float:
    """Until the first midnight of the next month in UTC."""
    later = first_of_month(now.date()) + timedelta(days=32)
    return (_midnight(first_of_month(later)) - now).total_seconds()


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
