"""Limits of a key and budgets of an account, checked where units are reserved.

Data flow: `batch` has reserved units and so holds the lock of the account's row -> `Quota.check`
reads what the limits are about -> `Rate` or the refusal, upon which `batch` gives the units back.

Whatever changes a key's open images, its rate or the account's usage does so under that same lock,
so the limits hold exactly, over any number of gateways. Each SELECT here sees what was committed
before the lock was had: on PostgreSQL because a statement sees more than its transaction's first.
"""

import math
from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from serve_app.errors import (
    AppError,
    BudgetExceeded,
    InsufficientQuota,
    InvalidKey,
    RateLimitExceeded,
)
from serve_app.metering import statements as sql
from serve_app.metering.limits import (
    Rate,
    admit,
    first_of_month,
    nanoseconds,
    seconds_to_next_day,
    seconds_to_next_month,
    standing,
)
from serve_app.metering.types import HoldRequest

IMAGES_RETRY_AFTER_S = 2
"""An image takes about this long; when one of the key's ends, nobody can say from here."""


class Quota:
    """Of one SQL transaction. `undecided` are holds whose rows stand but may yet be refused."""

    def __init__(self, connection: Connection, now: datetime, undecided: Collection[str]) -> None:
        self._connection = connection
        self._now = now
        self._undecided = list(undecided)
        self._images: dict[str, int] = {}

    def check(self, request: HoldRequest, reserved: Row[Any]) -> Rate | AppError | None:
        """The key's rate after this hold, None where it has none, or why the hold is refused."""
        refusal = self._over_budget(request.account_id, reserved)
        if refusal is not None or not reserved.limited:
            return refusal
        key = self._connection.execute(
            sql.KEY_LIMITS, {"key_id": request.key_id, "undecided": self._undecided}
        ).one()
        mine = self._images.get(request.key_id, 0)
        if key.images_max is not None and key.images + mine + request.n > key.images_max:
            return self._too_many_images(key)
        rate: Rate | None = None
        if key.rpm is not None:
            verdict = admit(key.rate_at_ns, nanoseconds(self._now), key.rpm)
            rate = verdict.rate
            if verdict.retry_after_s is not None:
                return _too_fast(rate, verdict.retry_after_s)
            values = {"key_id": request.key_id, "rate_at_ns": verdict.rate_at_ns}
            self._connection.execute(sql.SET_RATE, values)
        self._images[request.key_id] = mine + request.n
        return rate

    def _too_many_images(self, key: Any) -> RateLimitExceeded:
        error = RateLimitExceeded(
            f"This API key may have {key.images_max} images in the making at once."
        ).after(IMAGES_RETRY_AFTER_S)
        if key.rpm is not None:
            error.rate = standing(key.rate_at_ns, nanoseconds(self._now), key.rpm)
        return error

    def _over_budget(self, account_id: str, reserved: Row[Any]) -> AppError | None:
        if reserved.day_budget is None and reserved.month_budget is None:
            return None
        today = self._now.date()
        values = {"account_id": account_id, "today": today, "month": first_of_month(today)}
        spent = self._connection.execute(sql.SPENT, values).one()
        budgets = (
            ("day", reserved.day_budget, spent.day, seconds_to_next_day(self._now)),
            ("month", reserved.month_budget, spent.month, seconds_to_next_month(self._now)),
        )
        for name, budget, units, wait_s in budgets:
            if budget is not None and int(units) + reserved.held > budget:
                return BudgetExceeded(
                    f"This request would exceed the account's budget of {budget} compute units "
                    f"a {name}."
                ).after(math.ceil(wait_s))
        return None


def _too_fast(rate: Rate, retry_after_s: float) -> RateLimitExceeded:
    error = RateLimitExceeded(f"This API key may make {rate.limit} requests a minute.")
    error.rate = rate
    error.after(max(1, math.ceil(retry_after_s)))
    return error


def invalid_key() -> InvalidKey:
    """For a key that is unknown, revoked or expired, or whose account is disabled."""
    return InvalidKey("Incorrect API key provided.")


def no_quota() -> InsufficientQuota:
    return InsufficientQuota("The account has too few compute units left for this request.")
