"""Captured units by day, API key and model: what budgets and reports read.

Data flow: `endings` ends holds -> `add` or `take_back` in the same SQL transaction, under the lock
of the account's row -> `usage_days`. The day is that of the capture, in UTC.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Connection

from serve_app.metering import statements as sql

COLUMNS = ("account_id", "day", "key_id", "model", "jobs", "images", "units")


@dataclass(frozen=True)
class Captured:
    """One hold's capture."""

    account_id: str
    key_id: str
    model: str
    images: int
    units: int


def images_of(n: int, units: int, charged: int) -> int:
    """How many of a hold's `n` images were charged: all cost the same, up to rounding."""
    return round(n * charged / units)


def add(connection: Connection, day: date, captures: Iterable[Captured]) -> None:
    """Count captures of one account. Whoever calls this holds the lock of the account's row."""
    for values in _sums((day, one) for one in captures):
        if connection.execute(sql.ADD_USAGE, _counted(values)).one_or_none() is None:
            connection.execute(sql.INSERT_USAGE, values)  # the first of its day


def take_back(connection: Connection, refunds: Iterable[tuple[date, Captured]]) -> None:
    """Count captures of one account no longer, each with its day; under the same lock."""
    for values in _sums(refunds):
        if not connection.execute(sql.END_USAGE, _counted(values)).rowcount:
            less = {name: -values[name] for name in ("jobs", "images", "units")}
            connection.execute(sql.ADD_USAGE, _counted({**values, **less}))


def _sums(captures: Iterable[tuple[date, Captured]]) -> list[dict[str, Any]]:
    """Rows of `usage_days`, in the order of their keys."""
    sums: dict[tuple[str, date, str, str], list[int]] = {}
    for day, one in captures:
        total = sums.setdefault((one.account_id, day, one.key_id, one.model), [0, 0, 0])
        for place, more in enumerate((1, one.images, one.units)):
            total[place] += more
    return [
        dict(zip(COLUMNS, (*group, *total), strict=True)) for group, total in sorted(sums.items())
    ]


def _counted(values: dict[str, Any]) -> dict[str, Any]:
    return {f"in_{name}": value for name, value in values.items()}
