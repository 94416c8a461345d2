"""Captured units by day, API key and model: what budgets and reports read.

Data flow: `batch` ends holds -> `add` in the same SQL transaction, under the lock of the account's
row -> `usage_days`. The day is that of the capture, in UTC.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection

from serve_app.metering import statements as sql


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
    sums: dict[tuple[str, str, str], list[int]] = {}
    for one in captures:
        total = sums.setdefault((one.account_id, one.key_id, one.model), [0, 0, 0])
        for place, more in enumerate((1, one.images, one.units)):
            total[place] += more
    for (account_id, key_id, model), (jobs, images, units) in sorted(sums.items()):
        values = {
            "account_id": account_id,
            "day": day,
            "key_id": key_id,
            "model": model,
            "jobs": jobs,
            "images": images,
            "units": units,
        }
        counted = {f"in_{name}": value for name, value in values.items()}
        if connection.execute(sql.ADD_USAGE, counted).one_or_none() is None:
            connection.execute(sql.INSERT_USAGE, values)  # the first of its day
