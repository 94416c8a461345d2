"""Holds and their ends, many in one SQL transaction, each with its own outcome.

Data flow: `SqlLedger` -> `GroupCommit` -> `run_batch(connection, operations)` -> one `Hold`,
`Resolution` or refusal an operation. A refusal changes nothing, so it needs no rollback: every
check is the condition of the UPDATE that it guards.

Any number of processes run batches at once. Rows are locked in one order, so that they never wait
for each other in a circle: new holds by idempotency key, holds that end or are refunded by id,
accounts by id, keys by id. An idempotency key comes first because its INSERT waits for whoever is
just ending the hold that has it, and that one still needs the account. Usage is changed under the
account's lock only; other inserts wait for nobody.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from serve_app.errors import AppError, IdempotencyKeyReused
from serve_app.metering import statements as sql
from serve_app.metering.endings import Endings
from serve_app.metering.endstatements import SETTLE
from serve_app.metering.limits import Rate
from serve_app.metering.operations import Operation, Outcome, Refund, Reserve, Resolve
from serve_app.metering.quota import Quota, invalid_key, no_quota
from serve_app.metering.types import Hold, HoldRequest, HoldState

Item = TypeVar("Item")


class _Batch:
    """One SQL transaction under way; `outcomes` by the operation's place in the batch."""

    def __init__(self, connection: Connection, now: datetime, undecided: Sequence[str]) -> None:
        self._connection = connection
        self._now = now
        self.outcomes: dict[int, Outcome] = {}
        self._quota = Quota(connection, now, undecided)

    def touch_keys(
        self, reserves: "Sequence[tuple[int, Reserve]]", touch: Mapping[str, datetime]
    ) -> None:
        """Note the use of keys that made a hold."""
        used = {one.request.key_id for i, one in reserves if isinstance(self.outcomes[i], Hold)}
        for key_id in sorted(used.intersection(touch)):
            values = {"key_id": key_id, "now": self._now, "before": touch[key_id]}
            self._connection.execute(sql.TOUCH_KEY, values)

    def insert_keyed(self, reserves: "Sequence[tuple[int, Reserve]]") -> None:
        """The rows of holds with an idempotency key, which claims it, or why they cannot be."""
        keyed = [pair for pair in reserves if pair[1].request.idempotency_key is not None]
        for index, one in sorted(keyed, key=lambda pair: _claim(pair[1].request)):
            try:
                with self._connection.begin_nested():  # a key that is taken undoes this hold only
                    self._insert([one])
            except IntegrityError as exc:
                self.outcomes[index] = _conflict(exc)

    def reserve_all(self, wanted: "Sequence[tuple[int, Reserve]]") -> None:
        """Reserve for holds of one key: the sum at once, or as many as can be had, in order."""
        left = [(index, one) for index, one in wanted if index not in self.outcomes]
        if left:
            self._reserve_all(left)
        for index, one in left:
            if one.request.idempotency_key and not isinstance(self.outcomes[index], Hold):
                self._connection.execute(sql.FORGET_HOLD, {"hold_id": one.hold_id})

    def _reserve_all(self, wanted: "Sequence[tuple[int, Reserve]]") -> None:
        request = wanted[0][1].request
        total = sum(one.request.units for _, one in wanted)
        reserved = self._take(request, total) if total <= sql.UNITS_MAX else None
        if len(wanted) > 1 and (reserved is None or _is_bounded(reserved)):
            if reserved is not None:
                self._give_back(request.account_id, total)
            for index, one in wanted:
                self._reserve_all([(index, one)])
            return
        rate: Rate | AppError | None = None
        if reserved is not None:
            rate = self._quota.check(request, reserved)
            if isinstance(rate, AppError):
                self._give_back(request.account_id, total)
        for index, one in wanted:
            total -= one.request.units
            if reserved is None:
                self.outcomes[index] = self._refusal(one.request)
            elif isinstance(rate, AppError):
                self.outcomes[index] = rate
            else:
                # the later ones of this sum are not taken yet
                self.outcomes[index] = self._hold(one, reserved.available + total, rate)

    def _hold(self, one: Reserve, available: int, rate: Rate | None) -> Hold:
        request = one.request
        expires_at = self._expiry(one)
        return Hold(one.hold_id, request.account_id, request.units, available, expires_at, rate)

    def _give_back(self, account_id: str, units: int) -> None:
        """Undo a reservation of this SQL transaction, which still holds the account's lock."""
        values = {"account_id": account_id, "give_back": units, "charge": 0}
        self._connection.execute(SETTLE, values)

    def _take(self, request: HoldRequest, units: int) -> Row[Any] | None:
        values = {"account_id": request.account_id, "key_id": request.key_id}
        found = self._connection.execute(sql.RESERVE, {**values, "take": units, "now": self._now})
        row: Row[Any] | None = found.one_or_none()
        return row

    def _refusal(self, request: HoldRequest) -> AppError:
        """Why RESERVE took nothing, asked inside the same SQL transaction."""
        values = {"account_id": request.account_id, "key_id": request.key_id, "now": self._now}
        live = self._connection.execute(sql.KEY_IS_LIVE, values).one_or_none()
        return invalid_key() if live is None else no_quota()

    def insert_holds(self, wanted: "Sequence[tuple[int, Reserve]]") -> None:
        """The rows of the holds that were reserved and have no row yet."""
        made = [
            one
            for index, one in wanted
            if one.request.idempotency_key is None and isinstance(self.outcomes[index], Hold)
        ]
        if made:
            self._insert(made)

    def _expiry(self, one: Reserve) -> datetime:
        return self._now + timedelta(seconds=one.request.ttl_s)

    def _insert(self, made: Sequence[Reserve]) -> None:
        rows = [
            {
                "id": one.hold_id,
                **{name: getattr(one.request, name) for name in sql.REQUEST_COLUMNS},
                "captured_units": 0,
                "state": HoldState.OPEN.value,
                "created_at": self._now,
                "expires_at": self._expiry(one),
                "gateway_id": one.gateway_id,
            }
            for one in made
        ]
        self._connection.execute(sql.INSERT_HOLD, rows)


