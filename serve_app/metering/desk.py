"""What the operator's verbs share: the database, the clock, who acts, and rows as records.

Data flow: `accountverbs`, `keyverbs` and `listings` build on `Desk` -> `admin.LedgerAdmin` is all
of them. Every change goes through `_enter`, in the SQL transaction of the change itself.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import AccountNotFound
from serve_app.metering.bounds import is_storable
from serve_app.metering.database import Database
from serve_app.metering.records import Account, ApiKey, Author
from serve_app.metering.tables import accounts, acts
from serve_app.metering.types import Balance

SYSTEM = Author("system")
"""The server itself, at start; and code that calls the ledger without saying who it is."""


class Desk:
    def __init__(
        self, database: Database, clock: Callable[[], datetime], author: Author = SYSTEM
    ) -> None:
        self._database = database
        self._clock = clock
        self._author = author

    async def _enter(
        self, connection: AsyncConnection, verb: str, subject: str, **detail: object
    ) -> None:
        """Write down what is being done, so that both happen or neither does."""
        await connection.execute(
            insert(acts),
            {
                "at": self._clock(),
                "actor": self._author.actor,
                "verb": verb,
                "subject": subject,
                "reason": self._author.reason,
                "detail": json.dumps(detail),
            },
        )


async def find_account(connection: AsyncConnection, account: str) -> Row[Any]:
    """The row of an account by its id or its name, or `AccountNotFound`."""
    named: ColumnElement[bool] = or_(accounts.c.id == account, accounts.c.name == account)
    row: Row[Any] | None = None
    if is_storable(account):
        row = (await connection.execute(select(accounts).where(named))).one_or_none()
    if row is None:
        raise AccountNotFound(f"There is no account {account!r}.").at("account")
    return row


def account_of(row: Row[Any]) -> Account:
    balance = Balance(row.id, row.name, row.granted, row.captured, row.held)
    return Account(balance, row.created_at, row.disabled_at, row.day_budget, row.month_budget)


def key_of(row: Row[Any]) -> ApiKey:
    hidden = ("sha256", "rate_at_ns")
    columns = {name: value for name, value in row._mapping.items() if name not in hidden}
    columns["scopes"] = tuple(row.scopes.split())
    columns["models"] = None if row.models is None else tuple(row.models.split())
    return ApiKey(**columns)
