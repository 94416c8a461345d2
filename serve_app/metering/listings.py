"""What operators and customers read: accounts, keys, entries, acts, usage and what is left.

Data flow: `LedgerAdmin` -> one bounded SELECT a page -> records. A page begins after the `cursor`
of the last record of the one before, so rows that come meanwhile neither repeat nor hide others.
"""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, Select, Table, func, literal, select, tuple_

from serve_app.errors import InvalidValue, KeyNotFound
from serve_app.metering import statements as sql
from serve_app.metering.bounds import is_storable
from serve_app.metering.desk import Desk, account_of, find_account, key_of
from serve_app.metering.limits import (
    first_of_month,
    nanoseconds,
    peek,
    seconds_to_next_day,
    seconds_to_next_month,
)
from serve_app.metering.records import (
    Account,
    Act,
    Allowance,
    ApiKey,
    Entry,
    Standing,
    UsageRow,
)
from serve_app.metering.tables import accounts, acts, api_keys, entries, usage_days
from serve_app.metering.types import LIST_MAX

USAGE_DAYS_MAX = 366
"""Days that one report adds up: a leap year."""
USAGE_DAYS_DEFAULT = 30
"""Days of a report that names none."""
USAGE_GROUPS = {
    "day": usage_days.c.day,
    "account": usage_days.c.account_id,
    "key": usage_days.c.key_id,
    "model": usage_days.c.model,
}
"""What usage may be summed up by, in the order of the rows."""
ID_MAX = 2**63 - 1


class Listed(Protocol):
    @property
    def cursor(self) -> str: ...


Item = TypeVar("Item", bound=Listed)


@dataclass(frozen=True)
class UsageQuery:
    """Which usage, and summed up by what. Days are of UTC, both inclusive."""

    since: date
    until: date
    by: Collection[str] = tuple(USAGE_GROUPS)
    account: str | None = None
    """Its id or name."""
    key_id: str | None = None
    model: str | None = None


class Listings(Desk):
    async def list_accounts(self, limit: int = LIST_MAX, after: str | None = None) -> list[Account]:
        """Oldest first."""
        query = await self._oldest_first(accounts, limit, after)
        async with self._database.read() as connection:
            return [account_of(row) for row in await connection.execute(query)]

    async def show_account(self, account: str) -> Account:
        async with self._database.read() as connection:
            return account_of(await find_account(connection, account))

    async def list_keys(
        self, account: str | None = None, limit: int = LIST_MAX, after: str | None = None
    ) -> list[ApiKey]:
        """Oldest first, of one account or of all."""
        query = await self._oldest_first(api_keys, limit, after)
        async with self._database.snapshot() as connection:
            if account is not None:
                row = await find_account(connection, account)
                query = query.where(api_keys.c.account_id == row.id)
            return [key_of(row) for row in await connection.execute(query)]

    async def list_entries(
        self, account: str | None = None, limit: int = LIST_MAX, after: str | None = None
    ) -> list[Entry]:
        """Newest first, of one account or of all."""
        query = _newest_first(entries, limit, after)
        async with self._database.snapshot() as connection:
            if account is not None:
                row = await find_account(connection, account)
                query = query.where(entries.c.account_id == row.id)
            return [Entry(**row._mapping) for row in await connection.execute(query)]

    async def list_acts(
        self, subject: str | None = None, limit: int = LIST_MAX, after: str | None = None
    ) -> list[Act]:
        """Newest first; `subject` is the id of an account or a key."""
        query = _newest_first(acts, limit, after)
        if subject is not None:
            if not is_storable(subject):
                return []
            query = query.where(acts.c.subject == subject)
        async with self._database.read() as connection:
            return [
                Act(**{**row._mapping, "detail": json.loads(row.detail)})
                for row in await connection.execute(query)
            ]

    async def usage(
        self, query: UsageQuery, limit: int = LIST_MAX, after: str | None = None
    ) -> list[UsageRow]:
        """Captured units, oldest day first."""
        columns = {name: column for name, column in USAGE_GROUPS.items() if name in query.by}
        chosen = _usage(query, columns, after).limit(limit)
        async with self._database.snapshot() as connection:
            if query.account is not None:
                row = await find_account(connection, query.account)
                chosen = chosen.where(usage_days.c.account_id == row.id)
            return [
                UsageRow(
                    day=row.day if "day" in columns else None,
                    account_id=row.account_id if "account" in columns else None,
                    key_id=row.key_id if "key" in columns else None,
                    model=row.model if "model" in columns else None,
                    jobs=int(row.jobs),
                    images=int(row.images),
                    units=int(row.units),
                )
                for row in await connection.execute(chosen)
            ]

    async def standing(self, account_id: str, key_id: str) -> Standing:
        """What an account and one of its keys may still do, at one moment."""
        now = self._clock()
        today = now.date()
        spent_by = {"account_id": account_id, "today": today, "month": first_of_month(today)}
        async with self._database.snapshot() as connection:
            account = await find_account(connection, account_id)
            spent = (await connection.execute(sql.SPENT, spent_by)).one()
            found = await connection.execute(sql.KEY_LIMITS, {"key_id": key_id, "undecided": []})
            key = found.one_or_none()
        if key is None:
            raise KeyNotFound(f"There is no key {key_id!r}.").at("key")
        left = None if key.rpm is None else peek(key.rate_at_ns, nanoseconds(now), key.rpm)
        day_end = now + timedelta(seconds=seconds_to_next_day(now))
        month_end = now + timedelta(seconds=seconds_to_next_month(now))
        return Standing(
            day=Allowance(account.day_budget, int(spent.day) + account.held, day_end),
            month=Allowance(account.month_budget, int(spent.month) + account.held, month_end),
            rpm=key.rpm,
            requests_left=left,
            images_max=key.images_max,
            images_open=int(key.images),
        )

    async def _oldest_first(self, table: Table, limit: int, after: str | None) -> Select[Any]:
        query = select(table).order_by(table.c.created_at, table.c.id).limit(limit)
        if after is None:
            return query
        place = None
        if is_storable(after):
            async with self._database.read() as connection:
                where = select(table.c.created_at).where(table.c.id == after)
                place = (await connection.execute(where)).scalar_one_or_none()
        if place is None:
            raise _bad_cursor()
        at = literal(place, table.c.created_at.type)
        return query.where(tuple_(table.c.created_at, table.c.id) > tuple_(at, literal(after)))