def run_batch(
    connection: Connection,
    operations: Sequence[Operation],
    now: datetime,
    touch: Mapping[str, datetime],
) -> list[Outcome]:
    """Do all operations inside the connection's SQL transaction; one outcome each, in their order.

    What is raised has spoilt the transaction: roll back, and none of them happened. `touch` are the
    keys whose use is to be noted if they made a hold, with the time before which a note is old.
    """
    endings = [(i, one) for i, one in enumerate(operations) if isinstance(one, Resolve | Refund)]
    reserves = [(i, one) for i, one in enumerate(operations) if isinstance(one, Reserve)]
    keyed = [one.hold_id for _, one in reserves if one.request.idempotency_key is not None]
    batch = _Batch(connection, now, keyed)
    ends = Endings(connection, now, batch.outcomes)
    batch.insert_keyed(reserves)
    ended = ends.take(endings)
    settled = _grouped(ended, lambda one: one.charge.account_id)
    wanted = _grouped(reserves, lambda pair: pair[1].request.account_id)
    for account_id in sorted(settled.keys() | wanted.keys()):
        if account_id in settled:
            ends.settle(account_id, settled[account_id])
        same_account = wanted.get(account_id, [])
        for same_key in _grouped(same_account, lambda pair: pair[1].request.key_id).values():
            batch.reserve_all(same_key)
    batch.insert_holds(reserves)
    ends.enter(ended)
    ends.tell_late()
    batch.touch_keys(reserves, touch)
    return [batch.outcomes[index] for index in range(len(operations))]


def _is_bounded(reserved: Row[Any]) -> bool:
    """Whether a limit or a budget has a say beside the balance."""
    budgeted = reserved.day_budget is not None or reserved.month_budget is not None
    return budgeted or bool(reserved.limited)


def _claim(request: HoldRequest) -> tuple[str, str]:
    return request.account_id, request.idempotency_key or ""


def _conflict(exc: IntegrityError) -> AppError:
    """Why a row was refused: its idempotency key is taken, or it names no account or key."""
    if "unique" not in str(exc.orig).lower():
        return invalid_key()
    return IdempotencyKeyReused(
        "This idempotency key belongs to a request that is running or was charged."
    )


def _grouped(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