async def walk(
    fetch: Callable[[int, str | None], Awaitable[Sequence[Item]]], after: str | None = None
) -> AsyncIterator[Sequence[Item]]:
    """All pages of a listing, one after the other; `fetch` takes `limit` and `after`."""
    while True:
        page = await fetch(LIST_MAX, after)
        yield page
        if len(page) < LIST_MAX:
            return
        after = page[-1].cursor


def _newest_first(table: Table, limit: int, after: str | None) -> Select[Any]:
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if after is None:
        return query
    if not (after.isascii() and after.isdigit() and len(after) < 20 and int(after) <= ID_MAX):
        raise _bad_cursor()
    return query.where(table.c.id < int(after))


def _usage(
    query: UsageQuery, columns: Mapping[str, ColumnElement[Any]], after: str | None
) -> Select[Any]:
    days = (query.until - query.since).days + 1
    if not 0 < days <= USAGE_DAYS_MAX:
        raise InvalidValue(f"A report is about 1 to {USAGE_DAYS_MAX} days.").at("from")
    if not columns or len(columns) < len(query.by):
        names = ", ".join(USAGE_GROUPS)
        raise InvalidValue(f"Usage is summed up by one or more of {names}.").at("by")
    sums = [func.sum(usage_days.c[name]).label(name) for name in ("jobs", "images", "units")]
    chosen = (
        select(*columns.values(), *sums)
        .where(usage_days.c.day.between(query.since, query.until))
        .group_by(*columns.values())
        .order_by(*columns.values())
    )
    for name, column in (("key_id", usage_days.c.key_id), ("model", usage_days.c.model)):
        wanted = getattr(query, name)
        if wanted is not None:
            chosen = chosen.where(column == wanted if is_storable(wanted) else literal(False))
    if after is None:
        return chosen
    place = [literal(value, columns[name].type) for name, value in _place(columns, after).items()]
    return chosen.where(tuple_(*columns.values()) > tuple_(*place))


def _place(columns: Mapping[str, ColumnElement[Any]], after: str) -> dict[str, Any]:
    """The group that a page begins after, from its row's cursor."""
    try:
        padded = after.encode("ascii") + b"=" * (-len(after) % 4)
        group = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not isinstance(group, list) or not all(isinstance(one, str) for one in group):
            raise _bad_cursor()
        if not all(is_storable(one) for one in group):
            raise _bad_cursor()
        place: dict[str, Any] = dict(zip(columns, group, strict=True))
        if "day" in place:
            place["day"] = date.fromisoformat(place["day"])
    except (ValueError, RecursionError):
        raise _bad_cursor() from None
    return place


def _bad_cursor() -> InvalidValue:
    return InvalidValue("This is no place in this listing: take it from `next`.").at("after")
